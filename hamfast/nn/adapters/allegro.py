"""nequip-allegro: its ``Contracter``, a product of like channels of an edge and of its node."""

from __future__ import annotations

import numpy as np
import torch
from allegro.nn._strided import Contracter
from torch import Tensor, nn

from hamfast.nn.adapters import Adapted, as_subclass, change_class
from hamfast.nn.checks import ScriptsTheirCode
from hamfast.nn.packaged import is_a, is_exactly
from hamfast.ops.symmetric_contraction import symmetric_contraction
from hamfast.plan import ContractionPlan, contraction_plan

TEXT = "a contraction of both operands"


class FusedContracter(ScriptsTheirCode, Contracter):
    """Allegro's contracter as polynomials of degree 2 in the components of both operands.

    Allegro's own makes a tensor of edges x channels x components of both, and of all three.
    """

    plan: ContractionPlan

    def _contract_conv(self, x1: Tensor, x2: Tensor, idxs: Tensor) -> Tensor:
        both = torch.cat([x1, torch.index_select(x2, 0, idxs)], dim=2)
        weights = self.weights.reshape(-1, self.num_paths).T  # [paths, channels], or [paths, 1]
        weights = weights.expand(self.num_paths, self.mul).unsqueeze(0)
        out = symmetric_contraction(both, weights, both.new_ones(both.shape[0], 1), self.plan)
        return out.view(-1, self.mul, self.base_dim_out)


def _plan(contracter: Contracter) -> ContractionPlan:
    """Of Allegro's coefficients ``[paths, dim1, dim2, dim_out]``, or ``[paths, dim, dim_out]``
    where like components meet; of a single path without the first axis."""
    w3j = contracter.w3j.detach().double().cpu().numpy()
    if contracter.num_paths == 1:
        w3j = w3j[None]
    if w3j.ndim == 3:
        w3j = np.einsum("pik,ij->pijk", w3j, np.eye(w3j.shape[1]))
    paths, dim1, dim2, dim_out = w3j.shape
    tensor = np.zeros((dim_out, dim1 + dim2, dim1 + dim2, paths))
    tensor[:, :dim1, dim1:] = w3j.transpose(3, 1, 2, 0)
    return contraction_plan([[tensor]], dim1 + dim2)


def adapt(module: nn.Module) -> Adapted | None:
    """Exchanges the code of a ``Contracter``."""
    if isinstance(module, torch.jit.ScriptModule) or not is_a(module, Contracter):
        return None
    if is_a(module, FusedContracter):
        return Adapted(True, TEXT)
    if not is_exactly(module, Contracter):
        return Adapted(False, as_subclass(module))
    back = change_class(module, FusedContracter)
    module.plan = _plan(module)  # type: ignore[assignment]

    def undo() -> None:
        back()
        del module.plan

    return Adapted(True, TEXT, (), undo)
