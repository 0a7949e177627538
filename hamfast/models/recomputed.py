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


class PiecesInMemory(Whole):
    """One piece of the graph after the other.

    Args:
        graph: of one structure or of several.
        maker: of the pieces.
        bounds: where the pieces begin among the maker's atoms, and where the last one ends.
        recompute: are sweeps carried out a second time for their gradient?
    """

    def __init__(self, graph: CrystalGraph, maker: PieceMaker, bounds: Sequence[int], recompute: bool):
        super().__init__(graph)
        self.recompute = recompute
        self.pieces = [maker.piece(first, last, n) for n, (first, last) in enumerate(itertools.pairwise(bounds))]
        self.order = maker.edges_of(bounds[0], bounds[-1])
        self.sizes = [piece.graph.num_edges for piece in self.pieces]

    def nodes(self, function: Callable[[Piece], Tensor]) -> Tensor:
        """See :meth:`hamfast.models.sweeps.Sweeps.nodes`."""
        return self._all_atoms(torch.cat([rows for (rows,) in self._run(lambda p: (function(p)[: p.num_own],))]))

    def edges(self, function: Callable[[Piece], tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """See :meth:`hamfast.models.sweeps.Sweeps.edges`."""
        return tuple(Rows(parts) for parts in zip(*self._run(function), strict=True))

    def both(self, function: Callable[[Piece], tuple[Tensor, Tensor]]) -> tuple[Tensor, Any]:
        """See :meth:`hamfast.models.sweeps.Sweeps.both`."""

        def own(piece: Piece) -> tuple[Tensor, Tensor]:
            of_nodes, of_edges = function(piece)
            return of_nodes[: piece.num_own], of_edges

        nodes, edges = zip(*self._run(own), strict=True)
        return self._all_atoms(torch.cat(nodes)), Rows(edges)

    def normed(self, norm: EquivariantLayerNorm, field: Any) -> Callable[[Piece], Tensor]:
        """See :meth:`hamfast.models.sweeps.Sweeps.normed`."""
        graph = self.piece.graph.edge_graph[self.order]
        return Rows(self._normed(norm, torch.cat(list(field.parts)), graph).split(self.sizes)).read

    def _run(self, function: Callable[[Piece], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        return [_twice(function, piece) if self.recompute else function(piece) for piece in self.pieces]

    def _all_atoms(self, rows: Tensor) -> Tensor:
        """The rows of all atoms, of those of the pieces' own."""
        return rows

    def _normed(self, norm: EquivariantLayerNorm, rows: Tensor, graph: Tensor) -> Tensor:
        return norm(rows, graph, self.num_graphs)


class RecomputedPieces(PiecesInMemory):
    """As :class:`Recomputed`, with one piece of the graph after the other.

    Args:
        graph: of one structure or of several.
        edges_at_once: edges of a piece; an atom that has more is one by itself.
    """

    def __init__(self, graph: CrystalGraph, edges_at_once: int):
        device = graph.species.device
        maker = PieceMaker(graph, torch.arange(graph.num_atoms, device=device), device)
        super().__init__(graph, maker, bounds_of(maker.pointers.tolist(), edges_at_once), recompute=True)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(self.order), device=device)

    def gathered(self, field: Any) -> Tensor:
        """See :meth:`hamfast.models.sweeps.Whole.gathered`."""
        return torch.cat(list(field.parts)).index_select(0, self.place)
