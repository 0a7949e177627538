"""A tensor product path by path, in torch's own operations: the lowering ``einsum``.

Every mode, every degree and every device; derivatives of any order are torch's.
The Clebsch-Gordan coefficients meet the operand with fewer numbers first, so that most of the work
is matrix products.
Intermediate tensors have the size of rows x pairs of channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamfast.constants import constant, real_tensors
from hamfast.plan.coupling import wigner_3j
from hamfast.plan.plan import Instruction, IrrepBlock, Plan


def product_by_paths(x: Tensor, y: Tensor, weight: Tensor | None, plan: Plan, paths: Sequence[Instruction]) -> Tensor:
    """The sum of some paths of a plan, row by row.

    Args:
        x, y: ``[rows, plan.dim_in1]``, ``[rows, plan.dim_in2]``, layout ``mul_ir``.
        weight: ``[plan.weight_numel]``, ``[rows, plan.weight_numel]`` or None.

    Returns:
        ``[rows, plan.dim_out]``, layout ``mul_ir``.
    """
    rows = x.shape[0]
    xs, ys = _blocks(x, plan.irreps_in1), _blocks(y, plan.irreps_in2)
    # One split: its derivative is one concatenation, where that of slices is a full tensor each.
    sizes = [ins.weight_numel for ins in plan.instructions]
    weights = [None] * len(sizes) if weight is None else list(weight.split(sizes, dim=-1))
    found: dict[int, Tensor] = {}
    for n, (ins, w) in enumerate(zip(plan.instructions, weights, strict=True)):
        if ins not in paths:
            continue
        block = _path(xs[ins.i_in1], ys[ins.i_in2], w if ins.has_weight else None, plan, n)
        found[ins.i_out] = found[ins.i_out] + block if ins.i_out in found else block
    columns = [
        found[i].reshape(rows, mul * (2 * l + 1)) if i in found else x.new_zeros(rows, mul * (2 * l + 1))
        for i, (mul, l, _) in enumerate(plan.irreps_out)
    ]
    return torch.cat(columns, dim=1) if len(columns) != 1 else columns[0]


def _blocks(t: Tensor, irreps: Sequence[IrrepBlock]) -> list[Tensor]:
    """``[rows, mul, 2 l + 1]`` of each block."""
    sizes = [mul * (2 * l + 1) for mul, l, _ in irreps]
    return [b.reshape(t.shape[0], mul, 2 * l + 1) for b, (mul, l, _) in zip(t.split(sizes, dim=1), irreps, strict=True)]


def _path(x: Tensor, y: Tensor, w: Tensor | None, plan: Plan, n: int) -> Tensor:
    """Path n: ``[rows, mul_out, 2 l + 1]`` of ``[rows, mul, 2 l + 1]`` operands; weights flat."""
    ins = plan.instructions[n]
    n1, n2, n3 = x.shape[1], y.shape[1], plan.irreps_out[ins.i_out][0]
    coupling = _Coupling(plan, n, x)
    if ins.mode == "uvw":
        assert w is not None
        if n3 == 1:  # weights first: a tensor of pairs would be larger than both operands
            return _tied(x, _weighted(y, w.unflatten(-1, (n1, n2))), coupling).sum(1, keepdim=True)
        pairs, v_slow = _all_pairs(x, y, coupling)
        w = w.unflatten(-1, (n1, n2, n3))
        return _mixed(pairs, (w.transpose(-3, -2) if v_slow else w).flatten(-3, -2))
    if ins.mode in ("uuu", "uuw", "uvu<v", "u<vw"):
        if ins.mode in ("uvu<v", "u<vw"):
            u, v = torch.triu_indices(n1, n1, 1, device=x.device)
            x, y = x[:, u], y[:, v]
        pairs = _tied(x, y, coupling)
        if w is None:
            return pairs.sum(1, keepdim=True) if ins.mode == "uuw" else pairs
        if ins.mode in ("uuw", "u<vw"):
            return _mixed(pairs.transpose(1, 2), w.unflatten(-1, (x.shape[1], n3)))
        return pairs * w.unsqueeze(-1)
    if w is not None:
        w = w.unflatten(-1, (n1, n2))
    if ins.mode == "uvu" and n2 > 1:
        return _tied(x, _weighted(y, w) if w is not None else y.sum(1, keepdim=True), coupling)
    if ins.mode == "uvv":
        return _tied(_weighted(x, w.transpose(-2, -1)) if w is not None else x.sum(1, keepdim=True), y, coupling)
    pairs = _outer(x, y, coupling)
    if w is not None:
        pairs = pairs * w.transpose(-2, -1).unsqueeze(-1)
    return pairs.squeeze(1) if ins.mode == "uvu" else pairs.transpose(1, 2).flatten(1, 2)  # uvuv


def _weighted(y: Tensor, w: Tensor) -> Tensor:
    """``[rows, n, d]`` and ``[m, n]`` or ``[rows, m, n]`` -> ``[rows, m, d]``: sums of channels."""
    if y.shape[2] == 1 and w.dim() == 2:
        return (y.squeeze(2) @ w.T).unsqueeze(2)
    return torch.matmul(w, y)


class _Coupling:
    """C_ijk times a path's normalisation."""

    def __init__(self, plan: Plan, n: int, like: Tensor):
        self.d1, self.d2, self.d3 = (2 * l + 1 for l in _degrees(plan, n))
        self._path = (plan, n)
        self._like = like

    @property
    def is_multiple(self) -> bool:
        """Is one operand a scalar, so that C is a number times the unit matrix?"""
        return min(self.d1, self.d2) == 1

    @property
    def number(self) -> float:
        """C_000, which is all of C where an operand or the result is a scalar."""
        return float(_number(*self._path))

    def matrix(self, axes: str) -> Tensor:
        """C as a matrix: ``ij,k`` has rows (i, j) and columns k."""
        return _matrix(*self._path, self._like.dtype, self._like.device, axes).values


# What a path's coefficient makes is made outside of a graph: there, a float would be a symbol. So
# would be a float that comes from outside; one that is made of a text is a constant.
@torch.compiler.assume_constant_result
def _number(plan: Plan, n: int) -> str:
    # The coefficients are those of the unit matrix over sqrt(2 l + 1).
    number = plan.instructions[n].coefficient / (2 * max(_degrees(plan, n)) + 1) ** 0.5
    return repr(1.0 if abs(number - 1.0) < 1e-15 else number)


def _degrees(plan: Plan, n: int) -> tuple[int, int, int]:
    ins = plan.instructions[n]
    return plan.irreps_in1[ins.i_in1][1], plan.irreps_in2[ins.i_in2][1], plan.irreps_out[ins.i_out][1]


def _scaled(t: Tensor, number: float) -> Tensor:
    return t if number == 1.0 else t * number


def _tied(x: Tensor, y: Tensor, coupling: _Coupling) -> Tensor:
    """``[rows, n, d1]``, ``[rows, n, d2]`` -> ``[rows, n, d3]``: channel u with channel u."""
    if coupling.is_multiple:
        small, large = (x, y) if coupling.d1 == 1 else (y, x)
        return large * _scaled(small, coupling.number)
    if coupling.d3 == 1:  # a scalar product
        return _scaled((x * y).sum(-1, keepdim=True), coupling.number)
    outer = (x.unsqueeze(-1) * y.unsqueeze(-2)).flatten(-2)
    return outer @ coupling.matrix("ij,k")


def _outer(x: Tensor, y: Tensor, coupling: _Coupling) -> Tensor:
    """``[rows, n1, d1]``, ``[rows, n2, d2]`` -> ``[rows, n2, n1, d3]``: every channel with every
    channel."""
    if coupling.is_multiple:
        return x.unsqueeze(1) * _scaled(y, coupling.number).unsqueeze(2)
    # A matrix per channel of y, as in the channel kernel.
    matrix = (y @ coupling.matrix("j,ik")).unflatten(-1, (coupling.d1, coupling.d3))
    if y.shape[1] == 1:
        return torch.bmm(x, matrix.squeeze(1)).unsqueeze(1)
    return x.unsqueeze(1) @ matrix


def _all_pairs(x: Tensor, y: Tensor, coupling: _Coupling) -> tuple[Tensor, bool]:
    """As :func:`_outer`, with components slow: ``[rows, d3, pairs]``, as matrix products take it.

    Returns:
        The pairs, and whether v is slow among them and u fast, or the other way round.
    """
    if coupling.is_multiple:
        scaled = _scaled(y, coupling.number).transpose(1, 2)
        return (x.transpose(1, 2).unsqueeze(3) * scaled.unsqueeze(2)).flatten(2), False
    if coupling.d3 == 1:
        return torch.bmm(x, _scaled(y, coupling.number).transpose(1, 2)).flatten(1).unsqueeze(1), False
    matrix = (y @ coupling.matrix("j,ki")).unflatten(-1, (coupling.d3, coupling.d1))  # [rows, v, k, i]
    matrix = matrix.transpose(1, 2).reshape(x.shape[0], coupling.d3 * y.shape[1], coupling.d1)
    return torch.bmm(matrix, x.transpose(1, 2)).view(x.shape[0], coupling.d3, y.shape[1] * x.shape[1]), True


def _mixed(pairs: Tensor, w: Tensor) -> Tensor:
    """``[rows, d, pairs]`` and ``[pairs, n3]`` or ``[rows, pairs, n3]`` -> ``[rows, n3, d]``."""
    if w.dim() == 3:
        return torch.bmm(pairs, w).transpose(1, 2)
    rows, d, n = pairs.shape
    return (pairs.reshape(rows * d, n) @ w).view(rows, d, w.shape[1]).transpose(1, 2)


class _Matrix(NamedTuple):
    """A tensor that is a constant of graphs: there, bare ones of different calls would have one
    name."""

    values: Tensor


_MATRICES: dict[tuple, _Matrix] = {}


@torch.compiler.assume_constant_result
def _matrix(plan: Plan, n: int, dtype: torch.dtype, device: torch.device, axes: str) -> _Matrix:
    degrees, coefficient = _degrees(plan, n), plan.instructions[n].coefficient
    key = (degrees, coefficient, dtype, device, axes)
    if key not in _MATRICES:
        rows, columns = axes.split(",")
        values = np.transpose(wigner_3j(*degrees) * coefficient, ["ijk".index(axis) for axis in rows + columns])
        flat = np.ascontiguousarray(values.reshape(math.prod(values.shape[: len(rows)]), -1))
        with real_tensors():
            # The sizes of parameters are no symbols.
            _MATRICES[key] = _Matrix(torch.nn.Parameter(constant(flat, device, dtype), requires_grad=False))
    return _MATRICES[key]
