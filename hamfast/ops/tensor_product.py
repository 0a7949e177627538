"""Clebsch-Gordan tensor product of rows, or over the edges of a graph."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamfast import run_time_compiler
from hamfast.constants import constant, real_tensors
from hamfast.ops import backend
from hamfast.ops.block_matmul import block_matmul
from hamfast.ops.checks import HALF, check_rows, check_same, check_tensor, found
from hamfast.ops.edge_einsum import sum_over_edges, to_edges
from hamfast.ops.edge_index import EdgeIndex, check_graph
from hamfast.ops.irreps_blocks import rows_of_blocks
from hamfast.ops.irreps_linear import LinearTables, by_tables, linear_tables
from hamfast.ops.layout import check_layout, convert_layout
from hamfast.ops.multilinear import make_tables, mix_blocks, multilinear
from hamfast.ops.notice import slow_path
from hamfast.ops.path_einsum import product_by_paths
from hamfast.ops.radial import RadialWeights, radial_product
from hamfast.ops.radial_mix import radial_mix_at_receivers, radial_mix_at_senders
from hamfast.ops.row_matmul import row_matmul, row_tables
from hamfast.ops.transforms import is_transformed
from hamfast.plan import Plan
from hamfast.plan.channel import is_channel_wise, is_mixing, live_paths
from hamfast.plan.cost import TUNED, TYPICAL_ROWS, choose_lowering, estimates, fewer_at_nodes, rows_like
from hamfast.plan.linear import LinearPlan, linear_of_scalars
from hamfast.plan.plan import Instruction


def tensor_product(
    x: Tensor,
    y: Tensor,
    weight: Tensor | RadialWeights | None,
    plan: Plan,
    edges: EdgeIndex | None = None,
    *,
    gather: bool = True,
    scatter: bool = True,
    layout: str = "mul_ir",
    lowering: str | None = None,
) -> Tensor:
    """The tensor product of ``plan``: ``e3nn.o3.TensorProduct`` on the same weights, or its graph
    convolution.

    Without ``edges``, ``out[r] = TP(x[r], y[r], w[r])``. With ``edges``,
    ``out[n] = sum over e with receivers[e] = n of TP(x[senders[e]], y[e], w[e])``, in one pass.

    Args:
        x: ``[rows, plan.dim_in1]``; with ``edges`` and ``gather``, ``[num_senders, plan.dim_in1]``.
            float32, float64, or bfloat16 or float16 as storage: sums and products are then float32.
        y: ``[rows, plan.dim_in2]``, dtype of ``x``; one row per edge with ``edges``. Layout
            ``mul_ir``.
        weight: ``[plan.weight_numel]`` shared by all rows, or ``[rows, plan.weight_numel]``; None
            if the plan has none. Or :class:`RadialWeights`: then weights per row are made on the
            fly, and need no memory.
        plan: from :func:`hamfast.plan.make_plan`.
        edges: from :func:`hamfast.ops.edge_index`.
        gather: with ``edges``: read ``x`` through ``senders`` (else ``x`` has one row per edge).
        scatter: with ``edges``: sum the result by ``receivers`` (else one row per edge is
            returned).
        layout: of ``x`` and of the result, ``mul_ir`` (e3nn's) or ``ir_mul`` (channels fastest, no
            reordering inside).
        lowering: ``channel``, ``mix``, ``einsum`` or ``general``; by default
            :func:`hamfast.plan.cost.choose_lowering` decides.

    Returns:
        ``[rows, plan.dim_out]``, or ``[num_receivers, plan.dim_out]`` with ``scatter``; contiguous.
        Differentiable in ``x``, ``y`` and ``weight`` to any order. Deterministic: sums run in a
        fixed order.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    _check_types(x, y, weight, plan, edges)
    gather, scatter = gather and edges is not None, scatter and edges is not None
    rows = edges.num_edges if edges is not None else x.shape[0]
    x, y, weight = _under_autocast(x, y, weight)
    check_layout(layout)
    check_rows("tensor_product", "x", x, edges.num_senders if gather and edges is not None else rows, plan.dim_in1)
    check_rows("tensor_product", "y", y, rows, plan.dim_in2)
    _check_weight(x, y, weight, rows, plan.weight_numel)
    if isinstance(weight, RadialWeights) and edges and _meets_nodes(plan, x, weight, edges, gather, scatter):
        if scatter:
            return radial_mix_at_receivers(x, y, weight, plan, edges, gather, layout)
        return radial_mix_at_senders(x, y, weight, plan, edges, layout)
    if isinstance(weight, RadialWeights) and (not _makes_weights(plan, x, weight) or is_transformed((x, y, *weight))):
        weight = weight.weights()
    if isinstance(weight, RadialWeights):
        tables = make_tables(plan, "channel", x.dtype, x.device)
        return radial_product(x, y, weight, tables, edges, gather, scatter, layout)
    shared = weight is None or weight.dim() == 1
    linear = scalar_plan(plan) if shared and edges is None and lowering is None else None
    if linear is not None and linear.species == 1:
        assert weight is not None
        scalar = _scalar_tables(plan, weight.dtype, x.device)
        return by_tables(x, weight * scalar.factors, scalar.tables, layout) * y
    derivatives = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, y, weight))
    chosen = _chosen(plan, shared, x.device.type, lowering, rows, derivatives)
    out = None
    for part, kernel in _parts(plan, chosen):
        if kernel == "mix":
            assert weight is not None
            made = _mix(x, y, weight, plan, edges, gather, scatter, layout)
        elif kernel == "channel":
            tables = make_tables(plan, "channel", x.dtype, x.device)
            made = multilinear(x, y, weight, tables, edges, gather, scatter, (layout, layout))
        elif kernel == "general":
            made = _general(x, y, weight, plan, edges, gather, scatter, layout)
        else:
            made = _einsum(x, y, weight, plan, part, edges, gather, scatter, layout)
        out = made if out is None else out + made
    assert out is not None
    return out


@torch.compiler.assume_constant_result
def scalar_plan(plan: Plan) -> LinearPlan | None:
    """The linear maps that a product with scalars is, one for each; None for other plans."""
    return linear_of_scalars(plan)


class _ScalarTables(NamedTuple):
    """Of a product with scalars.

    A tuple, as graphs of torch.compile refuse a second tensor from one function of constants.
    """

    tables: LinearTables
    factors: Tensor
    """``[weight_numel]``: what the weights are multiplied by."""


_SCALAR_TABLES: dict[tuple[Plan, torch.dtype, torch.device], _ScalarTables] = {}


@torch.compiler.assume_constant_result
def _scalar_tables(plan: Plan, dtype: torch.dtype, device: torch.device) -> _ScalarTables:
    key = (plan, dtype, device)
    if key not in _SCALAR_TABLES:
        linear = linear_of_scalars(plan)
        assert linear is not None
        sizes = [2 * plan.irreps_out[ins.i_out][1] + 1 for ins in plan.instructions]
        paths = zip(plan.instructions, sizes, strict=True)
        rows = [np.full(ins.weight_numel, ins.coefficient * size**-0.5) for ins, size in paths]
        with real_tensors():
            factors = constant(np.concatenate(rows), device, dtype)
        _SCALAR_TABLES[key] = _ScalarTables(linear_tables(linear, device), factors)
    return _SCALAR_TABLES[key]


def weights_of_scalar_plan(weight: Tensor, plan: Plan) -> Tensor:
    """``[weight_numel]``: of the linear maps that a product with scalars is.

    They are the path's coefficient times the 3j symbol (l 0 l), which is 1 / sqrt(2 l + 1) on its
    diagonal.
    """
    return weight * _scalar_tables(plan, weight.dtype, weight.device).factors


def _makes_weights(plan: Plan, x: Tensor, weight: RadialWeights) -> bool:
    """Can weights be made inside the kernel? Where not, they are stored: the result is the same."""
    if weight.hidden.shape[-1] == 0 and weight.bias is None:  # there is nothing to make them of
        return False
    device = x.device.type
    # The CUDA kernels make half-precision weights as well.
    knows_dtype = x.dtype not in HALF or (device == "cuda" and backend.current() == "cuda")
    return device in TUNED and not _problem(device) and knows_dtype and _all_channel_wise(plan)


def _meets_nodes(plan: Plan, x: Tensor, weight: RadialWeights, edges: EdgeIndex, gather: bool, scatter: bool) -> bool:
    """Does the radial layer meet nodes in place of edges, as ``radial_mix.py`` has it?"""
    if x.device.type != "cpu" or x.dtype in HALF or not (gather or scatter) or not _all_mixing(plan):
        return False
    if torch.compiler.is_compiling():  # the numbers are symbols
        return True
    width = weight.hidden.shape[1] + (weight.bias is not None)
    nodes = edges.num_receivers if scatter else edges.num_senders
    return fewer_at_nodes(plan, width, edges.num_edges, nodes, scatter)


@torch.compiler.assume_constant_result
def _all_mixing(plan):
    live = live_paths(plan)
    return bool(live) and all(is_mixing(plan, ins) for ins in live) and len(live) == len(plan.instructions)


@torch.compiler.assume_constant_result
def _all_channel_wise(plan):
    return all(is_channel_wise(plan, ins) for ins in live_paths(plan))


def _chosen(plan: Plan, shared: bool, device: str, wanted: str | None, rows: Any, derivatives: bool) -> str:
    # While torch traces, the number of rows is a symbol: one choice for all.
    known = isinstance(rows, int) and not torch.compiler.is_compiling()
    return _choice(plan, shared, device, wanted, rows_like(rows) if known else TYPICAL_ROWS, derivatives or not known)


@torch.compiler.assume_constant_result
def _choice(plan: Plan, shared: bool, device: str, wanted: str | None, rows: int, derivatives: bool) -> str:
    problem = _problem(device)
    if wanted is None:
        return "general" if problem else choose_lowering(plan, shared, device, rows=rows, derivatives=derivatives)
    if problem and wanted in ("channel", "mix"):
        raise ValueError(f"tensor_product: lowering: {wanted!r} cannot run: {problem}; 'general' can")
    # On GPUs the general kernel is never the choice, and can be asked for.
    possible = [e.lowering for e in estimates(plan, shared, device)] + (["general"] if device in TUNED else [])
    if wanted not in possible:
        weights = "shared weights" if shared else "weights per row"
        raise ValueError(
            f"tensor_product: lowering: expected {' or '.join(dict.fromkeys(possible))} for this plan with {weights} on {device}, found {wanted!r}"
        )
    return wanted


@torch.compiler.assume_constant_result
def _problem(device: str) -> str:
    """Why only the general kernel can run."""
    return run_time_compiler.problem() if device == "cuda" and backend.current() == "cuda" else ""


@torch.compiler.assume_constant_result
def _parts(plan: Plan, chosen: str) -> list[tuple[tuple[Instruction, ...], str]]:
    """Which paths run on what: those that the chosen lowering does not cover run on torch's
    operations, and channel-wise ones beside ``mix`` on their kernel."""
    live = tuple(live_paths(plan))
    if chosen in ("general", "einsum"):
        return [(live, chosen)]
    wise = tuple(ins for ins in live if is_channel_wise(plan, ins))
    mixing = tuple(ins for ins in live if chosen == "mix" and is_mixing(plan, ins))
    rest = tuple(ins for ins in live if ins not in wise and ins not in mixing)
    parts = [(mixing, "mix"), (wise, "channel"), (rest, "einsum")]
    return [part for part in parts if part[0]] or [((), "einsum")]


def _check_types(x: Any, y: Any, weight: Any, plan: Any, edges: Any) -> None:
    tensors = {"x": x, "y": y}
    if isinstance(weight, RadialWeights):
        tensors |= {"weight.hidden": weight.hidden, "weight.matrix": weight.matrix}
        weight = weight.bias
    for name, tensor in tensors.items():
        check_tensor("tensor_product", name, tensor)
    if weight is not None:
        check_tensor("tensor_product", "weight", weight)
    if not isinstance(plan, Plan):
        raise TypeError(f"tensor_product: plan: expected a Plan from hamfast.plan.make_plan, found {found(plan)}")
    if edges is not None:
        check_graph("tensor_product", edges)


def _check_weight(x: Tensor, y: Tensor, weight: Tensor | RadialWeights | None, rows: int, numel: int) -> None:
    if isinstance(weight, RadialWeights):
        weight.check(rows, numel)
        return check_same("tensor_product", True, x=x, y=y, **weight._asdict())
    if weight is None and numel:
        raise ValueError(f"tensor_product: weight: expected {numel} numbers per row, found None")
    if weight is not None and weight.dim() == 1 and weight.shape[0] != numel:
        raise ValueError(f"tensor_product: weight: expected [{numel}] or [{rows}, {numel}], found {list(weight.shape)}")
    if weight is not None and weight.dim() != 1:
        check_rows("tensor_product", "weight", weight, rows, numel)
    check_same("tensor_product", True, x=x, y=y, weight=weight)


def _under_autocast(x: Tensor, y: Tensor, weight: Any) -> tuple[Tensor, Tensor, Any]:
    """Under autocast operands come in several dtypes: all become the widest. Sums inside are
    float32 or wider anyway."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, y, weight
    radial = isinstance(weight, RadialWeights)
    tensors = [x, y, *(weight if radial else [weight])]
    widest = reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))
    x, y, *rest = (None if t is None else t.to(widest) for t in tensors)  # type: ignore[assignment]
    return x, y, RadialWeights(*rest) if radial else rest[0]  # type: ignore[arg-type]


def broadcast_tensor_product(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    plan: Plan,
    layout: str = "mul_ir",
    lowering: str | None = None,
) -> Tensor:
    """:func:`tensor_product` with leading dimensions that broadcast, as e3nn's modules take them.

    Args:
        x, y: ``[..., dim_in1]``, ``[..., dim_in2]``.
        weight: ``[weight_numel]``, or ``[..., weight_numel]``.

    Returns:
        ``[..., dim_out]``.
    """
    _check_types(x, y, weight, plan, None)
    rows = [x, y] if weight is None or weight.dim() == 1 else [x, y, weight]
    leading = torch.broadcast_shapes(*(t.shape[:-1] for t in rows))
    rows = [t.expand(*leading, t.shape[-1]).reshape(math.prod(leading), t.shape[-1]) for t in rows]
    out = tensor_product(rows[0], rows[1], rows[2] if len(rows) > 2 else weight, plan, layout=layout, lowering=lowering)
    return out.view(*leading, plan.dim_out)


def _general(x, y, weight, plan, edges, gather, scatter, layout):
    """All paths on the kernel that knows every mode: it works in ``mul_ir``, in float32 or
    float64."""
    if problem := _problem(x.device.type):
        slow_path("tensor_product", x.device.type, problem)
    dtype = x.dtype
    x, y, weight = _in_float32(x, y, weight)
    tables = make_tables(plan, "general", x.dtype, x.device)
    x = convert_layout(x, plan.irreps_in1, layout, "mul_ir")
    out = multilinear(x, y, weight, tables, edges, gather, scatter, ("mul_ir", "mul_ir"))
    return convert_layout(out, plan.irreps_out, "mul_ir", layout).to(dtype)


def _in_float32(x, y, weight):
    """Half-precision operands as float32; wider ones as they are."""
    if x.dtype not in HALF:
        return x, y, weight
    return x.float(), y.float(), None if weight is None else weight.float()


def _einsum(x, y, weight, plan, paths, edges, gather, scatter, layout):
    """Some paths by torch's operations, in ``mul_ir``, in float32 or float64."""
    dtype = x.dtype
    x, y, weight = _in_float32(x, y, weight)
    x = convert_layout(x, plan.irreps_in1, layout, "mul_ir")
    if gather:
        x = to_edges(x, "sender", edges.graph)
    out = product_by_paths(x, y, weight, plan, paths)
    if scatter:
        out = sum_over_edges(out, "receiver", edges.graph)
    return convert_layout(out, plan.irreps_out, "mul_ir", layout).to(dtype)


def _mix(x, y, weight, plan, edges, gather, scatter, layout):
    """Coupled pairs of channels of all rows, [2 l + 1, pairs] per output block, times the weights.

    Shared weights are one matrix product per block; with ``scatter`` the pairs are summed over
    edges first, so that it is one of nodes. Weights per row are a matrix product per row.
    """
    shared, dtype = weight.dim() == 1, x.dtype
    if not shared:
        x, y, weight = _in_float32(x, y, weight)
    tables, mixes = make_tables(plan, "pairs", x.dtype, x.device), mix_blocks(plan)
    pairs = multilinear(x, y, None, tables, edges, gather, scatter and shared, (layout, "blocks"))
    rows = pairs.shape[0]
    if shared:
        # One split: its derivative is one concatenation, where that of slices is a full tensor
        # each.
        matrices = weight.split([ins.weight_numel for ins in plan.instructions])
        flat = torch.cat(
            [_v_slow(matrices[n], plan.instructions[n]).flatten() for mix in mixes for n in mix.instructions]
        )
        mixed = block_matmul(pairs.flatten(), flat, rows, [(2 * mix.l + 1, mix.pairs, mix.mul) for mix in mixes])
    else:
        mixed = row_matmul(pairs.flatten(), weight, row_tables(plan, x.device))
    out = rows_of_blocks(mixed, rows, mixes, plan.irreps_out, layout)
    return (sum_over_edges(out, "receiver", edges.graph) if scatter and not shared else out).to(dtype)


def _v_slow(matrix: Tensor, ins: Instruction) -> Tensor:
    """``[..., u v w]`` -> ``[..., pairs, w]``, the pairs in the order of ``mix_tables``."""
    n1, n2, n3 = ins.weight_shape
    if n1 > 1 and n2 > 1:
        return matrix.unflatten(-1, (n1, n2, n3)).transpose(-3, -2).flatten(-3, -2)
    return matrix.unflatten(-1, (n1 * n2, n3))
