"""The fused attention ops: fakes and autograd.

The first two derivatives are kernels of their own.
Further ones differentiate :mod:`hamfast.ops.attention_formula`, so every order exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.attention_formula import SCALARS, Results, Settings, attention_formula
from hamfast.ops.transforms import by_sample, differentiable, second_derivative
from hamfast.records.choices import AttentionWanted
from hamfast.records.ops import (
    ATTENTION_OPERANDS,
    ATTENTION_RESULTS,
    GRAPH_ATTENTION,
    GRAPH_ATTENTION_BACKWARD,
    GRAPH_ATTENTION_DOUBLE_BACKWARD,
)

_op_double = torch.ops.hamfast.graph_attention_double_backward.default

Operands = ATTENTION_OPERANDS.fields
_COUNT = len(ATTENTION_OPERANDS)


def run_kernel(
    operands: Any,
    seed: Tensor | None,
    graph: Any,
    settings: Any,
    edge_key_weight: Tensor | None = None,
    weights: bool = False,
    logits: bool = False,
    out_on_edge: bool = True,
) -> Any:
    """:func:`attention_formula` by the kernel.

    Weights, logits and out_on_edge are empty unless asked for.

    Args:
        edge_key_weight: ``[heads, width, features]``. With it query_on_edge is made of
            query_receiver, and it is not kept for the backward pass.
    """
    if edge_key_weight is not None:
        assert operands.query_receiver is not None  # the public op has checked it
        with torch.no_grad():
            operands = operands._replace(query_on_edge=query_on_edge(operands.query_receiver, edge_key_weight))
    wanted = AttentionWanted.WEIGHTS * weights | AttentionWanted.LOGITS * logits
    wanted |= AttentionWanted.OUT_ON_EDGE * out_on_edge
    return Results(*_op(edge_key_weight, *operands, seed, *graph, *settings, wanted))


def query_on_edge(query: Tensor, edge_key_weight: Tensor) -> Tensor:
    """The query on the edges' features, W^T q: ``<q, W e> = <W^T q, e>``.

    Args:
        query: ``[receivers, heads, width]``.
        edge_key_weight: W, ``[heads, width, features]``.

    Returns:
        ``[receivers, heads, features]``.
    """
    return torch.matmul(query.to(edge_key_weight).transpose(0, 1), edge_key_weight).transpose(0, 1)


class Shapes:
    """Sizes and dtypes of what a call gives, from the arguments of any of the three ops."""

    def __init__(self, arguments):
        operands, graph = arguments.operands, arguments.graph
        self.operands = operands
        self.like = next(t for t in operands if t is not None)
        rows = [t for member, t in zip(ATTENTION_OPERANDS, operands, strict=True) if member.stored and t is not None]
        self.stored = (rows or [self.like])[0].dtype
        # The dtype of scalars per edge and head, and of all that meets the edges' features.
        self.compute = torch.float64 if self.stored == torch.float64 else torch.float32
        self.edges, self.receivers = graph.senders.shape[0], graph.receiver_ptr.shape[0] - 1
        self.heads = arguments.settings.heads
        self.features = 0 if operands.edge is None else operands.edge.shape[1]
        values = (operands.value_edge, operands.value_sender, operands.value_receiver)
        self.value_width = next((t.shape[2] for t in values if t is not None), 0)

    def results(self, wanted: int) -> Any:
        """Room for the results. wanted: bits of AttentionWanted."""
        bits = {
            "out_on_edge": AttentionWanted.OUT_ON_EDGE,
            "weights": AttentionWanted.WEIGHTS,
            "logits": AttentionWanted.LOGITS,
        }
        return Results(*(self._result(n, n not in bits or wanted & bits[n] != 0) for n in ATTENTION_RESULTS.names))

    def result_gradients(self, wanted: int) -> Any:
        """Room for the gradients of the gradients of the results. wanted: a bit for each."""
        return Results(*(self._result(name, wanted >> n & 1 != 0) for n, name in enumerate(ATTENTION_RESULTS.names)))

    def _result(self, name: str, is_wanted: bool) -> Tensor:
        """Room for one of the results, or for the gradient of its gradient."""
        shape = {
            "out": (self.receivers, self.heads, self.value_width),
            "out_on_edge": (self.receivers, self.heads, self.features),
            "lse": (self.receivers, self.heads),
        }.get(name, (self.edges, self.heads))
        dtype = self.stored if name in ATTENTION_RESULTS.stored else self.compute
        return self.like.new_empty(shape if is_wanted else 0, dtype=dtype)

    def gradients(self, wanted: int) -> Any:
        """Room for the gradients of the operands. wanted: a bit for each."""
        made = []
        for n, (name, operand) in enumerate(zip(ATTENTION_OPERANDS.names, self.operands, strict=True)):
            dtype = self.stored if name in ATTENTION_OPERANDS.stored else self.compute
            shape = 0 if not wanted >> n & 1 else (self.edges, self.heads) if name in SCALARS else operand.shape
            made.append(self.like.new_empty(shape, dtype=dtype))
        return Operands(*made)


@torch.library.register_fake("hamfast::graph_attention")
def _(*flat):
    arguments = GRAPH_ATTENTION.read(flat)
    return tuple(Shapes(arguments).results(arguments.wanted))


@torch.library.register_fake("hamfast::graph_attention_backward")
def _(*flat):
    arguments = GRAPH_ATTENTION_BACKWARD.read(flat)
    return tuple(Shapes(arguments).gradients(arguments.wanted))


@torch.library.register_fake("hamfast::graph_attention_double_backward")
def _(*flat):
    arguments = GRAPH_ATTENTION_DOUBLE_BACKWARD.read(flat)
    shapes, wanted = Shapes(arguments), arguments.wanted
    return *shapes.result_gradients(wanted >> _COUNT), *shapes.gradients(wanted)


def _bits(needed, tensors, first: int = 0) -> int:
    """A set of those that are needed and there."""
    return sum(1 << first + n for n, t in enumerate(tensors) if needed[n] and t is not None)


def _setup(ctx, inputs, output):
    arguments = GRAPH_ATTENTION.read(inputs)
    ctx.settings = arguments.settings
    ctx.set_materialize_grads(False)
    operands = arguments.operands
    if arguments.edge_key_weight is not None:
        operands = operands._replace(query_on_edge=None)  # it is made again
    lse = output[ATTENTION_RESULTS.names.index("lse")]
    ctx.save_for_backward(arguments.edge_key_weight, lse, *operands, arguments.seed, *arguments.graph)


def _backward(ctx, *gradients):
    weight, lse, *saved = ctx.saved_tensors
    operands, seed_and_graph = Operands(*saved[:_COUNT]), saved[_COUNT:]
    needs = GRAPH_ATTENTION.read(ctx.needs_input_grad)
    needs_weight, needed = needs.edge_key_weight, needs.operands
    if weight is not None:
        operands = operands._replace(query_on_edge=query_on_edge(operands.query_receiver, weight))
        needed = needed._replace(query_on_edge=needs_weight or needed.query_receiver)
    wanted = _bits(needed, operands)
    given = [None if g is None or g.numel() == 0 else g for g in gradients]
    found = Operands(*(None,) * _COUNT)
    if wanted and all(g is None for g in given):  # results without elements
        found = Operands(*(torch.zeros_like(t) if wanted >> n & 1 else None for n, t in enumerate(operands)))
    elif wanted:
        made = _op_backward(*given, lse, *operands, *seed_and_graph, *ctx.settings, wanted)
        found = Operands(*(g if wanted >> n & 1 else None for n, g in enumerate(made)))
    grad_weight = None
    if weight is not None and found.query_on_edge is not None:
        on_edge, query = found.query_on_edge.transpose(0, 1), operands.query_receiver
        if needs_weight:
            grad_weight = torch.matmul(query.to(weight).permute(1, 2, 0), on_edge)
        if needed.query_receiver:
            projected = torch.matmul(on_edge, weight.transpose(1, 2)).transpose(0, 1)
            before = found.query_receiver
            total = projected if before is None else before + projected
            found = found._replace(query_receiver=total.to(query))
        found = found._replace(query_on_edge=None)
    return GRAPH_ATTENTION.per_argument(edge_key_weight=grad_weight, operands=found)


def _setup_backward(ctx, inputs, output):
    arguments = GRAPH_ATTENTION_BACKWARD.read(inputs)
    ctx.settings, ctx.wanted = arguments.settings, arguments.wanted
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: GRAPH_ATTENTION_BACKWARD.tensors])


def _double_backward(ctx, *tangents):
    """Along tangents of the gradients."""
    arguments = GRAPH_ATTENTION_BACKWARD.read((*ctx.saved_tensors, *ctx.settings, ctx.wanted))
    gradients, operands, graph = arguments.gradients, arguments.operands, arguments.graph
    needed = GRAPH_ATTENTION_BACKWARD.read(ctx.needs_input_grad)
    given = [t if ctx.wanted >> n & 1 else None for n, t in enumerate(tangents)]
    if torch.is_grad_enabled():  # a third derivative may follow
        compute = Shapes(arguments).compute

        def formula(wide):
            in_compute = [t if t is None else t.to(compute) for t in wide]
            return attention_formula(in_compute, arguments.seed, graph, Settings(*ctx.settings))

        found = second_derivative(formula, operands, gradients, given, [*needed.gradients, *needed.operands])
        grads, grad_operands = found[: len(gradients)], found[len(gradients) :]
    else:
        wanted = _bits(needed.operands, operands) | _bits(needed.gradients, gradients, _COUNT)
        given_operands = (arguments.lse, *operands, arguments.seed, *graph)
        made = _op_double(*given, *gradients, *given_operands, *ctx.settings, wanted)
        grads = [t if wanted >> _COUNT + n & 1 else None for n, t in enumerate(made[: len(gradients)])]
        grad_operands = [t if wanted >> n & 1 else None for n, t in enumerate(made[len(gradients) :])]
    return GRAPH_ATTENTION_BACKWARD.per_argument(gradients=grads, operands=grad_operands)


_op = differentiable("graph_attention", _backward, _setup)
_op_backward = differentiable("graph_attention_backward", _double_backward, _setup_backward)


torch.library.register_vmap("hamfast::graph_attention_double_backward", by_sample(_op_double))
