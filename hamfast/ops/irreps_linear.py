"""Linear maps of the channels of irreps, in one call for all irreps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.constants import constant, on_host, real_tensors
from hamfast.ops.block_matmul import FACTORS
from hamfast.ops.checks import HALF, check_rows, check_same, check_tensor, found
from hamfast.ops.layout import check_layout
from hamfast.ops.multilinear import LAYOUTS
from hamfast.ops.transforms import differentiable, gradients_of_three
from hamfast.plan.channel import as_table
from hamfast.plan.linear import LinearPlan, linear_tasks
from hamfast.plan.plan import irreps_dim
from hamfast.records.choices import Layout, MatrixProduct
from hamfast.records.tables import LinearDims, LinearTask

_C, _A, _B = MatrixProduct.C, MatrixProduct.A, MatrixProduct.B


class SpeciesRows(NamedTuple):
    """The rows of each species."""

    order: Tensor
    """``[rows]`` int64: rows of species 0, then of species 1, ..."""
    ptr: Tensor
    """``[species + 1]`` int64: where each species begins in them."""


def rows_of_species(species: Tensor, count: int) -> SpeciesRows:
    """``[rows]`` int64, from 0 to ``count - 1`` -> the rows of each."""
    order = torch.argsort(species, stable=True)
    counts = torch.zeros(count + 1, dtype=torch.int64, device=species.device)
    return SpeciesRows(order, counts.index_add_(0, species + 1, torch.ones_like(species)).cumsum(0))


class LinearTables(NamedTuple):
    """A plan for the kernels, on one device."""

    tasks: Tensor
    """``[tasks, LinearTask]`` int64."""
    dims: LinearDims


_TABLES: dict[tuple[LinearPlan, torch.device], LinearTables] = {}


@torch.compiler.assume_constant_result
def linear_tables(plan: LinearPlan, device: torch.device) -> LinearTables:
    """The tables of a plan, made once."""
    if (plan, device) not in _TABLES:
        tasks, dims = linear_tasks(plan)
        with real_tensors():
            _TABLES[plan, device] = LinearTables(constant(as_table(tasks, LinearTask), device), dims)
    return _TABLES[plan, device]


@torch.compiler.assume_constant_result
def _is_for_all(plan: LinearPlan) -> bool:
    """One matrix for all species?"""
    return plan.species == 1


def irreps_linear(
    x: Tensor, weight: Tensor, plan: LinearPlan, layout: str = "mul_ir", species: SpeciesRows | None = None
) -> Tensor:
    """``out[r, w, m] = sum over u of x[r, u, m] weight[u, w]`` for each pair of blocks.

    Args:
        x: ``[..., dim_in]``: float32 or float64; bfloat16 and float16 are computed in float32.
        weight: ``[plan.weight_numel]``, of the dtype of ``x``; under autocast the wider of the two
            is taken.
        layout: of rows, ``mul_ir`` or ``ir_mul``.
        species: with ``plan.species`` > 1, from :func:`rows_of_species`: each row takes the
            matrices of its species. Rows are numbered over all leading dimensions.

    Returns:
        ``[..., dim_out]``; blocks without a pair are 0. Differentiable to any order in both.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    check_tensor("irreps_linear", "x", x)
    leading = x.shape[:-1]
    if x.dim() > 0 and len(leading) != 1:
        x = x.reshape(math.prod(leading), x.shape[-1])
    check_rows("irreps_linear", "x", x, None, irreps_dim(plan.irreps_in))
    if torch.is_autocast_enabled(x.device.type):
        widest = torch.promote_types(x.dtype, weight.dtype)
        x, weight = x.to(widest), weight.to(widest)
    check_same("irreps_linear", True, x=x, weight=weight)
    check_layout(layout)
    tables = linear_tables(plan, x.device)
    if weight.shape != (tables.dims.b,):
        raise ValueError(f"irreps_linear: weight: expected [{tables.dims.b}], found {list(weight.shape)}")
    if (species is None) != _is_for_all(plan):
        raise ValueError(
            f"irreps_linear: species: expected {'none' if plan.species == 1 else 'rows by species'} for a plan of "
            f"{plan.species} species, found {found(species)}"
        )
    out = by_tables(x, weight, tables, layout, species)
    return out if len(leading) == 1 else out.view(*leading, out.shape[-1])


def by_tables(
    x: Tensor, weight: Tensor, tables: LinearTables, layout: str, species: SpeciesRows | None = None
) -> Tensor:
    """:func:`irreps_linear` of a matrix of rows, without its checks."""
    if x.dtype in HALF:
        return by_tables(x.float(), weight.float(), tables, layout, species).to(x.dtype)
    order, ptr = species if species is not None else (None, None)
    return _op(x, weight, order, ptr, tables.tasks, _C, LAYOUTS[layout], tables.dims)


@torch.library.register_fake("hamfast::irreps_linear")
def _(left, right, order, ptr, tasks, product, layout, dims):
    sizes = LinearDims(*dims)
    if product == _B:
        return left.new_empty(sizes.b)
    return left.new_empty(left.shape[0], sizes.a if product == _A else sizes.c)


def _setup_context(ctx, inputs, output):
    left, right, order, ptr, tasks, ctx.product, ctx.layout, ctx.dims = inputs
    ctx.save_for_backward(left, right, order, ptr, tasks)


def _backward(ctx, grad):
    left, right, *tables = ctx.saved_tensors

    def op(left, right, product):
        return _op(left, right, *tables, product, ctx.layout, ctx.dims)

    grads = gradients_of_three(op, FACTORS, ctx.product, (left, right), grad, ctx.needs_input_grad)
    return (*grads, None, None, None, None, None, None)


_op = differentiable("irreps_linear", _backward, _setup_context, multilinear=True)


def by_torch(
    left: Tensor,
    right: Tensor,
    order: Tensor | None,
    ptr: Tensor | None,
    tasks: Tensor,
    product: int,
    layout: int,
    dims: list[int],
) -> Tensor:
    """The op in torch's operations, a matrix product per task and species: what GPUs run."""
    sizes = LinearDims(*dims)
    given = dict(zip(FACTORS[product], (left, right), strict=True))
    rows = left.shape[0]
    shape = (sizes.b,) if product == _B else (rows, sizes.a if product == _A else sizes.c)
    given[product] = out = left.new_zeros(shape)
    groups: list[Tensor | None] = [None]
    if order is not None and ptr is not None:
        bounds = on_host(ptr).tolist()
        groups = [order[begin:end] for begin, end in pairwise(bounds)]

    def block(rows_of, offset, d, channels):
        part = rows_of[:, offset : offset + d * channels]
        if layout == Layout.IR_MUL:
            return part.unflatten(1, (d, channels))
        return part.unflatten(1, (channels, d)).transpose(1, 2)

    for task in map(LinearTask._make, on_host(tasks).tolist()):
        for s, index in enumerate(groups):
            b = (
                given[_B]
                .reshape(-1)[task.b_offset :]
                .as_strided(
                    (task.k, task.n), (task.b_stride, 1), task.b_offset + s * task.b_step + given[_B].storage_offset()
                )
            )
            a, c = block(given[_A], task.a_offset, task.d, task.k), block(given[_C], task.c_offset, task.d, task.n)
            at = slice(None) if index is None else index
            if product == _C:
                c[at] += a[at] @ b
            elif product == _A:
                a[at] += c[at] @ b.T
            else:
                b.copy_(torch.einsum("rmu,rmw->uw", a[at], c[at]))
    return out


for _device in ("CUDA", "XPU"):
    torch.library.impl("hamfast::irreps_linear", _device)(by_torch)
