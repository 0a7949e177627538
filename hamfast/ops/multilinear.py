"""The op behind every tensor product: partial derivatives of the multilinear form F(x, y, w, g) = <g, TP(x, y, w)>.

F is linear in each of its four slots. The product is dF/dg; its gradients are dF/dx, dF/dy, dF/dw, and come from one pass. What
those depend on is found by a derivative of F along directions, again in one pass; after that, derivatives are sums of the
same, with arguments exchanged. So one op is closed under differentiation, and every order is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.edge_index import EdgeIndex
from hamfast.ops.transforms import differentiable
from hamfast.plan import Plan
from hamfast.plan.channel import (
    ChannelTables,
    MixBlock,
    channel_tables,
    is_channel_wise,
    is_mixing,
    live_paths,
    mix_tables,
)
from hamfast.plan.constants import constant, real_tensors
from hamfast.plan.coupling import wigner_3j
from hamfast.plan.plan import Instruction, pair_count

X, Y, W, G = range(4)
LAYOUTS = {"mul_ir": 0, "ir_mul": 1, "blocks": 2}


class Tables(NamedTuple):
    """What a plan is for the kernels on one device."""

    tensors: list[Tensor]
    """Paths of the general kernel (table, CG indices, CG values); tasks, x blocks, out blocks, entries, coupling of the channel-wise one."""
    dims: list[int]
    general: bool
    """Does the general kernel have a part in it? It reads and writes ``mul_ir``, in float32 or float64."""


def multilinear(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    tables: Tables,
    edges: EdgeIndex | None,
    gather: bool,
    scatter: bool,
    layouts: tuple[str, str],
) -> Tensor:
    """The product, dF/dg: ``[rows, out_dim]``. Arguments are as :func:`hamfast.ops.tensor_product` has checked them."""
    rows = edges.num_edges if edges is not None else x.shape[0]
    shared = weight is None or weight.dim() == 1
    numbers = (rows, shared, LAYOUTS[layouts[0]], LAYOUTS[layouts[1]], tables.dims)
    none = (None,) * 5
    graph = graph_tensors(edges, gather, scatter)
    return _op(x, y, weight, *none, *tables.tensors, *graph, 1 << G, *numbers)[G]


def graph_tensors(edges: EdgeIndex | None, gather: bool, scatter: bool) -> tuple[Tensor | None, ...]:
    """Senders and receivers, each with order and pointers, as the ops take them; None for what is not asked for."""
    none = (None,) * 3
    if edges is None:
        return none + none
    return (*(edges.by_sender if gather else none), *(edges.by_receiver if scatter else none))


def product_gradients(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    g: Tensor,
    tensors: list[Tensor | None],
    x_layout: int,
    g_layout: int,
    dims: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """dF/dx, dF/dy, dF/dw with weights per row; ``tensors``: those of the plan and of the graph."""
    wanted = 1 << X | 1 << Y | 1 << W
    return _op(x, y, w, g, *(None,) * 4, *tensors, wanted, y.shape[0], False, x_layout, g_layout, dims)[:3]


@torch.compiler.assume_constant_result
def mix_blocks(plan: Plan) -> tuple[MixBlock, ...]:
    """What :func:`make_tables` (part ``pairs``) makes, block after block."""
    return mix_tables(plan)[1]


_TABLES: dict[tuple, Tables] = {}


@torch.compiler.assume_constant_result
def make_tables(plan: Plan, part: str, dtype: torch.dtype, device: torch.device) -> Tables:
    """Tables of a plan: of its ``pairs`` (the first half of the mix lowering), of its paths ``channel`` by channel (general kernel
    where that one cannot), or of the ``general`` kernel for all; ``rest``: like ``channel``, without the paths of ``pairs``."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    key = (plan, part, compute, device)
    if key not in _TABLES:
        with real_tensors():
            _TABLES[key] = _make_tables(plan, part, compute, device)
    return _TABLES[key]


def _make_tables(plan, part, compute, device):
    channel = [ins for ins in live_paths(plan) if is_channel_wise(plan, ins)]
    out_dim = plan.dim_out
    if part == "general":
        general, tables = live_paths(plan), None
    elif part == "pairs":
        general, (tables, mixes) = [], mix_tables(plan)
        out_dim = sum(mix.pairs * (2 * mix.l + 1) for mix in mixes)
    else:
        general = [ins for ins in live_paths(plan) if ins not in channel]
        if part == "rest":
            general = [ins for ins in general if not is_mixing(plan, ins)]
        tables = channel_tables(plan) if channel else None
    table, index, value, scratch = general_tables(plan, general)
    if tables is None:
        empty = np.zeros((0, 16), dtype=np.int64)
        tables = ChannelTables(empty, empty, empty, empty, np.zeros(0), 0, 0, 0)
    arrays = [table, index, value, tables.tasks, tables.x_blocks, tables.g_blocks, tables.entries]
    tensors = [constant(a, device) for a in arrays]
    tensors.append(constant(tables.coupling, device, compute))
    dims = [plan.dim_in1, plan.dim_in2, plan.weight_numel if part != "pairs" else 0, out_dim, scratch]
    dims += [
        tables.x_padded,
        tables.g_padded,
        tables.max_coupling,
        int(bool(channel) and channel == list(plan.instructions)),
        _key(tables),
    ]
    return Tables(tensors, dims, bool(general))


def _key(tables: ChannelTables) -> int:
    """Tells the kernels compiled for these tables from those of others."""
    arrays = (tables.tasks, tables.x_blocks, tables.g_blocks, tables.entries, tables.coupling)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() + b"|" for a in arrays)).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def general_tables(plan: Plan, instructions: list[Instruction]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Paths as the general kernel reads them: ``Path`` rows and the coupling list of ``kernels/tensor_product.cuh``.

    Returns:
        table ``[paths, 16]`` int64, indices ``[entries, 3]`` int64, values ``[entries]`` float64, elements of scratch.
    """
    starts = []
    for blocks in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out):
        starts.append(np.cumsum([0] + [mul * (2 * l + 1) for mul, l, _ in blocks]))
    table: list[list[int]] = []
    index: list[np.ndarray] = [np.zeros((0, 3), dtype=np.int64)]
    value: list[np.ndarray] = [np.zeros(0)]
    entries, scratch = 0, 1
    for ins in instructions:
        (n1, l1, _), (n2, l2, _) = plan.irreps_in1[ins.i_in1], plan.irreps_in2[ins.i_in2]
        n3, l3, _ = plan.irreps_out[ins.i_out]
        d1, d2, d3 = 2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1
        pairing = {"uuw": 1, "uuu": 1, "uvu<v": 2, "u<vw": 2}.get(ins.mode, 0)
        # An unweighted uuw path sums all channels into its only output channel: a channel mode with stride 0.
        mixing = ins.has_weight and ins.mode in ("uvw", "uuw", "u<vw")
        out_u, out_v = {"uvu": (1, 0), "uvv": (0, 1), "uuu": (1, 0), "uvuv": (n2, 1), "uvu<v": (1, 0)}.get(
            ins.mode, (0, 0)
        )
        coupling = wigner_3j(l1, l2, l3)
        found = np.argwhere(coupling != 0)
        index.append(found)
        value.append(coupling[tuple(found.T)] * ins.coefficient)
        offset = ins.weight_offset if ins.has_weight else -1
        first = [starts[0][ins.i_in1], starts[1][ins.i_in2], starts[2][ins.i_out]]
        sizes = [n1, n2, n3, d1, d2, d3]
        table.append([pairing, int(mixing), *sizes, *first, offset, out_u, out_v, entries, entries + len(found)])
        entries += len(found)
        pairs = n1 if pairing < 2 else pair_count(ins.mode, n1, n2)
        outer = n2 if pairing == 0 else 1
        scratch = max(scratch, pairs * (d1 + d2) + outer * d3 * pairs + d3 * n3 + max(d1, d2) * pairs)
    rows = np.array(table, dtype=np.int64).reshape(-1, 16)
    return rows, np.concatenate(index), np.concatenate(value), scratch


def _shape_of(slot, wanted, edges, shared, s_ptr, r_ptr, dims):
    """Of a result; one that is not wanted is empty."""
    if not wanted >> slot & 1:
        return (0,)
    if slot == W and shared:
        return (dims[W],)
    ptr = s_ptr if slot == X else r_ptr if slot == G else None
    return (edges if ptr is None else ptr.shape[0] - 1, dims[slot])


@torch.library.register_fake("hamfast::tensor_product")
def _(x, y, w, g, dx, dy, dw, dg, *rest):
    *_, s_ptr, _, _, r_ptr, wanted, edges, shared, _, _, dims = rest
    like = next(t for t in (x, y, w, g) if t is not None)
    return tuple(like.new_empty(_shape_of(slot, wanted, edges, shared, s_ptr, r_ptr, dims)) for slot in range(4))


def _setup_context(ctx, inputs, output):
    *tensors, wanted, edges, shared, x_layout, g_layout, dims = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.wanted, ctx.numbers = wanted, (edges, shared, x_layout, g_layout, dims)


class _Form(NamedTuple):
    """F of one call, whatever its operands are."""

    rest: tuple[Any, ...]
    """Tables and graph."""
    numbers: tuple[Any, ...]

    def along(self, operands: list, directions: Sequence, slots: Sequence[int]) -> dict[int, Tensor]:
        """Derivatives of F, or of its derivative along the directions, in the slots."""
        along = [n for n in range(4) if directions[n] is not None]
        # Linear: the direction takes the operand's place. Not that of the weights, in which paths without weights are constant.
        if len(along) == 1 and along[0] != W:
            slots = [slot for slot in slots if slot != along[0]]
            operands = [directions[n] if n == along[0] else t for n, t in enumerate(operands)]
            directions = [None] * 4
        if not slots:
            return {}
        if len(slots) == 1 and not any(d is not None for d in directions):
            operands = [None if n == slots[0] else t for n, t in enumerate(operands)]
        wanted = sum(1 << slot for slot in slots)
        results = _op(*operands, *directions, *self.rest, wanted, *self.numbers)
        return {slot: results[slot] for slot in slots}

    def along_both(self, operands: list, first: Sequence, second: Sequence, slots: Sequence[int]) -> dict[int, Tensor]:
        """Derivatives in the slots of F's second derivative along both: one operand exchanged for a direction of each."""
        total: dict[int, Tensor] = {}
        for i in range(4):
            for j in range(4):
                if i == j or first[i] is None or second[j] is None:
                    continue
                exchanged, along = list(operands), [None] * 4
                exchanged[i], exchanged[j] = first[i], second[j]
                if W in (i, j):
                    along[W] = exchanged[W]
                _add(total, self.along(exchanged, along, [s for s in slots if s not in (i, j)]))
        return total


def _add(total: dict[int, Tensor], more: dict[int, Tensor]) -> None:
    for slot, term in more.items():
        total[slot] = total[slot] + term if slot in total else term


def _backward(ctx, *grads):
    saved = ctx.saved_tensors
    operands, directions, rest = list(saved[:4]), list(saved[4:8]), saved[8:]
    form = _Form(rest, ctx.numbers)
    incoming = [grad if ctx.wanted >> slot & 1 else None for slot, grad in enumerate(grads)]
    needed = [slot for slot in range(4) if ctx.needs_input_grad[slot]]
    needed_directions = [slot for slot in range(4) if ctx.needs_input_grad[4 + slot]]
    to_operands: dict[int, Tensor] = {}
    to_directions: dict[int, Tensor] = {}
    if any(grad is not None for grad in incoming):
        if all(d is None for d in directions):
            to_operands = form.along(operands, incoming, needed)
        else:
            to_directions = form.along(operands, incoming, needed_directions)
            to_operands = form.along_both(operands, incoming, directions, needed)
    return (
        *(to_operands.get(slot) for slot in range(4)),
        *(to_directions.get(slot) for slot in range(4)),
        *(None,) * (len(rest) + 6),
    )


def _jvp(inputs, tangents):
    operands, directions = list(inputs[:4]), inputs[4:8]
    *rest, wanted, rows, shared, x_layout, g_layout, dims = inputs[8:]
    form = _Form(tuple(rest), (rows, shared, x_layout, g_layout, dims))
    slots = [slot for slot in range(4) if wanted >> slot & 1]
    if all(d is None for d in directions):
        found = form.along(operands, tangents[:4], slots)
    else:
        found = form.along_both(operands, tangents[:4], directions, slots)
        if any(t is not None for t in tangents[4:8]):
            _add(found, form.along(operands, tangents[4:8], slots))
    like = next(t for t in operands if t is not None)
    s_ptr, r_ptr = rest[10], rest[13]
    return tuple(
        found[slot] if slot in found else like.new_zeros(_shape_of(slot, wanted, rows, shared, s_ptr, r_ptr, dims))
        for slot in range(4)
    )


def _vmap(info, in_dims, *args):
    """Without a graph the batch becomes rows; with one, or with a batch of shared weights, one call per sample."""
    size = info.batch_size
    tensors, graph = args[:8], args[16:22]
    wanted, rows, shared, x_layout, g_layout, dims = args[22:]
    moved = [t if d is None or t is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims[:8], strict=True)]
    batched = [t is not None and d is not None for t, d in zip(tensors, in_dims[:8], strict=True)]
    folds = (
        not any(t is not None for t in graph)
        and 2 not in (x_layout, g_layout)
        and not (shared and (batched[W] or batched[4 + W] or wanted >> W & 1))
    )
    if not folds:
        each = []
        for n in range(size):
            sample = [t[n] if b else t for t, b in zip(moved, batched, strict=True)]
            each.append(_op(*sample, *args[8:]))
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0,) * 4
    flat = []
    for n, (t, b) in enumerate(zip(moved, batched, strict=True)):
        if t is not None and not (shared and n % 4 == W):
            t = (t if b else t.expand(size, *t.shape)).reshape(size * rows, -1)
        flat.append(t)
    out = _op(*flat, *args[8:22], wanted, size * rows, shared, x_layout, g_layout, dims)
    shaped = [t.view(size, rows, -1) if wanted >> n & 1 else t.new_empty(size, 0) for n, t in enumerate(out)]
    return tuple(shaped), (0,) * 4


_op = differentiable("tensor_product", _backward, _setup_context, _jvp, _vmap)
