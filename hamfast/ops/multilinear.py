"""The op behind every tensor product: partial derivatives of the multilinear form F(x, y, w, g) =
<g, TP(x, y, w)>.

F is linear in each of its four slots. The product is dF/dg; its gradients are dF/dx, dF/dy, dF/dw,
and come from one pass. What those depend on is found by a derivative of F along tangents, again in
one pass; after that, derivatives are sums of the same, with arguments exchanged. So one op is
closed under differentiation, and every order is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.constants import constant, real_tensors
from hamfast.ops.edge_index import EdgeIndex
from hamfast.ops.transforms import differentiable
from hamfast.plan import Plan
from hamfast.plan.channel import (
    ChannelTables,
    MixBlock,
    as_table,
    channel_tables,
    is_channel_wise,
    live_paths,
    mix_tables,
)
from hamfast.plan.coupling import wigner_3j
from hamfast.plan.plan import Instruction, pair_count
from hamfast.records.choices import Layout, Pairing, Slot
from hamfast.records.ops import CHANNEL_KERNEL_SOURCE, OPTIONAL_GRAPH, PRODUCT_SETTINGS, PRODUCT_TABLES, TENSOR_PRODUCT
from hamfast.records.tables import ChannelVariant, Path, ProductDims

X, Y, W, G = Slot.X, Slot.Y, Slot.W, Slot.G
LAYOUTS = Layout.numbers()


class Tables(NamedTuple):
    """What a plan is for the kernels on one device."""

    tensors: Any
    """The group ``tables`` of the op's record."""
    dims: ProductDims


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
    """The product, dF/dg: ``[rows, out_dim]``. Arguments are as :func:`hamfast.ops.tensor_product`
    has checked them."""
    rows = edges.num_edges if edges is not None else x.shape[0]
    shared = weight is None or weight.dim() == 1
    form = Form(
        tables.tensors,
        graph_tensors(edges, gather, scatter),
        PRODUCT_SETTINGS.fields(rows, shared, LAYOUTS[layouts[0]], LAYOUTS[layouts[1]], tables.dims),
    )
    return form.derivatives((x, y, weight, None), _NONE, 1 << G)[G]


def pairs_to_x(pairs: Tensor, y: Tensor, tables: Tables, layout: str) -> Tensor:
    """dF/dx of the ``pairs`` tables: ``[rows, dim_in1]`` in a layout from ``[rows, dims.g]`` of
    coupled pairs."""
    settings = PRODUCT_SETTINGS.fields(y.shape[0], True, LAYOUTS[layout], LAYOUTS["blocks"], tables.dims)
    form = Form(tables.tensors, graph_tensors(None, False, False), settings)
    return form.derivatives((None, y, None, pairs), _NONE, 1 << X)[X]


def graph_tensors(edges: EdgeIndex | None, gather: bool, scatter: bool) -> Any:
    """The group ``graph`` of the ops' records; None for what is not asked for."""
    none = (None,) * 3
    senders = edges.by_sender if edges is not None and gather else none
    receivers = edges.by_receiver if edges is not None and scatter else none
    return OPTIONAL_GRAPH.fields(*senders, *receivers)


def product_gradients(
    operands: tuple[Tensor, Tensor, Tensor, Tensor],
    tables: Any,
    graph: Any,
    layouts: tuple[int, int],
    dims: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """dF/dx, dF/dy, dF/dw at (x, y, w, g), with weights per row."""
    form = Form(tables, graph, PRODUCT_SETTINGS.fields(operands[Y].shape[0], False, *layouts, dims))
    return form.derivatives(operands, _NONE, 1 << X | 1 << Y | 1 << W)[:3]


@torch.compiler.assume_constant_result
def mix_blocks(plan: Plan) -> tuple[MixBlock, ...]:
    """What :func:`make_tables` makes of the ``pairs``, block after block."""
    return mix_tables(plan)[1]


_TABLES: dict[tuple, Tables] = {}


@torch.compiler.assume_constant_result
def make_tables(plan: Plan, paths: str, dtype: torch.dtype, device: torch.device) -> Tables:
    """Tables of some paths of a plan.

    Args:
        paths: ``pairs``: the first half of the mix lowering. ``channel``: those that the
            channel-wise kernel can run. ``general``: all, on the general kernel.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    key = (plan, paths, compute, device)
    if key not in _TABLES:
        with real_tensors():
            _TABLES[key] = _make_tables(plan, paths, compute, device)
    return _TABLES[key]


def _make_tables(plan, paths, compute, device):
    live = live_paths(plan)
    channel = [ins for ins in live if is_channel_wise(plan, ins)] if paths == "channel" else []
    general = live if paths == "general" else []
    out_dim, empty = plan.dim_out, np.zeros((0, 0), dtype=np.int64)
    if paths == "pairs":
        tables, mixes = mix_tables(plan)
        out_dim = sum(mix.pairs * (2 * mix.l + 1) for mix in mixes)
    elif channel:
        tables = channel_tables(plan)
    else:
        tables = ChannelTables(empty, empty, empty, empty, np.zeros(0), 0, 0, 0)
    table, index, value, scratch = general_tables(plan, general)
    tensors = PRODUCT_TABLES.fields(
        paths=constant(table, device),
        cg_index=constant(index, device),
        cg_value=constant(value, device),
        tasks=constant(tables.tasks, device),
        x_blocks=constant(tables.x_blocks, device),
        g_blocks=constant(tables.g_blocks, device),
        entries=constant(tables.entries, device),
        coupling=constant(tables.coupling, device, compute),
    )
    dims = ProductDims(
        x=plan.dim_in1,
        y=plan.dim_in2,
        w=plan.weight_numel if paths != "pairs" else 0,
        g=out_dim,
        scratch=scratch,
        x_padded=tables.x_padded,
        g_padded=tables.g_padded,
        max_coupling=tables.max_coupling,
        covers_weights=int(bool(channel) and channel == list(plan.instructions)),
        key=_key(tables),
    )
    return Tables(tensors, dims)


def kernel_source(tables: Tables, variant: ChannelVariant) -> tuple[Tensor, Tensor]:
    """What the CUDA backend would compile: the plan's header as bytes; the units, and a block's
    bytes of shared memory."""
    own = {name: t for name, t in tables.tensors._asdict().items() if name in _CHANNEL_TABLES}
    arguments = CHANNEL_KERNEL_SOURCE.by_name(**own, dims=tables.dims, variant=variant)
    return torch.ops.hamfast.channel_kernel_source(*arguments)


_CHANNEL_TABLES = {item.name for item in CHANNEL_KERNEL_SOURCE.flat}


def _key(tables: ChannelTables) -> int:
    """Tells the kernels compiled for these tables from those of others."""
    arrays = (tables.tasks, tables.x_blocks, tables.g_blocks, tables.entries, tables.coupling)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() + b"|" for a in arrays)).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def general_tables(plan: Plan, instructions: list[Instruction]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Paths as the general kernel reads them (``kernels/general.cuh``).

    Returns:
        table ``[paths, Path]`` int64, indices ``[entries, 3]`` int64, values ``[entries]`` float64,
        elements of scratch.
    """
    starts = []
    for blocks in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out):
        starts.append(np.cumsum([0] + [mul * (2 * l + 1) for mul, l, _ in blocks]))
    table: list[Path] = []
    index: list[np.ndarray] = [np.zeros((0, 3), dtype=np.int64)]
    value: list[np.ndarray] = [np.zeros(0)]
    entries, scratch = 0, 1
    for ins in instructions:
        (n1, l1, _), (n2, l2, _) = plan.irreps_in1[ins.i_in1], plan.irreps_in2[ins.i_in2]
        n3, l3, _ = plan.irreps_out[ins.i_out]
        d1, d2, d3 = 2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1
        pairing = _PAIRING.get(ins.mode, Pairing.OUTER)
        # An unweighted uuw path sums all channels into its only output channel: a channel mode with
        # stride 0.
        mixing = ins.has_weight and ins.mode in ("uvw", "uuw", "u<vw")
        out_u, out_v = {"uvu": (1, 0), "uvv": (0, 1), "uuu": (1, 0), "uvuv": (n2, 1), "uvu<v": (1, 0)}.get(
            ins.mode, (0, 0)
        )
        coupling = wigner_3j(l1, l2, l3)
        found = np.argwhere(coupling != 0)
        index.append(found)
        value.append(coupling[tuple(found.T)] * ins.coefficient)
        path = Path(
            pairing=pairing,
            mixing=int(mixing),
            n1=n1,
            n2=n2,
            n3=n3,
            d1=d1,
            d2=d2,
            d3=d3,
            offset1=int(starts[0][ins.i_in1]),
            offset2=int(starts[1][ins.i_in2]),
            offset3=int(starts[2][ins.i_out]),
            weight_offset=ins.weight_offset if ins.has_weight else -1,
            out_u=out_u,
            out_v=out_v,
            cg_begin=entries,
            cg_end=entries + len(found),
        )
        table.append(path)
        entries += len(found)
        pairs = n1 if pairing != Pairing.TRIANGULAR else pair_count(ins.mode, n1, n2)
        outer = n2 if pairing == Pairing.OUTER else 1
        scratch = max(scratch, pairs * (d1 + d2) + outer * d3 * pairs + d3 * n3 + max(d1, d2) * pairs)
    return as_table(table, Path), np.concatenate(index), np.concatenate(value), scratch


_PAIRING = {"uuw": Pairing.TIED, "uuu": Pairing.TIED, "uvu<v": Pairing.TRIANGULAR, "u<vw": Pairing.TRIANGULAR}
"""The modes of e3nn that do not pair every u with every v."""


class Form(NamedTuple):
    """F of one call, whatever its operands are."""

    tables: Any
    graph: Any
    settings: Any
    """Groups of the op's record."""

    @classmethod
    def of(cls, arguments: Any) -> Form:
        """F of the op's arguments, as :meth:`hamfast.records.record.Op.read` gives them."""
        return cls(arguments.tables, arguments.graph, arguments.settings)

    def derivatives(self, operands: Sequence, tangents: Sequence, wanted: int) -> Any:
        """The op's results."""
        return _op(*operands, *tangents, *self.tables, *self.graph, wanted, *self.settings)

    def shape(self, slot: int, wanted: int) -> tuple[int, ...]:
        """Of the derivative in a slot; one that is not wanted is empty."""
        if not wanted >> slot & 1:
            return (0,)
        settings = self.settings
        if slot == W and settings.shared_weights:
            return (settings.dims[W],)
        ptr = self.graph.sender_ptr if slot == X else self.graph.receiver_ptr if slot == G else None
        return (settings.edges if ptr is None else ptr.shape[0] - 1, settings.dims[slot])

    def along(self, operands: Sequence, tangents: Sequence, slots: Sequence[int]) -> dict[int, Tensor]:
        """Derivatives of F, or of its derivative along the tangents, in the slots."""
        along = [n for n in range(4) if tangents[n] is not None]
        # Linear: the tangent takes the operand's place. Not that of the weights, in which paths
        # without weights are constant.
        if len(along) == 1 and along[0] != W:
            slots = [slot for slot in slots if slot != along[0]]
            operands = [tangents[n] if n == along[0] else t for n, t in enumerate(operands)]
            tangents = _NONE
        if not slots:
            return {}
        if len(slots) == 1 and not any(t is not None for t in tangents):
            operands = [None if n == slots[0] else t for n, t in enumerate(operands)]
        results = self.derivatives(operands, tangents, sum(1 << slot for slot in slots))
        return {slot: results[slot] for slot in slots}

    def along_both(
        self, operands: Sequence, first: Sequence, second: Sequence, slots: Sequence[int]
    ) -> dict[int, Tensor]:
        """Derivatives in the slots of F's second derivative along both: one operand exchanged for a
        tangent of each."""
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


_NONE = (None,) * 4
"""No tangents."""


def _add(total: dict[int, Tensor], more: dict[int, Tensor]) -> None:
    for slot, term in more.items():
        total[slot] = total[slot] + term if slot in total else term


@torch.library.register_fake("hamfast::tensor_product")
def _(*flat):
    arguments = TENSOR_PRODUCT.read(flat)
    form = Form.of(arguments)
    like = next(t for t in arguments.operands if t is not None)
    return tuple(like.new_empty(form.shape(slot, arguments.wanted)) for slot in range(4))


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: TENSOR_PRODUCT.tensors])
    ctx.settings = inputs[TENSOR_PRODUCT.tensors :]


def _backward(ctx, *grads):
    arguments = TENSOR_PRODUCT.read((*ctx.saved_tensors, *ctx.settings))
    operands, tangents, form = arguments.operands, arguments.tangents, Form.of(arguments)
    incoming = [grad if arguments.wanted >> slot & 1 else None for slot, grad in enumerate(grads)]
    needs = TENSOR_PRODUCT.read(ctx.needs_input_grad)
    needed = [slot for slot in range(4) if needs.operands[slot]]
    needed_tangents = [slot for slot in range(4) if needs.tangents[slot]]
    to_operands: dict[int, Tensor] = {}
    to_tangents: dict[int, Tensor] = {}
    if any(grad is not None for grad in incoming):
        if all(t is None for t in tangents):
            to_operands = form.along(operands, incoming, needed)
        else:
            to_tangents = form.along(operands, incoming, needed_tangents)
            to_operands = form.along_both(operands, incoming, tangents, needed)
    return TENSOR_PRODUCT.per_argument(
        operands=[to_operands.get(slot) for slot in range(4)], tangents=[to_tangents.get(slot) for slot in range(4)]
    )


def _jvp(inputs, input_tangents):
    arguments, given = TENSOR_PRODUCT.read(inputs), TENSOR_PRODUCT.read(input_tangents)
    operands, tangents, form = arguments.operands, arguments.tangents, Form.of(arguments)
    slots = [slot for slot in range(4) if arguments.wanted >> slot & 1]
    if all(t is None for t in tangents):
        found = form.along(operands, given.operands, slots)
    else:
        found = form.along_both(operands, given.operands, tangents, slots)
        if any(t is not None for t in given.tangents):
            _add(found, form.along(operands, given.tangents, slots))
    like = next(t for t in operands if t is not None)
    return tuple(
        found[slot] if slot in found else like.new_zeros(form.shape(slot, arguments.wanted)) for slot in range(4)
    )


def _vmap(info, in_dims, *inputs):
    """Without a graph the batch becomes rows; with one, or with a batch of shared weights, one call
    per sample."""
    size, arguments = info.batch_size, TENSOR_PRODUCT.read(inputs)
    wanted, settings = arguments.wanted, Form.of(arguments).settings
    tensors, dims = inputs[:8], in_dims[:8]  # the operands, then their tangents
    moved = [t if d is None or t is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    batched = [t is not None and d is not None for t, d in zip(tensors, dims, strict=True)]
    shared = settings.shared_weights
    folds = (
        not any(t is not None for t in arguments.graph)
        and Layout.BLOCKS not in (settings.x_layout, settings.g_layout)
        and not (shared and (batched[W] or batched[4 + W] or wanted >> W & 1))
    )
    if not folds:
        each = []
        for n in range(size):
            sample = [t[n] if b else t for t, b in zip(moved, batched, strict=True)]
            each.append(_op(*sample, *inputs[8:]))
        return tuple(torch.stack(results) for results in zip(*each, strict=True)), (0,) * 4
    rows, flat = settings.edges, []
    for n, (t, b) in enumerate(zip(moved, batched, strict=True)):
        if t is not None and not (shared and n % 4 == W):
            t = (t if b else t.expand(size, *t.shape)).reshape(size * rows, -1)
        flat.append(t)
    form = Form(arguments.tables, arguments.graph, settings._replace(edges=size * rows))
    out = form.derivatives(flat[:4], flat[4:], wanted)
    shaped = [t.view(size, rows, -1) if wanted >> n & 1 else t.new_empty(size, 0) for n, t in enumerate(out)]
    return tuple(shaped), (0,) * 4


_op = differentiable("tensor_product", _backward, _setup_context, _jvp, _vmap)
