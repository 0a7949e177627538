"""mace-torch: the interaction blocks, whose ``conv_fusion`` is the place of a fused convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from e3nn import o3
from e3nn.util.jit import compile_mode
from torch import Tensor, nn

from hamfast.nn.adapters import Adapted, hooks_of
from hamfast.nn.adapters.convolution import TEXT, convolution, fuse, why_not
from hamfast.nn.checks import CallsPython
from hamfast.plan import Plan


@compile_mode("script")
class MaceConvolution(CallsPython, o3.TensorProduct):
    """``o3.TensorProduct`` as MACE calls it where ``conv_fusion`` is set."""

    if TYPE_CHECKING:  # TorchScript would take the annotation for one that it does not know
        hamfast_plan: Plan
        hamfast_text: str

    def forward(self, node_feats: Tensor, edge_attrs: Tensor, tp_weights: Tensor, edge_index: Tensor) -> Tensor:
        """``[nodes, dim_in1]``, ``[edges, dim_in2]``, ``[edges, weight_numel]``, ``[2, edges]`` ->
        ``[nodes, dim_out]``."""
        if torch.jit.is_scripting():
            return torch.ops.hamfast.e3nn_convolution(node_feats, edge_attrs, tp_weights, edge_index, self.hamfast_text)
        else:
            return self._run(node_feats, edge_attrs, tp_weights, edge_index)

    @torch.jit.unused
    def _run(self, node_feats: Tensor, edge_attrs: Tensor, tp_weights: Tensor, edge_index: Tensor) -> Tensor:
        return convolution(node_feats, edge_attrs, tp_weights, edge_index, self.hamfast_plan)


def adapt(module: nn.Module) -> Adapted | None:
    """Fuses the convolution of an interaction block."""
    from mace.modules.blocks import InteractionBlock

    if not isinstance(module, InteractionBlock) or isinstance(module, torch.jit.ScriptModule):
        return None
    product: Any = getattr(module, "conv_tp", None)
    if isinstance(product, MaceConvolution):
        return Adapted(True, TEXT, (product,))
    if "conv_fusion" not in type(module).forward.__code__.co_consts:
        return Adapted(False, "its forward does not look for conv_fusion")
    if hasattr(module, "conv_fusion"):
        return Adapted(False, "its convolution is fused by another package")
    reason = why_not(product) or hooks_of(product)
    if reason:
        return Adapted(False, reason)
    undo_product = fuse(product, product, MaceConvolution)
    setattr(module, "conv_fusion", "hamfast")  # noqa: B010  (no attribute that the class declares)

    def undo() -> None:
        undo_product()
        del module.conv_fusion

    return Adapted(True, TEXT, (product,), undo)
