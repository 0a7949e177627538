"""Whether an operand is made of spherical harmonics, as the numbers themselves show.

A layer of e3nn gets harmonics of edge directions as any other tensor. If they are harmonics, the
product can run in the frames of the edges (:mod:`hamfast.plan.edge_frame`), which is several times
cheaper. Nothing is assumed: the direction is read from the block l = 1, the harmonics of it are
made, and the operand must be equal to them in each component, up to one factor per block and to
rounding.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from hamfast.nn.remembered import Remembered, may_look
from hamfast.ops.edge_tensor_product import EdgeFrames, edge_frames, edge_tensor_product
from hamfast.plan import EdgeFramePlan, Plan, edge_frame_plan
from hamfast.plan.cost import choose_lowering
from hamfast.plan.plan import IrrepBlock

ROUNDING = 64
"""In units of the dtype's rounding, what harmonics may differ by: e3nn's of l up to 11, of short
and long vectors, in float32 and float64, were off by up to 16."""


class Found(NamedTuple):
    """The frames that an operand is made of."""

    frames: EdgeFrames
    factors: tuple[float, ...]
    """By block: what its harmonics, in component normalisation, are multiplied with."""


def product_in_frames(x: Tensor, y: Tensor, weight: Tensor, plan: Plan) -> Tensor | None:
    """The product in the frames of ``y``, where that is cheaper and ``y`` is found to be harmonics.

    Args:
        x: ``[rows, dim_in1]``; y: ``[rows, dim_in2]``; weight: ``[weight_numel]``, shared.
        plan: any.

    Returns:
        ``[rows, dim_out]``, layout ``mul_ir``; None where the general way is to be gone.
    """
    if torch.compiler.is_compiling():
        return None
    lowered = _lowered(plan, x.device.type)
    if lowered is None or not _fits(x, y, weight):
        return None
    l_max = max(l for _, l, _ in plan.irreps_in1 + plan.irreps_out)
    found = _FRAMES(y, plan.irreps_in2, l_max)
    if found is None:
        return None
    if any(factor != 1 for factor in found.factors):
        sizes = torch.tensor([ins.weight_numel for ins in plan.instructions])
        factors = torch.tensor([found.factors[ins.i_in2] for ins in plan.instructions], dtype=weight.dtype)
        weight = weight * factors.repeat_interleave(sizes).to(weight.device)
    return edge_tensor_product(x, weight, lowered, found.frames)


def _fits(x: Tensor, y: Tensor, weight: Tensor) -> bool:
    if x.dim() != 2 or y.dim() != 2 or weight.dim() != 1 or x.shape[0] != y.shape[0] or not y.shape[0]:
        return False
    if y.requires_grad or y.dtype not in (torch.float32, torch.float64) or {x.dtype, weight.dtype} != {y.dtype}:
        return False
    return may_look(y, x, weight)


@cache
def _lowered(plan: Plan, device: str) -> EdgeFramePlan | None:
    """The plan in edge frames, if harmonics fit it and it is the cheapest way then."""
    if not plan.instructions or not any(l == 1 for _, l, _ in plan.irreps_in2):
        return None
    try:
        lowered = edge_frame_plan(plan)
    except ValueError:  # it is none of harmonics
        return None
    return lowered if choose_lowering(plan, True, device, harmonics=True) == "edge_frame" else None


@torch.no_grad()
def find_frames(y: Tensor, irreps: tuple[IrrepBlock, ...], l_max: int) -> Found | None:
    """The frames of edges whose spherical harmonics ``y`` are; None if they are none.

    Args:
        y: ``[edges, dim]`` of one row per edge. Edges of length zero have 0 for all l > 0.
        irreps: of ``y``: blocks of one irrep each, with parity (-1)^l, one of them with l = 1.
        l_max: highest l of any irrep that the frames will rotate.
    """
    degrees = [l for _, l, _ in irreps]
    sizes = [2 * l + 1 for l in degrees]
    blocks = y.split(sizes, dim=1)
    vector = blocks[degrees.index(1)]
    length = vector.norm(dim=1)
    onsite = length <= 1e-3 * length.max()
    if bool(onsite.all()):
        return None
    expected = o3.spherical_harmonics(degrees, vector, True, "component")
    factors, tolerance = [], ROUNDING * torch.finfo(y.dtype).eps
    for l, block, harmonics in zip(degrees, blocks, expected.split(sizes, dim=1), strict=True):
        if l:
            harmonics = harmonics.masked_fill(onsite[:, None], 0)
        factor = float((block * harmonics).sum() / harmonics.square().sum())
        if abs(factor - 1) <= tolerance:
            factor = 1.0
        difference = (block - factor * harmonics).abs().max()
        if not bool(difference <= tolerance * abs(factor) * (2 * l + 1) ** 0.5):  # not a number: no
            return None
        factors.append(factor)
    return Found(edge_frames(vector.masked_fill(onsite[:, None], 0), l_max), tuple(factors))


_FRAMES = Remembered(find_frames)
