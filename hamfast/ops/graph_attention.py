"""Softmax attention of graph nodes over their incoming edges."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import check_rows, check_same
from hamfast.ops.edge_index import EdgeIndex

_op = torch.ops.hamfast.graph_attention.default
_op_backward = torch.ops.hamfast.graph_attention_backward.default
_op_double = torch.ops.hamfast.graph_attention_double_backward.default


def graph_attention(
    edges: EdgeIndex,
    *,
    query_edge: Tensor | None = None,
    query_source: Tensor | None = None,
    query_target: Tensor | None = None,
    key_edge: Tensor | None = None,
    key_source: Tensor | None = None,
    key_target: Tensor | None = None,
    value_edge: Tensor | None = None,
    value_source: Tensor | None = None,
    value_target: Tensor | None = None,
    scale: float | None = None,
    clip: float | None = None,
) -> Tensor:
    """Each node's softmax-weighted mean over its incoming edges, every operand a sum of edge, source and target parts.

    For an edge e = (s -> t): ``q_e = query_edge[e] + query_source[s] + query_target[t]``, k and v alike;
    ``score = clip(scale <q_e, k_e>)``; ``out[t] = sum_e softmax_e(score) v_e`` over the edges into t, per head.
    PyG's ``TransformerConv`` has query_target, key_source + key_edge, value_source + value_edge.

    Args:
        edges: from :func:`hamfast.ops.edge_index`.
        query_edge, key_edge: ``[edges, heads, width]``.
        query_source, key_source: ``[num_senders, heads, width]``.
        query_target, key_target: ``[num_receivers, heads, width]``.
        value_edge, value_source, value_target: the same with a width of their own.
        scale: factor of the score, ``1 / sqrt(width)`` by default.
        clip: scores are clipped to ``[-clip, clip]`` before the softmax; None: not clipped.

    Returns:
        ``[num_receivers, heads, value width]``, contiguous; zero for nodes without incoming edges. Differentiable twice in
        every part; a third derivative raises. Deterministic.

    Raises:
        ValueError: no part of an operand is given, or a shape, dtype or device does not fit; the message names it.
    """
    named = {
        "query_edge": query_edge,
        "query_source": query_source,
        "query_target": query_target,
        "key_edge": key_edge,
        "key_source": key_source,
        "key_target": key_target,
        "value_edge": value_edge,
        "value_source": value_source,
        "value_target": value_target,
    }
    for operand in ("query", "key", "value"):
        if all(named[f"{operand}_{part}"] is None for part in ("edge", "source", "target")):
            raise ValueError(f"graph_attention: {operand}: expected at least one of its parts, found none")
    check_same("graph_attention", **named)
    first = {op: next(t for n, t in named.items() if t is not None and n.startswith(op)) for op in ("query", "value")}
    for part in first.values():
        if part.dim() != 3:
            raise ValueError(f"graph_attention: expected parts [rows, heads, width], found {list(part.shape)}")
    heads, width = first["query"].shape[1:]
    rows = {"edge": edges.num_edges, "source": edges.num_senders, "target": edges.num_receivers}
    for name, tensor in named.items():
        if tensor is not None:
            operand, _, kind = name.partition("_")
            last = first["value"].shape[2] if operand == "value" else width
            check_rows("graph_attention", name, tensor, rows[kind], heads, last)
    scale = 1 / math.sqrt(width) if scale is None else float(scale)
    clip = math.inf if clip is None else float(clip)
    index = (edges.senders, edges.receivers, edges.receiver_order, edges.receiver_ptr)
    return _op(*named.values(), *index, scale, clip)


_PARTS = 9  # query, key, value, each: edge, source, target


def _edge_gradients(parts, senders):
    """Empty gradients of q, k and v per edge."""
    query = next(t for t in parts[:3] if t is not None)
    value = next(t for t in parts[6:] if t is not None)
    edges = senders.shape[0]
    dot, width = (edges, *query.shape[1:]), (edges, *value.shape[1:])
    return value.new_empty(dot), value.new_empty(dot), value.new_empty(width)


@torch.library.register_fake("hamfast::graph_attention")
def _(*args):
    parts, ptr = args[:_PARTS], args[-3]
    value = next(t for t in parts[6:] if t is not None)
    return value.new_empty(ptr.shape[0] - 1, *value.shape[1:])


@torch.library.register_fake("hamfast::graph_attention_backward")
def _(grad, *args):
    return _edge_gradients(args[:_PARTS], args[_PARTS])


@torch.library.register_fake("hamfast::graph_attention_double_backward")
def _(direction_q, direction_k, direction_v, grad, *args):
    return grad.new_empty(grad.shape), *_edge_gradients(args[:_PARTS], args[_PARTS])


def _setup(ctx, args, *saved):
    """``args``: the parts and what follows them."""
    parts, (senders, receivers, order, ptr, ctx.scale, ctx.clip) = args[:_PARTS], args[_PARTS:]
    ctx.rows = [None if p is None else p.shape[0] for p in parts]
    ctx.save_for_backward(*saved, senders, receivers, order, ptr, *parts)


def _rest(ctx, senders, receivers, order, ptr, *parts):
    """Parts and what follows them, as the ops take them."""
    return (*parts, senders, receivers, order, ptr, ctx.scale, ctx.clip)


def _to_parts(ctx, gradients, senders, receivers):
    """From gradients per edge to the gradients of the nine parts: gather's adjoint is a sum by index."""
    result: list[Tensor | None] = []
    for operand, gradient in enumerate(gradients):
        for part, index in enumerate((None, senders, receivers)):
            rows = ctx.rows[3 * operand + part]
            if rows is None:
                result.append(None)
            elif index is None:
                result.append(gradient)
            else:
                result.append(gradient.new_zeros(rows, *gradient.shape[1:]).index_add(0, index, gradient))
    return result


def _setup_forward(ctx, inputs, output):
    _setup(ctx, inputs)


def _backward(ctx, grad):
    saved = ctx.saved_tensors
    gradients = _op_backward(grad, *_rest(ctx, *saved))
    return (*_to_parts(ctx, gradients, *saved[:2]), *(None,) * 6)


def _setup_backward(ctx, inputs, output):
    _setup(ctx, inputs[1:], inputs[0])


def _double_backward(ctx, *directions):
    grad, *saved = ctx.saved_tensors
    zeros = [g.zero_() for g in _edge_gradients(saved[4:], saved[0])]
    known = [zero if d is None else d for d, zero in zip(directions, zeros, strict=True)]
    to_grad, *gradients = _op_double(*known, grad, *_rest(ctx, *saved))
    return (to_grad, *_to_parts(ctx, gradients, *saved[:2]), *(None,) * 6)


def _third(ctx, *grads):
    raise NotImplementedError("hamfast.ops.graph_attention: only first and second derivatives are implemented")


torch.library.register_autograd("hamfast::graph_attention", _backward, setup_context=_setup_forward)
torch.library.register_autograd("hamfast::graph_attention_backward", _double_backward, setup_context=_setup_backward)
torch.library.register_autograd("hamfast::graph_attention_double_backward", _third)
