"""Sparse graph attention in Triton: products of rows, and sums of rows times scalars.

The scalars, per edge and head, are made in graph_attention_scores.py.
The formulas and their symbols stand in graph_attention.cuh.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from hamfast.kernels.common import edge_tile, sigmoid, silu_curvature, silu_slope
from hamfast.records.choices import Choices, Score, ScoreActivation


class Summand(Choices):
    """What weighted_sums adds up: ``a``, ``act(a + b)`` or ``vector act'(a + b)``."""

    ROWS, ACTIVATION, VECTOR_SLOPE = range(3)


DOT = tl.constexpr(Score.DOT)
LEAKY_RELU, SILU = tl.constexpr(ScoreActivation.LEAKY_RELU), tl.constexpr(ScoreActivation.SILU)
ROWS, ACTIVATION = tl.constexpr(Summand.ROWS), tl.constexpr(Summand.ACTIVATION)


class Graph(NamedTuple):
    """Where edges come from and go to, how many there are, and in which order they are taken."""

    senders: object
    receivers: object
    edges: object
    order: object
    """None: as they are numbered."""
    ptr: object
    """Where the edges of each row of the result begin in the order; None: a row is no such list."""


class Rows(NamedTuple):
    """The sum of up to three parts ``[rows, heads, columns]``, each a tensor or None."""

    edge: object
    """A row per edge."""
    sender: object
    receiver: object
    row_stride: object
    head_stride: object
    """0: all heads have the same row, as edges' features do."""


class Ends(NamedTuple):
    """A tile of edges ``[EDGES, 1]`` and the nodes at their ends."""

    edge: object
    sender: object
    receiver: object


class Vectors(NamedTuple):
    """The vector ``[heads, width]`` of additive scores and its tangent: tensors or None."""

    vector: object
    tangent_vector: object


@triton.jit
def ends_of(graph, edge, mask):
    """The nodes at the ends of edges."""
    sender = tl.load(graph.senders + edge, mask=mask, other=0)
    receiver = tl.load(graph.receivers + edge, mask=mask, other=0)
    return Ends(edge, sender, receiver)


@triton.jit
def rows_tile(rows, ends, h, column, mask, REAL: tl.constexpr):
    """The sum of the parts, at a column of head h."""
    at = h * rows.head_stride + column
    total = tl.zeros(mask.shape, dtype=REAL)
    if rows.edge is not None:
        total += tl.load(rows.edge + ends.edge * rows.row_stride + at, mask=mask, other=0.0)
    if rows.sender is not None:
        total += tl.load(rows.sender + ends.sender * rows.row_stride + at, mask=mask, other=0.0)
    if rows.receiver is not None:
        total += tl.load(rows.receiver + ends.receiver * rows.row_stride + at, mask=mask, other=0.0)
    return total


@triton.jit
def score_activation(ACT: tl.constexpr, SLOPE: tl.constexpr, x):
    """act(x). ACT: a choice of ScoreActivation."""
    if ACT == LEAKY_RELU:
        return tl.where(x > 0, x, SLOPE * x)
    elif ACT == SILU:
        return x * sigmoid(x)
    else:
        return x * (SLOPE + (1.0 - SLOPE) * sigmoid(x))


@triton.jit
def score_activation_slope(ACT: tl.constexpr, SLOPE: tl.constexpr, x):
    """act'(x)"""
    if ACT == LEAKY_RELU:
        return tl.where(x > 0, tl.full(x.shape, 1.0, dtype=x.dtype), SLOPE)
    elif ACT == SILU:
        return silu_slope(x)
    else:
        return SLOPE + (1.0 - SLOPE) * silu_slope(x)


@triton.jit
def score_activation_curvature(ACT: tl.constexpr, SLOPE: tl.constexpr, x):
    """act''(x)"""
    if ACT == LEAKY_RELU:
        return tl.zeros(x.shape, dtype=x.dtype)
    elif ACT == SILU:
        return silu_curvature(x)
    else:
        return (1.0 - SLOPE) * silu_curvature(x)


@triton.jit
def edge_dots(
    out, graph, heads, width, features, a, b, c, d, vectors,
    SCORE: tl.constexpr, ALONG: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, ADD: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out[edge, head] = <a, b> + <c, d>``.

    a and b have length width; c and d have length features.

    With SCORE additive it is ``<vector, act(a + b)> + <c, d>``.
    ALONG tangents c of a and d of b, all of length width, it is the change of the additive score:
    ``<tangent_vector, act(a + b)> + <vector, act'(a + b) (c + d)>``.
    Edges are taken in the receivers' order, in which neighbours share rows.
    ADD: to what is there.
    """
    edge, edge_mask = edge_tile(graph.order, tl.program_id(0).to(tl.int64) * EDGES, graph.edges, EDGES)
    ends = ends_of(graph, edge, edge_mask)
    lane = tl.arange(0, COLUMNS)[None, :]
    for head in range(0, heads):
        h = tl.zeros((1, 1), dtype=tl.int64) + head
        total = tl.zeros((EDGES, 1), dtype=REAL)
        for first in range(0, width, COLUMNS):
            column = first + lane
            mask = edge_mask & (column < width)
            a_tile = rows_tile(a, ends, h, column, mask, REAL)
            b_tile = rows_tile(b, ends, h, column, mask, REAL)
            if SCORE == DOT:
                product = a_tile * b_tile
            else:
                at = h * width + column
                product = tl.zeros(mask.shape, dtype=REAL)
                factor = vectors.vector
                if ALONG:
                    c_tile = rows_tile(c, ends, h, column, mask, REAL)
                    d_tile = rows_tile(d, ends, h, column, mask, REAL)
                    v = tl.load(vectors.vector + at, mask=column < width, other=0.0)
                    product += v * score_activation_slope(ACT, SLOPE, a_tile + b_tile) * (c_tile + d_tile)
                    factor = vectors.tangent_vector
                if factor is not None:
                    v = tl.load(factor + at, mask=column < width, other=0.0)
                    product += v * score_activation(ACT, SLOPE, a_tile + b_tile)
            total += tl.sum(product, axis=1, keep_dims=True)
        for first in range(0, features, COLUMNS):
            column = first + lane
            mask = edge_mask & (column < features)
            c_tile = rows_tile(c, ends, h, column, mask, REAL)
            d_tile = rows_tile(d, ends, h, column, mask, REAL)
            total += tl.sum(c_tile * d_tile, axis=1, keep_dims=True)
        if ADD:
            total += tl.load(out + edge * heads + h, mask=edge_mask, other=0.0)
        tl.store(out + edge * heads + h, total, mask=edge_mask)


@triton.jit
def weighted_sums(
    out, graph, heads, width, weight, a, other_weight, b, tangent_a, tangent_b, vectors,
    SUMMAND: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, OVER_HEADS: tl.constexpr, ADD: tl.constexpr,
    CHUNKS: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over a row's edges of the SUMMAND, times weight: ``weight a + other_weight b`` for ROWS.

    weight, other_weight: ``[edges, heads]``; the second may be None.
    With the other summands, other_weight multiplies their change along tangents, and that is added.
    The tangents are tangent_a of a, tangent_b of b, and that of the vector.
    A row of the result is a list of ``ptr``, one of CHUNKS equal chunks of all edges, or an edge.
    It has heads x width elements, or width of them, summed over heads.
    """
    step = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    elements = width
    last_head = heads
    if not OVER_HEADS:
        elements = heads * width
        last_head = 1
    inside = element < elements
    column = element % width
    if graph.ptr is not None:
        begin = tl.load(graph.ptr + step)
        end = tl.load(graph.ptr + step + 1)
    elif CHUNKS > 0:
        begin = graph.edges * step // CHUNKS
        end = graph.edges * (step + 1) // CHUNKS
    else:
        begin = step * EDGES
        end = tl.minimum(begin + EDGES, graph.edges)
    total = tl.zeros((EDGES, COLUMNS), dtype=REAL)
    for first in range(begin, end, EDGES):
        edge, edge_mask = edge_tile(graph.order, first, end, EDGES)
        ends = ends_of(graph, edge, edge_mask)
        mask = edge_mask & inside
        for head in range(0, last_head):
            h = element // width + head
            a_tile = rows_tile(a, ends, h, column, mask, REAL)
            w = tl.load(weight + edge * heads + h, mask=mask, other=0.0)
            if SUMMAND == ROWS:
                total += w * a_tile
                if other_weight is not None:
                    b_tile = rows_tile(b, ends, h, column, mask, REAL)
                    total += tl.load(other_weight + edge * heads + h, mask=mask, other=0.0) * b_tile
            else:
                b_tile = rows_tile(b, ends, h, column, mask, REAL)
                if SUMMAND == ACTIVATION:
                    total += w * score_activation(ACT, SLOPE, a_tile + b_tile)
                else:
                    v = tl.load(vectors.vector + element, mask=inside, other=0.0)
                    total += w * v * score_activation_slope(ACT, SLOPE, a_tile + b_tile)
                if other_weight is not None:
                    tangent = rows_tile(tangent_a, ends, h, column, mask, REAL)
                    tangent += rows_tile(tangent_b, ends, h, column, mask, REAL)
                    slope = score_activation_slope(ACT, SLOPE, a_tile + b_tile)
                    if SUMMAND == ACTIVATION:
                        change = slope * tangent
                    else:
                        change = v * score_activation_curvature(ACT, SLOPE, a_tile + b_tile) * tangent
                        if vectors.tangent_vector is not None:
                            change += tl.load(vectors.tangent_vector + element, mask=inside, other=0.0) * slope
                    total += tl.load(other_weight + edge * heads + h, mask=mask, other=0.0) * change
    if graph.ptr is not None or CHUNKS > 0:
        row = step
        mask = inside
        total = tl.sum(total, axis=0, keep_dims=True)
    else:
        row = begin + tl.arange(0, EDGES)[:, None].to(tl.int64)
        mask = inside & (row < graph.edges)
    if ADD:
        total += tl.load(out + row * elements + element, mask=mask, other=0.0)
    tl.store(out + row * elements + element, total, mask=mask)
