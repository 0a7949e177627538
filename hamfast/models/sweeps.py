"""Sweeps: how the layers of a network go over a graph, at once or in pieces.

In one sweep every edge, or every atom, gets new features. Those of an edge are a function of its
own features and of those of the atoms at its ends. Those of an atom are a function of its incoming
edges and of the atoms that these come from. All of them are as earlier sweeps left them. So a sweep
may work off the edges in any pieces, as long as the incoming edges of an atom stay together, and a
network that is written in sweeps needs no more memory than its pieces do.

:class:`Whole` is the graph in one piece, as in a training; those of
:mod:`hamfast.models.recomputed` keep nothing of the inside of a sweep for the gradient, and
:class:`hamfast.models.shared.SharedPieces` are those of one of several processes.
:class:`hamfast.models.pieces.Pieces` has many, and keeps the features of edges in files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from hamfast.graph import CrystalGraph
from hamfast.nn import EquivariantLayerNorm


class Field(Protocol):
    """Rows of features for the edges of every piece, wherever they are kept."""

    def read(self, piece: Piece) -> Tensor:
        """The rows of a piece, on its device."""


class Piece:
    """The incoming edges of some atoms, as a graph.

    Args:
        graph: with these atoms, its own, in front of those that are senders alone. Its ``reverse``
            means nothing.
        num_own: how many are its own.
        atoms: ``[atoms of graph]`` int64, their numbers in the whole graph; None: it is the whole.
        number: of the piece.
    """

    def __init__(self, graph: CrystalGraph, num_own: int, atoms: Tensor | None = None, number: int = 0):
        self.graph, self.num_own, self.atoms, self.number = graph, num_own, atoms, number
        self._made: dict[str, Any] = {}
        self._of_layer: dict[str, tuple[object, Any]] = {}

    def nodes(self, x: Tensor) -> Tensor:
        """The rows of the piece's atoms, of ``x`` with a row for each atom of the whole graph."""
        return x if self.atoms is None else x.index_select(0, self.atoms)

    def edges(self, field: Field | Tensor) -> Tensor:
        """The rows of the piece's edges."""
        return field if isinstance(field, Tensor) else field.read(self)

    def once(self, name: str, make: Callable[[], Any], of: object = None) -> Any:
        """What ``make`` returns, made once for a name; anew for another layer, ``of``.

        What is of no layer has no gradient.
        """
        if of is None:
            if name not in self._made:
                # Directions and lengths are as exact as they are given, also with mixed precision.
                with torch.autocast(self.graph.vector.device.type, enabled=False):
                    self._made[name] = make()
            return self._made[name]
        found = self._of_layer.get(name)
        if found is None or found[0] is not of:
            found = self._of_layer[name] = (of, make())
        return found[1]

    def fresh(self) -> Piece:
        """This piece, but what was made for a layer is made anew."""
        found = copy.copy(self)
        found._of_layer = {}
        return found


class Sweeps(Protocol):
    """What carries out the sweeps of a network over one graph."""

    species: Tensor
    """``[atoms]`` int64, of the whole graph."""
    atom_graph: Tensor
    """``[atoms]`` int64: which structure."""
    num_graphs: int

    def nodes(self, function: Callable[[Piece], Tensor]) -> Tensor:
        """``[atoms, width]``: what the function returns for the own atoms of every piece.

        What it returns for atoms behind these is not looked at.
        """

    def edges(self, function: Callable[[Piece], tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """What the function returns for the edges of every piece, as fields."""

    def both(self, function: Callable[[Piece], tuple[Tensor, Tensor]]) -> tuple[Tensor, Any]:
        """As :meth:`nodes` and as :meth:`edges` with one field, in one sweep."""

    def normed(self, norm: EquivariantLayerNorm, field: Any) -> Callable[[Piece], Tensor]:
        """Gives the rows of a piece, after a layer norm over all rows of the field."""


class Whole:
    """A graph as one piece; its fields are tensors.

    Args:
        graph: of one or several structures.
    """

    def __init__(self, graph: CrystalGraph):
        self.piece = Piece(graph, graph.num_atoms)
        self.species, self.atom_graph, self.num_graphs = graph.species, graph.atom_graph, graph.num_graphs

    def nodes(self, function: Callable[[Piece], Tensor]) -> Tensor:
        """See :meth:`Sweeps.nodes`."""
        return function(self.piece)

    def edges(self, function: Callable[[Piece], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """See :meth:`Sweeps.edges`."""
        return function(self.piece)

    def both(self, function: Callable[[Piece], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """See :meth:`Sweeps.both`."""
        return function(self.piece)

    def gathered(self, field: Any) -> Tensor:
        """A field, as rows in the order of the graph's edges."""
        return field

    def normed(self, norm: EquivariantLayerNorm, field: Tensor) -> Callable[[Piece], Tensor]:
        """See :meth:`Sweeps.normed`."""
        rows = norm(field, self.piece.graph.edge_graph, self.num_graphs)
        return lambda piece: rows
