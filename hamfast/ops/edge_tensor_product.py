"""Tensor product with the spherical harmonics of an edge's direction, computed in that edge's own frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import check_rows, check_same
from hamfast.ops.edge_direction import Turns, product_with_direction
from hamfast.ops.wigner import edge_wigner
from hamfast.plan import EdgeFramePlan
from hamfast.plan.edge_frame import is_natural

_to_edge = torch.ops.hamfast.rotate_to_edge.default
_from_edge = torch.ops.hamfast.rotate_from_edge.default
_weights = torch.ops.hamfast.edge_frame_weights.default


class EdgeFrames(NamedTuple):
    """The frames of a set of edges, prepared once and used by every layer. Make one with :func:`edge_frames`."""

    wigner: Tensor
    """``[edges, wigner_dim(l_max)]``"""
    l_max: int
    onsite: Tensor
    """int64: the edges of length zero, on which only Y_00 is not zero."""
    vector: Tensor
    """``[edges, 3]``: as given. If it requires a gradient, products are differentiable in it."""


def edge_frames(vector: Tensor, l_max: int, zero: float = 1e-6) -> EdgeFrames:
    """Frames of edges.

    Args:
        vector: ``[edges, 3]``, the edges in e3nn's axis order, any length.
        l_max: highest l of any irrep that will be rotated.
        zero: edges up to this length count as on-site.
    """
    onsite = torch.nonzero(vector.detach().norm(dim=-1) <= zero).flatten()
    return EdgeFrames(edge_wigner(vector, l_max), l_max, onsite, vector)


def edge_tensor_product(
    x: Tensor, weight: Tensor, plan: EdgeFramePlan, frames: EdgeFrames, layout: str = "mul_ir"
) -> Tensor:
    """``tensor_product(x, Y, weight, plan.plan)`` with Y the harmonics of the frames' edges, without ever making Y.

    Y is as ``e3nn.o3.spherical_harmonics(..., normalize=True, normalization="component")`` gives it; on edges of length
    zero every Y with l > 0 is 0. See ``hamfast/plan/edge_frame.py`` for the mathematics.

    Args:
        x: ``[edges, dim_in1]``, float32 or float64.
        weight: ``[weight_numel]``, shared by all edges, in e3nn's order.
        plan: from :func:`hamfast.plan.edge_frame_plan`.
        frames: from :func:`edge_frames`.
        layout: of input and output, ``mul_ir`` or ``ir_mul``.

    Returns:
        ``[edges, dim_out]``. Differentiable to any order in ``x``, ``weight`` and the vectors the frames were made of, at every
        direction; on edges of length zero the derivative in the vector is 0.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    edges = frames.wigner.shape[0]
    check_rows("edge_tensor_product", "x", x, edges, plan.plan.dim_in1)
    if weight.shape != (plan.plan.weight_numel,):
        raise ValueError(
            f"edge_tensor_product: weight: expected [{plan.plan.weight_numel}], found {list(weight.shape)}"
        )
    check_same("edge_tensor_product", x=x, weight=weight, frames=frames.wigner)
    needed = max(l for _, l, _ in plan.plan.irreps_in1 + plan.plan.irreps_out)
    if needed > frames.l_max:
        raise ValueError(f"edge_tensor_product: frames: expected l_max of at least {needed}, found {frames.l_max}")
    if not (frames.vector.requires_grad and torch.is_grad_enabled()):
        return _in_fixed_frames(x, weight, plan, frames, layout)
    turns = Turns(
        plan.plan.irreps_in1,
        plan.plan.irreps_out,
        layout,
        frames.onsite,
        lambda x, weight: _in_fixed_frames(x, weight, plan, frames, layout),
    )
    return product_with_direction(x, weight, frames.vector, turns)


def _in_fixed_frames(x: Tensor, weight: Tensor, plan: EdgeFramePlan, frames: EdgeFrames, layout: str) -> Tensor:
    tables = _tables(plan, x.device)
    fast = layout == "ir_mul"
    wigner = frames.wigner
    edges = wigner.shape[0]
    frame = _to_edge(x, wigner, tables.table_in, tables.frame_in, fast)
    matrices = _weights(weight, tables.terms, tables.factors, tables.matrix_numel, False)
    inputs = torch.split(frame, [edges * size for size in tables.in_sizes])
    blocks = torch.split(matrices, tables.matrix_sizes)
    outputs = []
    for source, matrix, block in zip(inputs, blocks, plan.blocks, strict=False):
        outputs.append((source.view(-1, block.width_in) @ matrix.view(block.width_in, block.width_out)).flatten())
    joined = torch.cat(outputs) if outputs else x.new_zeros(0)
    out = _from_edge(joined, wigner, tables.table_out, plan.plan.dim_out, fast)
    if frames.onsite.numel():
        out = out.index_copy(0, frames.onsite, _onsite(x[frames.onsite], blocks[len(plan.blocks) :], plan, fast))
    return out


def _onsite(x, matrices, plan, channels_fast):
    """Edges of length zero: the same matrix for every m of an irrep."""
    irreps1, irreps3 = plan.plan.irreps_in1, plan.plan.irreps_out
    blocks = torch.split(x, [mul * (2 * l + 1) for mul, l, _ in irreps1], dim=1)
    out: list[Tensor] = [x.new_zeros(x.shape[0], 2 * l + 1, mul) for mul, l, _ in irreps3]
    for matrix, coupling in zip(matrices, plan.onsite, strict=True):
        (mul1, l, _), mul3 = irreps1[coupling.i_in1], irreps3[coupling.i_out][0]
        if channels_fast:
            block = blocks[coupling.i_in1].view(-1, 2 * l + 1, mul1)
        else:
            block = blocks[coupling.i_in1].view(-1, mul1, 2 * l + 1).transpose(1, 2)
        out[coupling.i_out] = out[coupling.i_out] + block @ matrix.view(mul1, mul3)
    if not channels_fast:
        out = [block.transpose(1, 2) for block in out]
    return torch.cat([block.flatten(1) for block in out], dim=1)


class _Tables(NamedTuple):
    table_in: Tensor
    table_out: Tensor
    frame_in: int
    frame_out: int
    in_sizes: list[int]
    terms: Tensor
    factors: Tensor
    matrix_sizes: list[int]
    matrix_numel: int


_CACHE: dict[tuple[EdgeFramePlan, torch.device], _Tables] = {}


@torch.compiler.assume_constant_result
def _tables(plan: EdgeFramePlan, device: torch.device) -> _Tables:
    if (plan, device) not in _CACHE:
        _CACHE[plan, device] = _make_tables(plan, device)
    return _CACHE[plan, device]


def _make_tables(plan: EdgeFramePlan, device: torch.device) -> _Tables:
    """The plan as the kernels read it: see ``FrameBlock``, ``FramePlace`` and ``MatrixTerm`` in kernels/edge_frame.cuh."""
    terms, factors, matrix_sizes, matrix_start = [], [], [], 0
    for block in plan.blocks:
        rows = {c.block: c for c in block.rows}
        columns = {c.block: c for c in block.columns}
        for coupling in block.couplings:
            row, column = rows[coupling.i_in1], columns[coupling.i_out]
            corner = matrix_start + row.start * block.width_out + column.start
            for n, factor in coupling.terms:
                offset = plan.plan.instructions[n].weight_offset
                terms.append([offset, corner, block.width_out, row.mul, column.mul])
                factors.append(factor)
        matrix_sizes.append(block.width_in * block.width_out)
        matrix_start += matrix_sizes[-1]
    for coupling in plan.onsite:
        mul1, mul3 = plan.plan.irreps_in1[coupling.i_in1][0], plan.plan.irreps_out[coupling.i_out][0]
        for n, factor in coupling.terms:
            terms.append([plan.plan.instructions[n].weight_offset, matrix_start, mul3, mul1, mul3])
            factors.append(factor)
        matrix_sizes.append(mul1 * mul3)
        matrix_start += matrix_sizes[-1]
    table_in, in_sizes = _frame_table(plan.plan.irreps_in1, plan.blocks, "rows", "width_in")
    table_out, out_sizes = _frame_table(plan.plan.irreps_out, plan.blocks, "columns", "width_out")
    return _Tables(
        table_in.to(device),
        table_out.to(device),
        sum(in_sizes),
        sum(out_sizes),
        in_sizes,
        torch.tensor(terms, dtype=torch.int64, device=device).reshape(-1, 5),
        torch.tensor(factors, dtype=torch.float64, device=device),
        matrix_sizes,
        matrix_start,
    )


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
    return torch.tensor(rows, dtype=torch.int64), sizes


@torch.library.register_fake("hamfast::rotate_to_edge")
def _(x, wigner, table, frame_dim, channels_fast):
    return x.new_empty(wigner.shape[0] * frame_dim)


@torch.library.register_fake("hamfast::rotate_from_edge")
def _(frame, wigner, table, dim, channels_fast):
    return frame.new_empty(wigner.shape[0], dim)


@torch.library.register_fake("hamfast::edge_frame_weights")
def _(weight, terms, factors, numel, transpose):
    return weight.new_empty(numel)


def _save_rotation(ctx, inputs, output):
    source, wigner, table, _, fast = inputs
    ctx.save_for_backward(wigner, table)
    ctx.fast = fast
    ctx.size = source.shape[1] if source.dim() == 2 else source.shape[0] // max(wigner.shape[0], 1)
    if wigner.requires_grad:
        raise RuntimeError(
            "hamfast::rotate_to_edge is not differentiable in the frames; hamfast.ops.edge_tensor_product is in the vectors"
        )


def _to_edge_backward(ctx, grad):
    wigner, table = ctx.saved_tensors
    return _from_edge(grad, wigner, table, ctx.size, ctx.fast), None, None, None, None


def _from_edge_backward(ctx, grad):
    wigner, table = ctx.saved_tensors
    return _to_edge(grad, wigner, table, ctx.size, ctx.fast), None, None, None, None


def _save_weights(ctx, inputs, output):
    weight, terms, factors, _, transpose = inputs
    ctx.save_for_backward(terms, factors)
    ctx.numel, ctx.transpose = weight.shape[0], transpose


def _weights_backward(ctx, grad):
    return _weights(grad, *ctx.saved_tensors, ctx.numel, not ctx.transpose), None, None, None, None


torch.library.register_autograd("hamfast::rotate_to_edge", _to_edge_backward, setup_context=_save_rotation)
torch.library.register_autograd("hamfast::rotate_from_edge", _from_edge_backward, setup_context=_save_rotation)
torch.library.register_autograd("hamfast::edge_frame_weights", _weights_backward, setup_context=_save_weights)
