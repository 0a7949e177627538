"""Sums over edges of products of up to three operands, in Triton: see kernels/edge_einsum.cuh for the formula.

A program makes COLUMNS elements of one head and component of a row of the result, EDGES edges at a time, or of EDGES rows where
each edge is a row.
"""

import triton
import triton.language as tl

from hamfast.kernels.common import look_up


@triton.jit
def operand_tile(
    data,
    row,
    h,
    m,
    c,
    row_stride,
    head_stride,
    component_stride,
    edge_mask,
    mask,
    WIDE: tl.constexpr,
    REAL: tl.constexpr,
):
    """``[EDGES, COLUMNS]``, or ``[EDGES, 1]`` of an operand without the last axis."""
    at = row * row_stride + h * head_stride + m * component_stride
    if WIDE:
        tile = tl.load(data + at + c, mask=mask, other=0.0).to(REAL)
    else:
        tile = tl.load(data + at, mask=edge_mask, other=0.0).to(REAL)
    return tile


@triton.jit
def row_at(PLACE: tl.constexpr, edge, senders, receivers, mask):
    row = edge
    if PLACE == 1:
        row = tl.load(senders + edge, mask=mask, other=0)
    elif PLACE == 2:
        row = tl.load(receivers + edge, mask=mask, other=0)
    return row


@triton.jit
def add_products(
    total, edge, edge_mask, c, width, a, b, c_operand, senders, receivers, h0, m0, heads, components,
    a_row, a_head, a_component, b_row, b_head, b_component, c_row, c_head, c_component,
    PLACES: tl.constexpr, WIDE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Adds the products of a tile of edges and columns, over the heads and components that the result lacks."""
    mask = edge_mask & (c < width)
    row_a = row_at(PLACES[0], edge, senders, receivers, edge_mask)
    row_b = row_at(PLACES[1], edge, senders, receivers, edge_mask)
    row_c = row_at(PLACES[2], edge, senders, receivers, edge_mask)
    for h in range(h0, h0 + heads):
        for m in range(m0, m0 + components):
            product = operand_tile(a, row_a, h, m, c, a_row, a_head, a_component, edge_mask, mask, WIDE[0], REAL)
            if b is not None:
                product *= operand_tile(b, row_b, h, m, c, b_row, b_head, b_component, edge_mask, mask, WIDE[1], REAL)
            if c_operand is not None:
                product *= operand_tile(
                    c_operand, row_c, h, m, c, c_row, c_head, c_component, edge_mask, mask, WIDE[2], REAL
                )
            total += tl.where(mask, product, 0.0)
    return total


@triton.jit
def edge_einsum(
    a, b, c_operand, out, senders, receivers, order, ptr, edges, width, heads_out, components_out, heads, components,
    a_row, a_head, a_component, b_row, b_head, b_component, c_row, c_head, c_component,
    PLACES: tl.constexpr, WIDE: tl.constexpr, OUT_WIDE: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """heads, components: how many of them each element of the result sums."""
    turn = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    h0 = block // components_out
    m0 = block % components_out
    column = tl.program_id(2).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    total = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    begin = turn * EDGES
    end = begin + 1
    if ptr is not None:
        begin = tl.load(ptr + turn)
        end = tl.load(ptr + turn + 1)
    last_column = 1
    if not OUT_WIDE:
        last_column = width
    for first in range(begin, end, EDGES):
        slot = first + lane
        edge_mask = slot < edges
        if ptr is not None:
            edge_mask = slot < end
        edge = look_up(order, slot, edge_mask)
        for first_column in range(0, last_column, COLUMNS):
            total = add_products(
                total, edge, edge_mask, column + first_column, width, a, b, c_operand, senders, receivers, h0, m0, heads,
                components, a_row, a_head, a_component, b_row, b_head, b_component, c_row, c_head, c_component,
                PLACES, WIDE, REAL,
            )  # fmt: skip
    row = begin + lane
    mask = row < edges
    if ptr is not None:
        row = turn + tl.zeros((1, 1), dtype=tl.int64)
        mask = tl.full((1, 1), 1, tl.int1)
        total = tl.sum(total, axis=0, keep_dims=True)
    row_length = heads_out * components_out
    if OUT_WIDE:
        place = (row * row_length + block) * width + column
        tl.store(out + place, total, mask=mask & (column < width))
    else:
        tl.store(out + row * row_length + block, tl.sum(total, axis=1, keep_dims=True), mask=mask)
