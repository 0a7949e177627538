"""``[2, edges]`` tensors as prepared graphs: sorted once, remembered while the tensor lives and is not written to."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from hamfast.ops import EdgeIndex, edge_index


class PairGraph(NamedTuple):
    edges: EdgeIndex
    kept: Tensor | None
    """``[edges given]`` bool: those that are no self-loops, which come first; the added loops follow. None: edges as given."""

    @property
    def pairs(self) -> Tensor:
        """``[2, edges]``, as the weights are returned for."""
        return torch.stack([self.edges.senders, self.edges.receivers])


class _Remembered(NamedTuple):
    tensor: weakref.ref
    version: int
    graph: PairGraph


_REMEMBERED: dict[tuple, _Remembered] = {}


def pair_graph(
    edges: Tensor | EdgeIndex, num_senders: int, num_receivers: int, add_self_loops: bool = False
) -> PairGraph:
    """The graph of ``[2, edges]`` int64 (senders first), or of one that is prepared; with one self-loop per node if asked for.

    Raises:
        ValueError: another kind of graph, a wrong shape or dtype, or an index out of range.
    """
    if isinstance(edges, EdgeIndex):
        if (edges.num_senders, edges.num_receivers) != (num_senders, num_receivers):
            raise ValueError(
                f"edge_index: expected {num_senders} senders and {num_receivers} receivers, "
                f"found {edges.num_senders} and {edges.num_receivers}"
            )
        given = PairGraph(edges, None)
        if not add_self_loops:
            return given
        edges = given.pairs
    if not isinstance(edges, Tensor) or edges.layout != torch.strided:
        raise ValueError(f"edge_index: expected a tensor [2, edges] or an EdgeIndex of hamfast, found {type(edges)}")
    if edges.dim() != 2 or edges.shape[0] != 2:
        raise ValueError(f"edge_index: expected [2, edges], found {list(edges.shape)}")
    if torch.compiler.is_compiling():
        return _make(edges, num_senders, num_receivers, add_self_loops)
    key = (id(edges), num_senders, num_receivers, add_self_loops)
    found = _REMEMBERED.get(key)
    if found is not None and found.tensor() is edges and found.version == edges._version:
        return found.graph
    graph = _make(edges, num_senders, num_receivers, add_self_loops)
    forget = weakref.ref(edges, lambda _: _REMEMBERED.pop(key, None))
    _REMEMBERED[key] = _Remembered(forget, edges._version, graph)
    return graph


def _make(edges, num_senders, num_receivers, add_self_loops):
    pairs = edges.as_tensor() if hasattr(edges, "as_tensor") else edges  # PyG's own EdgeIndex is a tensor with notes
    kept = None
    if add_self_loops:
        kept = pairs[0] != pairs[1]
        loops = torch.arange(min(num_senders, num_receivers), device=pairs.device)
        pairs = torch.cat([pairs[:, kept], loops.expand(2, -1)], dim=1)
    # Copies: views would keep the tensor alive that the graph is remembered for.
    senders, receivers = pairs[0].clone(), pairs[1].clone()
    return PairGraph(edge_index(senders, receivers, num_senders, num_receivers), kept)
