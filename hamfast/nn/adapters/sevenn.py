"""sevenn: its ``IrrepsConvolution``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from e3nn.util.jit import compile_mode
from sevenn import _keys as KEY
from sevenn._const import AtomGraphDataType
from sevenn.nn.convolution import IrrepsConvolution
from torch import Tensor, nn

from hamfast.nn.adapters import Adapted, as_subclass, hooks_of
from hamfast.nn.adapters.convolution import TEXT, convolution, fuse, why_not
from hamfast.nn.checks import CallsPython
from hamfast.plan import Plan


@compile_mode("script")
class FusedIrrepsConvolution(CallsPython, IrrepsConvolution):
    """SevenNet's convolution, with gather, product and scatter-sum in one op."""

    if TYPE_CHECKING:  # TorchScript would take the annotation for one that it does not know
        hamfast_plan: Plan
        hamfast_text: str

    def forward(self, data: AtomGraphDataType) -> AtomGraphDataType:
        """As ``IrrepsConvolution.forward``."""
        assert self.weight_nn is not None, "Weight_nn is not instantiated"
        weight = self.weight_nn(data[self.key_weight_input])
        x = data[self.key_x]
        if self.is_parallel:
            x = torch.cat([x, data[KEY.NODE_FEATURE_GHOST]])
        # Receivers are its first row.
        x = self._convolve(x, data[self.key_filter], weight, data[self.key_edge_idx])
        x = x.div(self.denominator)
        if self.is_parallel:
            x = torch.tensor_split(x, data[KEY.NLOCAL])[0]
        data[self.key_x] = x
        return data

    def _convolve(self, x: Tensor, y: Tensor, weight: Tensor, edge_idx: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return torch.ops.hamfast.e3nn_convolution(x, y, weight, edge_idx.flip(0), self.hamfast_text)
        else:
            return self._run(x, y, weight, edge_idx)

    @torch.jit.unused
    def _run(self, x: Tensor, y: Tensor, weight: Tensor, edge_idx: Tensor) -> Tensor:
        return convolution(x, y, weight, edge_idx.flip(0), self.hamfast_plan, edge_idx)


def adapt(module: nn.Module) -> Adapted | None:
    """Fuses an ``IrrepsConvolution``."""
    if isinstance(module, FusedIrrepsConvolution):
        return Adapted(True, TEXT, (module.convolution,))
    if not isinstance(module, IrrepsConvolution) or isinstance(module, torch.jit.ScriptModule):
        return None
    if type(module) is not IrrepsConvolution:
        return Adapted(False, as_subclass(module))
    reason = why_not(module.convolution) or hooks_of(module.convolution)
    if reason:
        return Adapted(False, reason)
    return Adapted(True, TEXT, (module.convolution,), fuse(module, module.convolution, FusedIrrepsConvolution))
