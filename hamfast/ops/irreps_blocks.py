"""Rows of irreps as one matrix ``[rows, 2 l + 1, mul]`` per irreps block, flat, one after the
other, and back: what the matrix products of mixing take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hamfast.plan.channel import MixBlock
from hamfast.plan.plan import IrrepBlock


def rows_of_blocks(
    flat: Tensor, rows: int, mixes: Sequence[MixBlock], irreps: Sequence[IrrepBlock], layout: str
) -> Tensor:
    """``[rows, dim]`` of irreps from the blocks that ``mixes`` names; the others are 0."""
    made = flat.split([rows * (2 * mix.l + 1) * mix.mul for mix in mixes])
    found = {mix.i_out: block for mix, block in zip(mixes, made, strict=True)}
    columns = []
    for i, (mul, l, _) in enumerate(irreps):
        block = found[i].view(rows, 2 * l + 1, mul) if i in found else flat.new_zeros(rows, 2 * l + 1, mul)
        columns.append((block.transpose(1, 2) if layout == "mul_ir" else block).flatten(1))
    return torch.cat(columns, dim=1)


def blocks_of_rows(x: Tensor, mixes: Sequence[MixBlock], irreps: Sequence[IrrepBlock], layout: str) -> Tensor:
    """Flat: of ``[rows, dim]`` of irreps the blocks that ``mixes`` names."""
    columns = x.split([mul * (2 * l + 1) for mul, l, _ in irreps], dim=1)
    made = []
    for mix in mixes:
        block = columns[mix.i_out]
        if layout == "mul_ir":
            block = block.unflatten(1, (mix.mul, 2 * mix.l + 1)).transpose(1, 2)
        made.append(block.flatten())
    return torch.cat(made)
