"""The linear maps of the edge-frame lowering: rotations into and out of the frames, and the matrices of the path weights.

Each is a torch op, and its derivative is again one of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.transforms import differentiable
from hamfast.plan import EdgeFramePlan
from hamfast.plan.constants import constant, real_tensors
from hamfast.plan.edge_frame import Coupling, is_natural
from hamfast.plan.plan import format_irreps

WEIGHT, SCALE, MATRIX = range(3)

MOST_SOURCES = 3  # kMaxSources in kernels/edge_frame.cuh


class FrameTables(NamedTuple):
    tables_in: list[Tensor]
    """One for each source."""
    table_out: Tensor
    frame_in: int
    frame_out: int
    terms: list[Tensor]
    """``MatrixTerm`` rows, their factors; where each matrix' terms begin; where each path's begin in the last, their order."""
    onsite_sizes: list[int]
    """Of the matrices for edges of length zero, which come last."""
    matrix_numel: int


_CACHE: dict[tuple[EdgeFramePlan, torch.device, tuple[int, ...]], FrameTables] = {}


@torch.compiler.assume_constant_result
def frame_tables(plan: EdgeFramePlan, device: torch.device, widths: tuple[int, ...]) -> FrameTables:
    if (plan, device, widths) not in _CACHE:
        with real_tensors():
            _CACHE[plan, device, widths] = _make_tables(plan, device, widths)
    return _CACHE[plan, device, widths]


def _make_tables(plan: EdgeFramePlan, device: torch.device, widths: tuple[int, ...]) -> FrameTables:
    """The plan as the kernels read it: see ``FrameBlock``, ``FramePlace`` and ``MatrixTerm`` in kernels/edge_frame.cuh."""
    instructions = plan.plan.instructions
    scale_offsets = np.cumsum([0] + [ins.weight_shape[-1] for ins in instructions])
    terms, paths, factors, groups, onsite_sizes, matrix_start = [], [], [], [0], [], 0

    def add(coupling: Coupling, corner: int, stride: int, mul1: int, mul3: int) -> None:
        for n, factor in coupling.terms:
            terms.append([instructions[n].weight_offset, scale_offsets[n], corner, stride, mul1, mul3])
            paths.append(n)
            factors.append(factor)
        groups.append(len(terms))

    for block in plan.blocks:
        rows = {c.block: c for c in block.rows}
        columns = {c.block: c for c in block.columns}
        for coupling in block.couplings:
            row, column = rows[coupling.i_in1], columns[coupling.i_out]
            corner = matrix_start + row.start * block.width_out + column.start
            add(coupling, corner, block.width_out, row.mul, column.mul)
        matrix_start += block.width_in * block.width_out
    for coupling in plan.onsite:
        mul1, mul3 = plan.plan.irreps_in1[coupling.i_in1][0], plan.plan.irreps_out[coupling.i_out][0]
        add(coupling, matrix_start, mul3, mul1, mul3)
        onsite_sizes.append(mul1 * mul3)
        matrix_start += mul1 * mul3
    by_path = np.cumsum([0, *np.bincount(paths, minlength=len(instructions))])
    term_arrays = (
        np.array(terms, dtype=np.int64).reshape(-1, 6),
        np.array(factors, dtype=np.float64),
        np.array(groups, dtype=np.int64),
        by_path.astype(np.int64),
        np.argsort(paths, kind="stable").astype(np.int64),
    )
    table_in, in_sizes = _frame_table(plan.plan.irreps_in1, plan.blocks, "rows", "width_in")
    table_out, out_sizes = _frame_table(plan.plan.irreps_out, plan.blocks, "columns", "width_out")
    return FrameTables(
        [table.to(device) for table in _split_table(table_in, plan, widths)],
        table_out.to(device),
        sum(in_sizes),
        sum(out_sizes),
        [constant(array, device) for array in term_arrays],
        onsite_sizes,
        matrix_start,
    )


def frame_matrices(weight: Tensor, scale: Tensor | None, tables: FrameTables) -> Tensor:
    """The matrices of all m and of the on-site edges, ``[matrix_numel]``, of ``weight[u, w] scale[w]`` path by path."""
    return _weights(weight, scale, None, *tables.terms, MATRIX, tables.matrix_numel)


def _split_table(table: Tensor, plan: EdgeFramePlan, widths: tuple[int, ...]) -> list[Tensor]:
    """The blocks of each source, with offsets in its own rows."""
    starts = table[:, 3].tolist()
    begin, parts = 0, []
    for width in widths:
        if begin not in starts and begin != plan.plan.dim_in1:
            raise ValueError(
                f"edge_tensor_product: x: expected sources that split {format_irreps(plan.plan.irreps_in1)} between its blocks, "
                f"found widths {list(widths)}"
            )
        part = table[(table[:, 3] >= begin) & (table[:, 3] < begin + width)].clone()
        part[:, 3] -= begin
        parts.append(part)
        begin += width
    if begin != plan.plan.dim_in1:
        raise ValueError(
            f"edge_tensor_product: x: expected widths that add up to {plan.plan.dim_in1}, found {list(widths)}"
        )
    return parts


def _frame_table(irreps, blocks, side, width):
    l_max = max((l for _, l, _ in irreps), default=0)
    places = {}
    sizes, start = [], 0
    for block in blocks:
        per_edge = getattr(block, width) * (1 if block.m == 0 else 2)
        for channel in getattr(block, side):
            places[channel.block, block.m] = [start, per_edge, getattr(block, width), channel.start]
        sizes.append(per_edge)
        start += per_edge
    rows, offset = [], 0
    for i, (mul, l, p) in enumerate(irreps):
        row = [mul, l, int(is_natural((mul, l, p))), offset]
        for m in range(l_max + 1):
            row += places.get((i, m), [-1, 0, 0, 0])
        rows.append(row)
        offset += mul * (2 * l + 1)
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), 4 * (l_max + 2)), sizes


@torch.library.register_fake("hamfast::rotate_to_edge")
def _(x0, *rest):
    wigner, frame_dim = rest[14], rest[15]
    return x0.new_empty(wigner.shape[0] * frame_dim)


@torch.library.register_fake("hamfast::rotate_from_edge")
def _(frame, table, index, order, ptr, wigner, dim, channels_fast, partial):
    return frame.new_empty(wigner.shape[0] if ptr is None else ptr.shape[0] - 1, dim)


@torch.library.register_fake("hamfast::edge_frame_weights")
def _(weight, scale, matrix, terms, factors, by_matrix, by_path, path_order, slot, numel):
    return (matrix if slot == WEIGHT else weight).new_empty(numel)


def _save_to_edge(ctx, inputs, output):
    *tensors, wigner, _, ctx.fast, _ = inputs
    ctx.save_for_backward(*tensors[3:], wigner)
    ctx.widths = [None if x is None else x.shape[1] for x in tensors[:3]]


def _to_edge_backward(ctx, grad):
    *graph, wigner = ctx.saved_tensors
    tables, indices, orders, ptrs = (graph[n : n + 3] for n in (0, 3, 6, 9))
    partial = sum(width is not None for width in ctx.widths) > 1
    grads = []
    for n, (width, table, index, order, ptr) in enumerate(zip(ctx.widths, tables, indices, orders, ptrs, strict=True)):
        if ctx.needs_input_grad[n]:
            grads.append(from_edge(grad, table, index, order, ptr, wigner, width, ctx.fast, partial))
        else:
            grads.append(None)
    return (*grads, *(None,) * 16)


def _save_from_edge(ctx, inputs, output):
    frame, table, index, order, ptr, wigner, _, ctx.fast, ctx.partial = inputs
    ctx.save_for_backward(table, index, order, ptr, wigner)
    ctx.frame_dim = frame.shape[0] // max(wigner.shape[0], 1)


def _from_edge_backward(ctx, grad):
    table, index, order, ptr, wigner = ctx.saved_tensors
    two = (None, None)
    source = (grad, *two, table, *two, index, *two, order, *two, ptr, *two)
    return to_edge(*source, wigner, ctx.frame_dim, ctx.fast, ctx.partial), *(None,) * 8


def _save_weights(ctx, inputs, output):
    *tensors, ctx.slot, ctx.numel = inputs
    ctx.save_for_backward(*tensors)


def _weights_backward(ctx, grad):
    operands, rest = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    found: list[Tensor | None] = [None] * 3
    for slot in range(3):
        if slot != ctx.slot and ctx.needs_input_grad[slot]:
            others = list(operands)
            others[ctx.slot], others[slot] = grad, None
            found[slot] = _weights(*others, *rest, slot, operands[slot].shape[0])
    return (*found, *(None,) * 7)


to_edge = differentiable("rotate_to_edge", _to_edge_backward, _save_to_edge)
from_edge = differentiable("rotate_from_edge", _from_edge_backward, _save_from_edge)
_weights = differentiable("edge_frame_weights", _weights_backward, _save_weights, linear_in=3)
