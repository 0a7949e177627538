"""A training's graph that several processes share: each has some atoms and their incoming edges.

What is of edges inside a network, nearly all of its memory, stays with the process that has them.
Features of atoms are gathered after each sweep, and so are the network's outputs at its end. Each
process then has the whole loss, and the part of its gradient that goes through its own edges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from hamfast.graph import CrystalGraph
from hamfast.models.pieces import PieceMaker, bounds_of
from hamfast.models.recomputed import PiecesInMemory
from hamfast.nn import EquivariantLayerNorm


class SharedPieces(PiecesInMemory):
    """The pieces of one process of several.

    Args:
        graph: of one structure or of several; all processes have the same.
        group: of the processes.
        recompute: are sweeps carried out a second time for their gradient?
        edges_at_once: edges of a piece; None: all of this process's are one.
    """

    def __init__(
        self,
        graph: CrystalGraph,
        group: distributed.ProcessGroup | None,
        recompute: bool,
        edges_at_once: int | None,
    ):
        self.group = group
        device = graph.species.device
        maker = PieceMaker(graph, torch.arange(graph.num_atoms, device=device), device)
        first, last = share_of(maker.pointers, distributed.get_rank(group), distributed.get_world_size(group))
        bounds = [first, last]
        if edges_at_once is not None:
            bounds = [first + n for n in bounds_of(maker.pointers[first : last + 1].tolist(), edges_at_once)]
        super().__init__(graph, maker, bounds, recompute)
        self.own = torch.arange(first, last, device=device)

    def gathered(self, field: Any) -> Tensor:
        """See :meth:`hamfast.models.sweeps.Whole.gathered`.

        All processes are to make the same of it: its gradient is that of one of them.
        """
        dtype = self.piece.graph.vector.dtype  # also with mixed precision
        rows = torch.cat(list(field.parts)).to(dtype)
        return _Gathered.apply(rows, self.order, self.piece.graph.num_edges, self.group, False)

    def _all_atoms(self, rows: Tensor) -> Tensor:
        return _Gathered.apply(rows, self.own, self.piece.graph.num_atoms, self.group, True)

    def _normed(self, norm: EquivariantLayerNorm, rows: Tensor, graph: Tensor) -> Tensor:
        counts = torch.bincount(self.piece.graph.edge_graph, minlength=self.num_graphs).clamp_(min=1).to(rows)
        statistics = norm.statistics(rows, graph, self.num_graphs, counts, lambda part: _Sum.apply(part, self.group))
        return norm.normalized(rows, statistics, graph)


def share_of(pointers: Tensor, rank: int, world: int) -> tuple[int, int]:
    """The first atom of a process, and the first that is not: all have about as many edges.

    Args:
        pointers: ``[atoms + 1]``: where each atom's edges begin.
        rank, world: the process, and how many there are.
    """
    ends = pointers[-1] * torch.arange(world + 1, device=pointers.device) // world
    first, last = torch.searchsorted(pointers, ends)[rank : rank + 2].tolist()
    return first, last


class _Gathered(torch.autograd.Function):
    """``[all, width]``: the rows of all processes, each of which gives those of some places.

    Where each process makes something else of it, its gradient is a part, and those of all are
    added up.
    """

    @staticmethod
    def forward(ctx, rows, places, count, group, parts):
        ctx.save_for_backward(places)
        ctx.group, ctx.parts = group, parts
        found = rows.new_zeros(count, *rows.shape[1:])
        found[places] = rows
        distributed.all_reduce(found, group=group)
        return found

    @staticmethod
    def backward(ctx, gradient):
        (places,) = ctx.saved_tensors
        if ctx.parts:
            gradient = gradient.contiguous().clone()
            distributed.all_reduce(gradient, group=ctx.group)
        return gradient[places], None, None, None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes; each of them makes something else of it."""

    @staticmethod
    def forward(ctx, part, group):
        ctx.group = group
        found = part.contiguous().clone()
        distributed.all_reduce(found, group=group)
        return found

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient, group=ctx.group)
        return gradient, None
