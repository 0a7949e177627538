"""Sparse graph attention in Triton: numbers per edge and head, then sums of rows that they weigh.

The formulas, and what the operands are, stand in kernels/graph_attention.cuh. *Rows* are five arguments: tensors with a row per
edge, sender and receiver, of which each may be absent and whose sum is meant, a stride from row to row and one from head to head
(0: the same for all heads, as edges' features are).
"""

import triton
import triton.language as tl

from hamfast.kernels.common import look_up

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
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


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
    y = sigmoid(x)
    silu = y * (1.0 + x * (1.0 - y))
    if KIND == 0:
        return tl.where(x > 0, tl.full(x.shape, 1.0, dtype=x.dtype), SLOPE)
    elif KIND == 2:
        return silu
    else:
        return SLOPE + (1.0 - SLOPE) * silu


@triton.jit
def silu_curvature(x):
    y = sigmoid(x)
    return y * (1.0 - y) * (2.0 + x * (1.0 - 2.0 * y))


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
    vector_dot, SCORE: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, ADD: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``out[edge, head] = <a, b> + <c, d>``, of lengths width and features; with SCORE additive ``<vector, act(a + b)> + <c, d>``,
    and along directions ``<vector_dot, act(a + b)> + <vector, act'(a + b) (c + d)>``, all of length width.

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
                    factor = vector_dot
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
    c0, c1, c2, c_row, c_head, d0, d1, d2, d_row, d_head, vector_dot,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, OVER_HEADS: tl.constexpr, ADD: tl.constexpr,
    PARTS: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over a row's edges of ``weight a + more b`` (KIND 0), ``weight act(a + b)`` (1) or ``weight vector act'(a + b)`` (2).

    With more, that times the change of 1 and 2 along directions c of a, d of b and vector_dot is added to them.
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
                        if vector_dot is not None:
                            change += tl.load(vector_dot + place, mask=inside, other=0.0) * slope
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
        kept = tl.full(mask.shape, 1.0 / (1.0 - DROPOUT), dtype=REAL)
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
        return y * (1.0 + s * (1.0 - y))
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
    receiver = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :].to(tl.int64)
    h_mask = h < heads
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    begin = tl.load(ptr + receiver)
    end = tl.load(ptr + receiver + 1)
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
    z, a, lse, grad_lse, grad_weights, grad_logits, d_score, kept_weight, d_bias, d_score_scale, d_envelope, d_gate,
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
    receiver = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :].to(tl.int64)
    h_mask = h < heads
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    begin = tl.load(ptr + receiver)
    end = tl.load(ptr + receiver + 1)
    lse_row = tl.load(lse + receiver * heads + h, mask=h_mask, other=0.0)
    mean = tl.zeros((1, HEADS), dtype=REAL)
    if WEIGHT == 0:
        for first in range(begin, end, EDGES):
            place, mask, _, _, s, _, f, g, drop = edge_numbers(
                first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
            )
            incoming = tl.load(a + place, mask=mask, other=0.0)
            incoming += number_tile(grad_weights, heads, 1, place // heads, h, mask, 0.0, REAL)
            value = plain_weight(WEIGHT, s, lse_row)
            mean += tl.sum(tl.where(mask, f * value * g * drop * incoming, 0.0), axis=0, keep_dims=True)
        if grad_lse is not None:
            mean -= tl.load(grad_lse + receiver * heads + h, mask=h_mask, other=0.0)
    for first in range(begin, end, EDGES):
        place, mask, raw, slope, s, clipped, f, g, drop = edge_numbers(
            first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
        )
        incoming = tl.load(a + place, mask=mask, other=0.0)
        incoming += number_tile(grad_weights, heads, 1, place // heads, h, mask, 0.0, REAL)
        value = plain_weight(WEIGHT, s, lse_row)
        centred = g * drop * incoming - mean
        if WEIGHT == 0:
            ds = f * centred * value
        else:
            ds = f * centred * weight_slope(WEIGHT, s)
        ds += number_tile(grad_logits, heads, 1, place // heads, h, mask, 0.0, REAL)
        ds = tl.where(clipped, 0.0, ds)
        if d_bias is not None:
            tl.store(d_bias + place, ds, mask=mask)
        if d_gate is not None:
            tl.store(d_gate + place, drop * f * value * incoming, mask=mask)
        if d_envelope is not None:
            tl.store(d_envelope + place, value * centred, mask=mask)
        if d_score_scale is not None:
            tl.store(d_score_scale + place, ds * SCALE * raw, mask=mask)
        tl.store(d_score + place, ds * slope, mask=mask)
        tl.store(kept_weight + place, f * value * g * drop, mask=mask)


@triton.jit
def second_numbers(
    place, mask, h, heads, raw, slope, s, clipped, f, g, drop, lse_row, a, z_dot, b, grad_weights,
    directions, WEIGHT: tl.constexpr, SCALE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """What D is made of at one edge: P, P1, p, s', f', t, a, u, r, gate', scale', z', b."""
    edge = place // heads
    value = plain_weight(WEIGHT, s, lse_row)
    value_slope = value
    if WEIGHT != 0:
        value_slope = weight_slope(WEIGHT, s)
    p = f * value
    incoming = tl.load(a + place, mask=mask, other=0.0) + number_tile(grad_weights, heads, 1, edge, h, mask, 0.0, REAL)
    g_dot = number_tile(directions[9], directions[10], directions[11], edge, h, mask, 0.0, REAL)
    c_dot = number_tile(directions[3], directions[4], directions[5], edge, h, mask, 0.0, REAL)
    along = tl.load(z_dot + place, mask=mask, other=0.0)
    s_dot = slope * along + SCALE * raw * c_dot
    s_dot += number_tile(directions[0], directions[1], directions[2], edge, h, mask, 0.0, REAL)
    s_dot = tl.where(clipped, 0.0, s_dot)
    f_dot = number_tile(directions[6], directions[7], directions[8], edge, h, mask, 0.0, REAL)
    change = tl.where(mask, f * value_slope * s_dot + value * f_dot, 0.0)
    along_b = tl.load(b + place, mask=mask, other=0.0)
    r = drop * (g_dot * incoming + g * along_b)
    u = g * drop * incoming
    return value, value_slope, p, s_dot, f_dot, change, incoming, u, r, g_dot, c_dot, along, along_b


@triton.jit
def attention_second_gradients(
    z, a, z_dot, b, lse, grad_lse, grad_weights, grad_logits, d_score, d_score_dot, kept_weight, plain_weights,
    to_grad_lse, to_grad_weights, to_grad_logits, d_bias, d_score_scale, d_envelope, d_gate, order, ptr, heads, seed,
    bias, bias_edge, bias_head, score_scale, scale_edge, scale_head, envelope, envelope_edge, envelope_head,
    gate, gate_edge, gate_head,
    bias_dot, bias_dot_edge, bias_dot_head, scale_dot, scale_dot_edge, scale_dot_head,
    envelope_dot, envelope_dot_edge, envelope_dot_head, gate_dot, gate_dot_edge, gate_dot_head,
    WEIGHT: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, DROPOUT: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The double backward pass, from z, a and their changes z', b: see kernels/graph_attention.cuh."""
    scalars = (
        bias, bias_edge, bias_head, score_scale, scale_edge, scale_head, envelope, envelope_edge, envelope_head, gate,
        gate_edge, gate_head,
    )  # fmt: skip
    directions = (
        bias_dot, bias_dot_edge, bias_dot_head, scale_dot, scale_dot_edge, scale_dot_head, envelope_dot,
        envelope_dot_edge, envelope_dot_head, gate_dot, gate_dot_edge, gate_dot_head,
    )  # fmt: skip
    receiver = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :].to(tl.int64)
    h_mask = h < heads
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    begin = tl.load(ptr + receiver)
    end = tl.load(ptr + receiver + 1)
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
                place, mask, h, heads, raw, slope, s, clipped, f, g, drop, lse_row, a, z_dot, b, grad_weights,
                directions, WEIGHT, SCALE, REAL,
            )  # fmt: skip
            mean_u += tl.sum(tl.where(mask, p * u, 0.0), axis=0, keep_dims=True)
            mean_s += tl.sum(change, axis=0, keep_dims=True)
            mean_r += tl.sum(tl.where(mask, p * r, 0.0), axis=0, keep_dims=True)
            mixed += tl.sum(tl.where(mask, change * u, 0.0), axis=0, keep_dims=True)
        mixed -= mean_u * mean_s
        if grad_lse is not None:
            mean_u -= tl.load(grad_lse + receiver * heads + h, mask=h_mask, other=0.0)
    if to_grad_lse is not None:
        tl.store(to_grad_lse + receiver * heads + h, mean_s, mask=h_mask)
    for first in range(begin, end, EDGES):
        place, mask, raw, slope, s, clipped, f, g, drop = edge_numbers(
            first + lane, end, h, h_mask, heads, order, z, seed, scalars, SCALE, CLIP, DROPOUT, REAL
        )
        value, value_slope, p, s_dot, f_dot, change, incoming, u, r, g_dot, c_dot, along, along_b = second_numbers(
            place, mask, h, heads, raw, slope, s, clipped, f, g, drop, lse_row, a, z_dot, b, grad_weights,
            directions, WEIGHT, SCALE, REAL,
        )  # fmt: skip
        curvature = value
        if WEIGHT != 0:
            curvature = weight_curvature(WEIGHT, s)
        moved = change - p * mean_s
        centred = u - mean_u
        rest = r - mean_r - mixed
        ds = (f * curvature * s_dot + value_slope * f_dot - p * mean_s) * centred + f * value_slope * rest
        ds = tl.where(clipped, 0.0, ds)
        ds_dot = f * value_slope * centred + number_tile(grad_logits, heads, 1, place // heads, h, mask, 0.0, REAL)
        ds_dot = tl.where(clipped, 0.0, ds_dot)
        w_dot = moved * g * drop + p * g_dot * drop
        if d_bias is not None:
            tl.store(d_bias + place, ds, mask=mask)
        if d_score_scale is not None:
            tl.store(d_score_scale + place, SCALE * (raw * ds + along * ds_dot), mask=mask)
        if d_envelope is not None:
            tl.store(d_envelope + place, (value_slope * s_dot - value * mean_s) * centred + value * rest, mask=mask)
        if d_gate is not None:
            tl.store(d_gate + place, drop * (moved * incoming + p * along_b), mask=mask)
        if to_grad_weights is not None:
            tl.store(to_grad_weights + place, w_dot, mask=mask)
        if to_grad_logits is not None:
            tl.store(to_grad_logits + place, s_dot, mask=mask)
        tl.store(d_score + place, slope * ds + SCALE * c_dot * ds_dot, mask=mask)
        tl.store(d_score_dot + place, slope * ds_dot, mask=mask)
        tl.store(kept_weight + place, w_dot, mask=mask)
        tl.store(plain_weights + place, p * g * drop, mask=mask)
