"""The channel-wise tensor product in Triton, for one group of paths that the compiler knows.

A *unit* is what one program works on: channels of some irreps blocks of the result (forward) or of one of x (backward), and the
tasks that lead there, one after another, so that Clebsch-Gordan sums are straight-line code on tiles ``[EDGES, CHANNELS]``. Units that
differ only in where their numbers lie share a compiled kernel: offsets come from a table. A row's edges are taken EDGES at a
time, summed in registers in a fixed order, and stored once: no atomics.

Constants: TASKS, a tuple per task of (d1, d2, d3, first entry, last, weighted, new_x, y, to); ENTRIES, (i, j, k, value) of
``out[k] += value x[i] y[j]``; new_x: the task reads another block of x than the one before; y: its place among the components
of y that the unit uses, Y of them; to: its block's place among the components of the result. OWN: (components, place) of each of
the unit's own blocks. K: 0, or the padded length of the hidden row that weights are made of (``h @ matrix``).
The formulas are those of kernels/channel.cuh; hamfast/triton/units.py makes constants and tables.
"""

import triton
import triton.language as tl

from hamfast.kernels.common import add_to, load_tiles, look_up, zero_tiles

# A block of components in five numbers: offset, row stride, component stride, channel stride, first channel.
BLOCK = tl.constexpr(5)
# A unit's row in the table: first channel, number of channels, its part of the sums for y; its own blocks (of the result, or of x).
HEAD = tl.constexpr(3)
# Then, for each task: the other block (of x forward, of g backward), y offset, weight offset and channel stride.
FIELDS = tl.constexpr(8)
# Of the hidden row, in a matrix product for weights: the shortest that matrix units take.
STEP = tl.constexpr(16)


@triton.jit
def add_coupled(
    sums,
    a,
    b,
    ENTRIES: tl.constexpr,
    BEGIN: tl.constexpr,
    END: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    TO: tl.constexpr,
    PLACE: tl.constexpr,
):
    """Adds one contraction of the coupling: ``sums[PLACE + entry[TO]] += value a[entry[A]] b[entry[B]]``."""
    for n in tl.static_range(BEGIN, END):
        total = sums[PLACE + ENTRIES[n][TO]] + ENTRIES[n][3] * (a[ENTRIES[n][A]] * b[ENTRIES[n][B]])
        sums = sums[: PLACE + ENTRIES[n][TO]] + (total,) + sums[PLACE + ENTRIES[n][TO] + 1 :]
    return sums


@triton.jit
def scaled(COUNT: tl.constexpr, factor, tiles):
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (factor * tiles[i],)
    return out


@triton.jit
def mixed(COUNT: tl.constexpr, factor_a, a, factor_b, b):
    """``factor_a a + factor_b b``; None for what is absent, one pair at least is there."""
    out = ()
    for i in tl.static_range(COUNT):
        if a is None or factor_a is None:
            out = out + (factor_b * b[i],)
        elif b is None or factor_b is None:
            out = out + (factor_a * a[i],)
        else:
            out = out + (factor_a * a[i] + factor_b * b[i],)
    return out


@triton.jit
def block_at(block, scale, row, u):
    """First component of a block's channels u; ``scale``: the number of all rows where blocks are matrices of their own, else 1."""
    channel = tl.load(block + 4) + u
    return tl.load(block) * scale + row * tl.load(block + 1) + channel * tl.load(block + 3)


@triton.jit
def weights_of(
    w, task, edge, u, w_dim, edge_mask, mask, hidden, k_dim, SHARED: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A task's weights of a tile of edges: read, or made of the hidden rows ``h`` by a matrix product."""
    at = tl.load(task + 6) + u * tl.load(task + 7)
    if K > 0:
        weights = tl.zeros((EDGES, CHANNELS), dtype=REAL)
        for first in range(0, k_dim, STEP):  # a piece of the row at a time: all of it would take half of the registers
            k = first + tl.arange(0, STEP)
            h = hidden_tile(hidden, edge, edge_mask, k, k_dim, REAL)
            weights = tl.dot(h, matrix_tile(w, at, k, k_dim, w_dim, mask, REAL), weights, input_precision=PRECISION)
    elif SHARED:
        weights = tl.load(w + at, mask=mask, other=0.0).to(REAL)
    else:
        weights = tl.load(w + edge * w_dim + at, mask=edge_mask & mask, other=0.0).to(REAL)
    return weights


@triton.jit
def matrix_tile(w, at, k, k_dim, w_dim, mask, REAL: tl.constexpr):
    """``[K, CHANNELS]`` of the radial network's last matrix."""
    return tl.load(w + k.to(tl.int64)[:, None] * w_dim + at, mask=(k[:, None] < k_dim) & mask, other=0.0).to(REAL)


@triton.jit
def hidden_tile(hidden, edge, edge_mask, k, k_dim, REAL: tl.constexpr):
    """``[EDGES, K]``"""
    return tl.load(hidden + edge * k_dim + k[None, :], mask=edge_mask & (k[None, :] < k_dim), other=0.0).to(REAL)


@triton.jit
def forward_edges(
    sums, edge, edge_mask, u, live, x, y, w, hidden, dx, dy, dw, x_index, task, x_scale, y_dim, w_dim, k_dim,
    TASKS: tl.constexpr, ENTRIES: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr,
    EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Adds a tile of edges: w x y of each task; along directions, (w dx + dw x) y + w x dy."""
    ALONG: tl.constexpr = dx is not None or dy is not None or dw is not None
    mask = edge_mask & live
    row = look_up(x_index, edge, edge_mask)
    xs = None
    dxs = None
    for t in tl.static_range(len(TASKS)):
        if TASKS[t][6]:
            at = block_at(task, x_scale, row, u)
            if x is not None:
                xs = load_tiles(x, at, tl.load(task + 2), TASKS[t][0], mask, REAL)
            if dx is not None:
                dxs = load_tiles(dx, at, tl.load(task + 2), TASKS[t][0], mask, REAL)
        weight = tl.full((1, 1), 1.0, dtype=REAL)
        if TASKS[t][5] and w is not None:
            weight = weights_of(
                w, task, edge, u, w_dim, edge_mask, live, hidden, k_dim, SHARED, K, PRECISION, REAL, EDGES, CHANNELS
            )
        dweight = None
        if TASKS[t][5] and dw is not None:
            dweight = weights_of(
                dw, task, edge, u, w_dim, edge_mask, live, hidden, k_dim, SHARED, 0, PRECISION, REAL, EDGES, CHANNELS
            )
        y_at = edge * y_dim + tl.load(task + 5)
        if not ALONG:
            ys = load_tiles(y, y_at, 1, TASKS[t][1], edge_mask, REAL)
            sums = add_coupled(
                sums, scaled(TASKS[t][0], weight, xs), ys, ENTRIES, TASKS[t][3], TASKS[t][4], 0, 1, 2, TASKS[t][8]
            )
        else:
            if dx is not None or dweight is not None:
                ys = load_tiles(y, y_at, 1, TASKS[t][1], edge_mask, REAL)
                along = mixed(TASKS[t][0], weight, dxs, dweight, xs)
                sums = add_coupled(sums, along, ys, ENTRIES, TASKS[t][3], TASKS[t][4], 0, 1, 2, TASKS[t][8])
            if dy is not None:
                dys = load_tiles(dy, y_at, 1, TASKS[t][1], edge_mask, REAL)
                sums = add_coupled(
                    sums, scaled(TASKS[t][0], weight, xs), dys, ENTRIES, TASKS[t][3], TASKS[t][4], 0, 1, 2, TASKS[t][8]
                )
        task += FIELDS
    return sums


@triton.jit
def channel_forward(
    x, y, w, hidden, dx, dy, dw, out, x_index, order, ptr, table, rows, x_scale, out_scale, y_dim, w_dim, k_dim, width,
    TASKS: tl.constexpr, ENTRIES: tl.constexpr, OWN: tl.constexpr, D: tl.constexpr, ADD: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The product: one program per row of the result (or per EDGES rows, where each is an edge's) and unit.

    D: components of the unit's blocks. ADD: to what another launch has stored, for units cut in two.
    """
    turn = tl.program_id(0).to(tl.int64)
    unit = table + tl.program_id(1).to(tl.int64) * width
    u = tl.load(unit) + tl.arange(0, CHANNELS)[None, :].to(tl.int64)
    tasks = unit + HEAD + len(OWN) * BLOCK
    live = u < tl.load(unit + 1)
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    sums = zero_tiles(D, EDGES, CHANNELS, REAL)
    if ptr is not None:
        begin = tl.load(ptr + turn)
        end = tl.load(ptr + turn + 1)
        for first in range(begin, end, EDGES):
            slot = first + lane
            edge_mask = slot < end
            edge = look_up(order, slot, edge_mask)
            sums = forward_edges(
                sums, edge, edge_mask, u, live, x, y, w, hidden, dx, dy, dw, x_index, tasks, x_scale, y_dim, w_dim, k_dim,
                TASKS, ENTRIES, SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
            )  # fmt: skip
        store_blocks(out, unit + HEAD, out_scale, turn, u, OWN, sums, live, 0, ADD)
    else:
        edge = turn * EDGES + lane
        edge_mask = edge < rows
        sums = forward_edges(
            sums, edge, edge_mask, u, live, x, y, w, hidden, dx, dy, dw, x_index, tasks, x_scale, y_dim, w_dim, k_dim,
            TASKS, ENTRIES, SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
        )  # fmt: skip
        store_blocks(out, unit + HEAD, out_scale, edge, u, OWN, sums, edge_mask & live, None, ADD)


@triton.jit
def store_tiles(
    out, at, step, COUNT: tl.constexpr, PLACE: tl.constexpr, sums, mask, SUM: tl.constexpr, ADD: tl.constexpr
):
    """Stores COUNT of the tiles, from PLACE on, summed along an axis (0: edges, 1: channels) or not (None)."""
    for i in tl.static_range(COUNT):
        value = sums[PLACE + i]
        if SUM is not None:
            value = tl.sum(value, axis=SUM, keep_dims=True)
        if ADD:
            value += tl.load(out + at + i * step, mask=mask, other=0.0).to(value.dtype)
        tl.store(out + at + i * step, value, mask=mask)


@triton.jit
def store_blocks(
    out, block, scale, row, u, OWN: tl.constexpr, sums, mask, SUM: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """Stores the unit's own blocks."""
    for b in tl.static_range(len(OWN)):
        at = block_at(block, scale, row, u)
        store_tiles(out, at, tl.load(block + 2), OWN[b][0], OWN[b][1], sums, mask, SUM, ADD)
        block += BLOCK


@triton.jit
def channel_backward(
    x, y, w, hidden, g, dx, dy, dw, dg, out_x, y_parts, out_w, h_parts, x_index, g_index, order, ptr, table,
    turns, turns_per_program, edges, x_scale, g_scale, y_dim, w_dim, k_dim, width,
    TASKS: tl.constexpr, ENTRIES: tl.constexpr, OWN: tl.constexpr, D: tl.constexpr, Y: tl.constexpr, ADD: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """All gradients that are wanted (out_x, y_parts, out_w, h_parts not None) of one block of x, or those along directions.

    One program per group of rows of x and unit. out_w: a row per edge; of all edges (SHARED) or of the matrix (K > 0): a row, or
    a matrix, per program. y_parts ``[units, edges, y_dim]`` and h_parts ``[units, edges, k]`` are summed over units afterwards.
    Y: components of y that the unit uses.
    """
    unit = table + tl.program_id(1).to(tl.int64) * width
    u = tl.load(unit) + tl.arange(0, CHANNELS)[None, :].to(tl.int64)
    live = u < tl.load(unit + 1)
    lane = tl.arange(0, EDGES)[:, None].to(tl.int64)
    part = tl.program_id(0).to(tl.int64)
    KEEPS_WEIGHTS: tl.constexpr = out_w is not None and (SHARED or K > 0)
    weight_sums = zero_tiles(len(TASKS) if KEEPS_WEIGHTS else 1, K if K > 0 else EDGES, CHANNELS, REAL)
    for turn in range(part * turns_per_program, tl.minimum((part + 1) * turns_per_program, turns)):
        sums = zero_tiles(D, EDGES, CHANNELS, REAL)
        if ptr is not None:
            begin = tl.load(ptr + turn)
            end = tl.load(ptr + turn + 1)
            for first in range(begin, end, EDGES):
                slot = first + lane
                edge_mask = slot < end
                edge = look_up(order, slot, edge_mask)
                sums, weight_sums = backward_edges(
                    sums, weight_sums, edge, edge_mask, u, live, x, y, w, hidden, g, dx, dy, dw, dg, out_x, y_parts, out_w,
                    h_parts, x_index, g_index, unit, edges, x_scale, g_scale, y_dim, w_dim, k_dim,
                    TASKS, ENTRIES, D, Y, SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
                )  # fmt: skip
            if out_x is not None:
                store_blocks(out_x, unit + HEAD, x_scale, turn, u, OWN, sums, live, 0, ADD)
        else:
            edge = turn * EDGES + lane
            edge_mask = edge < edges
            sums, weight_sums = backward_edges(
                sums, weight_sums, edge, edge_mask, u, live, x, y, w, hidden, g, dx, dy, dw, dg, out_x, y_parts, out_w,
                h_parts, x_index, g_index, unit, edges, x_scale, g_scale, y_dim, w_dim, k_dim,
                TASKS, ENTRIES, D, Y, SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
            )  # fmt: skip
            if out_x is not None:
                store_blocks(out_x, unit + HEAD, x_scale, edge, u, OWN, sums, edge_mask & live, None, ADD)
    if KEEPS_WEIGHTS:
        for t in tl.static_range(len(TASKS)):
            task = unit + HEAD + BLOCK + t * FIELDS
            if TASKS[t][5]:
                at = tl.load(task + 6) + u * tl.load(task + 7)
                if K > 0:
                    k = tl.arange(0, K)
                    row = part * k_dim + k[:, None]
                    tl.store(out_w + row * w_dim + at, weight_sums[t], mask=(k[:, None] < k_dim) & live)
                else:
                    tl.store(out_w + part * w_dim + at, tl.sum(weight_sums[t], axis=0)[None, :], mask=live)


@triton.jit
def backward_edges(
    sums, weight_sums, edge, edge_mask, u, live, x, y, w, hidden, g, dx, dy, dw, dg, out_x, y_parts, out_w, h_parts,
    x_index, g_index, unit, edges, x_scale, g_scale, y_dim, w_dim, k_dim,
    TASKS: tl.constexpr, ENTRIES: tl.constexpr, D: tl.constexpr, Y: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile of edges. With q = C y g: dx += w q, dw = <x, q>, dy += C (w x) g; along directions, with one operand after the
    other replaced by its direction."""
    ALONG: tl.constexpr = dx is not None or dy is not None or dw is not None or dg is not None
    TO_WEIGHTS: tl.constexpr = out_w is not None or h_parts is not None
    mask = edge_mask & live
    row = look_up(x_index, edge, edge_mask)
    g_row = look_up(g_index, edge, edge_mask)
    k = tl.arange(0, K if K > 0 else 1)
    x_at = block_at(unit + HEAD, x_scale, row, u)
    xs = None
    dxs = None
    if x is not None:
        xs = load_tiles(x, x_at, tl.load(unit + HEAD + 2), D, mask, REAL)
    if dx is not None:
        dxs = load_tiles(dx, x_at, tl.load(unit + HEAD + 2), D, mask, REAL)
    y_sums = zero_tiles(Y if y_parts is not None else 1, EDGES, CHANNELS, REAL)
    h_sum = tl.zeros((EDGES, K if K > 0 else 1), dtype=REAL)
    for t in tl.static_range(len(TASKS)):
        task = unit + HEAD + BLOCK + t * FIELDS
        g_at = block_at(task, g_scale, g_row, u)
        gs = None
        dgs = None
        if g is not None:
            gs = load_tiles(g, g_at, tl.load(task + 2), TASKS[t][2], mask, REAL)
        if dg is not None:
            dgs = load_tiles(dg, g_at, tl.load(task + 2), TASKS[t][2], mask, REAL)
        y_at = edge * y_dim + tl.load(task + 5)
        ys = None
        dys = None
        if y is not None:
            ys = load_tiles(y, y_at, 1, TASKS[t][1], edge_mask, REAL)
        if dy is not None:
            dys = load_tiles(dy, y_at, 1, TASKS[t][1], edge_mask, REAL)
        weight = tl.full((1, 1), 1.0, dtype=REAL)
        if TASKS[t][5] and w is not None:
            weight = weights_of(
                w, task, edge, u, w_dim, edge_mask, live, hidden, k_dim, SHARED, K, PRECISION, REAL, EDGES, CHANNELS
            )
        dweight = None
        if TASKS[t][5] and dw is not None:
            dweight = weights_of(
                dw, task, edge, u, w_dim, edge_mask, live, hidden, k_dim, SHARED, 0, PRECISION, REAL, EDGES, CHANNELS
            )

        if out_x is not None or (TO_WEIGHTS and TASKS[t][5]):
            plain = zero_tiles(D, EDGES, CHANNELS, REAL)  # C y g
            if not ALONG or dx is not None or dweight is not None:
                plain = add_coupled(plain, ys, gs, ENTRIES, TASKS[t][3], TASKS[t][4], 1, 2, 0, 0)
            along = zero_tiles(D, EDGES, CHANNELS, REAL)  # C dy g + C y dg
            if dy is not None:
                along = add_coupled(along, dys, gs, ENTRIES, TASKS[t][3], TASKS[t][4], 1, 2, 0, 0)
            if dg is not None:
                along = add_coupled(along, ys, dgs, ENTRIES, TASKS[t][3], TASKS[t][4], 1, 2, 0, 0)
            if out_x is not None:
                if not ALONG:
                    sums = add_to(sums, D, scaled(D, weight, plain))
                elif dweight is not None:
                    sums = add_to(sums, D, mixed(D, weight, along, dweight, plain))
                else:
                    sums = add_to(sums, D, scaled(D, weight, along))
            if TO_WEIGHTS and TASKS[t][5]:
                total = tl.zeros((EDGES, CHANNELS), dtype=REAL)
                for i in tl.static_range(D):
                    if not ALONG:
                        total += xs[i] * plain[i]
                    else:
                        if dx is not None:
                            total += dxs[i] * plain[i]
                        if dy is not None or dg is not None:
                            total += xs[i] * along[i]
                if K > 0:
                    at = tl.load(task + 6) + u * tl.load(task + 7)
                    if h_parts is not None:
                        matrix = matrix_tile(w, at, k, k_dim, w_dim, live, REAL)
                        h_sum = tl.dot(total, tl.trans(matrix), h_sum, input_precision=PRECISION, out_dtype=REAL)
                    if out_w is not None:
                        h = hidden_tile(hidden, edge, edge_mask, k, k_dim, REAL)
                        more = tl.dot(tl.trans(h), total, weight_sums[t], input_precision=PRECISION, out_dtype=REAL)
                        weight_sums = weight_sums[:t] + (more,) + weight_sums[t + 1 :]
                elif SHARED:
                    weight_sums = weight_sums[:t] + (weight_sums[t] + total,) + weight_sums[t + 1 :]
                else:
                    at = tl.load(task + 6) + u * tl.load(task + 7)
                    tl.store(out_w + edge * w_dim + at, total, mask=mask)
        if y_parts is not None:
            if not ALONG:
                y_sums = add_coupled(
                    y_sums, scaled(D, weight, xs), gs, ENTRIES, TASKS[t][3], TASKS[t][4], 0, 2, 1, TASKS[t][7]
                )
            else:
                if dg is not None:
                    y_sums = add_coupled(
                        y_sums, scaled(D, weight, xs), dgs, ENTRIES, TASKS[t][3], TASKS[t][4], 0, 2, 1, TASKS[t][7]
                    )
                if dx is not None or dweight is not None:
                    with_g = mixed(D, weight, dxs, dweight, xs)
                    y_sums = add_coupled(y_sums, with_g, gs, ENTRIES, TASKS[t][3], TASKS[t][4], 0, 2, 1, TASKS[t][7])
    unit_part = tl.load(unit + 2)
    if y_parts is not None:
        for t in tl.static_range(len(TASKS)):
            if t == 0 or TASKS[t][7] > TASKS[t - 1 if t > 0 else 0][7]:  # tasks are in the order of y
                y_at = (unit_part * edges + edge) * y_dim + tl.load(unit + HEAD + BLOCK + t * FIELDS + 5)
                store_tiles(y_parts, y_at, 1, TASKS[t][1], TASKS[t][7], y_sums, edge_mask, 1, False)
    if h_parts is not None:
        place = (unit_part * edges + edge) * k_dim + k[None, :]
        tl.store(h_parts + place, h_sum, mask=edge_mask & (k[None, :] < k_dim))
    return sums, weight_sums
