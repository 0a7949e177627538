"""Reading and writing of DFT matrices, data sets, and crystal graphs with targets."""

from typing import TYPE_CHECKING

from hamfast.data.blocks import BlockMatrix
from hamfast.data.formats import by_name, find_structures, format_of, read_snapshot
from hamfast.data.snapshot import Snapshot
from hamfast.data.split import read_split, write_split

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

_WITH_TORCH = {
    "GraphDataset": "dataset",
    "blocks_from_irreps": "graphs",
    "build_graph": "graphs",
    "dataset_spec": "dataset",
    "graph_loader": "dataset",
}


def __getattr__(name):
    # On demand: reading files, splitting sets and plotting bands take no torch, which takes seconds to load.
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'hamfast.data' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hamfast.data.{_WITH_TORCH[name]}"), name)
