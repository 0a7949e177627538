"""Tensor product with the spherical harmonics of an edge's direction, computed in that edge's own
frame."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from hamfast.constants import outside_inference_mode
from hamfast.ops.block_matmul import block_matmul
from hamfast.ops.checks import HALF, check_count, check_rows, check_same, check_tensor, found
from hamfast.ops.edge_direction import Rotations, product_with_direction
from hamfast.ops.edge_einsum import to_edges
from hamfast.ops.edge_frame import MOST_SOURCES, frame_matrices, frame_tables, from_edge, to_edge
from hamfast.ops.edge_index import EdgeIndex, check_graph
from hamfast.ops.tensor_product import tensor_product
from hamfast.ops.transforms import is_transformed
from hamfast.ops.wigner import edge_wigner
from hamfast.plan import EdgeFramePlan
from hamfast.plan.cost import choose_lowering
from hamfast.plan.plan import IrrepBlock, irreps_dim


class EdgeSources(NamedTuple):
    """The operand x of every edge, ``[x_a | x_b | ...]``, from up to three tensors that are never
    gathered or concatenated."""

    tensors: tuple[Tensor, ...]
    """``[rows, dim]`` each."""
    ends: tuple[str, ...]
    """Which row an edge reads of each: that of its ``sender``, of its ``receiver``, or its own
    (``edge``)."""
    edges: EdgeIndex


class SeparateWeights(NamedTuple):
    """DeepH-E3's weights of the path (l1, l2, l3), ``left[u, w] right[w]``: their product is never
    formed."""

    left: Tensor
    """``[weight_numel]``: the matrices of all paths, flat, in e3nn's order."""
    right: Tensor
    """``[sum of mul_out over the paths]``"""


class EdgeFrames(NamedTuple):
    """The frames of a set of edges, prepared once and used by every layer. Make one with
    :func:`edge_frames`."""

    wigner: Tensor
    """``[edges, wigner_dim(l_max)]``"""
    l_max: int
    onsite: Tensor
    """int64: the edges of length zero, on which only Y_00 is not zero."""
    vector: Tensor
    """``[edges, 3]``: a copy of those given. If it requires a gradient, products are differentiable
    in it."""


def edge_frames(vector: Tensor, l_max: int, zero: float = 1e-6) -> EdgeFrames:
    """Frames of edges.

    Args:
        vector: ``[edges, 3]``, the edges in e3nn's axis order, any length. It is copied: writing to
            it later changes nothing here.
        l_max: highest l of any irrep that will be rotated.
        zero: edges up to this length count as on-site.

    Raises:
        TypeError: no tensor, or an l_max that is no integer.
        ValueError: a wrong shape or dtype, or a negative l_max; the message names the argument.
    """
    check_rows("edge_frames", "vector", vector, None, 3)
    check_same("edge_frames", vector=vector)
    check_count("edge_frames", "l_max", l_max)
    with outside_inference_mode():
        vector = vector.clone()
        onsite = torch.nonzero(vector.detach().norm(dim=-1) <= zero).flatten()
        return EdgeFrames(edge_wigner(vector, l_max), l_max, onsite, vector)


def edge_tensor_product(
    x: Tensor | EdgeSources,
    weight: Tensor | SeparateWeights,
    plan: EdgeFramePlan,
    frames: EdgeFrames,
    layout: str = "mul_ir",
    lowering: str | None = None,
) -> Tensor:
    """``tensor_product(x, Y, weight, plan.plan)`` with Y the harmonics of the frames' edges,
    without ever making Y.

    Y is as ``e3nn.o3.spherical_harmonics(..., normalize=True, normalization="component")`` gives
    it; on edges of length zero every Y with l > 0 is 0. See ``hamfast/plan/edge_frame.py`` for the
    mathematics.

    Args:
        x: ``[edges, dim_in1]``; or the tensors it consists of as :class:`EdgeSources`, which split
            the irreps between blocks.
        weight: ``[weight_numel]``, shared by all edges, in e3nn's order; or
            :class:`SeparateWeights`. All operands have one dtype: float32 or float64; or bfloat16
            or float16, and the frames float32: all arithmetic is float32 then. Under autocast each
            operand may have another, and the result is as wide as the widest of x.
        plan: from :func:`hamfast.plan.edge_frame_plan`.
        frames: from :func:`edge_frames`.
        layout: of input and output, ``mul_ir`` or ``ir_mul``.
        lowering: ``edge_frame``, or ``mix`` or ``general`` with harmonics made for it; by default
            :func:`hamfast.plan.cost.choose_lowering` decides. Sources and separate weights are for
            ``edge_frame`` alone.

    Returns:
        ``[edges, dim_out]``. Differentiable to any order in ``x``, ``weight`` and the vectors the
        frames were made of, at every direction; on edges of length zero the derivative in the
        vector is 0.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    if not isinstance(plan, EdgeFramePlan):
        raise TypeError(
            f"edge_tensor_product: plan: expected an EdgeFramePlan from hamfast.plan.edge_frame_plan, found {found(plan)}"
        )
    if not isinstance(frames, EdgeFrames):
        raise TypeError(f"edge_tensor_product: frames: expected EdgeFrames from edge_frames, found {found(frames)}")
    edges = frames.wigner.shape[0]
    if isinstance(x, EdgeSources):
        tensors = _check_sources(x, plan, edges)
    else:
        check_rows("edge_tensor_product", "x", x, edges, plan.plan.dim_in1)
        tensors = (x,)
    left, right = _check_weight(weight, plan)
    operands: dict[str, Any] = {f"x{n}": t for n, t in enumerate(tensors)} | {"weight": left, "weight.right": right}
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
    autocast = torch.is_autocast_enabled(left.device.type)
    if autocast:
        widest = torch.promote_types(dtype, frames.wigner.dtype)
        operands = {name: t if t is None else t.to(widest) for name, t in operands.items()}
    if frames.wigner.dtype in HALF:
        raise ValueError(
            f"edge_tensor_product: frames: expected torch.float32 or torch.float64, found {frames.wigner.dtype}"
        )
    check_same("edge_tensor_product", True, **operands)
    if dtype in HALF:
        operands = {name: t if t is None else t.float() for name, t in operands.items()}
    *rows, weights, factors = operands.values()
    check_same("edge_tensor_product", x0=rows[0], frames=frames.wigner)
    needed = max(l for _, l, _ in plan.plan.irreps_in1 + plan.plan.irreps_out)
    if needed > frames.l_max:
        raise ValueError(f"edge_tensor_product: frames: expected l_max of at least {needed}, found {frames.l_max}")
    only = [type(t).__name__ for t in (x, weight) if not isinstance(t, Tensor)]
    chosen = lowering or ("edge_frame" if only else _chosen(plan, frames.wigner.device.type))
    if chosen != "edge_frame":
        if only:
            raise ValueError(f"edge_tensor_product: lowering: expected edge_frame for {only[0]}, found {lowering!r}")
        run = partial(_by_harmonics, rows[0], weights, plan, frames, layout, chosen)
    else:
        run = partial(
            _in_frames, rows, weights, factors, x if isinstance(x, EdgeSources) else None, plan, frames, layout
        )
    if not autocast:
        return run().to(dtype)
    with torch.autocast(left.device.type, enabled=False):
        return run().to(dtype)


def _by_harmonics(
    x: Tensor, weight: Tensor, plan: EdgeFramePlan, frames: EdgeFrames, layout: str, lowering: str
) -> Tensor:
    return tensor_product(x, _harmonics(plan, frames), weight, plan.plan, layout=layout, lowering=lowering)


def _in_frames(
    tensors: Sequence[Tensor],
    left: Tensor,
    right: Tensor | None,
    sources: EdgeSources | None,
    plan: EdgeFramePlan,
    frames: EdgeFrames,
    layout: str,
) -> Tensor:
    """The edge-frame lowering; ``sources`` says which rows the tensors are, by default the edges'
    own."""
    ends = [_OWN] if sources is None else _ends(sources)
    tables = frame_tables(plan, left.device, tuple(t.shape[1] for t in tensors))
    matrices = frame_matrices(left, right, tables)
    with_vector = frames.vector.requires_grad and torch.is_grad_enabled()
    if not with_vector and not is_transformed((*tensors, left, right, frames.vector)):
        return _in_fixed_frames(tensors, ends, matrices, plan, frames.wigner, frames.onsite, layout)
    # The formula for the direction wants the operand of each edge.
    rows = list(tensors)
    if sources is not None:
        graph = sources.edges.graph
        rows = [t if end == "edge" else to_edges(t, end, graph) for t, end in zip(tensors, sources.ends, strict=True)]

    def product(x: Sequence[Tensor], matrices: Tensor, wigner: Tensor, onsite: Tensor) -> Tensor:
        return _in_fixed_frames(x, [_OWN] * len(x), matrices, plan, wigner, onsite, layout)

    irreps = _split_irreps(plan, [t.shape[1] for t in tensors])
    rotations = Rotations(irreps, plan.plan.irreps_out, layout, product)
    return product_with_direction(rows, matrices, frames.vector, frames.wigner, frames.onsite, rotations)


@torch.compiler.assume_constant_result
def _chosen(plan: EdgeFramePlan, device: str) -> str:
    # Without the number of rows: for few of them the estimates may prefer the general kernel, which
    # was measured to gain hardly anything there, and to take twice the time of some products.
    return choose_lowering(plan.plan, True, device, harmonics=True)


def _harmonics(plan: EdgeFramePlan, frames: EdgeFrames) -> Tensor:
    """Y of every edge, ``[edges, dim_in2]``, zero for l > 0 on edges of length zero."""
    degrees = [l for _, l, _ in plan.plan.irreps_in2]
    # No direction, no derivative: not that of a division by zero either.
    vector = frames.vector.index_fill(0, frames.onsite, 1.0)
    y = o3.spherical_harmonics(degrees, vector, normalize=True, normalization="component")
    scalar = torch.cat([torch.full((2 * l + 1,), float(l == 0)) for l in degrees])
    return y.index_copy(0, frames.onsite, scalar.to(y).expand(frames.onsite.numel(), -1))


def _check_sources(x: EdgeSources, plan: EdgeFramePlan, edges: int) -> tuple[Tensor, ...]:
    check_graph("edge_tensor_product", x.edges, "x.edges")
    for name, given in (("tensors", x.tensors), ("ends", x.ends)):
        if not isinstance(given, (tuple, list)):
            raise TypeError(f"edge_tensor_product: x.{name}: expected a tuple, found {found(given)}")
    if not 1 <= len(x.tensors) <= MOST_SOURCES or len(x.ends) != len(x.tensors):
        raise ValueError(
            f"edge_tensor_product: x: expected 1 to {MOST_SOURCES} tensors with one end each, "
            f"found {len(x.tensors)} and {len(x.ends)}"
        )
    rows = x.edges.rows
    if x.edges.num_edges != edges:
        raise ValueError(f"edge_tensor_product: x.edges: expected {edges} edges, found {x.edges.num_edges}")
    for n, (tensor, end) in enumerate(zip(x.tensors, x.ends, strict=True)):
        if end not in rows:
            raise ValueError(f"edge_tensor_product: x.ends[{n}]: expected sender, receiver or edge, found {end!r}")
        check_tensor("edge_tensor_product", f"x.tensors[{n}]", tensor)
        if tensor.dim() != 2 or tensor.shape[0] != rows[end]:
            raise ValueError(
                f"edge_tensor_product: x.tensors[{n}]: expected [{rows[end]}, dim], found {list(tensor.shape)}"
            )
    return x.tensors


def _check_weight(weight: Tensor | SeparateWeights, plan: EdgeFramePlan) -> tuple[Tensor, Tensor | None]:
    if not isinstance(weight, (Tensor, SeparateWeights)):
        raise TypeError(f"edge_tensor_product: weight: expected a tensor or SeparateWeights, found {found(weight)}")
    left, right = (weight, None) if isinstance(weight, Tensor) else weight
    sizes = {"weight" if right is None else "weight.left": (left, plan.plan.weight_numel)}
    if right is not None:
        sizes["weight.right"] = (right, sum(ins.weight_shape[-1] for ins in plan.plan.instructions))
    for name, (tensor, numel) in sizes.items():
        check_tensor("edge_tensor_product", name, tensor)
        if tensor.shape != (numel,):
            raise ValueError(f"edge_tensor_product: {name}: expected [{numel}], found {list(tensor.shape)}")
    return left, right


_End = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Which row an edge reads: index, and order and pointers for the adjoint."""

_OWN: _End = (None, None, None)


def _ends(x: EdgeSources) -> list[_End]:
    found: dict[str, _End] = {"edge": _OWN, "sender": x.edges.by_sender, "receiver": x.edges.by_receiver}
    return [found[end] for end in x.ends]


def _split_irreps(plan: EdgeFramePlan, widths: list[int]) -> list[tuple[IrrepBlock, ...]]:
    """The irreps blocks of each source."""
    blocks, split = list(plan.plan.irreps_in1), []
    for width in widths:
        own: list[IrrepBlock] = []
        while irreps_dim(own) < width:
            own.append(blocks.pop(0))
        split.append(tuple(own))
    return split


def _in_fixed_frames(
    sources: Sequence[Tensor],
    ends: Sequence[_End],
    matrices: Tensor,
    plan: EdgeFramePlan,
    wigner: Tensor,
    onsite: Tensor,
    layout: str,
) -> Tensor:
    fast = layout == "ir_mul"
    edges = wigner.shape[0]
    tables = frame_tables(plan, wigner.device, tuple(t.shape[1] for t in sources))
    missing = [None] * (MOST_SOURCES - len(sources))
    index, order, ptr = ([*found, *missing] for found in zip(*ends, strict=True))
    frame = to_edge(
        *sources, *missing, *tables.tables_in, *missing, *index, *order, *ptr, wigner, tables.frame_in, fast, False
    )
    shapes = [(1 if block.m == 0 else 2, block.width_in, block.width_out) for block in plan.blocks]
    onsite_sizes = [matrices.shape[0] - sum(tables.onsite_sizes), *tables.onsite_sizes]
    between, *own = torch.split(matrices, onsite_sizes)
    joined = block_matmul(frame, between, edges, shapes)
    out = from_edge(joined, tables.table_out, None, None, None, wigner, plan.plan.dim_out, fast, False)
    if onsite.numel():
        rows = [t[onsite if i is None else i[onsite]] for t, (i, _, _) in zip(sources, ends, strict=True)]
        out = out.index_copy(0, onsite, _onsite(torch.cat(rows, dim=1), own, plan, fast))
    return out


def _onsite(x, matrices, plan, channels_fast):
    """Edges of length zero: the same matrix for every m of an irrep."""
    irreps1, irreps3 = plan.plan.irreps_in1, plan.plan.irreps_out
    blocks = torch.split(x, [mul * (2 * l + 1) for mul, l, _ in irreps1], dim=1)
    out: list[Tensor] = [x.new_zeros(x.shape[0], 2 * l + 1, mul) for mul, l, _ in irreps3]
    for matrix, coupling in zip(matrices, plan.onsite, strict=True):
        (mul1, l, _), mul3 = irreps1[coupling.i_in1], irreps3[coupling.i_out][0]
        if channels_fast:
            block = blocks[coupling.i_in1].view(-1, 2 * l + 1, mul1)
        else:
            block = blocks[coupling.i_in1].view(-1, mul1, 2 * l + 1).transpose(1, 2)
        out[coupling.i_out] = out[coupling.i_out] + block @ matrix.view(mul1, mul3)
    if not channels_fast:
        out = [block.transpose(1, 2) for block in out]
    return torch.cat([block.flatten(1) for block in out], dim=1)
