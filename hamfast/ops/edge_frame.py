"""The linear maps of the edge-frame lowering: rotations into and out of the frames, and the
matrices of the path weights.

Each is a torch op, and its derivative is again one of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.constants import constant, real_tensors
from hamfast.ops.transforms import differentiable
from hamfast.plan import EdgeFramePlan
from hamfast.plan.channel import as_table
from hamfast.plan.edge_frame import Coupling, is_natural
from hamfast.plan.plan import format_irreps
from hamfast.records.choices import WeightSlot
from hamfast.records.ops import EDGE_FRAME_WEIGHTS, ROTATE_FROM_EDGE, ROTATE_TO_EDGE
from hamfast.records.tables import FrameBlock, FrameColumns, MatrixTerm

WEIGHT, SCALE, MATRIX = WeightSlot.WEIGHT, WeightSlot.SCALE, WeightSlot.MATRIX

MOST_SOURCES = 3  # kMaxSources in kernels/edge_frame.cuh


class FrameTables(NamedTuple):
    """An edge-frame plan as the kernels read it, on one device."""

    tables_in: list[Tensor]
    """One for each source."""
    table_out: Tensor
    frame_in: int
    frame_out: int
    terms: list[Tensor]
    """``MatrixTerm`` rows, their factors; where each matrix' terms begin; where each path's begin
    in the last, their order."""
    onsite_sizes: list[int]
    """Of the matrices for edges of length zero, which come last."""
    matrix_numel: int


_CACHE: dict[tuple[EdgeFramePlan, torch.device, tuple[int, ...]], FrameTables] = {}


@torch.compiler.assume_constant_result
def frame_tables(plan: EdgeFramePlan, device: torch.device, widths: tuple[int, ...]) -> FrameTables:
    """The tables of a plan, made once.

    Args:
        widths: row lengths of the tensors that x consists of; they add up to ``plan.plan.dim_in1``.

    Raises:
        ValueError: the widths do not split the irreps of x between two blocks.
    """
    if (plan, device, widths) not in _CACHE:
        with real_tensors():
            _CACHE[plan, device, widths] = _make_tables(plan, device, widths)
    return _CACHE[plan, device, widths]


def _make_tables(plan: EdgeFramePlan, device: torch.device, widths: tuple[int, ...]) -> FrameTables:
    """The plan as the kernels read it."""
    instructions = plan.plan.instructions
    scale_offsets = np.cumsum([0] + [ins.weight_shape[-1] for ins in instructions])
    terms, paths, factors, groups, onsite_sizes, matrix_start = [], [], [], [0], [], 0

    def add(coupling: Coupling, corner: int, stride: int, mul1: int, mul3: int) -> None:
        for n, factor in coupling.terms:
            scale = int(scale_offsets[n])
            term = MatrixTerm(
                weight=instructions[n].weight_offset, scale=scale, matrix=corner, stride=stride, rows=mul1, columns=mul3
            )
            terms.append(term)
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
        as_table(terms, MatrixTerm),
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
    """The matrices of all m and of the on-site edges, ``[matrix_numel]``, of ``weight[u, w]
    scale[w]`` path by path."""
    return _weights(weight, scale, None, *tables.terms, MATRIX, tables.matrix_numel)


def _split_table(table: Tensor, plan: EdgeFramePlan, widths: tuple[int, ...]) -> list[Tensor]:
    """The blocks of each source, with offsets in its own rows."""
    offsets = table[:, FrameBlock._fields.index("offset")]
    begin, split = 0, []
    for width in widths:
        if begin not in offsets.tolist() and begin != plan.plan.dim_in1:
            raise ValueError(
                f"edge_tensor_product: x: expected sources that split {format_irreps(plan.plan.irreps_in1)} between its blocks, "
                f"found widths {list(widths)}"
            )
        own = table[(offsets >= begin) & (offsets < begin + width)].clone()
        own[:, FrameBlock._fields.index("offset")] -= begin
        split.append(own)
        begin += width
    if begin != plan.plan.dim_in1:
        raise ValueError(
            f"edge_tensor_product: x: expected widths that add up to {plan.plan.dim_in1}, found {list(widths)}"
        )
    return split


def _frame_table(irreps, blocks, side, width):
    l_max = max((l for _, l, _ in irreps), default=0)
    columns = {}
    sizes, start = [], 0
    for block in blocks:
        per_edge = getattr(block, width) * (1 if block.m == 0 else 2)
        for channel in getattr(block, side):
            columns[channel.block, block.m] = FrameColumns(
                start=start, stride=per_edge, width=getattr(block, width), column=channel.start
            )
        sizes.append(per_edge)
        start += per_edge
    rows, offset = [], 0
    for i, (mul, l, p) in enumerate(irreps):
        row = list(FrameBlock(mul=mul, l=l, natural=int(is_natural((mul, l, p))), offset=offset))
        for m in range(l_max + 1):
            row += columns.get((i, m), _NOT_STORED)
        rows.append(row)
        offset += mul * (2 * l + 1)
    row_length = len(FrameBlock._fields) + (l_max + 1) * len(FrameColumns._fields)
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), row_length), sizes


_NOT_STORED = FrameColumns(start=-1, stride=0, width=0, column=0)


@torch.library.register_fake("hamfast::rotate_to_edge")
def _(*flat):
    arguments = ROTATE_TO_EDGE.read(flat)
    return arguments.x.x0.new_empty(arguments.wigner.shape[0] * arguments.frame_dim)


@torch.library.register_fake("hamfast::rotate_from_edge")
def _(*flat):
    arguments = ROTATE_FROM_EDGE.read(flat)
    rows = arguments.wigner.shape[0] if arguments.ptr is None else arguments.ptr.shape[0] - 1
    return arguments.frame.new_empty(rows, arguments.dim)


@torch.library.register_fake("hamfast::edge_frame_weights")
def _(*flat):
    arguments = EDGE_FRAME_WEIGHTS.read(flat)
    like = arguments.operands[MATRIX if arguments.slot == WEIGHT else WEIGHT]
    return like.new_empty(arguments.numel)


def _save_to_edge(ctx, inputs, output):
    arguments = ROTATE_TO_EDGE.read(inputs)
    ctx.save_for_backward(*arguments.tables, *arguments.index, *arguments.order, *arguments.ptr, arguments.wigner)
    ctx.widths = [None if x is None else x.shape[1] for x in arguments.x]
    ctx.fast = arguments.channels_fast


def _to_edge_backward(ctx, grad):
    *graph, wigner = ctx.saved_tensors
    tables, indices, orders, ptrs = (graph[n : n + MOST_SOURCES] for n in range(0, 4 * MOST_SOURCES, MOST_SOURCES))
    partial = sum(width is not None for width in ctx.widths) > 1
    grads = []
    for n, (width, table, index, order, ptr) in enumerate(zip(ctx.widths, tables, indices, orders, ptrs, strict=True)):
        if ctx.needs_input_grad[n]:
            grads.append(from_edge(grad, table, index, order, ptr, wigner, width, ctx.fast, partial))
        else:
            grads.append(None)
    return ROTATE_TO_EDGE.per_argument(x=grads)


def _save_from_edge(ctx, inputs, output):
    arguments = ROTATE_FROM_EDGE.read(inputs)
    wigner = arguments.wigner
    ctx.save_for_backward(arguments.table, arguments.index, arguments.order, arguments.ptr, wigner)
    ctx.fast, ctx.partial = arguments.channels_fast, arguments.partial
    ctx.frame_dim = arguments.frame.shape[0] // max(wigner.shape[0], 1)


def _from_edge_backward(ctx, grad):
    table, index, order, ptr, wigner = ctx.saved_tensors
    two = (None, None)
    source = (grad, *two, table, *two, index, *two, order, *two, ptr, *two)
    return ROTATE_FROM_EDGE.per_argument(frame=to_edge(*source, wigner, ctx.frame_dim, ctx.fast, ctx.partial))


def _save_weights(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: EDGE_FRAME_WEIGHTS.tensors])
    ctx.settings = inputs[EDGE_FRAME_WEIGHTS.tensors :]


def _weights_backward(ctx, grad):
    saved = ctx.saved_tensors  # once: a checkpointed activation cannot be taken twice
    arguments = EDGE_FRAME_WEIGHTS.read((*saved, *ctx.settings))
    operands, tables = arguments.operands, saved[len(arguments.operands) :]
    found: list[Tensor | None] = [None] * len(operands)
    for slot in (WEIGHT, SCALE, MATRIX):
        if slot != arguments.slot and ctx.needs_input_grad[slot]:
            others = list(operands)
            others[arguments.slot], others[slot] = grad, None
            found[slot] = _weights(*others, *tables, slot, operands[slot].shape[0])
    return EDGE_FRAME_WEIGHTS.per_argument(operands=found)


to_edge = differentiable("rotate_to_edge", _to_edge_backward, _save_to_edge)
from_edge = differentiable("rotate_from_edge", _from_edge_backward, _save_from_edge)
_weights = differentiable("edge_frame_weights", _weights_backward, _save_weights, multilinear=True)
