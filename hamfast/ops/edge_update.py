"""The update of an edge's features from those of the nodes it joins: gather, sum, layer
normalisation and activation in one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import HALF, check_device, check_rows, check_same, check_tensor
from hamfast.ops.edge_einsum import sum_over_edges, to_edges
from hamfast.ops.edge_index import EdgeIndex, check_graph
from hamfast.ops.transforms import by_sample, differentiable, is_transformed, second_derivative
from hamfast.records.choices import RowOf
from hamfast.records.ops import EDGE_UPDATE, EDGE_UPDATE_BACKWARD, EDGE_UPDATE_DOUBLE_BACKWARD, UPDATE_OPERANDS

_NAME = "edge_update"
_ACTIVATIONS = ("silu", "identity")
_ROWS = RowOf.names()
_op_double = torch.ops.hamfast.edge_update_double_backward.default


def edge_update(
    edges: EdgeIndex,
    edge: Tensor | None = None,
    sender: Tensor | None = None,
    receiver: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    activation: str = "silu",
) -> Tensor:
    """``y[e] = act(norm(edge[e] + sender[s] + receiver[t]))`` for every edge e = (sender s ->
    receiver t).

    ``norm(x) = weight (x - mean) / sqrt(variance + epsilon) + bias``, mean and variance of a row:
    torch's LayerNorm. With a linear layer's ``W [n_s | e | n_t]`` as three matrices, two of which
    meet rows of nodes, this is the first half of the edge update of most networks on graphs: MLPs
    of (sender, edge, receiver), with a normalisation or without one.

    Args:
        edges: from :func:`hamfast.ops.edge_index`.
        edge, sender, receiver: ``[edges | num_senders | num_receivers, width]``, one of them at
            least.
        weight, bias: ``[width]``, both or neither; without them nothing is normalised.
        epsilon: added to the variance.
        activation: ``silu`` or ``identity``.

    Returns:
        ``[edges, width]``. Differentiable to any order, in reverse and forward mode and under
        ``torch.func``; the first two derivatives are kernels, their sums over the edges of a node
        are made in a fixed order: deterministic. Nothing but the operands is kept for them.
        bfloat16 and float16 rows are computed in float32 and stay as they are stored; so do they
        under autocast.

    Raises:
        ValueError: a shape, dtype or device does not fit, or an argument is missing; the message
            names it.
    """
    rows: tuple[Tensor | None, ...] = (edge, sender, receiver)
    check_graph(_NAME, edges)
    given, first = next(((name, t) for name, t in zip(_ROWS, rows, strict=True) if t is not None), ("", None))
    if first is None:
        raise ValueError(f"{_NAME}: expected at least one of edge, sender and receiver, found none")
    check_tensor(_NAME, given, first)
    if first.dim() != 2:
        raise ValueError(f"{_NAME}: {given}: expected [rows, width], found {list(first.shape)}")
    if (weight is None) != (bias is None):
        found = "weight" if bias is None else "bias"
        raise ValueError(f"{_NAME}: expected weight and bias, or neither, found only {found}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{_NAME}: activation: expected {' or '.join(_ACTIVATIONS)}, found {activation!r}")
    if not epsilon >= 0:
        raise ValueError(f"{_NAME}: epsilon: expected 0 or more, found {epsilon}")
    width = first.shape[-1]
    for (name, count), tensor in zip(edges.rows.items(), rows, strict=True):
        if tensor is not None:
            check_rows(_NAME, name, tensor, count, width)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        check_tensor(_NAME, name, tensor)
        if tensor.shape != (width,):
            raise ValueError(f"{_NAME}: {name}: expected [{width}], found {list(tensor.shape)}")
    autocast = torch.is_autocast_enabled(first.device.type)
    if autocast and len({t.dtype for t in rows if t is not None}) > 1:
        rows = tuple(t if t is None else t.float() for t in rows)
    check_same(_NAME, True, **dict(zip(_ROWS, rows, strict=True)))
    dtype = next(t.dtype for t in rows if t is not None)
    if weight is not None and bias is not None:
        compute = torch.float32 if dtype in HALF else dtype
        if autocast or dtype in HALF:
            weight, bias = weight.to(compute), bias.to(compute)
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor.dtype != compute:
                raise ValueError(f"{_NAME}: {name}: expected {compute}, found {tensor.dtype}")
    check_device(_NAME, **dict(zip(_ROWS, rows, strict=True)), weight=weight, bias=bias, edges=edges.senders)
    operands, graph = (*rows, weight, bias), edges.graph
    settings = (float(epsilon), activation == "silu")
    if not autocast:
        return _run(operands, graph, settings)
    with torch.autocast(first.device.type, enabled=False):
        return _run(operands, graph, settings)


def _run(operands: tuple[Tensor | None, ...], graph: Any, settings: tuple[float, bool]) -> Tensor:
    if is_transformed(operands):
        return _formula(operands, graph, *settings).to(next(t.dtype for t in operands if t is not None))
    return _op(*operands, *graph, *settings)


def _formula(operands, graph, epsilon: float, silu: bool) -> Tensor:
    """What the kernel computes, in float32 or float64; differentiable to any order."""
    compute = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in operands) else torch.float32
    edge, sender, receiver, weight, bias = (t if t is None else t.to(compute) for t in operands)
    terms = [] if edge is None else [edge]
    terms += [to_edges(t, end, graph) for t, end in ((sender, "sender"), (receiver, "receiver")) if t is not None]
    x = sum(terms[1:], terms[0])
    if weight is not None:
        x = functional.layer_norm(x, weight.shape, weight, bias, epsilon)
    return functional.silu(x) if silu else x


@torch.library.register_fake("hamfast::edge_update")
def _(*flat):
    return _new_rows(EDGE_UPDATE.read(flat))


@torch.library.register_fake("hamfast::edge_update_backward")
def _(*flat):
    arguments = EDGE_UPDATE_BACKWARD.read(flat)
    return _new_rows(arguments), _new_norm(arguments)


@torch.library.register_fake("hamfast::edge_update_double_backward")
def _(*flat):
    arguments = EDGE_UPDATE_DOUBLE_BACKWARD.read(flat)
    return _new_rows(arguments), _new_rows(arguments), _new_norm(arguments)


def _new_rows(arguments) -> Tensor:
    like = next(t for t in arguments.operands[: len(_ROWS)] if t is not None)
    return like.new_empty(arguments.graph.senders.shape[0], like.shape[1])


def _new_norm(arguments) -> Tensor:
    """Room for the gradients of weight and bias, ``[2, width]``, or ``[2, 0]``."""
    like, weight = _new_rows(arguments), arguments.operands.weight
    compute = torch.float32 if like.dtype in HALF else like.dtype
    return like.new_empty(2, 0 if weight is None else like.shape[1], dtype=compute)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: EDGE_UPDATE.tensors])
    ctx.settings = inputs[EDGE_UPDATE.tensors :]


def _backward(ctx, grad):
    saved = ctx.saved_tensors  # once: a checkpointed activation cannot be taken twice
    arguments = EDGE_UPDATE.read((*saved, *ctx.settings))
    needed = UPDATE_OPERANDS.fields(*ctx.needs_input_grad[: len(UPDATE_OPERANDS)])
    grad_sum, grad_norm = _op_backward(grad, *saved, *ctx.settings)
    rows = _gradients_of_rows(grad_sum, grad_sum.dtype, needed, arguments.graph)
    return EDGE_UPDATE.per_argument(operands=[*rows, *_gradients_of_norm(grad_norm, needed)])


def _setup_backward(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # nothing is derived along tangents of zeros
    ctx.save_for_backward(*inputs[: EDGE_UPDATE_BACKWARD.tensors])
    ctx.settings = inputs[EDGE_UPDATE_BACKWARD.tensors :]


def _double_backward(ctx, tangent_sum, tangent_norm):
    """Along tangents of the derivatives in the sum, the weight and the bias."""
    saved = ctx.saved_tensors
    arguments = EDGE_UPDATE_BACKWARD.read((*saved, *ctx.settings))
    grad, operands, graph = arguments.grad, arguments.operands, arguments.graph
    needs_grad, *others = ctx.needs_input_grad[: 1 + len(operands)]
    needed = UPDATE_OPERANDS.fields(*others)
    if not torch.is_grad_enabled():  # no third derivative will follow
        if tangent_sum is None and tangent_norm is None:
            return EDGE_UPDATE_BACKWARD.per_argument()
        grad_grad, grad_sum, grad_norm = _op_double(tangent_sum, tangent_norm, *saved, *ctx.settings)
        norm = _gradients_of_norm(grad_norm, needed)
    else:
        norm_operands = (operands.weight, operands.bias)
        epsilon, silu = arguments.settings
        total = _formula(operands._replace(weight=None, bias=None), graph, epsilon, False)
        no_norm = operands.weight is None or tangent_norm is None
        grad_grad, grad_sum, *norm = second_derivative(
            lambda given: (_formula((given[0], None, None, *given[1:]), graph, epsilon, silu),),
            (total, *norm_operands),
            (grad,),
            (tangent_sum, *((None, None) if no_norm else tangent_norm)),
            (needs_grad, any(needed[: len(_ROWS)]), needed.weight, needed.bias),
        )
    rows = _gradients_of_rows(grad_sum, grad.dtype, needed, graph)
    return EDGE_UPDATE_BACKWARD.per_argument(grad=grad_grad, operands=[*rows, *norm])


def _gradients_of_rows(grad_sum: Tensor | None, dtype: torch.dtype, needed: Any, graph: Any) -> list[Tensor | None]:
    """Those of the edges', the senders' and the receivers' rows from that of their sum."""
    if grad_sum is None:
        return [None] * len(_ROWS)
    wide = grad_sum.float() if grad_sum.dtype in HALF else grad_sum
    found: list[Tensor | None] = [grad_sum.to(dtype) if needed.edge else None]
    for end in ("sender", "receiver"):
        found.append(sum_over_edges(wide, end, graph).to(dtype) if getattr(needed, end) else None)
    return found


def _gradients_of_norm(grad_norm: Tensor, needed: Any) -> list[Tensor | None]:
    return [grad_norm[0] if needed.weight else None, grad_norm[1] if needed.bias else None]


_op = differentiable("edge_update", _backward, _setup_context)
_op_backward = differentiable("edge_update_backward", _double_backward, _setup_backward)
torch.library.register_vmap("hamfast::edge_update_double_backward", by_sample(_op_double))
