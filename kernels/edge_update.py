"""The update of edges' features, in Triton: see kernels/edge_update.cuh for the formulas.

A program has whole rows, EDGES of them at a time; COLUMNS is the width, or the next power of 2.
"""

import triton
import triton.language as tl

from hamfast.kernels.common import look_up


@triton.jit
def sum_of_rows(parts, senders, receivers, edge, is_edge, column, mask, width, REAL: tl.constexpr):
    """``[EDGES, COLUMNS]``: what the edges add up, 0 beyond a row."""
    total = tl.zeros(mask.shape, dtype=REAL)
    for p in tl.static_range(3):
        if parts[p] is not None:
            row = edge
            if p == 1:
                row = look_up(senders, edge, is_edge)
            elif p == 2:
                row = look_up(receivers, edge, is_edge)
            total += tl.load(parts[p] + row * width + column, mask=mask, other=0.0).to(REAL)
    return total


@triton.jit
def normalise(x, mask, width, EPSILON: tl.constexpr, NORM: tl.constexpr):
    """The rows without their mean and with variance 1, 0 beyond a row, and what they were multiplied with."""
    scale = tl.full((x.shape[0], 1), 1.0, x.dtype)
    if NORM:
        x = tl.where(mask, x - tl.sum(x, axis=1, keep_dims=True) / width, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=1, keep_dims=True) / width + EPSILON)
        x = x * scale
    return x, scale


@triton.jit
def silu_and_slope(x, SILU: tl.constexpr):
    y = x
    slope = tl.full(x.shape, 1.0, x.dtype)
    if SILU:
        s = 1.0 / (1.0 + tl.exp(-x))
        y = x * s
        slope = s * (1.0 + x * (1.0 - s))
    return y, slope


@triton.jit
def row_of(values, column, width, REAL: tl.constexpr):
    """``[1, COLUMNS]`` of the norm's weight or bias."""
    return tl.load(values + column, mask=column < width, other=0.0).to(REAL)


@triton.jit
def edge_update(
    edge_rows, sender_rows, receiver_rows, weight, bias, senders, receivers, out, edges, width,
    EPSILON: tl.constexpr, SILU: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    NORM: tl.constexpr = weight is not None
    edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)[:, None].to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    is_edge = edge < edges
    mask = is_edge & (column < width)
    x = sum_of_rows(
        (edge_rows, sender_rows, receiver_rows), senders, receivers, edge, is_edge, column, mask, width, REAL
    )
    x, _ = normalise(x, mask, width, EPSILON, NORM)
    if NORM:
        x = x * row_of(weight, column, width, REAL) + row_of(bias, column, width, REAL)
    y, _ = silu_and_slope(x, SILU)
    tl.store(out + edge * width + column, y, mask=mask)


@triton.jit
def edge_update_backward(
    grad, edge_rows, sender_rows, receiver_rows, weight, bias, senders, receivers, of_sum, of_norm, edges, width, parts,
    EPSILON: tl.constexpr, SILU: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program has a part of the edges. of_norm: ``[parts, 2, width]``, its sums for weight and bias."""
    NORM: tl.constexpr = weight is not None
    part = tl.program_id(0).to(tl.int64)
    begin = edges * part // parts
    end = edges * (part + 1) // parts
    column = tl.arange(0, COLUMNS)[None, :]
    of_weight = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    of_bias = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    for first in range(begin, end, EDGES):
        edge = first + tl.arange(0, EDGES)[:, None].to(tl.int64)
        is_edge = edge < end
        mask = is_edge & (column < width)
        x = sum_of_rows(
            (edge_rows, sender_rows, receiver_rows), senders, receivers, edge, is_edge, column, mask, width, REAL
        )
        normal, scale = normalise(x, mask, width, EPSILON, NORM)
        u = normal
        if NORM:
            u = normal * row_of(weight, column, width, REAL) + row_of(bias, column, width, REAL)
        _, slope = silu_and_slope(u, SILU)
        g = tl.load(grad + edge * width + column, mask=mask, other=0.0).to(REAL) * slope
        if NORM:
            of_weight += g * normal
            of_bias += g
            g *= row_of(weight, column, width, REAL)
            mean = tl.sum(g, axis=1, keep_dims=True) / width
            along = tl.sum(g * normal, axis=1, keep_dims=True) / width
            g = (g - mean - normal * along) * scale
        tl.store(of_sum + edge * width + column, g, mask=mask)
    if NORM:
        to = of_norm + part * 2 * width + column
        tl.store(to, tl.sum(of_weight, axis=0, keep_dims=True), mask=column < width)
        tl.store(to + width, tl.sum(of_bias, axis=0, keep_dims=True), mask=column < width)
