"""Rotations of irreps into and out of each edge's own frame, and the per-|m| matrices from path weights, in Triton.

The layout of a frame tensor and the tables are those of kernels/edge_frame.cuh. A program turns a tile of edges and channels of
one irreps block; blocks of one l share a compiled kernel, in which the components are tuples in registers.
"""

import triton
import triton.language as tl

from hamfast.kernels.common import load_tiles, look_up, zero_tiles

# Numbers of a table row before its places, and of one place: start, stride, width, column.
_HEAD = tl.constexpr(4)
_PLACE = tl.constexpr(4)


@triton.jit
def component_at(places, edges, edge, A: tl.constexpr, L: tl.constexpr, NATURAL: tl.constexpr):
    """Where channel 0 of component A - L of ``edge`` lies in the frame tensor."""
    place = places + (A - L if A >= L else L - A) * _PLACE
    at = tl.load(place) * edges + edge * tl.load(place + 1) + tl.load(place + 3)
    if (A < L) if NATURAL else (A > L):  # the second row of the pair (+m, -m)
        at += tl.load(place + 2)
    return at


@triton.jit
def rotate_into_edges(
    x, frame, wigner, index, table, work, edges, x_dim, wigner_dim, table_width,
    L: tl.constexpr, NATURAL: tl.constexpr, STORED: tl.constexpr, CHANNELS_FAST: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``frame = D x`` of one group of channels, ``work`` (row of the table, first channel). STORED: which |m| are kept."""
    D: tl.constexpr = 2 * L + 1
    item = work + tl.program_id(1) * 2
    row = table + tl.load(item) * table_width
    u = tl.load(item + 1) + tl.arange(0, CHANNELS)[None, :].to(tl.int64)
    mul = tl.load(row)
    edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)[:, None].to(tl.int64)
    edge_mask = edge < edges
    mask = edge_mask & (u < mul)
    at = look_up(index, edge, edge_mask) * x_dim + tl.load(row + 3)
    if CHANNELS_FAST:
        xs = load_tiles(x, at + u, mul, D, mask, REAL)
    else:
        xs = load_tiles(x, at + u * D, 1, D, mask, REAL)
    matrix = edge * wigner_dim + L * (4 * L * L - 1) // 3
    for a in tl.static_range(D):
        if STORED[a - L if a >= L else L - a]:
            total = tl.zeros((EDGES, CHANNELS), dtype=REAL)
            for b in tl.static_range(D):
                total += tl.load(wigner + matrix + a * D + b, mask=edge_mask, other=0.0) * xs[b]
            if a > L and not NATURAL:
                total = -total
            tl.store(frame + component_at(row + _HEAD, edges, edge, a, L, NATURAL) + u, total, mask=mask)


@triton.jit
def add_turned_back(
    sums, frame, wigner, row, edges, edge, edge_mask, mask, u, wigner_dim,
    L: tl.constexpr, NATURAL: tl.constexpr, STORED: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Adds a tile of edges' ``D^T frame``."""
    D: tl.constexpr = 2 * L + 1
    matrix = edge * wigner_dim + L * (4 * L * L - 1) // 3
    for a in tl.static_range(D):
        if STORED[a - L if a >= L else L - a]:
            value = tl.load(frame + component_at(row + _HEAD, edges, edge, a, L, NATURAL) + u, mask=mask, other=0.0).to(
                REAL
            )
            if a > L and not NATURAL:
                value = -value
            for b in tl.static_range(D):
                turned = sums[b] + tl.load(wigner + matrix + a * D + b, mask=edge_mask, other=0.0) * value
                sums = sums[:b] + (turned,) + sums[b + 1 :]
    return sums


@triton.jit
def rotate_from_edges(
    frame, x, wigner, order, ptr, table, work, edges, x_dim, wigner_dim, table_width,
    L: tl.constexpr, NATURAL: tl.constexpr, STORED: tl.constexpr, CHANNELS_FAST: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``x = D^T frame``, summed over the edges of a row by ``order`` and ``ptr``, or a row per edge."""
    D: tl.constexpr = 2 * L + 1
    item = work + tl.program_id(1) * 2
    row = table + tl.load(item) * table_width
    u = tl.load(item + 1) + tl.arange(0, CHANNELS)[None, :].to(tl.int64)
    mul = tl.load(row)
    turn = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    sums = zero_tiles(D, EDGES, CHANNELS, REAL)
    if ptr is not None:
        begin = tl.load(ptr + turn)
        end = tl.load(ptr + turn + 1)
        for first in range(begin, end, EDGES):
            slot = first + lane
            edge_mask = slot < end
            edge = look_up(order, slot, edge_mask)
            mask = edge_mask & (u < mul)
            sums = add_turned_back(
                sums, frame, wigner, row, edges, edge, edge_mask, mask, u, wigner_dim, L, NATURAL, STORED, REAL
            )
        out_row = turn
        out_mask = u < mul
    else:
        edge = turn * EDGES + lane
        edge_mask = edge < edges
        out_mask = edge_mask & (u < mul)
        sums = add_turned_back(
            sums, frame, wigner, row, edges, edge, edge_mask, out_mask, u, wigner_dim, L, NATURAL, STORED, REAL
        )
        out_row = edge
    at = out_row * x_dim + tl.load(row + 3)
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
    """Sums over terms of ``factor weight[u, c] scale[c] matrix[u, c]``, without the factor of SLOT (0 weight, 1 scale, 2 matrix),
    whose gradient this is. The terms of one group have one place in ``out``; the program's tile of it stays in registers.

    Rows of ``terms``: offsets of weight, scale, matrix; the matrix' row stride; rows and columns.
    """
    group = tl.program_id(0).to(tl.int64)
    begin = tl.load(ptr + group)
    end = tl.load(ptr + group + 1)
    if begin < end:
        first = terms + look_up(order, begin, begin < end) * 6
        rows = tl.load(first + 4)
        columns = tl.load(first + 5)
        c = tl.program_id(2).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
        lane = tl.arange(0, ROWS)[:, None].to(tl.int64)
        total = tl.zeros((ROWS, COLUMNS), dtype=REAL)
        u_first = tl.program_id(1).to(tl.int64) * ROWS
        u_last = u_first + ROWS
        if SLOT == 1:  # summed over all rows
            u_last = rows
        for p in range(begin, end):
            n = look_up(order, p, p < end)
            term = terms + n * 6
            factor = tl.load(factors + n).to(REAL)
            stride = tl.load(term + 3)
            for start in range(u_first, u_last, ROWS):
                u = start + lane
                mask = (u < rows) & (c < columns)
                product = tl.zeros((ROWS, COLUMNS), dtype=REAL) + factor
                if SLOT != 0:
                    product *= tl.load(weight + tl.load(term) + u * columns + c, mask=mask, other=0.0)
                if SLOT != 1:
                    if scale is not None:
                        product *= tl.load(scale + tl.load(term + 1) + c, mask=c < columns, other=0.0)
                if SLOT != 2:
                    product *= tl.load(matrix + tl.load(term + 2) + u * stride + c, mask=mask, other=0.0)
                total += tl.where(mask, product, 0.0)
        u = u_first + lane
        if SLOT == 0:
            tl.store(out + tl.load(first) + u * columns + c, total, mask=(u < rows) & (c < columns))
        elif SLOT == 1:
            tl.store(out + tl.load(first + 1) + c, tl.sum(total, axis=0)[None, :], mask=c < columns)
        else:
            place = tl.load(first + 2) + u * tl.load(first + 3) + c
            tl.store(out + place, total, mask=(u < rows) & (c < columns))
