"""The update of an edge's features from those of the nodes it joins: gather, sum, layer normalisation and activation in one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import HALF, check_device, check_rows, check_same, check_tensor
from hamfast.ops.edge_einsum import sum_over_edges, to_edges
from hamfast.ops.edge_index import EdgeIndex, check_graph
from hamfast.ops.transforms import by_sample, differentiable, is_transformed, second_derivative

_NAME = "edge_update"
_ACTIVATIONS = ("silu", "identity")
_PLACES = ("edge", "sender", "receiver")
_OPERANDS = 5  # three sorts of rows, weight and bias
_GRAPH = 6
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
    """``y[e] = act(norm(edge[e] + sender[s] + receiver[t]))`` for every edge e = (sender s -> receiver t).

    ``norm(x) = weight (x - mean) / sqrt(variance + epsilon) + bias``, mean and variance of a row: torch's LayerNorm.
    With a linear layer's ``W [n_s | e | n_t]`` as three matrices, two of which meet rows of nodes, this is the first half of the
    edge update of most networks on graphs: MLPs of (sender, edge, receiver), with a normalisation or without one.

    Args:
        edges: from :func:`hamfast.ops.edge_index`.
        edge, sender, receiver: ``[edges | num_senders | num_receivers, width]``, one of them at least.
        weight, bias: ``[width]``, both or neither; without them nothing is normalised.
        epsilon: added to the variance.
        activation: ``silu`` or ``identity``.

    Returns:
        ``[edges, width]``. Differentiable to any order, in reverse and forward mode and under ``torch.func``; the first two derivatives are
        kernels, their sums over the edges of a node are made in a fixed order: deterministic. Nothing but the operands is kept for them.
        bfloat16 and float16 rows are computed in float32 and stay as they are stored; so do they under autocast.

    Raises:
        ValueError: a shape, dtype or device does not fit, or an argument is missing; the message names it.
    """
    rows: tuple[Tensor | None, ...] = (edge, sender, receiver)
    check_graph(_NAME, edges)
    place, first = next(((name, t) for name, t in zip(_PLACES, rows, strict=True) if t is not None), ("", None))
    if first is None:
        raise ValueError(f"{_NAME}: expected at least one of edge, sender and receiver, found none")
    check_tensor(_NAME, place, first)
    if first.dim() != 2:
        raise ValueError(f"{_NAME}: {place}: expected [rows, width], found {list(first.shape)}")
    if (weight is None) != (bias is None):
        found = "weight" if bias is None else "bias"
        raise ValueError(f"{_NAME}: expected weight and bias, or neither, found only {found}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{_NAME}: activation: expected {' or '.join(_ACTIVATIONS)}, found {activation!r}")
    if not epsilon >= 0:
        raise ValueError(f"{_NAME}: epsilon: expected 0 or more, found {epsilon}")
    width = first.shape[-1]
    for name, tensor, count in zip(
        _PLACES, rows, (edges.num_edges, edges.num_senders, edges.num_receivers), strict=True
    ):
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
    check_same(_NAME, True, **dict(zip(_PLACES, rows, strict=True)))
    dtype = next(t.dtype for t in rows if t is not None)
    if weight is not None and bias is not None:
        number = torch.float32 if dtype in HALF else dtype
        if autocast or dtype in HALF:
            weight, bias = weight.to(number), bias.to(number)
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor.dtype != number:
                raise ValueError(f"{_NAME}: {name}: expected {number}, found {tensor.dtype}")
    check_device(_NAME, **dict(zip(_PLACES, rows, strict=True)), weight=weight, bias=bias, edges=edges.senders)
    call = _Call((*edges.by_sender, *edges.by_receiver), float(epsilon), activation == "silu")
    operands = (*rows, weight, bias)
    if not autocast:
        return _run(operands, call)
    with torch.autocast(first.device.type, enabled=False):
        return _run(operands, call)


class _Call(NamedTuple):
    """All of a call but its operands."""

    graph: tuple[Tensor, ...]
    epsilon: float
    silu: bool

    @property
    def arguments(self) -> tuple:
        return (*self.graph, self.epsilon, self.silu)


def _run(operands: tuple[Tensor | None, ...], call: _Call) -> Tensor:
    if is_transformed(operands):
        return _formula(operands, call).to(next(t.dtype for t in operands if t is not None))
    return _op(*operands, *call.arguments)


def _formula(operands, call: _Call) -> Tensor:
    """What the kernel computes, in float32 or float64; differentiable to any order."""
    number = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in operands) else torch.float32
    edge, sender, receiver, weight, bias = (t if t is None else t.to(number) for t in operands)
    terms = [] if edge is None else [edge]
    terms += [
        to_edges(t, place, call.graph) for t, place in ((sender, "sender"), (receiver, "receiver")) if t is not None
    ]
    x = sum(terms[1:], terms[0])
    if weight is not None:
        x = functional.layer_norm(x, weight.shape, weight, bias, call.epsilon)
    return functional.silu(x) if call.silu else x


@torch.library.register_fake("hamfast::edge_update")
def _(edge, sender, receiver, weight, bias, senders, *rest):
    like = next(t for t in (edge, sender, receiver) if t is not None)
    return like.new_empty(senders.shape[0], like.shape[1])


@torch.library.register_fake("hamfast::edge_update_backward")
def _(grad, edge, sender, receiver, weight, bias, senders, *rest):
    return _fake_gradients((edge, sender, receiver), weight, senders)


@torch.library.register_fake("hamfast::edge_update_double_backward")
def _(sum_dot, norm_dot, grad, edge, sender, receiver, weight, bias, senders, *rest):
    of_sum, of_norm = _fake_gradients((edge, sender, receiver), weight, senders)
    return torch.empty_like(of_sum), of_sum, of_norm


def _fake_gradients(rows, weight, senders):
    like = next(t for t in rows if t is not None)
    number = torch.float32 if like.dtype in HALF else like.dtype
    of_norm = like.new_empty(2, 0 if weight is None else like.shape[1], dtype=number)
    return like.new_empty(senders.shape[0], like.shape[1]), of_norm


def _setup_context(ctx, inputs, output):
    ctx.settings = inputs[_OPERANDS + _GRAPH :]
    ctx.save_for_backward(*inputs[: _OPERANDS + _GRAPH])


def _backward(ctx, grad):
    saved, needed = ctx.saved_tensors, ctx.needs_input_grad
    graph = saved[_OPERANDS:]
    of_sum, of_norm = _op_backward(grad, *saved, *ctx.settings)
    to_norm = [of_norm[n] if needed[3 + n] else None for n in (0, 1)]
    return (*_to_rows(of_sum, of_sum.dtype, needed[:3], graph), *to_norm, *(None,) * (_GRAPH + 2))


def _setup_backward(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # nothing is derived along directions of zeros
    ctx.settings = inputs[1 + _OPERANDS + _GRAPH :]
    ctx.save_for_backward(*inputs[: 1 + _OPERANDS + _GRAPH])


def _double_backward(ctx, of_sum, of_norm):
    """Along directions of the derivatives in the sum, the weight and the bias."""
    grad, *operands = ctx.saved_tensors[: 1 + _OPERANDS]
    call = _Call(ctx.saved_tensors[1 + _OPERANDS :], *ctx.settings)
    needed = ctx.needs_input_grad[: 1 + _OPERANDS]
    if not torch.is_grad_enabled():  # no third derivative will follow
        if of_sum is None and of_norm is None:
            return (None,) * (1 + _OPERANDS + _GRAPH + 2)
        to_grad, to_sum, of_both = _op_double(of_sum, of_norm, *ctx.saved_tensors, *ctx.settings)
        to_norm = [of_both[n] if needed[4 + n] else None for n in (0, 1)]
        to_rows = _to_rows(to_sum, grad.dtype, needed[1:4], call.graph)
        return (to_grad, *to_rows, *to_norm, *(None,) * (_GRAPH + 2))
    total = _formula((*operands[:3], None, None), call._replace(silu=False))
    along = (of_sum, *((None, None) if operands[3] is None or of_norm is None else of_norm))
    to_grad, to_sum, *to_norm = second_derivative(
        lambda given: (_formula((given[0], None, None, *given[1:]), call),),
        (total, *operands[3:]),
        (grad,),
        along,
        (needed[0], any(needed[1:4]), *needed[4:]),
    )
    to_rows = _to_rows(to_sum, grad.dtype, needed[1:4], call.graph)
    return (to_grad, *to_rows, *to_norm, *(None,) * (_GRAPH + 2))


def _to_rows(
    of_sum: Tensor | None, dtype: torch.dtype, needed: Sequence[bool], graph: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """Gradients of the edges', the senders' and the receivers' rows from that of their sum."""
    if of_sum is None:
        return [None] * 3
    wide = of_sum.float() if of_sum.dtype in HALF else of_sum
    found: list[Tensor | None] = [of_sum.to(dtype) if needed[0] else None]
    for n in (1, 2):
        found.append(sum_over_edges(wide, _PLACES[n], graph).to(dtype) if needed[n] else None)
    return found


_op = differentiable("edge_update", _backward, _setup_context)
_op_backward = differentiable("edge_update_backward", _double_backward, _setup_backward)
torch.library.register_vmap("hamfast::edge_update_double_backward", by_sample(_op_double))
