"""The fused attention ops: fakes and autograd.

The first two derivatives are kernels of their own. Further ones differentiate :mod:`hamfast.ops.attention_formula`, so every order
exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.attention_formula import (
    OPERANDS,
    STORED,
    Graph,
    Results,
    Settings,
    attention_formula,
)
from hamfast.ops.transforms import by_sample, differentiable, second_derivative

_op_double = torch.ops.hamfast.graph_attention_double_backward.default

_COUNT = len(OPERANDS)
_RECEIVER_QUERY, _ON_EDGE, _EDGE, _BIAS = (
    OPERANDS.index(n) for n in ("query_receiver", "query_on_edge", "edge", "bias")
)
_GRADIENTS = 5  # of out, out_on_edge, lse, weights, logits
_REST = 10  # seed, six tensors of the graph, kinds, numbers, wanted: what follows the operands


def run_kernel(
    operands: list[Tensor | None],
    seed: Tensor | None,
    graph: Graph,
    settings: Settings,
    edge_key_weight: Tensor | None = None,
    weights: bool = False,
    logits: bool = False,
    out_on_edge: bool = True,
) -> Results:
    """:func:`attention_formula` by the kernel; weights, logits and out_on_edge are empty unless asked for.

    With ``edge_key_weight`` ``[heads, width, features]`` query_on_edge is made from query_receiver, and not kept for the backward pass.
    """
    if edge_key_weight is not None:
        query = operands[_RECEIVER_QUERY]
        assert query is not None  # the public op has checked it
        operands = [*operands]
        with torch.no_grad():
            operands[_ON_EDGE] = query_on_edge(query, edge_key_weight)
    wanted = int(weights) | 2 * int(logits) | 4 * int(out_on_edge)
    return Results(*_op(edge_key_weight, *operands, seed, *graph, settings.kinds, settings.numbers, wanted))


def query_on_edge(query: Tensor, edge_key_weight: Tensor) -> Tensor:
    """``<q, W e> = <W^T q, e>``: ``[receivers, heads, width]``, ``[heads, width, features]`` -> ``[receivers, heads, features]``."""
    return torch.matmul(query.to(edge_key_weight).transpose(0, 1), edge_key_weight).transpose(0, 1)


def _parse(args):
    """Operands, seed, graph, settings of what follows an op's own arguments."""
    operands, seed, graph, (kinds, numbers, _) = list(args[:_COUNT]), args[_COUNT], args[_COUNT + 1 : -3], args[-3:]
    return operands, seed, graph, Settings(*kinds, *numbers)


def _width(operands, first):
    return next((t.shape[2] for t in operands[first : first + 3] if t is not None), 0)


def _types(operands):
    """Of rows, and of numbers per edge and head and all that meets the edges' features."""
    rows = [t for name, t in zip(OPERANDS, operands, strict=True) if name in STORED and t is not None]
    stored = (rows or [t for t in operands if t is not None])[0].dtype
    return stored, torch.float64 if stored == torch.float64 else torch.float32


@torch.library.register_fake("hamfast::graph_attention")
def _(edge_key_weight, *args):
    operands, _, graph, settings = _parse(args)
    like, (stored, number) = next(t for t in operands if t is not None), _types(operands)
    rows, edges, heads = graph[5].shape[0] - 1, graph[0].shape[0], settings.heads
    features = operands[_EDGE].shape[1] if operands[_EDGE] is not None else 0
    wanted = [args[-1] & bit != 0 for bit in (4, 1, 2)]
    shapes = [(rows, heads, features), (edges, heads), (edges, heads)]
    on_edge, *scores = (like.new_empty(s if w else 0, dtype=number) for s, w in zip(shapes, wanted, strict=True))
    out = like.new_empty((rows, heads, _width(operands, 6)), dtype=stored)
    return out, on_edge, like.new_empty((rows, heads), dtype=number), *scores


@torch.library.register_fake("hamfast::graph_attention_backward")
def _(*args):
    operands, _, graph, settings = _parse(args[_GRADIENTS + 1 :])
    return _fake_gradients(operands, graph, settings, args[-1])


def _fake_gradients(operands, graph, settings, wanted):
    like, edges = next(t for t in operands if t is not None), graph[0].shape[0]
    stored, number = _types(operands)
    made = []
    for n, (name, operand) in enumerate(zip(OPERANDS, operands, strict=True)):
        dtype = stored if name in STORED else number
        if not wanted >> n & 1:
            made.append(like.new_empty(0, dtype=dtype))
        else:
            made.append(like.new_empty((edges, settings.heads) if n >= _BIAS else operand.shape, dtype=dtype))
    return tuple(made)


@torch.library.register_fake("hamfast::graph_attention_double_backward")
def _(*args):
    operands, _, graph, settings = _parse(args[_COUNT + _GRADIENTS + 1 :])
    like, (stored, number) = next(t for t in operands if t is not None), _types(operands)
    shapes = [None if t is None else t.shape for t in args[_COUNT : _COUNT + _GRADIENTS]]
    to_gradients = (
        like.new_empty(s if args[-1] >> _COUNT + n & 1 else 0, dtype=number if n else stored)
        for n, s in enumerate(shapes)
    )
    return *to_gradients, *_fake_gradients(operands, graph, settings, args[-1])


def _setup(ctx, inputs, output):
    edge_key_weight, *args = inputs
    operands, seed, graph, ctx.settings = _parse(args)
    ctx.set_materialize_grads(False)
    if edge_key_weight is not None:
        operands[_ON_EDGE] = None
    ctx.save_for_backward(edge_key_weight, output[2], *operands, seed, *graph)


def _backward(ctx, *gradients):
    weight, lse, *args = ctx.saved_tensors
    operands, rest = args[:_COUNT], args[_COUNT:]
    needed = list(ctx.needs_input_grad[1 : _COUNT + 1])
    if weight is not None:
        operands[_ON_EDGE] = query_on_edge(operands[_RECEIVER_QUERY], weight)
        needed[_ON_EDGE] = ctx.needs_input_grad[0] or needed[_RECEIVER_QUERY]
    wanted = sum(1 << n for n, is_needed in enumerate(needed) if is_needed and operands[n] is not None)
    given = [None if g is None or g.numel() == 0 else g for g in gradients]
    found: list[Tensor | None] = [None] * _COUNT
    if wanted and all(g is None for g in given):  # results without elements
        found = [torch.zeros_like(t) if wanted >> n & 1 else None for n, t in enumerate(operands)]
    elif wanted:
        made = _op_backward(*given, lse, *operands, *rest, ctx.settings.kinds, ctx.settings.numbers, wanted)
        found = [g if wanted >> n & 1 else None for n, g in enumerate(made)]
    to_weight, raw = None, found[_ON_EDGE]
    if weight is not None and raw is not None:
        on_edge, query = raw.transpose(0, 1), operands[_RECEIVER_QUERY]
        if ctx.needs_input_grad[0]:
            to_weight = torch.matmul(query.to(weight).permute(1, 2, 0), on_edge)
        if needed[_RECEIVER_QUERY]:
            projected = torch.matmul(on_edge, weight.transpose(1, 2)).transpose(0, 1)
            before = found[_RECEIVER_QUERY]
            found[_RECEIVER_QUERY] = (projected if before is None else before + projected).to(query)
        found[_ON_EDGE] = None
    return (to_weight, *found, *(None,) * _REST)


def _setup_backward(ctx, inputs, output):
    operands, seed, graph, ctx.settings = _parse(inputs[_GRADIENTS + 1 :])
    ctx.wanted = inputs[-1]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: _GRADIENTS + 1], *operands, seed, *graph)


def _double_backward(ctx, *directions):
    """Along directions of the gradients."""
    saved = ctx.saved_tensors
    needed = [*ctx.needs_input_grad[:_GRADIENTS], *ctx.needs_input_grad[_GRADIENTS + 1 :][:_COUNT]]
    gradients, lse, operands = list(saved[:_GRADIENTS]), saved[_GRADIENTS], saved[_GRADIENTS + 1 :][:_COUNT]
    seed, *graph = saved[_GRADIENTS + 1 + _COUNT :]
    given = [d if ctx.wanted >> n & 1 else None for n, d in enumerate(directions)]
    settings = ctx.settings
    if torch.is_grad_enabled():  # a third derivative may follow
        number = _types(operands)[1]

        def formula(wide):
            return attention_formula([t if t is None else t.to(number) for t in wide], seed, tuple(graph), settings)

        found = second_derivative(formula, operands, gradients, given, needed)
    else:
        wanted = sum(1 << n for n in range(_COUNT) if needed[_GRADIENTS + n] and operands[n] is not None)
        wanted |= sum(1 << _COUNT + n for n, g in enumerate(gradients) if needed[n] and g is not None)
        rest = (seed, *graph, settings.kinds, settings.numbers, wanted)
        made = _op_double(*given, *gradients, lse, *operands, *rest)
        bits = (*range(_COUNT, _COUNT + _GRADIENTS), *range(_COUNT))  # in the order of the results
        found = [t if wanted >> bit & 1 else None for t, bit in zip(made, bits, strict=True)]
    return (*found[:_GRADIENTS], None, *found[_GRADIENTS:], *(None,) * _REST)


_op = differentiable("graph_attention", _backward, _setup)
_op_backward = differentiable("graph_attention_backward", _double_backward, _setup_backward)


torch.library.register_vmap("hamfast::graph_attention_double_backward", by_sample(_op_double))
