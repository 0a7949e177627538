"""Graphs as PyG's layers take them, prepared for the ops.

A graph is sorted once, and remembered while its tensor lives and its entries stay.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.constants import is_traced, outside_inference_mode
from hamfast.ops import EdgeIndex, edge_index
from hamfast.ops.checks import INTEGERS, found


class PairGraph(NamedTuple):
    """A prepared graph, and which of the given edges it kept."""

    edges: EdgeIndex
    kept: Tensor | None
    """``[edges given]`` bool: those that are no self-loops, which come first; the added loops
    follow. None: edges as given.
    """

    @property
    def pairs(self) -> Tensor:
        """``[2, edges]``, as the weights are returned for."""
        return torch.stack([self.edges.senders, self.edges.receivers])


class _Remembered(NamedTuple):
    owner: weakref.ref
    version: int | None
    """Of the tensor; None if its version does not tell whether it was written to."""
    copy: Tensor
    graph: PairGraph

    def is_of(self, owner: Any, pairs: Tensor) -> bool:
        """Is it the graph of this tensor as it is now?

        Numpy writes without a new version, so on a CPU the entries are compared, which costs little
        beside the attention.
        On a GPU that would wait for all work in flight, and numpy does not write there.
        """
        if self.owner() is not owner or self.version != _version(owner):
            return False
        return self.version is not None or torch.equal(pairs, self.copy)


_REMEMBERED: dict[tuple, _Remembered] = {}


def pair_graph(
    edges: Any, num_senders: int, num_receivers: int, add_self_loops: bool = False, owner: Any = None
) -> PairGraph:
    """The graph of ``[2, edges]`` integers, senders first, or of one that is prepared.

    Args:
        add_self_loops: one per node, in place of those that are there.
        owner: what lives as long as the graph is to be remembered, ``edges`` by default.

    Raises:
        TypeError: ``edges`` is no graph.
        ValueError: a wrong shape or dtype, or an index out of range.
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
        raise TypeError(
            "edge_index: expected integers [2, edges], a sparse adjacency [receivers, senders] or an EdgeIndex of hamfast, "
            f"found {found(edges)}"
        )
    if edges.dim() != 2 or edges.shape[0] != 2:
        raise ValueError(f"edge_index: expected [2, edges], found {list(edges.shape)}")
    if edges.dtype not in INTEGERS:
        raise ValueError(f"edge_index: expected integers, found {edges.dtype}")
    if is_traced():
        return _make(edges, num_senders, num_receivers, add_self_loops)
    owner = edges if owner is None else owner
    key = (id(owner), num_senders, num_receivers, add_self_loops)
    known = _REMEMBERED.get(key)
    if known is not None and known.is_of(owner, _plain(edges)):
        return known.graph
    with outside_inference_mode():
        copy = _plain(edges).detach().clone()
        graph = _make(copy, num_senders, num_receivers, add_self_loops)
    forget = weakref.ref(owner, lambda _: _REMEMBERED.pop(key, None))
    _REMEMBERED[key] = _Remembered(forget, _version(owner), copy, graph)
    return graph


def _version(owner: Any) -> int | None:
    if not isinstance(owner, Tensor) or owner.layout != torch.strided or owner.is_cpu or owner.is_inference():
        return None
    return owner._version


def _plain(tensor: Any) -> Tensor:
    """PyG's own EdgeIndex is a tensor with notes."""
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor


def _make(edges, num_senders, num_receivers, add_self_loops):
    pairs = _plain(edges)
    kept = None
    if add_self_loops:
        kept = pairs[0] != pairs[1]
        loops = torch.arange(min(num_senders, num_receivers), device=pairs.device)
        pairs = torch.cat([pairs[:, kept], loops.expand(2, -1)], dim=1)
    return PairGraph(edge_index(pairs[0], pairs[1], num_senders, num_receivers), kept)
