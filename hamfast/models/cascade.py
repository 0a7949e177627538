"""The cascade: stage 1, its normalisation, and stage 2, which adds a correction to stage 1.

The head that makes Hamiltonian blocks of the result is :class:`hamfast.targets.TargetSpec`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from hamfast.data.training_range import TrainingRange
from hamfast.data.two_centre_overlap import TwoCentreOverlap
from hamfast.graph import CrystalGraph
from hamfast.models.covariant import CovariantNetwork
from hamfast.models.frame_transformer import FrameTransformer
from hamfast.models.gradient_transformer import GradientTransformer
from hamfast.models.no_network import NoNetwork
from hamfast.models.normalization import TargetNormalization
from hamfast.models.settings import ENVIRONMENT, FREEZE_STAGE1, CovariantConfig, TransformerConfig
from hamfast.models.sweeps import Piece, Sweeps, Whole
from hamfast.models.transformer import RefinementTransformer
from hamfast.targets import TargetSpec

if TYPE_CHECKING:
    from hamfast.models.error_model import ErrorModel

STAGE2: dict[str, type[FrameTransformer] | type[RefinementTransformer]] = {
    "frames": FrameTransformer,
    "gradients": GradientTransformer,
    "plain": RefinementTransformer,
}
"""The second stage of each kind."""


class CascadeOutput(NamedTuple):
    """Irreps of the blocks, ``[edges, spec.dim]``, in eV.

    :meth:`hamfast.targets.TargetSpec.to_blocks` makes the blocks of them.
    """

    baseline: Tensor
    """H0 of stage 1."""
    refined: Tensor
    """H0 + dH; the same tensor as ``baseline`` without a second stage."""


class Cascade(nn.Module):
    """Covariant network, then graph Transformer.

    Args:
        spec: elements, orbitals, spin.
        stage1: settings of the covariant network; None: the shift of the targets is the model.
        stage2: settings of the Transformer; None for stage 1 alone, and without stage 1.
        target_shift, target_scale: see :class:`TargetNormalization`.
        target_environment: angstrom, the radius of an environment, for ``environment`` as shift.
        hermitian: average each block with the conjugate transpose of its reverse.
        r_max: angstrom, the longest pair of the data.
        freeze_stage1: stage 2's loss does not reach stage 1.

    Attributes:
        half_cell: angstrom, the largest of the training's cells, see
            :func:`hamfast.data.cell_size.half_cell`; None if it is unknown.
        overlap: the overlaps of the training's structures as a function of the structure; None if
            they had none.
        error_model: how large its errors are expected to be; None without a calibration.
        mixed_precision: in a training, the stages multiply matrices in bfloat16.
        sweeps_over: makes the sweeps over a graph; a training may have others
            (:class:`hamfast.models.in_training.InTraining`).

    Raises:
        ValueError: the irreps of ``stage1`` cannot make the targets, or the heads of ``stage2`` do
            not divide its width; the environment is larger than ``r_max``.
    """

    transpose_index: Tensor
    transpose_sign: Tensor

    def __init__(
        self,
        spec: TargetSpec,
        stage1: CovariantConfig | None,
        stage2: TransformerConfig | None,
        *,
        target_shift: str = "none",
        target_scale: str = "none",
        target_environment: float = ENVIRONMENT,
        hermitian: bool = False,
        r_max: float = 10.0,
        freeze_stage1: bool = FREEZE_STAGE1,
    ):
        super().__init__()
        self.spec, self.hermitian, self.freeze_stage1, self.r_max = spec, hermitian, freeze_stage1, r_max
        self.half_cell: float | None = None
        self.overlap: TwoCentreOverlap | None = None
        self.training_range: TrainingRange | None = None
        self.error_model: ErrorModel | None = None
        self.mixed_precision = False
        self.sweeps_over: Callable[[CrystalGraph], Whole] = Whole
        self.normalization = TargetNormalization(
            spec, target_shift, target_scale, r_max, environment=target_environment
        )
        self.stage1 = NoNetwork(spec) if stage1 is None else CovariantNetwork(stage1, spec)
        self.stage2: RefinementTransformer | FrameTransformer | None = None
        if stage2 is not None:
            kind = STAGE2[stage2.kind]
            self.stage2 = kind(stage2, spec, self.stage1.irreps_node, self.stage1.irreps_edge)
        index, sign = spec.transpose
        self.register_buffer("transpose_index", index, persistent=False)
        self.register_buffer("transpose_sign", sign.to(torch.get_default_dtype()), persistent=False)

    @property
    def receptive_field(self) -> float:
        """Angstrom: how far from an atom others may be that change its blocks."""
        seen = self.stage1.receptive_field(self.r_max)
        if self.stage2 is not None:
            seen += self.stage2.receptive_field(self.r_max)
        closed_form = self.normalization.closed_form
        return seen if closed_form is None else max(seen, closed_form.environment)

    def forward(self, graph: CrystalGraph, *, refine: bool = True) -> CascadeOutput:
        """Predicts all blocks of a graph.

        Args:
            graph: of one or several structures, on the model's device and in its dtype.
            refine: False stops after stage 1.
        """
        refine = refine and self.stage2 is not None
        sweeps = self.sweeps_over(graph)
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not (refine and self.freeze_stage1)),
            self._mixed(graph),
        ):
            raw, node, edge = self.stage1.sweep(sweeps, features=refine)
            output = sweeps.gathered(raw).to(graph.vector.dtype)
        units = self.normalization.shift_and_scale(graph) if graph.units is None else graph.units.unbind(1)
        baseline = self._finish(graph, output, units)
        if not refine:
            return CascadeOutput(baseline, baseline)
        assert self.stage2 is not None
        with self._mixed(graph):
            correction = sweeps.gathered(self.stage2.sweep(sweeps, raw, node, edge)).to(graph.vector.dtype)
        return CascadeOutput(baseline, self._finish(graph, output + correction, units))

    def _mixed(self, graph: CrystalGraph) -> torch.autocast:
        """Products of the stages' matrices in bfloat16, where a training with mixed precision goes
        on. What is in eV, and validation and predictions, stay in the weights' precision."""
        device = graph.vector.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.mixed_precision and self.training)

    def sweep(self, sweeps: Sweeps, refine: bool = True) -> Any:
        """``[edges, spec.dim]`` eV: the irreps of all edges, as a field.

        They are not made Hermitian, as the reverse of an edge may be in another piece. Without
        ``refine`` they are those of stage 1.
        """
        stage2 = self.stage2 if refine else None
        raw, node, edge = self.stage1.sweep(sweeps, features=stage2 is not None)
        added = None if stage2 is None else stage2.sweep(sweeps, raw, node, edge)
        closed_form, densities = self.normalization.closed_form, None
        if closed_form is not None:
            densities = sweeps.nodes(lambda p: closed_form.densities(p.graph))

        def in_units(piece: Piece) -> tuple[Tensor]:
            output = piece.edges(raw) if added is None else piece.edges(raw) + piece.edges(added)
            known = None if densities is None else piece.nodes(densities)
            units = self.normalization.shift_and_scale(piece.graph, known)
            return (output if units is None else units[0] + units[1] * output,)

        return sweeps.edges(in_units)[0]

    def _finish(self, graph, output, units):
        """From network units to eV, Hermitian if asked for."""
        irreps = output if units is None else units[0] + units[1] * output
        if not self.hermitian:
            return irreps
        conjugate = irreps.index_select(0, graph.reverse).index_select(1, self.transpose_index) * self.transpose_sign
        return 0.5 * (irreps + conjugate)
