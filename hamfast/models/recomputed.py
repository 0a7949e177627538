"""Sweeps of a training that are done a second time for their gradient, as a whole or in pieces.

Between the two passes only what goes from one sweep to the next is kept (Chen et al., arXiv
1604.06174). In pieces, the inside of a sweep is in memory for one piece at a time, in both passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hamfast.graph import CrystalGraph
from hamfast.models.pieces import PieceMaker, bounds_of
from hamfast.models.sweeps import Piece, Whole
from hamfast.nn import EquivariantLayerNorm


def in_training(graph: CrystalGraph, recompute: bool, edges_at_once: int | None) -> Whole:
    """Sweeps over a whole graph.

    Args:
        graph: of one structure or of several.
        recompute: are sweeps carried out a second time for their gradient?
        edges_at_once: if so, in pieces of so many edges; None: as a whole. An atom that has more
            is a piece by itself.
    """
    if not (recompute and torch.is_grad_enabled()):
        return Whole(graph)
    if edges_at_once is None or graph.num_edges <= edges_at_once:
        return Recomputed(graph)
    return RecomputedPieces(graph, edges_at_once)


class Recomputed(Whole):
    """As :class:`hamfast.models.sweeps.Whole`, but the gradient carries out each sweep a second
    time."""

    def nodes(self, function: Callable[[Piece], Tensor]) -> Tensor:
        """See :meth:`hamfast.models.sweeps.Sweeps.nodes`."""
        return _twice(function, self.piece)

    def edges(self, function: Callable[[Piece], tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """See :meth:`hamfast.models.sweeps.Sweeps.edges`."""
        return _twice(function, self.piece)

    def both(self, function: Callable[[Piece], tuple[Tensor, Tensor]]) -> tuple[Tensor, Any]:
        """See :meth:`hamfast.models.sweeps.Sweeps.both`."""
        return _twice(function, self.piece)


def _twice(function: Callable[[Piece], Any], piece: Piece) -> Any:
    # Both times the same is made, and nothing is left over from another sweep.
    return checkpoint(lambda: function(piece.fresh()), use_reentrant=False)


class Rows:
    """A field in memory: the rows of each piece."""

    def __init__(self, parts: Sequence[Tensor]):
        self.parts = parts

    def read(self, piece: Piece) -> Tensor:
        """See :class:`hamfast.models.sweeps.Field`."""
        return self.parts[piece.number]


class RecomputedPieces(Whole):
    """As :class:`Recomputed`, with one piece of the graph after the other.

    Args:
        graph: of one structure or of several.
        edges_at_once: edges of a piece; an atom that has more is one by itself.
    """

    def __init__(self, graph: CrystalGraph, edges_at_once: int):
        super().__init__(graph)
        device = graph.species.device
        maker = PieceMaker(graph, torch.arange(graph.num_atoms, device=device), device)
        bounds = bounds_of(maker.pointers.tolist(), edges_at_once)
        ranges = itertools.pairwise(bounds)
        self.pieces = [maker.piece(first, last, n) for n, (first, last) in enumerate(ranges)]
        self.order = maker.sorted_edges
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(self.order), device=device)
        self.sizes = [piece.graph.num_edges for piece in self.pieces]

    def nodes(self, function: Callable[[Piece], Tensor]) -> Tensor:
        """See :meth:`hamfast.models.sweeps.Sweeps.nodes`."""
        return torch.cat([_twice(lambda p: function(p)[: p.num_own], piece) for piece in self.pieces])

    def edges(self, function: Callable[[Piece], tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """See :meth:`hamfast.models.sweeps.Sweeps.edges`."""
        found = [_twice(function, piece) for piece in self.pieces]
        return tuple(Rows(parts) for parts in zip(*found, strict=True))

    def both(self, function: Callable[[Piece], tuple[Tensor, Tensor]]) -> tuple[Tensor, Any]:
        """See :meth:`hamfast.models.sweeps.Sweeps.both`."""

        def own(piece: Piece) -> tuple[Tensor, Tensor]:
            of_nodes, of_edges = function(piece)
            return of_nodes[: piece.num_own], of_edges

        nodes, edges = zip(*[_twice(own, piece) for piece in self.pieces], strict=True)
        return torch.cat(nodes), Rows(edges)

    def given(self, rows: Tensor) -> Any:
        """See :meth:`hamfast.models.sweeps.Whole.given`."""
        return Rows(rows.index_select(0, self.order).split(self.sizes))

    def gathered(self, field: Any) -> Tensor:
        """See :meth:`hamfast.models.sweeps.Whole.gathered`."""
        return torch.cat(list(field.parts)).index_select(0, self.place)

    def normed(self, norm: EquivariantLayerNorm, field: Any) -> Callable[[Piece], Tensor]:
        """See :meth:`hamfast.models.sweeps.Sweeps.normed`."""
        graph = self.piece.graph.edge_graph[self.order]
        rows = Rows(norm(torch.cat(list(field.parts)), graph, self.num_graphs).split(self.sizes))
        return rows.read
