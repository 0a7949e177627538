"""What stands in the place of stage 1 where the closed-form start alone is the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hamfast.graph import CrystalGraph
from hamfast.models.sweeps import Piece, Sweeps, Whole
from hamfast.targets import TargetSpec


class NoNetwork(nn.Module):
    """Predicts zero in units of the target normalisation: what is left is the shift.

    Args:
        spec: the targets.
    """

    def __init__(self, spec: TargetSpec):
        super().__init__()
        self.spec = spec

    def receptive_field(self, longest_pair: float) -> float:
        """0 angstrom: it looks at nothing, ``longest_pair`` of the data does not matter."""
        return 0.0

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """None."""
        return iter(())

    def forward(self, graph: CrystalGraph) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`hamfast.models.covariant.CovariantNetwork.forward`: zeros, and no features."""
        return self.sweep(Whole(graph))

    def sweep(self, sweeps: Sweeps, features: bool = True) -> tuple[Any, Tensor, Any]:
        """As :meth:`hamfast.models.covariant.CovariantNetwork.sweep`."""

        def zeros(piece: Piece) -> tuple[Tensor, Tensor]:
            found = piece.graph.vector.new_zeros(piece.graph.num_edges, self.spec.dim)
            return found, found[:, :0]

        output, of_edges = sweeps.edges(zeros)
        return output, sweeps.nodes(lambda p: p.graph.vector.new_zeros(p.graph.num_atoms, 0)), of_edges
