"""The code of ``e3nn.o3.Linear`` on hamfast's op."""

from __future__ import annotations

import ast
import math
from functools import cache

import torch
from e3nn import o3
from torch import Tensor

from hamfast.nn.checks import CallsPython
from hamfast.nn.scale import Scaled
from hamfast.ops.irreps_linear import irreps_linear
from hamfast.plan.linear import LinearPlan
from hamfast.plan.plan import as_blocks

torch.library.define("hamfast::e3nn_linear", "(Tensor x, Tensor weight, Tensor scale, str plan) -> Tensor")


@torch.library.impl("hamfast::e3nn_linear", "CompositeImplicitAutograd")
def _e3nn_linear(x: Tensor, weight: Tensor, scale: Tensor, plan: str) -> Tensor:
    return irreps_linear(x, weight * scale, _parsed(plan))


@cache
def _parsed(text: str) -> LinearPlan:
    return LinearPlan(*ast.literal_eval(text))


class LinearCode(CallsPython, Scaled):
    """The code of one ``o3.Linear``, which takes and returns what e3nn's generated code does."""

    def __init__(self, linear: o3.Linear):
        super().__init__()
        irreps_in, irreps_out = (as_blocks(irreps) for irreps in (linear.irreps_in, linear.irreps_out))
        pairs = [ins for ins in linear.instructions if ins.i_in >= 0]
        self.plan = LinearPlan(irreps_in, irreps_out, tuple((ins.i_in, ins.i_out) for ins in pairs))
        self.text = repr((irreps_in, irreps_out, self.plan.pairs))
        like = linear.weight if linear.weight_numel else linear.output_mask
        self.keep_scale([(math.prod(ins.path_shape), float(ins.path_weight)) for ins in pairs], like)
        slices = linear.irreps_out.slices()
        biased = [slices[ins.i_out] for ins in linear.instructions if ins.i_in < 0]
        where = [torch.arange(s.start, s.stop) for s in biased]
        self.register_buffer("biased", torch.cat(where).to(like.device) if where else None, persistent=False)
        self.dim_out = linear.irreps_out.dim

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """``[..., dim_in]`` -> ``[..., dim_out]``."""
        if torch.jit.is_scripting():  # TorchScript knows ops and strings, and no plans
            out = torch.ops.hamfast.e3nn_linear(x, weight, self.scale, self.text)
        else:
            out = self._linear(x, weight)
        biased = self.biased
        if biased is None:
            return out
        zeros = torch.zeros(self.dim_out, dtype=bias.dtype, device=bias.device)
        return out + zeros.index_copy(0, biased, bias)  # type: ignore[arg-type]

    @torch.jit.unused
    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return irreps_linear(x, weight * self.scale, self.plan)  # type: ignore[operator]

    def extra_repr(self) -> str:
        """What ``print`` of the module says in its brackets."""
        return f"hamfast, {len(self.plan.pairs)} pairs of blocks"


def why_not(linear: o3.Linear) -> str:
    """Why hamfast cannot run a layer; empty where it can."""
    if not (linear.internal_weights and linear.shared_weights) or linear.weight.dim() != 1:
        return "its weights are not one matrix for all rows"
    return ""


def why_better_alone(linear: o3.Linear) -> str:
    """Why there is nothing to gain of a layer; empty where there is."""
    pairs = [ins for ins in linear.instructions if ins.i_in >= 0]
    if not pairs:
        return "it has no weights"
    if len(pairs) == 1 and linear.irreps_in[pairs[0].i_in].ir.l == 0:
        return "e3nn's code for one block of scalars is a single matrix product, and faster"
    return ""
