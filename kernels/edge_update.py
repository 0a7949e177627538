"""The update of edges' features, in Triton: see kernels/edge_update.cuh for the formulas.

A program has whole rows, EDGES of them at a time; COLUMNS is the width, or the next power of 2.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from hamfast.kernels.common import look_up, sigmoid, silu_curvature, silu_slope
from hamfast.records.choices import RowOf

SENDER, RECEIVER = tl.constexpr(RowOf.SENDER), tl.constexpr(RowOf.RECEIVER)
# Triton 3.6 has no length of a tuple that holds None.
ROWS = tl.constexpr(len(RowOf.numbers()))


class Operands(NamedTuple):
    """Tensors, or None."""

    rows: tuple[object, object, object]
    """Of edges, of senders and of receivers."""
    weight: object
    bias: object
    """Of the norm."""


class Graph(NamedTuple):
    """Edges: where they come from and go to, and how many there are."""

    senders: object
    receivers: object
    edges: object


@triton.jit
def sum_of_rows(operands, graph, edge, is_edge, column, mask, width, REAL: tl.constexpr):
    """``[EDGES, COLUMNS]``: what the edges add up, 0 beyond a row."""
    total = tl.zeros(mask.shape, dtype=REAL)
    for n in tl.static_range(ROWS):
        if operands.rows[n] is not None:
            row = edge
            if n == SENDER:
                row = look_up(graph.senders, edge, is_edge)
            elif n == RECEIVER:
                row = look_up(graph.receivers, edge, is_edge)
            total += tl.load(operands.rows[n] + row * width + column, mask=mask, other=0.0).to(REAL)
    return total


@triton.jit
def mean_of(x, width):
    """Over a row, which is 0 beyond its width."""
    return tl.sum(x, axis=1, keep_dims=True) / width


@triton.jit
def normalise(x, mask, width, EPSILON: tl.constexpr, NORM: tl.constexpr):
    """The rows without their mean and with variance 1, 0 beyond a row, and what they were
    multiplied with."""
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
def updated_rows(operands, graph, edge, end, column, width, EPSILON: tl.constexpr, REAL: tl.constexpr):
    """Of the edges before ``end``: where their rows are, n, what it was multiplied with, and u."""
    NORM: tl.constexpr = operands.weight is not None
    is_edge = edge < end
    mask = is_edge & (column < width)
    x = sum_of_rows(operands, graph, edge, is_edge, column, mask, width, REAL)
    n, scale = normalise(x, mask, width, EPSILON, NORM)
    u = n
    if NORM:
        u = n * row_of(operands.weight, column, width, REAL) + row_of(operands.bias, column, width, REAL)
    return mask, n, scale, u


@triton.jit
def chunk_of_edges(edges, chunks):
    """This program's chunk, and where its edges begin and end."""
    chunk = tl.program_id(0).to(tl.int64)
    return chunk, edges * chunk // chunks, edges * (chunk + 1) // chunks


@triton.jit
def store_norm(grad_norm, chunk, column, width, of_weight, of_bias):
    """A chunk's gradients of weight and bias, each summed over the edges."""
    to = grad_norm + chunk * 2 * width + column
    tl.store(to, tl.sum(of_weight, axis=0, keep_dims=True), mask=column < width)
    tl.store(to + width, tl.sum(of_bias, axis=0, keep_dims=True), mask=column < width)


@triton.jit
def edge_update(
    operands, graph, out, width,
    EPSILON: tl.constexpr, SILU: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``act(norm(sum of the rows))``"""
    edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)[:, None].to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    mask, _, _, u = updated_rows(operands, graph, edge, graph.edges, column, width, EPSILON, REAL)
    y, _, _ = silu_of(u, SILU)
    tl.store(out + edge * width + column, y, mask=mask)


@triton.jit
def edge_update_backward(
    grad, operands, graph, grad_sum, grad_norm, width, chunks,
    EPSILON: tl.constexpr, SILU: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program has a chunk of the edges. grad_norm: ``[chunks, 2, width]``, its sums for weight
    and bias."""
    NORM: tl.constexpr = operands.weight is not None
    chunk, begin, end = chunk_of_edges(graph.edges, chunks)
    column = tl.arange(0, COLUMNS)[None, :]
    of_weight = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    of_bias = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    for first in range(begin, end, EDGES):
        edge = first + tl.arange(0, EDGES)[:, None].to(tl.int64)
        mask, n, scale, u = updated_rows(operands, graph, edge, end, column, width, EPSILON, REAL)
        _, slope, _ = silu_of(u, SILU)
        g = tl.load(grad + edge * width + column, mask=mask, other=0.0).to(REAL) * slope
        if NORM:
            of_weight += g * n
            of_bias += g
            g *= row_of(operands.weight, column, width, REAL)
            g = (g - mean_of(g, width) - n * mean_of(g * n, width)) * scale
        tl.store(grad_sum + edge * width + column, g, mask=mask)
    if NORM:
        store_norm(grad_norm, chunk, column, width, of_weight, of_bias)


@triton.jit
def edge_update_double_backward(
    tangent_sum, tangent_norm, grad, operands, graph, grad_grad, grad_sum, grad_norm, width, chunks,
    EPSILON: tl.constexpr, SILU: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The derivative of the backward pass along tangent_sum and tangent_norm; a program has a chunk
    of the edges."""
    NORM: tl.constexpr = operands.weight is not None
    chunk, begin, end = chunk_of_edges(graph.edges, chunks)
    column = tl.arange(0, COLUMNS)[None, :]
    of_weight = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    of_bias = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    for first in range(begin, end, EDGES):
        edge = first + tl.arange(0, EDGES)[:, None].to(tl.int64)
        mask, n, scale, u = updated_rows(operands, graph, edge, end, column, width, EPSILON, REAL)
        tangent_x = tl.zeros(mask.shape, dtype=REAL)
        if tangent_sum is not None:
            tangent_x += tl.load(tangent_sum + edge * width + column, mask=mask, other=0.0).to(REAL)
        tangent_u = tangent_x
        if NORM:
            weight = row_of(operands.weight, column, width, REAL)
            mean_xn = mean_of(tangent_x * n, width)
            tangent_n = tl.where(mask, (tangent_x - mean_of(tangent_x, width) - n * mean_xn) * scale, 0.0)
            tangent_u = weight * tangent_n
            if tangent_norm is not None:
                tangent_u += row_of(tangent_norm, column, width, REAL) * n
                tangent_u += row_of(tangent_norm + width, column, width, REAL)
        _, slope, curvature = silu_of(u, SILU)
        g = tl.load(grad + edge * width + column, mask=mask, other=0.0).to(REAL)
        tl.store(grad_grad + edge * width + column, slope * tangent_u, mask=mask)
        t = curvature * g * tangent_u
        out = t
        if NORM:
            q = slope * g
            v = weight * q
            of_weight += t * n + q * tangent_n
            of_bias += t
            h = weight * t - (v * mean_xn + tangent_x * mean_of(v * n, width)) * scale
            if tangent_norm is not None:
                h += row_of(tangent_norm, column, width, REAL) * q
            out = (h - mean_of(h, width) - n * mean_of(h * n + v * tangent_n, width)) * scale
        tl.store(grad_sum + edge * width + column, out, mask=mask)
    if NORM:
        store_norm(grad_norm, chunk, column, width, of_weight, of_bias)
