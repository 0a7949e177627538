"""Graph attention out of differentiable sums over edges.

It is slower than the kernels, and differentiable to any order, in forward and in reverse mode.
Derivatives beyond the second, forward mode and ``torch.func`` run on it.
Nothing of the size edges x heads x width is made, except for additive scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hamfast.ops.edge_einsum import ROW_OF, run, sum_over_edges, to_edges
from hamfast.records.choices import RowOf, Score, ScoreActivation, Weighting
from hamfast.records.ops import ATTENTION_OPERANDS, ATTENTION_RESULTS, ATTENTION_SETTINGS

PARTS = RowOf.names()
"""The addends of queries, keys and values."""
OPERANDS = ATTENTION_OPERANDS.names
"""What the kernel takes, in its order.

query_on_edge ``[receivers, heads, features]`` is the query on the edges' features.
"""
STORED = ATTENTION_OPERANDS.stored
"""Those that may be of half precision. Their gradients and the result then are, too, and all else
is float32."""
SCALARS = tuple(operand.name for operand in ATTENTION_OPERANDS if operand.shape == "edges, heads")
"""Those that are a scalar per edge and head."""
SCORES, ACTIVATIONS, WEIGHTINGS = Score.names(), ScoreActivation.names(), Weighting.names()

Settings = ATTENTION_SETTINGS.fields
"""The settings of a call, as the record names them."""
Results = ATTENTION_RESULTS.fields
"""What the kernel gives: ``out [receivers, heads, value width]``,
``out_on_edge [receivers, heads, features]``,
``lse [receivers, heads]``, ``weights`` and ``logits [edges, heads]``."""


def attention_formula(operands: Sequence[Tensor | None], seed: Tensor | None, graph: Any, settings: Any) -> Any:
    """What ``kernels/graph_attention.cuh`` computes, and with its symbols.

    Args:
        operands: as :data:`OPERANDS` names them.
        graph: as the ops' record has it.
        settings: :data:`Settings`.

    Returns:
        :data:`Results`.
    """
    named = dict(zip(OPERANDS, operands, strict=True))
    s, heads = raw_scores(named, graph, settings), settings.heads
    edges = graph.senders.shape[0]
    like = next(t for t in operands if t is not None)
    if named["score_scale"] is not None:
        s = s * named["score_scale"]
    if named["bias"] is not None:
        s = s + named["bias"]
    logits = s.clamp(-settings.clip, settings.clip)
    weights, lse = _weights(logits, named["envelope"], graph, settings)
    if named["gate"] is not None:
        weights = weights * named["gate"]
    if seed is not None:
        weights = weights * dropout_factors(seed, edges, heads, settings.dropout).to(weights.dtype)
    rows = graph.receiver_ptr.shape[0] - 1
    values = [named[f"value_{part}"] for part in PARTS]
    width = next((v.shape[2] for v in values if v is not None), 0)
    out = like.new_zeros(rows, heads, width)
    for part, value in zip(PARTS, values, strict=True):
        if value is not None:
            out = out + weighted_sum(weights, value.unsqueeze(2), part, graph).squeeze(2)
    edge = named["edge"]
    if edge is None:
        return Results(out, like.new_zeros(rows, heads, 0), lse, weights, logits)
    out_on_edge = weighted_sum(weights, edge[:, None, None, :], "edge", graph).squeeze(2)
    return Results(out, out_on_edge, lse, weights, logits)


def raw_scores(named, graph: Any, settings: Any, key_filter: Tensor | None = None) -> Tensor:
    """``scale z``, ``[edges, heads]``.

    key_filter multiplies the key: ``[edges, heads, width]``.
    """
    terms = []
    queries, keys = ({p: named[f"{name}_{p}"] for p in PARTS} for name in ("query", "key"))
    if SCORES[settings.score] == "additive":
        index = {"edge": None, "sender": graph.senders, "receiver": graph.receivers}
        summed = [
            tensor if index[part] is None else tensor.index_select(0, index[part])
            for parts in (queries, keys)
            for part, tensor in parts.items()
            if tensor is not None
        ]
        activated = activation(ACTIVATIONS[settings.activation], settings.slope, sum(summed[1:], summed[0]))
        terms.append((activated * named["vector"]).sum(-1))
    elif SCORES[settings.score] == "dot":
        for q_part, q in queries.items():
            for k_part, k in keys.items():
                if q is not None and k is not None:
                    factors, rows_of = [q.unsqueeze(2), k.unsqueeze(2)], [ROW_OF[q_part], ROW_OF[k_part]]
                    if key_filter is not None:
                        factors, rows_of = [*factors, key_filter.unsqueeze(2)], [*rows_of, ROW_OF["edge"]]
                    terms.append(run(factors, [ROW_OF["edge"], *rows_of], [settings.heads, 1, 1], graph))
    if named["query_on_edge"] is not None:
        factors = [named["query_on_edge"].unsqueeze(2), named["edge"][:, None, None, :]]
        rows_of = [ROW_OF["edge"], ROW_OF["receiver"], ROW_OF["edge"]]
        terms.append(run(factors, rows_of, [settings.heads, 1, 1], graph))
    edges = graph.senders.shape[0]
    if not terms:
        like = next(t for t in named.values() if t is not None)
        return like.new_zeros(edges, settings.heads)
    return sum(terms[1:], terms[0]).reshape(edges, settings.heads) * settings.scale


def weighted_sum(weights: Tensor, value: Tensor, row_of: str, graph: Any, *factors: Tensor) -> Tensor:
    """Sums over each receiver's edges of weights times value.

    Args:
        weights: ``[edges, heads]``.
        value: ``[rows, heads, components, width]``.
        row_of: what value has a row for: ``edge``, ``sender`` or ``receiver``.
        factors: with as many axes as value, per edge, which multiply it.

    Returns:
        ``[receivers, heads, components, width]``.
    """
    shape = torch.broadcast_shapes(weights[:1, :, None, None].shape, value[:1].shape, *(f[:1].shape for f in factors))
    return run(
        [weights[:, :, None, None], value, *factors],
        [ROW_OF["receiver"], ROW_OF["edge"], ROW_OF[row_of], *(ROW_OF["edge"] for _ in factors)],
        [weights.shape[1], *shape[2:]],
        graph,
    )


def activation(name: str, slope: float, x: Tensor) -> Tensor:
    """The activation of additive scores.

    smooth_leaky_relu is Equiformer's: ``x (slope + (1 - slope) sigmoid(x))``.
    """
    if name == "leaky_relu":
        return functional.leaky_relu(x, slope)
    if name == "silu":
        return functional.silu(x)
    return x * (slope + (1 - slope) * torch.sigmoid(x))


def _weights(logits: Tensor, envelope: Tensor | None, graph: Any, settings: Any) -> tuple[Tensor, Tensor]:
    """p and lse."""
    rows = graph.receiver_ptr.shape[0] - 1
    weighting = WEIGHTINGS[settings.weighting]
    if weighting != "softmax":
        plain = {
            "identity": lambda: logits,
            "silu": lambda: functional.silu(logits),
            "sigmoid": lambda: torch.sigmoid(logits),
            "softplus": lambda: functional.softplus(logits),
        }[weighting]()
        return plain if envelope is None else plain * envelope, logits.new_zeros(rows, settings.heads)
    live = logits if envelope is None else logits.masked_fill(envelope == 0, -torch.inf)
    # The result does not depend on the shift, so neither do derivatives.
    shift = _ReceiverMaximum.apply(live, graph.receivers, rows, settings.epsilon)
    exponential = torch.exp(logits - to_edges(shift, "receiver", graph))
    if envelope is not None:
        exponential = exponential * envelope
    total = sum_over_edges(exponential, "receiver", graph) + settings.epsilon * torch.exp(-shift)
    inverse = 1 / torch.where(total == 0, torch.ones_like(total), total)
    return exponential * to_edges(inverse, "receiver", graph), shift + torch.log(total)


class _ReceiverMaximum(torch.autograd.Function):
    """The largest finite score of each receiver and head, as a constant; 0 where there is none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(score, receivers, rows, epsilon):
        start = torch.full((rows, score.shape[1]), -torch.inf, dtype=score.dtype, device=score.device)
        if epsilon > 0:
            start = torch.log(torch.full_like(start, epsilon))
        index = receivers[:, None].expand_as(score)
        top = start.scatter_reduce(0, index, score, "amax")
        return torch.where(torch.isinf(top), torch.zeros_like(top), top)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, grad):
        return None, None, None, None

    @staticmethod
    def jvp(ctx, *tangents):
        return None


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shifted_right(z: Tensor, bits: int) -> Tensor:
    """A logical shift: torch's repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def dropout_factors(seed: Tensor, edges: int, heads: int, probability: float) -> Tensor:
    """Dropout's factor of every weight: 0 or ``1 / (1 - probability)``.

    As in the kernels it is made of seed, edge and head, by SplitMix64 (Steele, Lea, Flood 2014).

    Returns:
        ``[edges, heads]``, float64.
    """
    mixed = torch.arange(1, edges * heads + 1, device=seed.device) * _signed(0x9E3779B97F4A7C15) + seed
    mixed = (mixed ^ _shifted_right(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted_right(mixed, 27)) * _signed(0x94D049BB133111EB)
    mixed = mixed ^ _shifted_right(mixed, 31)
    uniform = _shifted_right(mixed, 11).double() / 9007199254740992.0
    kept = 1 - probability if probability < 1 else 1.0  # of probability 1 none is kept
    return (uniform >= probability).double().div(kept).view(edges, heads)
