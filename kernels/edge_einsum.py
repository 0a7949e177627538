"""Sums over edges of products of up to three operands, in Triton: see kernels/edge_einsum.cuh for
the formula.

A program makes COLUMNS elements of one head and component of a row of the result, EDGES edges at a
time, or of EDGES rows where each edge is a row.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from hamfast.kernels.common import look_up
from hamfast.records.choices import RowOf

SENDER, RECEIVER = tl.constexpr(RowOf.SENDER), tl.constexpr(RowOf.RECEIVER)


class Operand(NamedTuple):
    """Rows ``[rows, heads, components, width]``; an axis of length 1 has stride 0."""

    data: object
    row: object
    head: object
    component: object
    """Strides."""


class Graph(NamedTuple):
    """Edges, their ends, and which of them each row of the result sums (None: each edge is a
    row)."""

    senders: object
    receivers: object
    order: object
    ptr: object
    edges: object


class Sizes(NamedTuple):
    """Of the result, and of what each of its elements sums."""

    width: object
    heads: object
    components: object
    summed_heads: object
    summed_components: object


@triton.jit
def operand_tile(operand, row, h, m, c, edge_mask, mask, WIDE: tl.constexpr, REAL: tl.constexpr):
    """``[EDGES, COLUMNS]``, or ``[EDGES, 1]`` of an operand without the last axis."""
    at = row * operand.row + h * operand.head + m * operand.component
    if WIDE:
        tile = tl.load(operand.data + at + c, mask=mask, other=0.0).to(REAL)
    else:
        tile = tl.load(operand.data + at, mask=edge_mask, other=0.0).to(REAL)
    return tile


@triton.jit
def row_at(ROW_OF: tl.constexpr, edge, graph, mask):
    """The row an edge reads of an operand."""
    row = edge
    if ROW_OF == SENDER:
        row = tl.load(graph.senders + edge, mask=mask, other=0)
    elif ROW_OF == RECEIVER:
        row = tl.load(graph.receivers + edge, mask=mask, other=0)
    return row


@triton.jit
def add_products(
    total, operands, graph, sizes, edge, edge_mask, c, h0, m0, ROWS_OF: tl.constexpr, WIDE: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """Adds the products of a tile of edges and columns, over the heads and components that the
    result lacks."""
    mask = edge_mask & (c < sizes.width)
    rows = ()
    for n in tl.static_range(len(operands)):
        rows = rows + (row_at(ROWS_OF[n], edge, graph, edge_mask),)
    for h in range(h0, h0 + sizes.summed_heads):
        for m in range(m0, m0 + sizes.summed_components):
            product = operand_tile(operands[0], rows[0], h, m, c, edge_mask, mask, WIDE[0], REAL)
            for n in tl.static_range(1, len(operands)):
                product *= operand_tile(operands[n], rows[n], h, m, c, edge_mask, mask, WIDE[n], REAL)
            total += tl.where(mask, product, 0.0)
    return total


@triton.jit
def edge_einsum(
    operands, out, graph, sizes,
    ROWS_OF: tl.constexpr, WIDE: tl.constexpr, OUT_WIDE: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """operands: one to three. ROWS_OF: what each has a row for; WIDE: whether it has the last
    axis."""
    step = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    h0 = block // sizes.components
    m0 = block % sizes.components
    column = tl.program_id(2).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    total = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    begin = step * EDGES
    end = begin + 1
    if graph.ptr is not None:
        begin = tl.load(graph.ptr + step)
        end = tl.load(graph.ptr + step + 1)
    last_column = 1
    if not OUT_WIDE:
        last_column = sizes.width
    for first in range(begin, end, EDGES):
        position = first + lane
        edge_mask = position < graph.edges
        if graph.ptr is not None:
            edge_mask = position < end
        edge = look_up(graph.order, position, edge_mask)
        for first_column in range(0, last_column, COLUMNS):
            total = add_products(
                total, operands, graph, sizes, edge, edge_mask, column + first_column, h0, m0, ROWS_OF, WIDE, REAL
            )
    row = begin + lane
    mask = row < graph.edges
    if graph.ptr is not None:
        row = step + tl.zeros((1, 1), dtype=tl.int64)
        mask = tl.full((1, 1), 1, tl.int1)
        total = tl.sum(total, axis=0, keep_dims=True)
    row_length = sizes.heads * sizes.components
    if OUT_WIDE:
        at = (row * row_length + block) * sizes.width + column
        tl.store(out + at, total, mask=mask & (column < sizes.width))
    else:
        tl.store(out + row * row_length + block, tl.sum(total, axis=1, keep_dims=True), mask=mask)
