"""The two layouts of irreps in the last dimension of a tensor.

``mul_ir`` (e3nn): channels of a block slow, components fast. ``ir_mul``: components slow, channels
fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hamfast.plan.plan import IrrepBlock

LAYOUTS = ("mul_ir", "ir_mul")


def check_layout(layout: str) -> str:
    """The layout; raises ValueError for one that does not exist."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected mul_ir or ir_mul, found {layout!r}")
    return layout


def convert_layout(x: Tensor, irreps: Sequence[IrrepBlock], source: str, target: str) -> Tensor:
    """Reorders ``[..., irreps_dim(irreps)]`` from one layout to the other; a copy unless they
    agree."""
    if check_layout(source) == check_layout(target) or all(mul == 1 or l == 0 for mul, l, _ in irreps):
        return x
    reordered = []
    sizes = [mul * (2 * l + 1) for mul, l, _ in irreps]
    for block, (mul, l, _) in zip(torch.split(x, sizes, dim=-1), irreps, strict=True):
        shape = (mul, 2 * l + 1) if source == "mul_ir" else (2 * l + 1, mul)
        reordered.append(block.unflatten(-1, shape).transpose(-1, -2).flatten(-2))
    return torch.cat(reordered, dim=-1)
