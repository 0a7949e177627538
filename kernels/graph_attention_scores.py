"""Sparse graph attention in Triton: everything that is a number per edge and head, from scores to weights and back.

The formulas stand in graph_attention.cuh; rows are met in graph_attention.py.
"""

import triton
import triton.language as tl

from hamfast.kernels.common import look_up, sigmoid, silu_curvature, silu_slope


@triton.jit
def number_tile(data, edge_stride, head_stride, edge, h, mask, ABSENT: tl.constexpr, REAL: tl.constexpr):
    """A number per edge and head."""
    if data is None:
        value = tl.full(mask.shape, ABSENT, dtype=REAL)
    else:
        value = tl.load(data + edge * edge_stride + h * head_stride, mask=mask, other=0.0)
    return value


@triton.jit
def dropout_tile(seed, place, DROPOUT: tl.constexpr, mask, REAL: tl.constexpr):
    """0 or 1 / (1 - p), from a counter: SplitMix64 (Steele, Lea, Flood 2014)."""
    if seed is None:
        factor = tl.full(mask.shape, 1.0, dtype=REAL)
    else:
        z = tl.load(seed).to(tl.uint64) + (place + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB
        z = z ^ (z >> 31)
        uniform = (z >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)  # float64: the same edges as elsewhere
        kept = tl.full(mask.shape, 1.0 / (1.0 - DROPOUT) if DROPOUT < 1.0 else 0.0, dtype=REAL)
        factor = tl.where(uniform < DROPOUT, 0.0, kept)
    return factor


@triton.jit
def weight_value(KIND: tl.constexpr, s):
    """1 identity, 2 SiLU, 3 sigmoid, 4 softplus."""
    if KIND == 2:
        return s * sigmoid(s)
    elif KIND == 3:
        return sigmoid(s)
    elif KIND == 4:
        return tl.maximum(s, 0.0) + log1p(tl.exp(-tl.abs(s)))
    else:
        return s


@triton.jit
def log1p(x):
    """Of 0 <= x <= 1, to the last digits: log(1 + x) times what the rounding of 1 + x took (Goldberg 1991, theorem 4)."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit
def weight_slope(KIND: tl.constexpr, s):
    y = sigmoid(s)
    if KIND == 2:
        return silu_slope(s)
    elif KIND == 3:
        return y * (1.0 - y)
    elif KIND == 4:
        return y
    else:
        return tl.full(s.shape, 1.0, dtype=s.dtype)


@triton.jit
def weight_curvature(KIND: tl.constexpr, s):
    y = sigmoid(s)
    if KIND == 2:
        return silu_curvature(s)
    elif KIND == 3:
        return y * (1.0 - y) * (1.0 - 2.0 * y)
    elif KIND == 4:
        return y * (1.0 - y)
    else:
        return tl.zeros(s.shape, dtype=s.dtype)


@triton.jit
def plain_weight(WEIGHT: tl.constexpr, s, lse):
    """exp(s - lse), or the activation."""
    if WEIGHT == 0:
        # Finite also where an envelope of 0 took the edge out of lse: 0 times it is 0.
        x = tl.where(s - lse > 88.0, 88.0, s - lse)
        value = tl.where(lse == -float("inf"), 0.0, tl.exp(x))
    else:
        value = weight_value(WEIGHT, s)
    return value


@triton.jit
def edge_numbers(
    slot, end, h, h_mask, heads, order, z, seed, scalars, SCALE: tl.constexpr, CLIP: tl.constexpr, DROPOUT: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """Of a tile of edges and heads: place, mask, z, ds/dz (0 where clipped), s, clipped?, envelope, gate, dropout.

    scalars: bias, score scale, envelope and gate, with their strides.
    """
    mask = (slot < end) & h_mask
    edge = look_up(order, slot, slot < end)
    place = edge * heads + h
    raw = tl.load(z + place, mask=mask, other=0.0)
    slope = SCALE * number_tile(scalars[3], scalars[4], scalars[5], edge, h, mask, 1.0, REAL)
    s = slope * raw + number_tile(scalars[0], scalars[1], scalars[2], edge, h, mask, 0.0, REAL)
    clipped = slot < 0  # nowhere
    if CLIP is not None:
        clipped = (s > CLIP) | (s < -CLIP)
        s = tl.where(s > CLIP, CLIP, tl.where(s < -CLIP, -CLIP, s))
        slope = tl.where(clipped, 0.0, slope)
    f = number_tile(scalars[6], scalars[7], scalars[8], edge, h, mask, 1.0, REAL)
    g = number_tile(scalars[9], scalars[10], scalars[11], edge, h, mask, 1.0, REAL)
    drop = dropout_tile(seed, place, DROPOUT, mask, REAL)
    return place, mask, raw, slope, s, clipped, tl.where(mask, f, 0.0), g, drop


@triton.jit
def receiver_tile(ptr, heads, EDGES: tl.constexpr, HEADS: tl.constexpr):
    """Of a program: its receiver, where that one's edges begin and end, lanes along edges, and its heads with their mask."""
    receiver = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :].to(tl.int64)
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    return receiver, tl.load(ptr + receiver), tl.load(ptr + receiver + 1), lane, h, h < heads


@triton.jit
def incoming_tile(a, grad_weights, heads, place, h, mask, REAL: tl.constexpr):
    """Gradients of the weights."""
    given = number_tile(grad_weights, heads, 1, place // heads, h, mask, 0.0, REAL)
    return tl.load(a + place, mask=mask, other=0.0) + given


@triton.jit
def attention_weights(
    z, lse, weights, logits, order, ptr, heads, seed,
    bias, bias_edge, bias_head, score_scale, scale_edge, scale_head, envelope, envelope_edge, envelope_head,
    gate, gate_edge, gate_head,
    WEIGHT: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, LOG_EPSILON: tl.constexpr, DROPOUT: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """From z to the weights, the log-sum-exp and (if not None) the logits; one program per receiver. LOG_EPSILON: -inf for none."""
    scalars = (
        bias, bias_edge, bias_head, score_scale, scale_edge, scale_head, envelope, envelope_edge, envelope_head, gate,
        gate_edge, gate_head,
    )  # fmt: skip
    receiver, begin, end, lane, h, h_mask = receiver_tile(ptr, heads, EDGES, HEADS)
    top = tl.zeros((1, HEADS), dtype=REAL)
    inverse = tl.full((1, HEADS), 1.0, dtype=REAL)
    if WEIGHT == 0:
        top += LOG_EPSILON
        for first in range(begin, end, EDGES):
            _, _, _, _, s, _, f, _, _ = edge_numbers(
                first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
            )
            top = tl.maximum(top, tl.max(tl.where(f != 0, s, -float("inf")), axis=0, keep_dims=True))
        top = tl.where(top == -float("inf"), 0.0, top)
        total = tl.zeros((1, HEADS), dtype=REAL)
        for first in range(begin, end, EDGES):
            _, _, _, _, s, _, f, _, _ = edge_numbers(
                first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
            )
            total += tl.sum(tl.where(f != 0, f * tl.exp(s - top), 0.0), axis=0, keep_dims=True)
        total += tl.exp(LOG_EPSILON - top)
        inverse = tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))
        log_total = tl.where(total == 0, -float("inf"), tl.log(tl.where(total == 0, 1.0, total)))
        tl.store(lse + receiver * heads + h, top + log_total, mask=h_mask)
    else:
        tl.store(lse + receiver * heads + h, tl.zeros((1, HEADS), dtype=REAL), mask=h_mask)
    for first in range(begin, end, EDGES):
        place, mask, _, _, s, _, f, g, drop = edge_numbers(
            first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
        )
        # Not exp(s - lse): of large scores that would lose the digits of lse.
        if WEIGHT == 0:
            value = tl.exp(s - top) * inverse
        else:
            value = weight_value(WEIGHT, s)
        tl.store(weights + place, tl.where(f == 0, 0.0, f * value * g * drop), mask=mask)
        if logits is not None:
            tl.store(logits + place, s, mask=mask)


@triton.jit
def attention_gradients(
    z, a, lse, grad_lse, grad_weights, grad_logits, grad_z, kept_weight, grad_bias, grad_score_scale, grad_envelope, grad_gate,
    order, ptr, heads, seed,
    bias, bias_edge, bias_head, score_scale, scale_edge, scale_head, envelope, envelope_edge, envelope_head,
    gate, gate_edge, gate_head,
    WEIGHT: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, DROPOUT: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """From z and a to dz and w, and the gradients of the numbers per edge (those not None); one program per receiver."""
    scalars = (
        bias, bias_edge, bias_head, score_scale, scale_edge, scale_head, envelope, envelope_edge, envelope_head, gate,
        gate_edge, gate_head,
    )  # fmt: skip
    receiver, begin, end, lane, h, h_mask = receiver_tile(ptr, heads, EDGES, HEADS)
    lse_row = tl.load(lse + receiver * heads + h, mask=h_mask, other=0.0)
    mean = tl.zeros((1, HEADS), dtype=REAL)
    if WEIGHT == 0:
        for first in range(begin, end, EDGES):
            place, mask, _, _, s, _, f, g, drop = edge_numbers(
                first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
            )
            incoming = incoming_tile(a, grad_weights, heads, place, h, mask, REAL)
            value = plain_weight(WEIGHT, s, lse_row)
            mean += tl.sum(tl.where(mask, f * value * g * drop * incoming, 0.0), axis=0, keep_dims=True)
        if grad_lse is not None:
            mean -= tl.load(grad_lse + receiver * heads + h, mask=h_mask, other=0.0)
    for first in range(begin, end, EDGES):
        place, mask, raw, slope, s, clipped, f, g, drop = edge_numbers(
            first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
        )
        incoming = incoming_tile(a, grad_weights, heads, place, h, mask, REAL)
        value = plain_weight(WEIGHT, s, lse_row)
        centred = g * drop * incoming - mean
        if WEIGHT == 0:
            ds = f * centred * value
        else:
            ds = f * centred * weight_slope(WEIGHT, s)
        ds += number_tile(grad_logits, heads, 1, place // heads, h, mask, 0.0, REAL)
        ds = tl.where(clipped, 0.0, ds)
        if grad_bias is not None:
            tl.store(grad_bias + place, ds, mask=mask)
        if grad_gate is not None:
            tl.store(grad_gate + place, drop * f * value * incoming, mask=mask)
        if grad_envelope is not None:
            tl.store(grad_envelope + place, value * centred, mask=mask)
        if grad_score_scale is not None:
            tl.store(grad_score_scale + place, ds * SCALE * raw, mask=mask)
        tl.store(grad_z + place, ds * slope, mask=mask)
        tl.store(kept_weight + place, f * value * g * drop, mask=mask)


@triton.jit
def second_numbers(
    place, mask, h, heads, raw, slope, s, clipped, f, g, drop, lse_row, a, tangent_z, b, grad_weights,
    directions, WEIGHT: tl.constexpr, SCALE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """What D is made of at one edge: P, P1, p, s', f', t, a, u, r, gate', scale', z', b."""
    edge = place // heads
    value = plain_weight(WEIGHT, s, lse_row)
    value_slope = value
    if WEIGHT != 0:
        value_slope = weight_slope(WEIGHT, s)
    p = f * value
    incoming = incoming_tile(a, grad_weights, heads, place, h, mask, REAL)
    tangent_g = number_tile(directions[9], directions[10], directions[11], edge, h, mask, 0.0, REAL)
    tangent_c = number_tile(directions[3], directions[4], directions[5], edge, h, mask, 0.0, REAL)
    along = tl.load(tangent_z + place, mask=mask, other=0.0)
    tangent_s = slope * along + SCALE * raw * tangent_c
    tangent_s += number_tile(directions[0], directions[1], directions[2], edge, h, mask, 0.0, REAL)
    tangent_s = tl.where(clipped, 0.0, tangent_s)
    tangent_f = number_tile(directions[6], directions[7], directions[8], edge, h, mask, 0.0, REAL)
    change = tl.where(mask, f * value_slope * tangent_s + value * tangent_f, 0.0)
    along_b = tl.load(b + place, mask=mask, other=0.0)
    r = drop * (tangent_g * incoming + g * along_b)
    u = g * drop * incoming
    return value, value_slope, p, tangent_s, tangent_f, change, incoming, u, r, tangent_g, tangent_c, along, along_b


@triton.jit
def attention_second_gradients(
    z, a, tangent_z, b, lse, grad_lse, grad_weights, grad_logits, grad_z, grad_tangent_z, kept_weight, plain_weights,
    grad_grad_lse, grad_grad_weights, grad_grad_logits, grad_bias, grad_score_scale, grad_envelope, grad_gate, order, ptr, heads, seed,
    bias, bias_edge, bias_head, score_scale, scale_edge, scale_head, envelope, envelope_edge, envelope_head,
    gate, gate_edge, gate_head,
    tangent_bias, tangent_bias_edge, tangent_bias_head, tangent_scale, tangent_scale_edge, tangent_scale_head,
    tangent_envelope, tangent_envelope_edge, tangent_envelope_head, tangent_gate, tangent_gate_edge, tangent_gate_head,
    WEIGHT: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, DROPOUT: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The double backward pass, from z, a and their changes z', b: see kernels/graph_attention.cuh."""
    scalars = (
        bias, bias_edge, bias_head, score_scale, scale_edge, scale_head, envelope, envelope_edge, envelope_head, gate,
        gate_edge, gate_head,
    )  # fmt: skip
    directions = (
        tangent_bias, tangent_bias_edge, tangent_bias_head, tangent_scale, tangent_scale_edge, tangent_scale_head, tangent_envelope,
        tangent_envelope_edge, tangent_envelope_head, tangent_gate, tangent_gate_edge, tangent_gate_head,
    )  # fmt: skip
    receiver, begin, end, lane, h, h_mask = receiver_tile(ptr, heads, EDGES, HEADS)
    lse_row = tl.load(lse + receiver * heads + h, mask=h_mask, other=0.0)
    mean_u = tl.zeros((1, HEADS), dtype=REAL)
    mean_s = tl.zeros((1, HEADS), dtype=REAL)
    mean_r = tl.zeros((1, HEADS), dtype=REAL)
    mixed = tl.zeros((1, HEADS), dtype=REAL)
    if WEIGHT == 0:
        for first in range(begin, end, EDGES):
            place, mask, raw, slope, s, clipped, f, g, drop = edge_numbers(
                first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
            )
            _, _, p, _, _, change, _, u, r, _, _, _, _ = second_numbers(
                place, mask, h, heads, raw, slope, s, clipped, f, g, drop, lse_row, a, tangent_z, b, grad_weights,
                directions, WEIGHT, SCALE, REAL,
            )  # fmt: skip
            mean_u += tl.sum(tl.where(mask, p * u, 0.0), axis=0, keep_dims=True)
            mean_s += tl.sum(change, axis=0, keep_dims=True)
            mean_r += tl.sum(tl.where(mask, p * r, 0.0), axis=0, keep_dims=True)
            mixed += tl.sum(tl.where(mask, change * u, 0.0), axis=0, keep_dims=True)
        mixed -= mean_u * mean_s
        if grad_lse is not None:
            mean_u -= tl.load(grad_lse + receiver * heads + h, mask=h_mask, other=0.0)
    if grad_grad_lse is not None:
        tl.store(grad_grad_lse + receiver * heads + h, mean_s, mask=h_mask)
    for first in range(begin, end, EDGES):
        place, mask, raw, slope, s, clipped, f, g, drop = edge_numbers(
            first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
        )
        value, value_slope, p, tangent_s, tangent_f, change, incoming, u, r, tangent_g, tangent_c, along, along_b = second_numbers(
            place, mask, h, heads, raw, slope, s, clipped, f, g, drop, lse_row, a, tangent_z, b, grad_weights,
            directions, WEIGHT, SCALE, REAL,
        )  # fmt: skip
        curvature = value
        if WEIGHT != 0:
            curvature = weight_curvature(WEIGHT, s)
        moved = change - p * mean_s
        centred = u - mean_u
        rest = r - mean_r - mixed
        ds = (f * curvature * tangent_s + value_slope * tangent_f - p * mean_s) * centred + f * value_slope * rest
        ds = tl.where(clipped, 0.0, ds)
        tangent_ds = f * value_slope * centred + number_tile(grad_logits, heads, 1, place // heads, h, mask, 0.0, REAL)
        tangent_ds = tl.where(clipped, 0.0, tangent_ds)
        tangent_w = moved * g * drop + p * tangent_g * drop
        if grad_bias is not None:
            tl.store(grad_bias + place, ds, mask=mask)
        if grad_score_scale is not None:
            tl.store(grad_score_scale + place, SCALE * (raw * ds + along * tangent_ds), mask=mask)
        if grad_envelope is not None:
            tl.store(
                grad_envelope + place, (value_slope * tangent_s - value * mean_s) * centred + value * rest, mask=mask
            )
        if grad_gate is not None:
            tl.store(grad_gate + place, drop * (moved * incoming + p * along_b), mask=mask)
        if grad_grad_weights is not None:
            tl.store(grad_grad_weights + place, tangent_w, mask=mask)
        if grad_grad_logits is not None:
            tl.store(grad_grad_logits + place, tangent_s, mask=mask)
        tl.store(grad_z + place, slope * ds + SCALE * tangent_c * tangent_ds, mask=mask)
        tl.store(grad_tangent_z + place, slope * tangent_ds, mask=mask)
        tl.store(kept_weight + place, tangent_w, mask=mask)
        tl.store(plain_weights + place, p * g * drop, mask=mask)
