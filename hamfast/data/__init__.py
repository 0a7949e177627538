"""Reading and writing of DFT matrices, data sets, and crystal graphs with targets."""

from hamfast.data.blocks import BlockMatrix
from hamfast.data.build_graph import blocks_from_irreps, build_graph
from hamfast.data.dataset import GraphDataset, dataset_spec, graph_loader
from hamfast.data.formats import by_name, find_structures, format_of, read_snapshot
from hamfast.data.snapshot import Snapshot
from hamfast.data.split import read_split, write_split

__all__ = [
    "BlockMatrix",
    "GraphDataset",
    "Snapshot",
    "blocks_from_irreps",
    "build_graph",
    "by_name",
    "dataset_spec",
    "find_structures",
    "format_of",
    "graph_loader",
    "read_snapshot",
    "read_split",
    "write_split",
]
