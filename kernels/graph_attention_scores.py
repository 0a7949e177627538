"""Sparse graph attention in Triton: all that is a scalar per edge and head.

From scores to weights, and back.

The formulas and their symbols stand in graph_attention.cuh; rows are met in graph_attention.py.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from hamfast.kernels.common import edge_tile, sigmoid, silu_curvature, silu_slope
from hamfast.records.choices import Weighting

SOFTMAX, SILU = tl.constexpr(Weighting.SOFTMAX), tl.constexpr(Weighting.SILU)
SIGMOID, SOFTPLUS = tl.constexpr(Weighting.SIGMOID), tl.constexpr(Weighting.SOFTPLUS)


class EdgeScalar(NamedTuple):
    """A scalar per edge and head; data None: absent."""

    data: object
    edge_stride: object
    head_stride: object


class Scalars(NamedTuple):
    """The operands that are scalars per edge and head, or their tangents.

    Or tensors ``[edges, heads]`` where their gradients go, None for those not wanted.
    """

    bias: object
    score_scale: object
    envelope: object
    gate: object


class ScoreCall(NamedTuple):
    """What all three kernels take."""

    z: object
    """``[edges, heads]``"""
    scalars: Scalars
    seed: object
    """Of dropout, or None."""
    order: object
    """The edges in the order of their receivers."""
    ptr: object
    """Where each receiver's edges begin in it."""
    heads: object


class Gradients(NamedTuple):
    """Gradients of the results that are scalars, or where theirs go: tensors or None."""

    lse: object
    weights: object
    logits: object


class Tile(NamedTuple):
    """A program's receiver, where its edges begin and end, and a row of heads with their mask."""

    receiver: object
    begin: object
    end: object
    h: object
    h_mask: object


class EdgeScores(NamedTuple):
    """A tile ``[EDGES, HEADS]``: where the scalars lie, and how z becomes s."""

    edge: object
    offset: object
    """In a tensor ``[edges, heads]``."""
    mask: object
    z: object
    ds_dz: object
    """0 where clipped."""
    s: object
    is_clipped: object
    envelope: object
    gate: object
    drop: object


class EdgeTangents(NamedTuple):
    """What the derivative along tangents is made of, for a tile of edges and heads."""

    plain: object
    plain_slope: object
    p: object
    u: object
    t: object
    grad_w: object
    tangent_z: object
    tangent_s: object
    tangent_envelope: object
    tangent_score_scale: object
    tangent_gate: object
    tangent_grad_w: object
    tangent_u: object


@triton.jit
def scalar_tile(scalar, edge, h, mask, ABSENT: tl.constexpr, REAL: tl.constexpr):
    """An EdgeScalar of a tile."""
    if scalar.data is None:
        value = tl.full(mask.shape, ABSENT, dtype=REAL)
    else:
        value = tl.load(scalar.data + edge * scalar.edge_stride + h * scalar.head_stride, mask=mask, other=0.0)
    return value


@triton.jit
def optional_tile(data, offset, mask, REAL: tl.constexpr):
    """A tile of a tensor ``[edges, heads]``; 0 without the tensor."""
    if data is None:
        value = tl.full(mask.shape, 0.0, dtype=REAL)
    else:
        value = tl.load(data + offset, mask=mask, other=0.0)
    return value


@triton.jit
def dropout_tile(seed, offset, DROPOUT: tl.constexpr, mask, REAL: tl.constexpr):
    """drop: 0 or 1 / (1 - probability), from a counter: SplitMix64 (Steele, Lea, Flood 2014)."""
    if seed is None:
        factor = tl.full(mask.shape, 1.0, dtype=REAL)
    else:
        mixed = tl.load(seed).to(tl.uint64) + (offset + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB
        mixed = mixed ^ (mixed >> 31)
        uniform = (mixed >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)  # float64: the same edges as elsewhere
        kept = tl.full(mask.shape, 1.0 / (1.0 - DROPOUT) if DROPOUT < 1.0 else 0.0, dtype=REAL)
        factor = tl.where(uniform < DROPOUT, 0.0, kept)
    return factor


@triton.jit
def weight_value(WEIGHTING: tl.constexpr, s):
    """act(s) of a Weighting that is no softmax."""
    if WEIGHTING == SILU:
        return s * sigmoid(s)
    elif WEIGHTING == SIGMOID:
        return sigmoid(s)
    elif WEIGHTING == SOFTPLUS:
        return tl.maximum(s, 0.0) + log1p(tl.exp(-tl.abs(s)))
    else:
        return s


@triton.jit
def log1p(x):
    """log(1 + x) of 0 <= x <= 1, to the last digits.

    log(1 + x) times what the rounding of 1 + x took (Goldberg 1991, theorem 4).
    """
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit
def weight_slope(WEIGHTING: tl.constexpr, s):
    """act'(s)"""
    y = sigmoid(s)
    if WEIGHTING == SILU:
        return silu_slope(s)
    elif WEIGHTING == SIGMOID:
        return y * (1.0 - y)
    elif WEIGHTING == SOFTPLUS:
        return y
    else:
        return tl.full(s.shape, 1.0, dtype=s.dtype)


@triton.jit
def weight_curvature(WEIGHTING: tl.constexpr, s):
    """act''(s)"""
    y = sigmoid(s)
    if WEIGHTING == SILU:
        return silu_curvature(s)
    elif WEIGHTING == SIGMOID:
        return y * (1.0 - y) * (1.0 - 2.0 * y)
    elif WEIGHTING == SOFTPLUS:
        return y * (1.0 - y)
    else:
        return tl.zeros(s.shape, dtype=s.dtype)


@triton.jit
def plain_weight(WEIGHTING: tl.constexpr, s, lse):
    """exp(s - lse), or the activation."""
    if WEIGHTING == SOFTMAX:
        # Finite also where an envelope of 0 took the edge out of lse: 0 times it is 0.
        x = tl.where(s - lse > 88.0, 88.0, s - lse)
        value = tl.where(lse == -float("inf"), 0.0, tl.exp(x))
    else:
        value = weight_value(WEIGHTING, s)
    return value


@triton.jit
def receiver_tile(call, HEADS: tl.constexpr):
    """This program's receiver and heads."""
    receiver = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :].to(tl.int64)
    return Tile(receiver, tl.load(call.ptr + receiver), tl.load(call.ptr + receiver + 1), h, h < call.heads)


@triton.jit
def edge_scores(
    call, tile, first, SCALE: tl.constexpr, CLIP: tl.constexpr, DROPOUT: tl.constexpr, REAL: tl.constexpr,
    EDGES: tl.constexpr,
):  # fmt: skip
    """The receiver's edges from the one at ``first`` on."""
    edge, edge_mask = edge_tile(call.order, first, tile.end, EDGES)
    h = tile.h
    mask = edge_mask & tile.h_mask
    offset = edge * call.heads + h
    z = tl.load(call.z + offset, mask=mask, other=0.0)
    ds_dz = SCALE * scalar_tile(call.scalars.score_scale, edge, h, mask, 1.0, REAL)
    s = ds_dz * z + scalar_tile(call.scalars.bias, edge, h, mask, 0.0, REAL)
    is_clipped = edge < 0  # nowhere
    if CLIP is not None:
        is_clipped = (s > CLIP) | (s < -CLIP)
        s = tl.where(s > CLIP, CLIP, tl.where(s < -CLIP, -CLIP, s))
        ds_dz = tl.where(is_clipped, 0.0, ds_dz)
    envelope = tl.where(mask, scalar_tile(call.scalars.envelope, edge, h, mask, 1.0, REAL), 0.0)
    gate = scalar_tile(call.scalars.gate, edge, h, mask, 1.0, REAL)
    drop = dropout_tile(call.seed, offset, DROPOUT, mask, REAL)
    return EdgeScores(edge, offset, mask, z, ds_dz, s, is_clipped, envelope, gate, drop)


@triton.jit
def grad_w_tile(row_grad_w, gradients, e, REAL: tl.constexpr):
    """grad_w: what comes through the rows, and the gradient of w as a result."""
    return tl.load(row_grad_w + e.offset, mask=e.mask, other=0.0) + optional_tile(
        gradients.weights, e.offset, e.mask, REAL
    )


@triton.jit
def attention_weights(
    call, lse, w, logits,
    WEIGHTING: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, LOG_EPSILON: tl.constexpr, DROPOUT: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """From z to w, lse and, if not None, logits. One program per receiver.

    LOG_EPSILON: -inf for none.
    """
    tile = receiver_tile(call, HEADS)
    row = tile.receiver * call.heads + tile.h
    top = tl.zeros((1, HEADS), dtype=REAL)
    inverse = tl.full((1, HEADS), 1.0, dtype=REAL)
    if WEIGHTING == SOFTMAX:
        top += LOG_EPSILON
        for first in range(tile.begin, tile.end, EDGES):
            e = edge_scores(call, tile, first, SCALE, CLIP, DROPOUT, REAL, EDGES)
            top = tl.maximum(top, tl.max(tl.where(e.envelope != 0, e.s, -float("inf")), axis=0, keep_dims=True))
        top = tl.where(top == -float("inf"), 0.0, top)
        total = tl.zeros((1, HEADS), dtype=REAL)
        for first in range(tile.begin, tile.end, EDGES):
            e = edge_scores(call, tile, first, SCALE, CLIP, DROPOUT, REAL, EDGES)
            addend = tl.where(e.envelope != 0, e.envelope * tl.exp(e.s - top), 0.0)
            total += tl.sum(addend, axis=0, keep_dims=True)
        total += tl.exp(LOG_EPSILON - top)
        inverse = tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))
        log_total = tl.where(total == 0, -float("inf"), tl.log(tl.where(total == 0, 1.0, total)))
        tl.store(lse + row, top + log_total, mask=tile.h_mask)
    else:
        tl.store(lse + row, tl.zeros((1, HEADS), dtype=REAL), mask=tile.h_mask)
    for first in range(tile.begin, tile.end, EDGES):
        e = edge_scores(call, tile, first, SCALE, CLIP, DROPOUT, REAL, EDGES)
        # Not exp(s - lse): of large scores that would lose the digits of lse.
        if WEIGHTING == SOFTMAX:
            plain = tl.exp(e.s - top) * inverse
        else:
            plain = weight_value(WEIGHTING, e.s)
        w_here = tl.where(e.envelope == 0, 0.0, e.envelope * plain * e.gate * e.drop)
        tl.store(w + e.offset, w_here, mask=e.mask)
        if logits is not None:
            tl.store(logits + e.offset, e.s, mask=e.mask)


@triton.jit
def attention_gradients(
    call, row_grad_w, lse, gradients, grad_z, w, grad_scalars,
    WEIGHTING: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, DROPOUT: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """From z and row_grad_w to grad_z, w and the scalars' gradients. One program per receiver."""
    tile = receiver_tile(call, HEADS)
    row = tile.receiver * call.heads + tile.h
    lse_row = tl.load(lse + row, mask=tile.h_mask, other=0.0)
    mean_u = tl.zeros((1, HEADS), dtype=REAL)
    if WEIGHTING == SOFTMAX:
        for first in range(tile.begin, tile.end, EDGES):
            e = edge_scores(call, tile, first, SCALE, CLIP, DROPOUT, REAL, EDGES)
            grad_w = grad_w_tile(row_grad_w, gradients, e, REAL)
            plain = plain_weight(WEIGHTING, e.s, lse_row)
            p_u = e.envelope * plain * e.gate * e.drop * grad_w
            mean_u += tl.sum(tl.where(e.mask, p_u, 0.0), axis=0, keep_dims=True)
    centre = mean_u
    if WEIGHTING == SOFTMAX and gradients.lse is not None:
        centre -= tl.load(gradients.lse + row, mask=tile.h_mask, other=0.0)
    for first in range(tile.begin, tile.end, EDGES):
        e = edge_scores(call, tile, first, SCALE, CLIP, DROPOUT, REAL, EDGES)
        grad_w = grad_w_tile(row_grad_w, gradients, e, REAL)
        plain = plain_weight(WEIGHTING, e.s, lse_row)
        centred = e.gate * e.drop * grad_w - centre
        if WEIGHTING == SOFTMAX:
            grad_s = e.envelope * centred * plain
        else:
            grad_s = e.envelope * centred * weight_slope(WEIGHTING, e.s)
        grad_s += optional_tile(gradients.logits, e.offset, e.mask, REAL)
        grad_s = tl.where(e.is_clipped, 0.0, grad_s)
        if grad_scalars.bias is not None:
            tl.store(grad_scalars.bias + e.offset, grad_s, mask=e.mask)
        if grad_scalars.gate is not None:
            tl.store(grad_scalars.gate + e.offset, e.drop * e.envelope * plain * grad_w, mask=e.mask)
        if grad_scalars.envelope is not None:
            tl.store(grad_scalars.envelope + e.offset, plain * centred, mask=e.mask)
        if grad_scalars.score_scale is not None:
            tl.store(grad_scalars.score_scale + e.offset, grad_s * SCALE * e.z, mask=e.mask)
        tl.store(grad_z + e.offset, grad_s * e.ds_dz, mask=e.mask)
        tl.store(w + e.offset, e.envelope * plain * e.gate * e.drop, mask=e.mask)


@triton.jit
def edge_tangents(
    e, h, lse_row, row_grad_w, tangent_z, tangent_grad_w, tangents, gradients,
    WEIGHTING: tl.constexpr, SCALE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """EdgeTangents of a tile of EdgeScores."""
    plain = plain_weight(WEIGHTING, e.s, lse_row)
    plain_slope = plain
    if WEIGHTING != SOFTMAX:
        plain_slope = weight_slope(WEIGHTING, e.s)
    p = e.envelope * plain
    grad_w = grad_w_tile(row_grad_w, gradients, e, REAL)
    tangent_gate = scalar_tile(tangents.gate, e.edge, h, e.mask, 0.0, REAL)
    tangent_score_scale = scalar_tile(tangents.score_scale, e.edge, h, e.mask, 0.0, REAL)
    tangent_z_here = tl.load(tangent_z + e.offset, mask=e.mask, other=0.0)
    tangent_s = e.ds_dz * tangent_z_here + SCALE * e.z * tangent_score_scale
    tangent_s += scalar_tile(tangents.bias, e.edge, h, e.mask, 0.0, REAL)
    tangent_s = tl.where(e.is_clipped, 0.0, tangent_s)
    tangent_envelope = scalar_tile(tangents.envelope, e.edge, h, e.mask, 0.0, REAL)
    t = tl.where(e.mask, e.envelope * plain_slope * tangent_s + plain * tangent_envelope, 0.0)
    tangent_grad_w_here = tl.load(tangent_grad_w + e.offset, mask=e.mask, other=0.0)
    tangent_u = e.drop * (tangent_gate * grad_w + e.gate * tangent_grad_w_here)
    u = e.gate * e.drop * grad_w
    return EdgeTangents(
        plain, plain_slope, p, u, t, grad_w, tangent_z_here, tangent_s, tangent_envelope, tangent_score_scale,
        tangent_gate, tangent_grad_w_here, tangent_u,
    )  # fmt: skip


@triton.jit
def attention_second_gradients(
    call, row_grad_w, tangent_z, tangent_grad_w, lse, tangents, gradients, grad_z, grad_tangent_z, tangent_w, w,
    grad_gradients, grad_scalars,
    WEIGHTING: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, DROPOUT: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The double backward pass, from z, row_grad_w and their tangents. One program per receiver."""
    tile = receiver_tile(call, HEADS)
    row = tile.receiver * call.heads + tile.h
    lse_row = tl.load(lse + row, mask=tile.h_mask, other=0.0)
    mean_u = tl.zeros((1, HEADS), dtype=REAL)
    tangent_lse = tl.zeros((1, HEADS), dtype=REAL)
    mean_tangent_u = tl.zeros((1, HEADS), dtype=REAL)
    sum_t_u = tl.zeros((1, HEADS), dtype=REAL)
    if WEIGHTING == SOFTMAX:
        for first in range(tile.begin, tile.end, EDGES):
            e = edge_scores(call, tile, first, SCALE, CLIP, DROPOUT, REAL, EDGES)
            d = edge_tangents(
                e, tile.h, lse_row, row_grad_w, tangent_z, tangent_grad_w, tangents, gradients, WEIGHTING, SCALE, REAL
            )
            mean_u += tl.sum(tl.where(e.mask, d.p * d.u, 0.0), axis=0, keep_dims=True)
            tangent_lse += tl.sum(d.t, axis=0, keep_dims=True)
            mean_tangent_u += tl.sum(tl.where(e.mask, d.p * d.tangent_u, 0.0), axis=0, keep_dims=True)
            sum_t_u += tl.sum(tl.where(e.mask, d.t * d.u, 0.0), axis=0, keep_dims=True)
    sum_tangent_p_u = sum_t_u - mean_u * tangent_lse
    centre = mean_u
    if WEIGHTING == SOFTMAX and gradients.lse is not None:
        centre -= tl.load(gradients.lse + row, mask=tile.h_mask, other=0.0)
    if grad_gradients.lse is not None:
        tl.store(grad_gradients.lse + row, tangent_lse, mask=tile.h_mask)
    for first in range(tile.begin, tile.end, EDGES):
        e = edge_scores(call, tile, first, SCALE, CLIP, DROPOUT, REAL, EDGES)
        d = edge_tangents(
            e, tile.h, lse_row, row_grad_w, tangent_z, tangent_grad_w, tangents, gradients, WEIGHTING, SCALE, REAL
        )
        plain_curvature = d.plain
        if WEIGHTING != SOFTMAX:
            plain_curvature = weight_curvature(WEIGHTING, e.s)
        tangent_p = d.t - d.p * tangent_lse
        centred = d.u - centre
        tangent_centred = d.tangent_u - mean_tangent_u - sum_tangent_p_u
        tangent_p_slope = (
            e.envelope * plain_curvature * d.tangent_s + d.plain_slope * d.tangent_envelope - d.p * tangent_lse
        )
        grad_s = tangent_p_slope * centred + e.envelope * d.plain_slope * tangent_centred
        grad_s = tl.where(e.is_clipped, 0.0, grad_s)
        grad_tangent_s = e.envelope * d.plain_slope * centred + optional_tile(gradients.logits, e.offset, e.mask, REAL)
        grad_tangent_s = tl.where(e.is_clipped, 0.0, grad_tangent_s)
        tangent_w_here = tangent_p * e.gate * e.drop + d.p * d.tangent_gate * e.drop
        if grad_scalars.bias is not None:
            tl.store(grad_scalars.bias + e.offset, grad_s, mask=e.mask)
        if grad_scalars.score_scale is not None:
            tl.store(
                grad_scalars.score_scale + e.offset, SCALE * (e.z * grad_s + d.tangent_z * grad_tangent_s), mask=e.mask
            )
        if grad_scalars.envelope is not None:
            tangent_plain = d.plain_slope * d.tangent_s - d.plain * tangent_lse
            grad_envelope = tangent_plain * centred + d.plain * tangent_centred
            tl.store(grad_scalars.envelope + e.offset, grad_envelope, mask=e.mask)
        if grad_scalars.gate is not None:
            grad_gate = e.drop * (tangent_p * d.grad_w + d.p * d.tangent_grad_w)
            tl.store(grad_scalars.gate + e.offset, grad_gate, mask=e.mask)
        if grad_gradients.weights is not None:
            tl.store(grad_gradients.weights + e.offset, tangent_w_here, mask=e.mask)
        if grad_gradients.logits is not None:
            tl.store(grad_gradients.logits + e.offset, d.tangent_s, mask=e.mask)
        tl.store(grad_z + e.offset, e.ds_dz * grad_s + SCALE * d.tangent_score_scale * grad_tangent_s, mask=e.mask)
        tl.store(grad_tangent_z + e.offset, e.ds_dz * grad_tangent_s, mask=e.mask)
        tl.store(tangent_w + e.offset, tangent_w_here, mask=e.mask)
        tl.store(w + e.offset, d.p * e.gate * e.drop, mask=e.mask)
