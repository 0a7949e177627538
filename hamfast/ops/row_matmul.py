"""Coupled pairs of each row times that row's own weights: matrix products of one row each.

``<C, A B>`` is linear in the pairs A, the weights B and the result C, so every derivative of the op
is the op with another of the three made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.constants import constant, on_host, real_tensors
from hamfast.ops.block_matmul import FACTORS
from hamfast.ops.transforms import differentiable, gradients_of_three
from hamfast.plan import Plan
from hamfast.plan.channel import row_tasks
from hamfast.records.choices import MatrixProduct
from hamfast.records.tables import RowDims, RowTask

_C, _A, _B = MatrixProduct.C, MatrixProduct.A, MatrixProduct.B


class RowTables(NamedTuple):
    """The mixing paths of a plan for :func:`row_matmul`, on one device."""

    tasks: Tensor
    """``[tasks, RowTask]`` int64."""
    dims: RowDims


_TABLES: dict[tuple[Plan, torch.device], RowTables] = {}


@torch.compiler.assume_constant_result
def row_tables(plan: Plan, device: torch.device) -> RowTables:
    """Tables of the paths that mix channels; the pairs are in the order of
    :func:`hamfast.plan.channel.mix_tables`."""
    if (plan, device) not in _TABLES:
        with real_tensors():
            tasks, dims = row_tasks(plan)
            _TABLES[plan, device] = RowTables(constant(tasks, device), dims)
    return _TABLES[plan, device]


def row_matmul(pairs: Tensor, weight: Tensor, tables: RowTables) -> Tensor:
    """``out[r, m, w] = sum over p of pairs[r, m, p] W[r, p, w]`` for each output block.

    Args:
        pairs: flat, block after block ``[rows, 2 l + 1, pairs]``: float32 or float64.
        weight: ``[rows, plan.weight_numel]``, in e3nn's order.
        tables: from :func:`row_tables`.

    Returns:
        Flat, block after block ``[rows, 2 l + 1, channels]``. Differentiable in both to any order.
    """
    return _op(pairs, weight, tables.tasks, weight.shape[0], _C, tables.dims)


@torch.library.register_fake("hamfast::row_matmul")
def _(left, right, tasks, rows, product, dims):
    sizes = RowDims(*dims)
    if product == _B:
        return left.new_empty(rows, sizes.b)
    return left.new_empty(rows * (sizes.a if product == _A else sizes.c))


def _setup_context(ctx, inputs, output):
    left, right, tasks, ctx.rows, ctx.product, ctx.dims = inputs
    ctx.save_for_backward(left, right, tasks)


def _backward(ctx, grad):
    left, right, tasks = ctx.saved_tensors

    def op(left, right, product):
        return _op(left, right, tasks, ctx.rows, product, ctx.dims)

    grads = gradients_of_three(op, FACTORS, ctx.product, (left, right), grad, ctx.needs_input_grad)
    return (*grads, None, None, None, None)


_op = differentiable("row_matmul", _backward, _setup_context, multilinear=True)


def by_torch(left: Tensor, right: Tensor, tasks: Tensor, rows: int, product: int, dims: list[int]) -> Tensor:
    """The op in torch's operations, a batched matrix product per task: what GPUs run."""
    sizes = RowDims(*dims)
    given = dict(zip(FACTORS[product], (left, right), strict=True))
    shape = (rows, sizes.b) if product == _B else (rows * (sizes.a if product == _A else sizes.c),)
    given[product] = out = left.new_zeros(shape)

    def part_of(flat, block, d, columns):
        return flat[rows * block : rows * (block + d * columns)].view(rows, d, columns)

    for task in map(RowTask._make, on_host(tasks).tolist()):
        a = part_of(given[_A].reshape(-1), task.a_block, task.d, task.a_columns)
        a = a[:, :, task.a_first : task.a_first + task.n]
        c = part_of(given[_C].reshape(-1), task.c_block, task.d, task.c_columns)
        b = given[_B].as_strided(
            (rows, task.n, task.c_columns),
            (given[_B].stride(0), task.b_stride, 1),
            given[_B].storage_offset() + task.b_offset,
        )
        if product == _C:
            c += torch.bmm(a, b)
        elif product == _A:
            a.copy_(torch.bmm(c, b.transpose(1, 2)))
        else:
            b.copy_(torch.bmm(a.transpose(1, 2), c))
    return out


for _device in ("CUDA", "XPU"):
    torch.library.impl("hamfast::row_matmul", _device)(by_torch)
