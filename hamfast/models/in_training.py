"""How a training goes over its graphs: as a whole, in pieces, or shared by its processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed

from hamfast.graph import CrystalGraph
from hamfast.models.recomputed import Recomputed, RecomputedPieces
from hamfast.models.shared import SharedPieces
from hamfast.models.sweeps import Whole


@dataclass(frozen=True)
class InTraining:
    """Makes the sweeps over a graph.

    Args:
        recompute: are sweeps carried out a second time for their gradient?
        edges_at_once: if so, in pieces of so many edges; None: as a whole. An atom that has more
            is a piece by itself.
        group: of the processes that share each graph; None: they do not.
    """

    recompute: bool = False
    edges_at_once: int | None = None
    group: distributed.ProcessGroup | None = None

    def __call__(self, graph: CrystalGraph) -> Whole:
        """Of one structure or of several."""
        recompute = self.recompute and torch.is_grad_enabled()
        if self.group is not None:
            return SharedPieces(graph, self.group, recompute, self.edges_at_once if recompute else None)
        if not recompute:
            return Whole(graph)
        if self.edges_at_once is None or graph.num_edges <= self.edges_at_once:
            return Recomputed(graph)
        return RecomputedPieces(graph, self.edges_at_once)
