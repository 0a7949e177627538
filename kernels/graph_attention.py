"""Sparse graph attention in Triton: products of rows, and sums of rows weighed by numbers per edge and head.

Those numbers are made in graph_attention_scores.py; the formulas stand in graph_attention.cuh. *Rows* are five arguments: tensors with a row per
edge, sender and receiver, of which each may be absent and whose sum is meant, a stride from row to row and one from head to head
(0: the same for all heads, as edges' features are).
"""

import triton
import triton.language as tl

from hamfast.kernels.common import look_up, sigmoid, silu_curvature, silu_slope

DOT, ADDITIVE, ADDITIVE_ALONG = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def rows_tile(
    on_edge, of_sender, of_receiver, row_stride, head_stride, edge, sender, receiver, at, mask, REAL: tl.constexpr
):
    """The sum of the parts at column ``at`` of their rows."""
    total = tl.zeros(mask.shape, dtype=REAL)
    if on_edge is not None:
        total += tl.load(on_edge + edge * row_stride + at, mask=mask, other=0.0)
    if of_sender is not None:
        total += tl.load(of_sender + sender * row_stride + at, mask=mask, other=0.0)
    if of_receiver is not None:
        total += tl.load(of_receiver + receiver * row_stride + at, mask=mask, other=0.0)
    return total


@triton.jit
def score_activation(KIND: tl.constexpr, SLOPE: tl.constexpr, x):
    """0 leaky ReLU, 1 Equiformer's smooth one, 2 SiLU."""
    if KIND == 0:
        return tl.where(x > 0, x, SLOPE * x)
    elif KIND == 2:
        return x * sigmoid(x)
    else:
        return x * (SLOPE + (1.0 - SLOPE) * sigmoid(x))


@triton.jit
def score_activation_slope(KIND: tl.constexpr, SLOPE: tl.constexpr, x):
    if KIND == 0:
        return tl.where(x > 0, tl.full(x.shape, 1.0, dtype=x.dtype), SLOPE)
    elif KIND == 2:
        return silu_slope(x)
    else:
        return SLOPE + (1.0 - SLOPE) * silu_slope(x)


@triton.jit
def score_activation_curvature(KIND: tl.constexpr, SLOPE: tl.constexpr, x):
    if KIND == 0:
        return tl.zeros(x.shape, dtype=x.dtype)
    elif KIND == 2:
        return silu_curvature(x)
    else:
        return (1.0 - SLOPE) * silu_curvature(x)


@triton.jit
def edge_dots(
    out, senders, receivers, order, edges, heads, width, features,
    a0, a1, a2, a_row, a_head, b0, b1, b2, b_row, b_head, c0, c1, c2, c_row, c_head, d0, d1, d2, d_row, d_head, vector,
    tangent_vector, SCORE: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, ADD: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out[edge, head] = <a, b> + <c, d>``, of lengths width and features; with SCORE additive ``<vector, act(a + b)> + <c, d>``,
    and along directions ``<tangent_vector, act(a + b)> + <vector, act'(a + b) (c + d)>``, all of length width.

    Edges are taken in the receivers' order, in which neighbours share rows. ADD: to what is there.
    """
    slot = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)[:, None].to(tl.int64)
    edge_mask = slot < edges
    edge = look_up(order, slot, edge_mask)
    sender = tl.load(senders + edge, mask=edge_mask, other=0)
    receiver = tl.load(receivers + edge, mask=edge_mask, other=0)
    lane = tl.arange(0, COLUMNS)[None, :]
    for head in range(0, heads):
        h = tl.zeros((1, 1), dtype=tl.int64) + head
        total = tl.zeros((EDGES, 1), dtype=REAL)
        for first in range(0, width, COLUMNS):
            column = first + lane
            mask = edge_mask & (column < width)
            a = rows_tile(a0, a1, a2, a_row, a_head, edge, sender, receiver, h * a_head + column, mask, REAL)
            b = rows_tile(b0, b1, b2, b_row, b_head, edge, sender, receiver, h * b_head + column, mask, REAL)
            if SCORE == DOT:
                product = a * b
            else:
                at = h * width + column
                product = tl.zeros(mask.shape, dtype=REAL)
                factor = vector
                if SCORE == ADDITIVE_ALONG:
                    c = rows_tile(c0, c1, c2, c_row, c_head, edge, sender, receiver, h * c_head + column, mask, REAL)
                    d = rows_tile(d0, d1, d2, d_row, d_head, edge, sender, receiver, h * d_head + column, mask, REAL)
                    v = tl.load(vector + at, mask=column < width, other=0.0)
                    product += v * score_activation_slope(ACTIVATION, SLOPE, a + b) * (c + d)
                    factor = tangent_vector
                if factor is not None:
                    v = tl.load(factor + at, mask=column < width, other=0.0)
                    product += v * score_activation(ACTIVATION, SLOPE, a + b)
            total += tl.sum(product, axis=1, keep_dims=True)
        for first in range(0, features, COLUMNS):
            column = first + lane
            mask = edge_mask & (column < features)
            c = rows_tile(c0, c1, c2, c_row, c_head, edge, sender, receiver, h * c_head + column, mask, REAL)
            d = rows_tile(d0, d1, d2, d_row, d_head, edge, sender, receiver, h * d_head + column, mask, REAL)
            total += tl.sum(c * d, axis=1, keep_dims=True)
        if ADD:
            total += tl.load(out + edge * heads + h, mask=edge_mask, other=0.0)
        tl.store(out + edge * heads + h, total, mask=edge_mask)


@triton.jit
def weighted_sums(
    out, senders, receivers, order, ptr, edges, heads, width,
    weight, a0, a1, a2, a_row, a_head, more, b0, b1, b2, b_row, b_head, vector,
    c0, c1, c2, c_row, c_head, d0, d1, d2, d_row, d_head, tangent_vector,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, OVER_HEADS: tl.constexpr, ADD: tl.constexpr,
    PARTS: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over a row's edges of ``weight a + more b`` (KIND 0), ``weight act(a + b)`` (1) or ``weight vector act'(a + b)`` (2).

    With more, that times the change of 1 and 2 along directions c of a, d of b and tangent_vector is added to them.
    weight, more: ``[edges, heads]``. A row of the result is a list of ``ptr``, or one of PARTS equal parts of all edges, or an
    edge. It has heads x width elements, or width of them, summed over heads.
    """
    turn = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    elements = width
    last_head = heads
    if not OVER_HEADS:
        elements = heads * width
        last_head = 1
    inside = place < elements
    at = place % width
    if ptr is not None:
        begin = tl.load(ptr + turn)
        end = tl.load(ptr + turn + 1)
    elif PARTS > 0:
        begin = edges * turn // PARTS
        end = edges * (turn + 1) // PARTS
    else:
        begin = turn * EDGES
        end = tl.minimum(begin + EDGES, edges)
    total = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    for first in range(begin, end, EDGES):
        slot = first + lane
        edge_mask = slot < end
        edge = look_up(order, slot, edge_mask)
        sender = tl.load(senders + edge, mask=edge_mask, other=0)
        receiver = tl.load(receivers + edge, mask=edge_mask, other=0)
        mask = edge_mask & inside
        for head in range(0, last_head):
            h = place // width + head
            a = rows_tile(a0, a1, a2, a_row, a_head, edge, sender, receiver, h * a_head + at, mask, REAL)
            w = tl.load(weight + edge * heads + h, mask=mask, other=0.0)
            if KIND == 0:
                total += w * a
                if more is not None:
                    b = rows_tile(b0, b1, b2, b_row, b_head, edge, sender, receiver, h * b_head + at, mask, REAL)
                    total += tl.load(more + edge * heads + h, mask=mask, other=0.0) * b
            else:
                b = rows_tile(b0, b1, b2, b_row, b_head, edge, sender, receiver, h * b_head + at, mask, REAL)
                if KIND == 1:
                    total += w * score_activation(ACTIVATION, SLOPE, a + b)
                else:
                    v = tl.load(vector + place, mask=inside, other=0.0)
                    total += w * v * score_activation_slope(ACTIVATION, SLOPE, a + b)
                if more is not None:
                    c = rows_tile(c0, c1, c2, c_row, c_head, edge, sender, receiver, h * c_head + at, mask, REAL)
                    d = rows_tile(d0, d1, d2, d_row, d_head, edge, sender, receiver, h * d_head + at, mask, REAL)
                    slope = score_activation_slope(ACTIVATION, SLOPE, a + b)
                    if KIND == 1:
                        change = slope * (c + d)
                    else:
                        change = v * score_activation_curvature(ACTIVATION, SLOPE, a + b) * (c + d)
                        if tangent_vector is not None:
                            change += tl.load(tangent_vector + place, mask=inside, other=0.0) * slope
                    total += tl.load(more + edge * heads + h, mask=mask, other=0.0) * change
    if ptr is not None or PARTS > 0:
        row = turn
        mask = inside
        total = tl.sum(total, axis=0, keep_dims=True)
    else:
        row = begin + lane
        mask = inside & (row < edges)
    if ADD:
        total += tl.load(out + row * elements + place, mask=mask, other=0.0)
    tl.store(out + row * elements + place, total, mask=mask)
