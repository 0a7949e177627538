"""The channel-wise tensor product in Triton, for one group of paths that the compiler knows.

A *unit* is what one program works on: channels of some irreps blocks of the result (forward) or of
one of x (backward), and the tasks that lead there, one after another, so that Clebsch-Gordan sums
are straight-line code on tiles ``[EDGES, CHANNELS]``. Units that differ only in where their numbers
lie share a compiled kernel: offsets come from a table. A row's edges are taken EDGES at a time,
summed in registers in a fixed order, and stored once: no atomics.

Constants: TASKS has a TaskShape per task, ENTRIES an EntryShape per coefficient, OWN the components
and the first component of each of the unit's own blocks. K: 0, or the padded length of the hidden
row that weights are made of (``hidden @ matrix``). The formulas are those of kernels/channel.cuh;
hamfast/triton/units.py makes constants and tables.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from hamfast.kernels.common import add_to, edge_tile, load_tiles, look_up, zero_tiles


class Operands(NamedTuple):
    """Of F(x, y, w, g), or their tangents: tensors or None."""

    x: object
    y: object
    w: object
    """``[edges, w_dim]``; ``[w_dim]`` if all edges share them; ``[k, w_dim]`` if the kernel makes
    them of ``hidden``."""
    g: object
    hidden: object = None
    """``[edges, k]``"""


class Gradients(NamedTuple):
    """Where results go: tensors, or None for what is not wanted."""

    x: object
    y_chunks: object
    """``[units, edges, y_dim]``, summed over units afterwards."""
    w: object
    """A row per edge; where a program sums many edges, a row or a matrix per program."""
    hidden_chunks: object
    """``[units, edges, k]``"""


class Graph(NamedTuple):
    """Which rows an edge reads, and which edges a row sums."""

    x_index: object
    g_index: object
    order: object
    ptr: object


class Sizes(NamedTuple):
    """Numbers of a call."""

    rows: object
    """Of the result; without ``ptr`` edges, too."""
    edges: object
    x_scale: object
    g_scale: object
    """All rows of x and of g where blocks are matrices of their own, else 1."""
    y: object
    w: object
    k: object
    """Row lengths."""
    unit: object
    """Of the table of units."""


class BlockRow(NamedTuple):
    """An irreps block of a tensor, in a unit's row of the table."""

    offset: int
    row_stride: int
    component_stride: int
    channel_stride: int
    first: int
    """Channel."""


class UnitHead(NamedTuple):
    """The beginning of a unit's row; its own blocks (BlockRow) and its tasks (TaskRow) follow."""

    first: int
    channels: int
    chunk: int
    """Which of the chunks of the sums for y and the hidden rows is the unit's."""


class TaskRow(NamedTuple):
    """What follows a task's other block (of x forward, of g backward) in a unit's row."""

    y: int
    w: int
    w_stride: int


class TaskShape(NamedTuple):
    """What a kernel is compiled for of a task."""

    d1: int
    d2: int
    d3: int
    begin: int
    end: int
    """Entries."""
    weighted: bool
    new_x: bool
    """The task reads another block of x than the one before."""
    y: int
    """Its components among those of y that the unit uses."""
    to: int
    """Its block among the components of the result."""


class EntryShape(NamedTuple):
    """``g[k] += value x[i] y[j]``"""

    i: int
    j: int
    k: int
    value: float


OFFSET, ROW_STRIDE, COMPONENT_STRIDE, CHANNEL_STRIDE, FIRST = (tl.constexpr(n) for n in range(len(BlockRow._fields)))
BLOCK = tl.constexpr(len(BlockRow._fields))
UNIT_FIRST, UNIT_CHANNELS, UNIT_CHUNK = (tl.constexpr(n) for n in range(len(UnitHead._fields)))
HEAD = tl.constexpr(len(UnitHead._fields))
TASK_Y, TASK_W, TASK_W_STRIDE = (tl.constexpr(len(BlockRow._fields) + n) for n in range(len(TaskRow._fields)))
TASK = tl.constexpr(len(BlockRow._fields) + len(TaskRow._fields))
D1, D2, D3, BEGIN, END, WEIGHTED, NEW_X, Y_AT, TO = (tl.constexpr(n) for n in range(len(TaskShape._fields)))
I, J, K_OF, VALUE = (tl.constexpr(n) for n in range(len(EntryShape._fields)))
# Of the hidden row, in a matrix product for weights: the shortest that matrix units take.
STEP = tl.constexpr(16)


@triton.jit
def add_coupled(
    sums, a, b, ENTRIES: tl.constexpr, TASKS: tl.constexpr, t: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    C: tl.constexpr, AT: tl.constexpr,
):  # fmt: skip
    """Adds one contraction of a task's coupling: ``sums[AT + entry[C]] += value a[entry[A]]
    b[entry[B]]``.

    The task's number comes beside the list: Triton 3.6 takes no item of a constant list as an
    argument, if that is a tuple.
    """
    begin: tl.constexpr = TASKS[t][BEGIN]
    end: tl.constexpr = TASKS[t][END]
    for n in tl.static_range(begin, end):
        total = sums[AT + ENTRIES[n][C]] + ENTRIES[n][VALUE] * (a[ENTRIES[n][A]] * b[ENTRIES[n][B]])
        sums = sums[: AT + ENTRIES[n][C]] + (total,) + sums[AT + ENTRIES[n][C] + 1 :]
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
    """First component of a block's channels u."""
    channel = tl.load(block + FIRST) + u
    return (
        tl.load(block + OFFSET) * scale + row * tl.load(block + ROW_STRIDE) + channel * tl.load(block + CHANNEL_STRIDE)
    )


@triton.jit
def weights_of(
    w, hidden, sizes, task, edge, u, edge_mask, mask, SHARED: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A task's weights of a tile of edges: read, or made of the hidden rows by a matrix product."""
    at = tl.load(task + TASK_W) + u * tl.load(task + TASK_W_STRIDE)
    if K > 0:
        weights = tl.zeros((EDGES, CHANNELS), dtype=REAL)
        for first in range(
            0, sizes.k, STEP
        ):  # a piece of the row at a time: all of it would take half of the registers
            k = first + tl.arange(0, STEP)
            h = hidden_tile(hidden, edge, edge_mask, k, sizes.k, REAL)
            weights = tl.dot(h, matrix_tile(w, at, k, sizes, mask, REAL), weights, input_precision=PRECISION)
    elif SHARED:
        weights = tl.load(w + at, mask=mask, other=0.0).to(REAL)
    else:
        weights = tl.load(w + edge * sizes.w + at, mask=edge_mask & mask, other=0.0).to(REAL)
    return weights


@triton.jit
def weights_or_one(
    operands, sizes, task, edge, u, edge_mask, mask,
    IS_WEIGHTED: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr,
    EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A task's weights of a tile of edges; one where it has none."""
    weights = tl.full((1, 1), 1.0, dtype=REAL)
    if IS_WEIGHTED and operands.w is not None:
        weights = weights_of(
            operands.w, operands.hidden, sizes, task, edge, u, edge_mask, mask,
            SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
        )  # fmt: skip
    return weights


@triton.jit
def matrix_tile(w, at, k, sizes, mask, REAL: tl.constexpr):
    """``[K, CHANNELS]`` of the radial network's last matrix."""
    mask = (k[:, None] < sizes.k) & mask
    return tl.load(w + k.to(tl.int64)[:, None] * sizes.w + at, mask=mask, other=0.0).to(REAL)


@triton.jit
def hidden_tile(hidden, edge, edge_mask, k, k_dim, REAL: tl.constexpr):
    """``[EDGES, K]``"""
    return tl.load(hidden + edge * k_dim + k[None, :], mask=edge_mask & (k[None, :] < k_dim), other=0.0).to(REAL)


@triton.jit
def forward_edges(
    sums, edge, edge_mask, u, live, operands, tangents, graph, sizes, task,
    TASKS: tl.constexpr, ENTRIES: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
    REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Adds a tile of edges: w x y of each task; along tangents, (w tangent_x + tangent_w x) y + w x
    tangent_y."""
    ALONG: tl.constexpr = tangents.x is not None or tangents.y is not None or tangents.w is not None
    mask = edge_mask & live
    row = look_up(graph.x_index, edge, edge_mask)
    x = None
    tangent_x = None
    for t in tl.static_range(len(TASKS)):
        if TASKS[t][NEW_X]:
            at = block_at(task, sizes.x_scale, row, u)
            if operands.x is not None:
                x = load_tiles(operands.x, at, tl.load(task + COMPONENT_STRIDE), TASKS[t][D1], mask, REAL)
            if tangents.x is not None:
                tangent_x = load_tiles(tangents.x, at, tl.load(task + COMPONENT_STRIDE), TASKS[t][D1], mask, REAL)
        weight = weights_or_one(
            operands, sizes, task, edge, u, edge_mask, live,
            TASKS[t][WEIGHTED], SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
        )  # fmt: skip
        tangent_w = None
        if TASKS[t][WEIGHTED] and tangents.w is not None:
            tangent_w = weights_of(
                tangents.w, None, sizes, task, edge, u, edge_mask, live, SHARED, 0, PRECISION, REAL, EDGES, CHANNELS
            )
        y_at = edge * sizes.y + tl.load(task + TASK_Y)
        if not ALONG:
            y = load_tiles(operands.y, y_at, 1, TASKS[t][D2], edge_mask, REAL)
            sums = add_coupled(sums, scaled(TASKS[t][D1], weight, x), y, ENTRIES, TASKS, t, I, J, K_OF, TASKS[t][TO])
        else:
            if tangents.x is not None or tangent_w is not None:
                y = load_tiles(operands.y, y_at, 1, TASKS[t][D2], edge_mask, REAL)
                along = mixed(TASKS[t][D1], weight, tangent_x, tangent_w, x)
                sums = add_coupled(sums, along, y, ENTRIES, TASKS, t, I, J, K_OF, TASKS[t][TO])
            if tangents.y is not None:
                tangent_y = load_tiles(tangents.y, y_at, 1, TASKS[t][D2], edge_mask, REAL)
                weighted_x = scaled(TASKS[t][D1], weight, x)
                sums = add_coupled(sums, weighted_x, tangent_y, ENTRIES, TASKS, t, I, J, K_OF, TASKS[t][TO])
        task += TASK
    return sums


@triton.jit
def channel_forward(
    operands, tangents, out, graph, sizes, table,
    TASKS: tl.constexpr, ENTRIES: tl.constexpr, OWN: tl.constexpr, D: tl.constexpr, ADD: tl.constexpr,
    SHARED: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """The product: one program per row of the result (or per EDGES rows, where each is an edge's)
    and unit.

    D: components of the unit's blocks. ADD: to what another launch has stored, for units cut in
    two.
    """
    step = tl.program_id(0).to(tl.int64)
    unit = table + tl.program_id(1).to(tl.int64) * sizes.unit
    u = tl.load(unit + UNIT_FIRST) + tl.arange(0, CHANNELS)[None, :].to(tl.int64)
    tasks = unit + HEAD + len(OWN) * BLOCK
    live = u < tl.load(unit + UNIT_CHANNELS)
    sums = zero_tiles(D, EDGES, CHANNELS, REAL)
    if graph.ptr is not None:
        end = tl.load(graph.ptr + step + 1)
        for first in range(tl.load(graph.ptr + step), end, EDGES):
            edge, edge_mask = edge_tile(graph.order, first, end, EDGES)
            sums = forward_edges(
                sums, edge, edge_mask, u, live, operands, tangents, graph, sizes, tasks,
                TASKS, ENTRIES, SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
            )  # fmt: skip
        store_blocks(out, unit + HEAD, sizes.g_scale, step, u, OWN, sums, live, 0, ADD)
    else:
        edge, edge_mask = edge_tile(None, step * EDGES, sizes.rows, EDGES)
        sums = forward_edges(
            sums, edge, edge_mask, u, live, operands, tangents, graph, sizes, tasks,
            TASKS, ENTRIES, SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
        )  # fmt: skip
        store_blocks(out, unit + HEAD, sizes.g_scale, edge, u, OWN, sums, edge_mask & live, None, ADD)


@triton.jit
def store_tiles(
    out, at, step, COUNT: tl.constexpr, FROM: tl.constexpr, sums, mask, SUM: tl.constexpr, ADD: tl.constexpr
):
    """Stores COUNT of the tiles, from FROM on, summed along an axis (0: edges, 1: channels) or not
    (None)."""
    for i in tl.static_range(COUNT):
        value = sums[FROM + i]
        if SUM is not None:
            value = tl.sum(value, axis=SUM, keep_dims=True)
        if ADD:
            value += tl.load(out + at + i * step, mask=mask, other=0.0).to(value.dtype)
        tl.store(out + at + i * step, value, mask=mask)


@triton.jit
def store_blocks(
    out, block, scale, row, u, OWN: tl.constexpr, sums, mask, SUM: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """Stores the unit's own blocks: OWN has the components of each, and its first among all of
    them."""
    for b in tl.static_range(len(OWN)):
        at = block_at(block, scale, row, u)
        store_tiles(out, at, tl.load(block + COMPONENT_STRIDE), OWN[b][0], OWN[b][1], sums, mask, SUM, ADD)
        block += BLOCK


@triton.jit
def channel_backward(
    operands, tangents, gradients, graph, sizes, table, steps, steps_per_program,
    TASKS: tl.constexpr, ENTRIES: tl.constexpr, OWN: tl.constexpr, D: tl.constexpr, Y: tl.constexpr, ADD: tl.constexpr,
    SHARED: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """All gradients that are wanted of one block of x, or those along tangents.

    One program per group of rows of x and unit. Y: components of y that the unit uses.
    """
    unit = table + tl.program_id(1).to(tl.int64) * sizes.unit
    u = tl.load(unit + UNIT_FIRST) + tl.arange(0, CHANNELS)[None, :].to(tl.int64)
    live = u < tl.load(unit + UNIT_CHANNELS)
    chunk = tl.program_id(0).to(tl.int64)
    KEEPS_WEIGHTS: tl.constexpr = gradients.w is not None and (SHARED or K > 0)
    weight_sums = zero_tiles(len(TASKS) if KEEPS_WEIGHTS else 1, K if K > 0 else EDGES, CHANNELS, REAL)
    for step in range(chunk * steps_per_program, tl.minimum((chunk + 1) * steps_per_program, steps)):
        sums = zero_tiles(D, EDGES, CHANNELS, REAL)
        if graph.ptr is not None:
            end = tl.load(graph.ptr + step + 1)
            for first in range(tl.load(graph.ptr + step), end, EDGES):
                edge, edge_mask = edge_tile(graph.order, first, end, EDGES)
                sums, weight_sums = backward_edges(
                    sums, weight_sums, edge, edge_mask, u, live, operands, tangents, gradients, graph, sizes, unit,
                    TASKS, ENTRIES, D, Y, SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
                )  # fmt: skip
            if gradients.x is not None:
                store_blocks(gradients.x, unit + HEAD, sizes.x_scale, step, u, OWN, sums, live, 0, ADD)
        else:
            edge, edge_mask = edge_tile(None, step * EDGES, sizes.edges, EDGES)
            sums, weight_sums = backward_edges(
                sums, weight_sums, edge, edge_mask, u, live, operands, tangents, gradients, graph, sizes, unit,
                TASKS, ENTRIES, D, Y, SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
            )  # fmt: skip
            if gradients.x is not None:
                mask = edge_mask & live
                store_blocks(gradients.x, unit + HEAD, sizes.x_scale, edge, u, OWN, sums, mask, None, ADD)
    if KEEPS_WEIGHTS:
        for t in tl.static_range(len(TASKS)):
            task = unit + HEAD + BLOCK + t * TASK
            if TASKS[t][WEIGHTED]:
                at = tl.load(task + TASK_W) + u * tl.load(task + TASK_W_STRIDE)
                if K > 0:
                    k = tl.arange(0, K)
                    row = chunk * sizes.k + k[:, None]
                    tl.store(gradients.w + row * sizes.w + at, weight_sums[t], mask=(k[:, None] < sizes.k) & live)
                else:
                    tl.store(gradients.w + chunk * sizes.w + at, tl.sum(weight_sums[t], axis=0)[None, :], mask=live)


@triton.jit
def backward_edges(
    sums, weight_sums, edge, edge_mask, u, live, operands, tangents, gradients, graph, sizes, unit,
    TASKS: tl.constexpr, ENTRIES: tl.constexpr, D: tl.constexpr, Y: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr, REAL: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile of edges. With q = C y g: grad_x += w q, grad_w = <x, q>, grad_y += C (w x) g; along
    tangents, with one operand after the other replaced by its tangent."""
    ALONG_OTHERS: tl.constexpr = tangents.y is not None or tangents.w is not None or tangents.g is not None
    ALONG: tl.constexpr = tangents.x is not None or ALONG_OTHERS
    TO_WEIGHTS: tl.constexpr = gradients.w is not None or gradients.hidden_chunks is not None
    mask = edge_mask & live
    row = look_up(graph.x_index, edge, edge_mask)
    g_row = look_up(graph.g_index, edge, edge_mask)
    k = tl.arange(0, K if K > 0 else 1)
    x_at = block_at(unit + HEAD, sizes.x_scale, row, u)
    x = None
    tangent_x = None
    if operands.x is not None:
        x = load_tiles(operands.x, x_at, tl.load(unit + HEAD + COMPONENT_STRIDE), D, mask, REAL)
    if tangents.x is not None:
        tangent_x = load_tiles(tangents.x, x_at, tl.load(unit + HEAD + COMPONENT_STRIDE), D, mask, REAL)
    y_sums = zero_tiles(Y if gradients.y_chunks is not None else 1, EDGES, CHANNELS, REAL)
    hidden_sum = tl.zeros((EDGES, K if K > 0 else 1), dtype=REAL)
    for t in tl.static_range(len(TASKS)):
        task = unit + HEAD + BLOCK + t * TASK
        g_at = block_at(task, sizes.g_scale, g_row, u)
        g = None
        tangent_g = None
        if operands.g is not None:
            g = load_tiles(operands.g, g_at, tl.load(task + COMPONENT_STRIDE), TASKS[t][D3], mask, REAL)
        if tangents.g is not None:
            tangent_g = load_tiles(tangents.g, g_at, tl.load(task + COMPONENT_STRIDE), TASKS[t][D3], mask, REAL)
        y_at = edge * sizes.y + tl.load(task + TASK_Y)
        y = None
        tangent_y = None
        if operands.y is not None:
            y = load_tiles(operands.y, y_at, 1, TASKS[t][D2], edge_mask, REAL)
        if tangents.y is not None:
            tangent_y = load_tiles(tangents.y, y_at, 1, TASKS[t][D2], edge_mask, REAL)
        weight = weights_or_one(
            operands, sizes, task, edge, u, edge_mask, live,
            TASKS[t][WEIGHTED], SHARED, K, PRECISION, REAL, EDGES, CHANNELS,
        )  # fmt: skip
        tangent_w = None
        if TASKS[t][WEIGHTED] and tangents.w is not None:
            tangent_w = weights_of(
                tangents.w, None, sizes, task, edge, u, edge_mask, live, SHARED, 0, PRECISION, REAL, EDGES, CHANNELS
            )

        if gradients.x is not None or (TO_WEIGHTS and TASKS[t][WEIGHTED]):
            q = zero_tiles(D, EDGES, CHANNELS, REAL)  # C y g
            if not ALONG or tangents.x is not None or tangent_w is not None:
                q = add_coupled(q, y, g, ENTRIES, TASKS, t, J, K_OF, I, 0)
            tangent_q = zero_tiles(D, EDGES, CHANNELS, REAL)  # C tangent_y g + C y tangent_g
            if tangents.y is not None:
                tangent_q = add_coupled(tangent_q, tangent_y, g, ENTRIES, TASKS, t, J, K_OF, I, 0)
            if tangents.g is not None:
                tangent_q = add_coupled(tangent_q, y, tangent_g, ENTRIES, TASKS, t, J, K_OF, I, 0)
            if gradients.x is not None:
                if not ALONG:
                    sums = add_to(sums, D, scaled(D, weight, q))
                elif tangent_w is not None:
                    sums = add_to(sums, D, mixed(D, weight, tangent_q, tangent_w, q))
                else:
                    sums = add_to(sums, D, scaled(D, weight, tangent_q))
            if TO_WEIGHTS and TASKS[t][WEIGHTED]:
                total = tl.zeros((EDGES, CHANNELS), dtype=REAL)
                for i in tl.static_range(D):
                    if not ALONG:
                        total += x[i] * q[i]
                    else:
                        if tangents.x is not None:
                            total += tangent_x[i] * q[i]
                        if tangents.y is not None or tangents.g is not None:
                            total += x[i] * tangent_q[i]
                at = tl.load(task + TASK_W) + u * tl.load(task + TASK_W_STRIDE)
                if K > 0:
                    if gradients.hidden_chunks is not None:
                        matrix = matrix_tile(operands.w, at, k, sizes, live, REAL)
                        hidden_sum = tl.dot(
                            total, tl.trans(matrix), hidden_sum, input_precision=PRECISION, out_dtype=REAL
                        )
                    if gradients.w is not None:
                        h = hidden_tile(operands.hidden, edge, edge_mask, k, sizes.k, REAL)
                        more = tl.dot(tl.trans(h), total, weight_sums[t], input_precision=PRECISION, out_dtype=REAL)
                        weight_sums = weight_sums[:t] + (more,) + weight_sums[t + 1 :]
                elif SHARED:
                    weight_sums = weight_sums[:t] + (weight_sums[t] + total,) + weight_sums[t + 1 :]
                else:
                    tl.store(gradients.w + edge * sizes.w + at, total, mask=mask)
        if gradients.y_chunks is not None:
            if not ALONG:
                weighted_x = scaled(D, weight, x)
                y_sums = add_coupled(y_sums, weighted_x, g, ENTRIES, TASKS, t, I, K_OF, J, TASKS[t][Y_AT])
            else:
                if tangents.g is not None:
                    weighted_x = scaled(D, weight, x)
                    y_sums = add_coupled(y_sums, weighted_x, tangent_g, ENTRIES, TASKS, t, I, K_OF, J, TASKS[t][Y_AT])
                if tangents.x is not None or tangent_w is not None:
                    with_g = mixed(D, weight, tangent_x, tangent_w, x)
                    y_sums = add_coupled(y_sums, with_g, g, ENTRIES, TASKS, t, I, K_OF, J, TASKS[t][Y_AT])
    chunk_row = tl.load(unit + UNIT_CHUNK) * sizes.edges + edge
    if gradients.y_chunks is not None:
        for t in tl.static_range(len(TASKS)):
            if t == 0 or TASKS[t][Y_AT] > TASKS[t - 1 if t > 0 else 0][Y_AT]:  # tasks are in the order of y
                y_at = chunk_row * sizes.y + tl.load(unit + HEAD + BLOCK + t * TASK + TASK_Y)
                store_tiles(gradients.y_chunks, y_at, 1, TASKS[t][D2], TASKS[t][Y_AT], y_sums, edge_mask, 1, False)
    if gradients.hidden_chunks is not None:
        at = chunk_row * sizes.k + k[None, :]
        tl.store(gradients.hidden_chunks + at, hidden_sum, mask=edge_mask & (k[None, :] < sizes.k))
    return sums, weight_sums
