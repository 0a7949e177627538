"""e3tools: its separable convolution, ``SeparableConv``.

Its linear layer comes after the product, edge by edge, and before the mean over edges.
It is the same for all edges, so it can follow the mean, and meets nodes in place of edges.
"""

from __future__ import annotations

import torch
from e3tools.nn import Conv, SeparableConv, SeparableTensorProduct
from torch import Tensor, nn

from hamfast.nn.adapters import Adapted, change_class, hooks_of
from hamfast.nn.adapters.convolution import TEXT, convolution, keep_plan, why_not
from hamfast.plan import Plan


class FusedSeparableConv(SeparableConv):
    """e3tools' layer, with gather, product and sum in one op and the linear layer on nodes."""

    hamfast_plan: Plan

    def forward(self, node_attr: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_sh: Tensor) -> Tensor:
        """As ``Conv.forward``."""
        weight = self.radial_nn(edge_attr)
        total = convolution(node_attr, edge_sh, weight, edge_index, self.hamfast_plan)
        count = torch.bincount(edge_index[1], minlength=node_attr.shape[0]).clamp(min=1)
        return self.tp.lin(total / count.unsqueeze(1).to(total.dtype))


def adapt(module: nn.Module) -> Adapted | None:
    """Fuses a ``SeparableConv``."""
    if isinstance(module, FusedSeparableConv):
        return Adapted(True, TEXT, (module.tp.dtp,))
    if not isinstance(module, Conv) or not isinstance(module.tp, SeparableTensorProduct):
        return None
    if type(module) is not SeparableConv:
        return Adapted(False, f"{type(module).__name__} is a subclass, whose changes would be lost")
    linear = module.tp.lin
    if linear.bias_numel:
        return Adapted(False, "its linear layer has biases")
    reason = why_not(module.tp.dtp) or hooks_of(module.tp, module.tp.dtp, linear)
    if reason:
        return Adapted(False, reason)
    keep_plan(module, module.tp.dtp)
    text = f"{TEXT}, with the linear layer after the sum"
    return Adapted(True, text, (module.tp.dtp,), change_class(module, FusedSeparableConv))
