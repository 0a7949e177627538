"""Clebsch-Gordan tensor product of rows, or over the edges of a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import check_rows, check_same
from hamfast.ops.edge_index import EdgeIndex
from hamfast.plan import Plan
from hamfast.plan.coupling import wigner_3j
from hamfast.plan.plan import pair_count

_op = torch.ops.hamfast.tensor_product.default


def tensor_product(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    plan: Plan,
    edges: EdgeIndex | None = None,
    *,
    gather: bool = True,
    scatter: bool = True,
) -> Tensor:
    """The tensor product of ``plan``: ``e3nn.o3.TensorProduct`` on the same weights, or its graph convolution.

    Without ``edges``, ``out[r] = TP(x[r], y[r], w[r])``. With ``edges``,
    ``out[n] = sum over e with receivers[e] = n of TP(x[senders[e]], y[e], w[e])``, in one pass.

    Args:
        x: ``[rows, plan.dim_in1]``; with ``edges`` and ``gather``, ``[num_senders, plan.dim_in1]``. float32 or float64.
        y: ``[rows, plan.dim_in2]``, dtype of ``x``; one row per edge with ``edges``.
        weight: ``[plan.weight_numel]`` shared by all rows, or ``[rows, plan.weight_numel]``; None if the plan has none.
        plan: from :func:`hamfast.plan.make_plan`. Layout ``mul_ir``.
        edges: from :func:`hamfast.ops.edge_index`.
        gather: with ``edges``: read ``x`` through ``senders`` (else ``x`` has one row per edge).
        scatter: with ``edges``: sum the result by ``receivers`` (else one row per edge is returned).

    Returns:
        ``[rows, plan.dim_out]``, or ``[num_receivers, plan.dim_out]`` with ``scatter``; contiguous. Differentiable in
        ``x``, ``y`` and ``weight`` to any order. Deterministic: sums run in a fixed order.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    gather, scatter = gather and edges is not None, scatter and edges is not None
    rows = edges.num_edges if edges is not None else x.shape[0]
    check_rows("tensor_product", "x", x, edges.num_senders if gather and edges is not None else rows, plan.dim_in1)
    check_rows("tensor_product", "y", y, rows, plan.dim_in2)
    if weight is None:
        if plan.weight_numel:
            raise ValueError(f"tensor_product: weight: expected {plan.weight_numel} numbers per row, found None")
    elif weight.dim() == 1:
        if weight.shape[0] != plan.weight_numel:
            raise ValueError(
                f"tensor_product: weight: expected [{plan.weight_numel}] or [{rows}, {plan.weight_numel}], "
                f"found {list(weight.shape)}"
            )
    else:
        check_rows("tensor_product", "weight", weight, rows, plan.weight_numel)
    check_same("tensor_product", x=x, y=y, weight=weight)
    table, cg_index, cg_value, scratch = _tables(plan, x.device)
    sender = (edges.senders, edges.sender_order, edges.sender_ptr) if edges is not None and gather else (None,) * 3
    receiver = (
        (edges.receivers, edges.receiver_order, edges.receiver_ptr) if edges is not None and scatter else (None,) * 3
    )
    shared = weight is None or weight.dim() == 1
    dims = [plan.dim_in1, plan.dim_in2, plan.weight_numel, plan.dim_out, scratch]
    return _op(x, y, weight, None, table, cg_index, cg_value, *sender, *receiver, _OUT, rows, shared, dims)


_OUT = 3  # slot of the result: dF/dg

_TABLES: dict[tuple[Plan, torch.device], tuple[Tensor, Tensor, Tensor, int]] = {}


@torch.compiler.assume_constant_result
def _tables(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int]:
    if (plan, device) not in _TABLES:
        table, index, value, scratch = plan_table(plan)
        _TABLES[plan, device] = (table.to(device), index.to(device), value.to(device), scratch)
    return _TABLES[plan, device]


def plan_table(plan: Plan) -> tuple[Tensor, Tensor, Tensor, int]:
    """The plan as the kernels read it: ``Path`` rows and the coupling list of ``kernels/tensor_product.cuh``.

    Returns:
        table ``[paths, 16]`` int64, indices ``[entries, 3]`` int64, values ``[entries]`` float64, elements of scratch.
    """
    starts = []
    for blocks in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out):
        starts.append([0])
        for mul, l, _ in blocks:
            starts[-1].append(starts[-1][-1] + mul * (2 * l + 1))
    table: list[list[int]] = []
    index: list[Tensor] = []
    value: list[Tensor] = []
    scratch = 1
    for ins in plan.instructions:
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
        entries = torch.nonzero(torch.tensor(coupling))
        begin = sum(len(i) for i in index)
        index.append(entries)
        value.append(torch.tensor(coupling)[tuple(entries.T)] * ins.coefficient)
        table.append(
            [
                pairing,
                int(mixing),
                n1,
                n2,
                n3,
                d1,
                d2,
                d3,
                starts[0][ins.i_in1],
                starts[1][ins.i_in2],
                starts[2][ins.i_out],
                ins.weight_offset if ins.has_weight else -1,
                out_u,
                out_v,
                begin,
                begin + len(entries),
            ]
        )
        pairs = n1 if pairing < 2 else pair_count(ins.mode, n1, n2)
        outer = n2 if pairing == 0 else 1
        scratch = max(scratch, pairs * (d1 + d2) + outer * d3 * pairs + d3 * n3 + max(d1, d2) * pairs)
    return (
        torch.tensor(table, dtype=torch.int64).reshape(-1, 16),
        torch.cat(index) if index else torch.zeros(0, 3, dtype=torch.int64),
        torch.cat(value) if value else torch.zeros(0, dtype=torch.float64),
        scratch,
    )


@torch.library.register_fake("hamfast::tensor_product")
def _(
    x, y, w, g, table, cg_index, cg_value, senders, s_order, s_ptr, receivers, r_order, r_ptr, slot, edges, shared, dims
):
    like = next(t for t in (x, y, w, g) if t is not None)
    if slot == 2 and shared:
        return like.new_empty(dims[2])
    ptr = s_ptr if slot == 0 else r_ptr if slot == 3 else None
    return like.new_empty(edges if ptr is None else ptr.shape[0] - 1, dims[slot])


def _setup_context(ctx, inputs, output):
    *operands, table, cg_index, cg_value, a, b, c, d, e, f, slot, edges, shared, dims = inputs
    ctx.save_for_backward(*operands, table, cg_index, cg_value, a, b, c, d, e, f)
    ctx.rest = (slot, edges, shared, dims)


def _backward(ctx, grad):
    # F is linear in each argument, so the gradient in argument k is dF/dk with `grad` in the place of the result.
    *saved, a, b, c, d, e, f = ctx.saved_tensors
    operands, tables = list(saved[:4]), saved[4:]
    slot, edges, shared, dims = ctx.rest
    operands[slot] = grad
    grads: list[Tensor | None] = []
    for k in range(4):
        if k == slot or not ctx.needs_input_grad[k]:
            grads.append(None)
            continue
        rest = [None if n == k else operand for n, operand in enumerate(operands)]
        grads.append(_op(*rest, *tables, a, b, c, d, e, f, k, edges, shared, dims))
    return (*grads, *(None,) * 13)


torch.library.register_autograd("hamfast::tensor_product", _backward, setup_context=_setup_context)
