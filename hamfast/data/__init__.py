"""Reading and writing of DFT matrices, data sets, and crystal graphs with targets."""

from typing import TYPE_CHECKING

from hamfast.data.blocks import BlockMatrix
from hamfast.data.formats import by_name, find_structures, format_of, read_snapshot
from hamfast.data.snapshot import Snapshot
from hamfast.data.split import read_split, write_split
from hamfast.on_demand import on_demand

if TYPE_CHECKING:
    from hamfast.data.dataset import GraphDataset, dataset_spec, graph_loader
    from hamfast.data.graphs import blocks_from_irreps, build_graph

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

# Reading files, splitting sets and plotting bands take no torch.
__getattr__ = on_demand(
    __name__,
    {
        "GraphDataset": "hamfast.data.dataset",
        "blocks_from_irreps": "hamfast.data.graphs",
        "build_graph": "hamfast.data.graphs",
        "dataset_spec": "hamfast.data.dataset",
        "graph_loader": "hamfast.data.dataset",
    },
)
