"""Rotations of irreps into and out of each edge's own frame, and the per-|m| matrices from path
weights, in Triton.

The layout of a frame tensor is that of kernels/edge_frame.cuh; rows of tables are records. A
program rotates a tile of edges and channels of one irreps block; blocks of one l share a compiled
kernel, in which the components are tuples in registers.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from hamfast.kernels.common import edge_tile, load_tiles, look_up, zero_tiles
from hamfast.records.choices import WeightSlot
from hamfast.records.tables import FrameBlock, FrameColumns, MatrixTerm

MUL, OFFSET = (tl.constexpr(FrameBlock._fields.index(name)) for name in ("mul", "offset"))
# A FrameColumns for each m follows a FrameBlock in a row.
HEAD, COLUMNS_OF_M = tl.constexpr(len(FrameBlock._fields)), tl.constexpr(len(FrameColumns._fields))
START, STRIDE, WIDTH, COLUMN = (tl.constexpr(n) for n in range(len(FrameColumns._fields)))
TERM_WEIGHT, TERM_SCALE, TERM_MATRIX, TERM_STRIDE, TERM_ROWS, TERM_COLUMNS = (
    tl.constexpr(n) for n in range(len(MatrixTerm._fields))
)
TERM = tl.constexpr(len(MatrixTerm._fields))
SLOT_WEIGHT, SLOT_SCALE, SLOT_MATRIX = (
    tl.constexpr(n) for n in (WeightSlot.WEIGHT, WeightSlot.SCALE, WeightSlot.MATRIX)
)


class Work(NamedTuple):
    """Which irreps block and channels a program has."""

    table: object
    """FrameBlock rows."""
    items: object
    """``[programs, 2]``: row of the table, first channel."""
    row_length: object
    """Of the table."""


class Sizes(NamedTuple):
    """Number of edges, and lengths of rows."""

    edges: object
    x: object
    wigner: object


@triton.jit
def component_at(columns, edges, edge, A: tl.constexpr, L: tl.constexpr, NATURAL: tl.constexpr):
    """Where channel 0 of component A - L of ``edge`` lies in the frame tensor."""
    of_m = columns + (A - L if A >= L else L - A) * COLUMNS_OF_M
    at = tl.load(of_m + START) * edges + edge * tl.load(of_m + STRIDE) + tl.load(of_m + COLUMN)
    if (A < L) if NATURAL else (A > L):  # the second row of the pair (+m, -m)
        at += tl.load(of_m + WIDTH)
    return at


@triton.jit
def block_of(work, CHANNELS: tl.constexpr):
    """A program's row of the table, how many channels the block has, and the program's own."""
    item = work.items + tl.program_id(1) * 2
    row = work.table + tl.load(item) * work.row_length
    u = tl.load(item + 1) + tl.arange(0, CHANNELS)[None, :].to(tl.int64)
    return row, tl.load(row + MUL), u


@triton.jit
def rotate_into_edges(
    x, frame, wigner, index, work, sizes,
    L: tl.constexpr, NATURAL: tl.constexpr, STORED: tl.constexpr, CHANNELS_FAST: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``frame = D x`` of one group of channels. STORED: which |m| are kept."""
    D: tl.constexpr = 2 * L + 1
    row, mul, u = block_of(work, CHANNELS)
    edge, edge_mask = edge_tile(None, tl.program_id(0).to(tl.int64) * EDGES, sizes.edges, EDGES)
    mask = edge_mask & (u < mul)
    at = look_up(index, edge, edge_mask) * sizes.x + tl.load(row + OFFSET)
    if CHANNELS_FAST:
        xs = load_tiles(x, at + u, mul, D, mask, REAL)
    else:
        xs = load_tiles(x, at + u * D, 1, D, mask, REAL)
    matrix = edge * sizes.wigner + L * (4 * L * L - 1) // 3
    for a in tl.static_range(D):
        if STORED[a - L if a >= L else L - a]:
            total = tl.zeros((EDGES, CHANNELS), dtype=REAL)
            for b in tl.static_range(D):
                total += tl.load(wigner + matrix + a * D + b, mask=edge_mask, other=0.0) * xs[b]
            if a > L and not NATURAL:
                total = -total
            tl.store(frame + component_at(row + HEAD, sizes.edges, edge, a, L, NATURAL) + u, total, mask=mask)


@triton.jit
def add_rotated_back(
    sums, frame, wigner, row, sizes, edge, edge_mask, mask, u,
    L: tl.constexpr, NATURAL: tl.constexpr, STORED: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Adds a tile of edges' ``D^T frame``."""
    D: tl.constexpr = 2 * L + 1
    matrix = edge * sizes.wigner + L * (4 * L * L - 1) // 3
    for a in tl.static_range(D):
        if STORED[a - L if a >= L else L - a]:
            at = component_at(row + HEAD, sizes.edges, edge, a, L, NATURAL)
            value = tl.load(frame + at + u, mask=mask, other=0.0).to(REAL)
            if a > L and not NATURAL:
                value = -value
            for b in tl.static_range(D):
                rotated = sums[b] + tl.load(wigner + matrix + a * D + b, mask=edge_mask, other=0.0) * value
                sums = sums[:b] + (rotated,) + sums[b + 1 :]
    return sums


@triton.jit
def rotate_from_edges(
    frame, x, wigner, order, ptr, work, sizes,
    L: tl.constexpr, NATURAL: tl.constexpr, STORED: tl.constexpr, CHANNELS_FAST: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``x = D^T frame``, summed over the edges of a row by ``order`` and ``ptr``, or a row per
    edge."""
    D: tl.constexpr = 2 * L + 1
    row, mul, u = block_of(work, CHANNELS)
    step = tl.program_id(0).to(tl.int64)
    sums = zero_tiles(D, EDGES, CHANNELS, REAL)
    if ptr is not None:
        end = tl.load(ptr + step + 1)
        for first in range(tl.load(ptr + step), end, EDGES):
            edge, edge_mask = edge_tile(order, first, end, EDGES)
            mask = edge_mask & (u < mul)
            sums = add_rotated_back(sums, frame, wigner, row, sizes, edge, edge_mask, mask, u, L, NATURAL, STORED, REAL)
        out_row = step
        out_mask = u < mul
    else:
        edge, edge_mask = edge_tile(None, step * EDGES, sizes.edges, EDGES)
        out_mask = edge_mask & (u < mul)
        sums = add_rotated_back(sums, frame, wigner, row, sizes, edge, edge_mask, out_mask, u, L, NATURAL, STORED, REAL)
        out_row = edge
    at = out_row * sizes.x + tl.load(row + OFFSET)
    for b in tl.static_range(D):
        value = sums[b]
        if ptr is not None:
            value = tl.sum(value, axis=0)[None, :]
        if CHANNELS_FAST:
            tl.store(x + at + b * mul + u, value, mask=out_mask)
        else:
            tl.store(x + at + u * D + b, value, mask=out_mask)


@triton.jit
def add_matrix_terms(
    weight, scale, matrix, out, terms, factors, order, ptr,
    SLOT: tl.constexpr, REAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over terms of ``factor weight[u, c] scale[c] matrix[u, c]``, without the factor of SLOT,
    whose gradient this is. The terms of one group write to the same elements of ``out``; the
    program's tile of them stays in registers.
    """
    group = tl.program_id(0).to(tl.int64)
    begin = tl.load(ptr + group)
    end = tl.load(ptr + group + 1)
    if begin < end:
        first = terms + look_up(order, begin, begin < end) * TERM
        rows = tl.load(first + TERM_ROWS)
        columns = tl.load(first + TERM_COLUMNS)
        c = tl.program_id(2).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
        lane = tl.arange(0, ROWS)[:, None].to(tl.int64)
        total = tl.zeros((ROWS, COLUMNS), dtype=REAL)
        u_first = tl.program_id(1).to(tl.int64) * ROWS
        u_last = u_first + ROWS
        if SLOT == SLOT_SCALE:  # summed over all rows
            u_last = rows
        for p in range(begin, end):
            n = look_up(order, p, p < end)
            term = terms + n * TERM
            factor = tl.load(factors + n).to(REAL)
            stride = tl.load(term + TERM_STRIDE)
            for start in range(u_first, u_last, ROWS):
                u = start + lane
                mask = (u < rows) & (c < columns)
                product = tl.zeros((ROWS, COLUMNS), dtype=REAL) + factor
                if SLOT != SLOT_WEIGHT:
                    product *= tl.load(weight + tl.load(term + TERM_WEIGHT) + u * columns + c, mask=mask, other=0.0)
                if SLOT != SLOT_SCALE:
                    if scale is not None:
                        product *= tl.load(scale + tl.load(term + TERM_SCALE) + c, mask=c < columns, other=0.0)
                if SLOT != SLOT_MATRIX:
                    product *= tl.load(matrix + tl.load(term + TERM_MATRIX) + u * stride + c, mask=mask, other=0.0)
                total += tl.where(mask, product, 0.0)
        u = u_first + lane
        if SLOT == SLOT_WEIGHT:
            tl.store(out + tl.load(first + TERM_WEIGHT) + u * columns + c, total, mask=(u < rows) & (c < columns))
        elif SLOT == SLOT_SCALE:
            tl.store(out + tl.load(first + TERM_SCALE) + c, tl.sum(total, axis=0)[None, :], mask=c < columns)
        else:
            at = tl.load(first + TERM_MATRIX) + u * tl.load(first + TERM_STRIDE) + c
            tl.store(out + at, total, mask=(u < rows) & (c < columns))
