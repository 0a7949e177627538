"""Tensor product with the spherical harmonics of an edge's direction, computed in that edge's own frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.block_matmul import block_matmul
from hamfast.ops.checks import check_rows, check_same
from hamfast.ops.edge_direction import Turns, product_with_direction
from hamfast.ops.edge_index import EdgeIndex
from hamfast.ops.tensor_product import tensor_product
from hamfast.ops.wigner import edge_wigner
from hamfast.plan import EdgeFramePlan
from hamfast.plan.cost import choose_lowering
from hamfast.plan.edge_frame import is_natural
from hamfast.plan.plan import format_irreps

_to_edge = torch.ops.hamfast.rotate_to_edge.default
_from_edge = torch.ops.hamfast.rotate_from_edge.default
_weights = torch.ops.hamfast.edge_frame_weights.default


class EdgeSources(NamedTuple):
    """The parts ``[x_a | x_b | ...]`` of an operand of every edge, up to three: never concatenated, never gathered."""

    tensors: tuple[Tensor, ...]
    """``[rows, dim]`` each."""
    ends: tuple[str, ...]
    """Which row an edge reads of each: that of its ``sender``, of its ``receiver``, or its own (``edge``)."""
    edges: EdgeIndex


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
    x: Tensor | EdgeSources,
    weight: Tensor,
    plan: EdgeFramePlan,
    frames: EdgeFrames,
    layout: str = "mul_ir",
    lowering: str | None = None,
) -> Tensor:
    """``tensor_product(x, Y, weight, plan.plan)`` with Y the harmonics of the frames' edges, without ever making Y.

    Y is as ``e3nn.o3.spherical_harmonics(..., normalize=True, normalization="component")`` gives it; on edges of length
    zero every Y with l > 0 is 0. See ``hamfast/plan/edge_frame.py`` for the mathematics.

    Args:
        x: ``[edges, dim_in1]``, float32 or float64; or its parts as :class:`EdgeSources`, which split the irreps between blocks.
        weight: ``[weight_numel]``, shared by all edges, in e3nn's order.
        plan: from :func:`hamfast.plan.edge_frame_plan`.
        frames: from :func:`edge_frames`.
        layout: of input and output, ``mul_ir`` or ``ir_mul``.
        lowering: ``edge_frame``, or ``mix`` or ``general`` with harmonics made for it; by default
            :func:`hamfast.plan.cost.choose_lowering` decides.

    Returns:
        ``[edges, dim_out]``. Differentiable to any order in ``x``, ``weight`` and the vectors the frames were made of, at every
        direction; on edges of length zero the derivative in the vector is 0.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    edges = frames.wigner.shape[0]
    if isinstance(x, EdgeSources):
        tensors = _check_sources(x, plan, edges)
    else:
        check_rows("edge_tensor_product", "x", x, edges, plan.plan.dim_in1)
        tensors = (x,)
    if weight.shape != (plan.plan.weight_numel,):
        raise ValueError(
            f"edge_tensor_product: weight: expected [{plan.plan.weight_numel}], found {list(weight.shape)}"
        )
    check_same(
        "edge_tensor_product", **{f"x{n}": t for n, t in enumerate(tensors)}, weight=weight, frames=frames.wigner
    )
    needed = max(l for _, l, _ in plan.plan.irreps_in1 + plan.plan.irreps_out)
    if needed > frames.l_max:
        raise ValueError(f"edge_tensor_product: frames: expected l_max of at least {needed}, found {frames.l_max}")
    chosen = _chosen(plan, frames.wigner.device.type) if lowering is None else lowering
    if chosen != "edge_frame":
        return tensor_product(
            _concatenated(x), _harmonics(plan, frames), weight, plan.plan, layout=layout, lowering=chosen
        )
    if not (frames.vector.requires_grad and torch.is_grad_enabled()):
        return _in_fixed_frames(x, weight, plan, frames, layout)
    x = _concatenated(x)  # the formula for the direction wants the operand of each edge
    turns = Turns(
        plan.plan.irreps_in1,
        plan.plan.irreps_out,
        layout,
        frames.onsite,
        lambda x, weight: _in_fixed_frames(x, weight, plan, frames, layout),
    )
    return product_with_direction(x, weight, frames.vector, turns)


@torch.compiler.assume_constant_result
def _chosen(plan: EdgeFramePlan, device: str) -> str:
    return choose_lowering(plan.plan, True, device, harmonics=True)


def _concatenated(x: Tensor | EdgeSources) -> Tensor:
    if isinstance(x, Tensor):
        return x
    rows = [t if index is None else t[index] for t, (index, _, _) in zip(x.tensors, _ends(x), strict=True)]
    return torch.cat(rows, dim=1)


def _harmonics(plan: EdgeFramePlan, frames: EdgeFrames) -> Tensor:
    """Y of every edge, ``[edges, dim_in2]``, zero for l > 0 on edges of length zero."""
    degrees = [l for _, l, _ in plan.plan.irreps_in2]
    y = o3.spherical_harmonics(degrees, frames.vector, normalize=True, normalization="component")
    scalar = torch.cat([torch.full((2 * l + 1,), float(l == 0)) for l in degrees])
    return y.index_copy(0, frames.onsite, scalar.to(y).expand(frames.onsite.numel(), -1))


def _check_sources(x: EdgeSources, plan: EdgeFramePlan, edges: int) -> tuple[Tensor, ...]:
    if not 1 <= len(x.tensors) <= _MOST_SOURCES or len(x.ends) != len(x.tensors):
        raise ValueError(
            f"edge_tensor_product: x: expected 1 to {_MOST_SOURCES} tensors with one end each, "
            f"found {len(x.tensors)} and {len(x.ends)}"
        )
    rows = {"edge": edges, "sender": x.edges.num_senders, "receiver": x.edges.num_receivers}
    if x.edges.num_edges != edges:
        raise ValueError(f"edge_tensor_product: x.edges: expected {edges} edges, found {x.edges.num_edges}")
    for n, (tensor, end) in enumerate(zip(x.tensors, x.ends, strict=True)):
        if end not in rows:
            raise ValueError(f"edge_tensor_product: x.ends[{n}]: expected sender, receiver or edge, found {end!r}")
        check_rows("edge_tensor_product", f"x.tensors[{n}]", tensor, rows[end], tensor.shape[-1])
    return x.tensors


def _ends(x: EdgeSources) -> list[tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Index, order and pointers of each source."""
    found = {"edge": (None, None, None), "sender": x.edges.by_sender, "receiver": x.edges.by_receiver}
    return [found[end] for end in x.ends]


def _in_fixed_frames(
    x: Tensor | EdgeSources, weight: Tensor, plan: EdgeFramePlan, frames: EdgeFrames, layout: str
) -> Tensor:
    fast = layout == "ir_mul"
    wigner = frames.wigner
    edges = wigner.shape[0]
    sources, ends = (x.tensors, _ends(x)) if isinstance(x, EdgeSources) else ((x,), [(None, None, None)])
    tables = _tables(plan, wigner.device, tuple(t.shape[1] for t in sources))
    missing = [None] * (_MOST_SOURCES - len(sources))
    index, order, ptr = ([*found, *missing] for found in zip(*ends, strict=True))
    frame = _to_edge(
        *sources, *missing, *tables.tables_in, *missing, *index, *order, *ptr, wigner, tables.frame_in, fast, False
    )
    matrices = _weights(weight, tables.terms, tables.factors, tables.matrix_numel, False)
    shapes = [(1 if block.m == 0 else 2, block.width_in, block.width_out) for block in plan.blocks]
    onsite_sizes = [matrices.shape[0] - sum(tables.onsite_sizes), *tables.onsite_sizes]
    between, *onsite = torch.split(matrices, onsite_sizes)
    joined = block_matmul(frame, between, edges, shapes)
    out = _from_edge(joined, tables.table_out, None, None, None, wigner, plan.plan.dim_out, fast, False)
    if frames.onsite.numel():
        rows = [t[frames.onsite if i is None else i[frames.onsite]] for t, (i, _, _) in zip(sources, ends, strict=True)]
        out = out.index_copy(0, frames.onsite, _onsite(torch.cat(rows, dim=1), onsite, plan, fast))
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


_MOST_SOURCES = 3  # kMaxSources in kernels/edge_frame.cuh


class _Tables(NamedTuple):
    tables_in: list[Tensor]
    """One for each source."""
    table_out: Tensor
    frame_in: int
    frame_out: int
    terms: Tensor
    factors: Tensor
    onsite_sizes: list[int]
    """Of the matrices for edges of length zero, which come last."""
    matrix_numel: int


_CACHE: dict[tuple[EdgeFramePlan, torch.device, tuple[int, ...]], _Tables] = {}


@torch.compiler.assume_constant_result
def _tables(plan: EdgeFramePlan, device: torch.device, widths: tuple[int, ...]) -> _Tables:
    if (plan, device, widths) not in _CACHE:
        with _disable_current_modes():  # real tensors, also while a tracer runs on fake ones
            _CACHE[plan, device, widths] = _make_tables(plan, device, widths)
    return _CACHE[plan, device, widths]


def _make_tables(plan: EdgeFramePlan, device: torch.device, widths: tuple[int, ...]) -> _Tables:
    """The plan as the kernels read it: see ``FrameBlock``, ``FramePlace`` and ``MatrixTerm`` in kernels/edge_frame.cuh."""
    terms, factors, onsite_sizes, matrix_start = [], [], [], 0
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
        matrix_start += block.width_in * block.width_out
    for coupling in plan.onsite:
        mul1, mul3 = plan.plan.irreps_in1[coupling.i_in1][0], plan.plan.irreps_out[coupling.i_out][0]
        for n, factor in coupling.terms:
            terms.append([plan.plan.instructions[n].weight_offset, matrix_start, mul3, mul1, mul3])
            factors.append(factor)
        onsite_sizes.append(mul1 * mul3)
        matrix_start += mul1 * mul3
    table_in, in_sizes = _frame_table(plan.plan.irreps_in1, plan.blocks, "rows", "width_in")
    table_out, out_sizes = _frame_table(plan.plan.irreps_out, plan.blocks, "columns", "width_out")
    return _Tables(
        [table.to(device) for table in _split_table(table_in, plan, widths)],
        table_out.to(device),
        sum(in_sizes),
        sum(out_sizes),
        torch.tensor(terms, dtype=torch.int64, device=device).reshape(-1, 5),
        torch.tensor(factors, dtype=torch.float64, device=device),
        onsite_sizes,
        matrix_start,
    )


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
    return torch.tensor(rows, dtype=torch.int64), sizes


@torch.library.register_fake("hamfast::rotate_to_edge")
def _(x0, *rest):
    wigner, frame_dim = rest[14], rest[15]
    return x0.new_empty(wigner.shape[0] * frame_dim)


@torch.library.register_fake("hamfast::rotate_from_edge")
def _(frame, table, index, order, ptr, wigner, dim, channels_fast, partial):
    return frame.new_empty(wigner.shape[0] if ptr is None else ptr.shape[0] - 1, dim)


@torch.library.register_fake("hamfast::edge_frame_weights")
def _(weight, terms, factors, numel, transpose):
    return weight.new_empty(numel)


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
            grads.append(_from_edge(grad, table, index, order, ptr, wigner, width, ctx.fast, partial))
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
    return _to_edge(*source, wigner, ctx.frame_dim, ctx.fast, ctx.partial), *(None,) * 8


def _save_weights(ctx, inputs, output):
    weight, terms, factors, _, transpose = inputs
    ctx.save_for_backward(terms, factors)
    ctx.numel, ctx.transpose = weight.shape[0], transpose


def _weights_backward(ctx, grad):
    return _weights(grad, *ctx.saved_tensors, ctx.numel, not ctx.transpose), None, None, None, None


torch.library.register_autograd("hamfast::rotate_to_edge", _to_edge_backward, setup_context=_save_to_edge)
torch.library.register_autograd("hamfast::rotate_from_edge", _from_edge_backward, setup_context=_save_from_edge)
torch.library.register_autograd("hamfast::edge_frame_weights", _weights_backward, setup_context=_save_weights)
