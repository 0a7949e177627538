"""The update of edges' features, in Triton: see kernels/edge_update.cuh for the formulas.

A program has whole rows, EDGES of them at a time; COLUMNS is the width, or the next power of 2.
"""

import triton
import triton.language as tl

from hamfast.kernels.common import look_up, sigmoid, silu_curvature, silu_slope


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
def mean_of(x, width):
    """Over a row, which is 0 beyond its width."""
    return tl.sum(x, axis=1, keep_dims=True) / width


@triton.jit
def normalise(x, mask, width, EPSILON: tl.constexpr, NORM: tl.constexpr):
    """The rows without their mean and with variance 1, 0 beyond a row, and what they were multiplied with."""
    scale = tl.full((x.shape[0], 1), 1.0, x.dtype)
    if NORM:
        x = tl.where(mask, x - mean_of(x, width), 0.0)
        scale = 1.0 / tl.sqrt(mean_of(x * x, width) + EPSILON)
        x = x * scale
    return x, scale


@triton.jit
def silu_of(x, SILU: tl.constexpr):
    """The activation, its slope and its curvature."""
    y = x
    slope = tl.full(x.shape, 1.0, x.dtype)
    curvature = tl.zeros(x.shape, x.dtype)
    if SILU:
        y = x * sigmoid(x)
        slope = silu_slope(x)
        curvature = silu_curvature(x)
    return y, slope, curvature


@triton.jit
def row_of(values, column, width, REAL: tl.constexpr):
    """``[1, COLUMNS]`` of the norm's weight or bias."""
    return tl.load(values + column, mask=column < width, other=0.0).to(REAL)


@triton.jit
def updated_rows(
    parts, weight, bias, senders, receivers, edge, end, column, width, EPSILON: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """Of the edges before ``end``: where their rows are, n, what it was multiplied with, and u."""
    NORM: tl.constexpr = weight is not None
    is_edge = edge < end
    mask = is_edge & (column < width)
    x = sum_of_rows(parts, senders, receivers, edge, is_edge, column, mask, width, REAL)
    n, scale = normalise(x, mask, width, EPSILON, NORM)
    u = n
    if NORM:
        u = n * row_of(weight, column, width, REAL) + row_of(bias, column, width, REAL)
    return mask, n, scale, u


@triton.jit
def edge_update(
    edge_rows, sender_rows, receiver_rows, weight, bias, senders, receivers, out, edges, width,
    EPSILON: tl.constexpr, SILU: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)[:, None].to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    parts = (edge_rows, sender_rows, receiver_rows)
    mask, _, _, u = updated_rows(parts, weight, bias, senders, receivers, edge, edges, column, width, EPSILON, REAL)
    y, _, _ = silu_of(u, SILU)
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
        rows = (edge_rows, sender_rows, receiver_rows)
        mask, normal, scale, u = updated_rows(
            rows, weight, bias, senders, receivers, edge, end, column, width, EPSILON, REAL
        )
        _, slope, _ = silu_of(u, SILU)
        g = tl.load(grad + edge * width + column, mask=mask, other=0.0).to(REAL) * slope
        if NORM:
            of_weight += g * normal
            of_bias += g
            g *= row_of(weight, column, width, REAL)
            g = (g - mean_of(g, width) - normal * mean_of(g * normal, width)) * scale
        tl.store(of_sum + edge * width + column, g, mask=mask)
    if NORM:
        to = of_norm + part * 2 * width + column
        tl.store(to, tl.sum(of_weight, axis=0, keep_dims=True), mask=column < width)
        tl.store(to + width, tl.sum(of_bias, axis=0, keep_dims=True), mask=column < width)


@triton.jit
def edge_update_double_backward(
    tangent_sum, tangent_norm, grad, edge_rows, sender_rows, receiver_rows, weight, bias, senders, receivers, of_grad, of_sum,
    of_norm, edges, width, parts,
    EPSILON: tl.constexpr, SILU: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The derivative of the backward pass along tangent_sum and tangent_norm; a program has a part of the edges."""
    NORM: tl.constexpr = weight is not None
    part = tl.program_id(0).to(tl.int64)
    begin = edges * part // parts
    end = edges * (part + 1) // parts
    column = tl.arange(0, COLUMNS)[None, :]
    of_weight = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    of_bias = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    for first in range(begin, end, EDGES):
        edge = first + tl.arange(0, EDGES)[:, None].to(tl.int64)
        rows = (edge_rows, sender_rows, receiver_rows)
        mask, n, scale, u = updated_rows(
            rows, weight, bias, senders, receivers, edge, end, column, width, EPSILON, REAL
        )
        tangent_x = tl.zeros(mask.shape, dtype=REAL)
        if tangent_sum is not None:
            tangent_x += tl.load(tangent_sum + edge * width + column, mask=mask, other=0.0).to(REAL)
        tangent_u = tangent_x
        if NORM:
            gamma = row_of(weight, column, width, REAL)
            tangent_slope = mean_of(tangent_x * n, width)
            tangent_n = tl.where(mask, (tangent_x - mean_of(tangent_x, width) - n * tangent_slope) * scale, 0.0)
            tangent_u = gamma * tangent_n
            if tangent_norm is not None:
                tangent_u += row_of(tangent_norm, column, width, REAL) * n + row_of(
                    tangent_norm + width, column, width, REAL
                )
        _, slope, curvature = silu_of(u, SILU)
        g = tl.load(grad + edge * width + column, mask=mask, other=0.0).to(REAL)
        tl.store(of_grad + edge * width + column, slope * tangent_u, mask=mask)
        t = curvature * g * tangent_u
        out = t
        if NORM:
            q = slope * g
            v = gamma * q
            of_weight += t * n + q * tangent_n
            of_bias += t
            h = gamma * t - (v * tangent_slope + tangent_x * mean_of(v * n, width)) * scale
            if tangent_norm is not None:
                h += row_of(tangent_norm, column, width, REAL) * q
            out = (h - mean_of(h, width) - n * mean_of(h * n + v * tangent_n, width)) * scale
        tl.store(of_sum + edge * width + column, out, mask=mask)
    if NORM:
        to = of_norm + part * 2 * width + column
        tl.store(to, tl.sum(of_weight, axis=0, keep_dims=True), mask=column < width)
        tl.store(to + width, tl.sum(of_bias, axis=0, keep_dims=True), mask=column < width)
