"""Attention of graph nodes over their incoming edges: one op for the Transformers people use on
atoms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.ops.attention_checks import check_numbers, check_operands
from hamfast.ops.attention_formula import (
    ACTIVATIONS,
    OPERANDS,
    PARTS,
    SCORES,
    STORED,
    WEIGHTINGS,
    Results,
    Settings,
    attention_formula,
    raw_scores,
    weighted_sum,
)
from hamfast.ops.attention_kernel import Operands, query_on_edge, run_kernel
from hamfast.ops.block_matmul import block_matmul
from hamfast.ops.checks import HALF, check_device, check_same, check_tensor, found
from hamfast.ops.edge_index import EdgeIndex, check_graph
from hamfast.ops.transforms import is_transformed

_NAME = "graph_attention"


class AttentionOutput(NamedTuple):
    """What :func:`graph_attention` returns where more than the aggregate is asked for."""

    out: Tensor
    """``[receivers, heads, (components,) width]``."""
    weights: Tensor | None
    """``[edges, heads]``: what each edge's value was multiplied with."""
    logits: Tensor | None
    """``[edges, heads]``: the scores the weights are made of."""
    lse: Tensor | None
    """``[receivers, heads]``: ``log(sum envelope exp(score) + epsilon)``, ``-inf`` for receivers
    without edges."""


def graph_attention(
    edges: EdgeIndex,
    *,
    query_edge: Tensor | None = None,
    query_sender: Tensor | None = None,
    query_receiver: Tensor | None = None,
    key_edge: Tensor | None = None,
    key_sender: Tensor | None = None,
    key_receiver: Tensor | None = None,
    value_edge: Tensor | None = None,
    value_sender: Tensor | None = None,
    value_receiver: Tensor | None = None,
    edge: Tensor | None = None,
    edge_key_weight: Tensor | None = None,
    edge_value_weight: Tensor | None = None,
    score: str = "dot",
    vector: Tensor | None = None,
    score_activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    key_filter: Tensor | None = None,
    value_filter: Tensor | None = None,
    outer: tuple[Tensor, Tensor, str] | None = None,
    bias: Tensor | None = None,
    score_scale: Tensor | None = None,
    scale: float | None = None,
    clip: float | None = None,
    weight: str = "softmax",
    envelope: Tensor | None = None,
    gate: Tensor | None = None,
    epsilon: float = 0.0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    return_weights: bool = False,
    return_logits: bool = False,
    return_lse: bool = False,
) -> Any:
    """Each receiver's weighted sum over its incoming edges. Per head and edge e = (sender s ->
    receiver t):

    - ``q_e = query_edge[e] + query_sender[s] + query_receiver[t]``, k and v alike; ``k_e`` also has
      ``edge_key_weight @ edge[e]`` and ``v_e`` has ``edge_value_weight @ edge[e]``. Those two are
      never made: ``<q, W e> = <W^T q, e>`` and ``sum a (W e) = W (sum a e)``.
    - ``z_e = <q_e, key_filter[e] * k_e>`` (dot), ``<vector, act(q_e + k_e)>`` (additive: GATv2), or
      0 (given); ``s_e = clip(scale score_scale[e] z_e + bias[e])``.
    - ``p_e = envelope[e] exp(s_e) / (sum envelope exp(s) + epsilon)`` over the edges into t
      (softmax), or ``envelope[e] act(s_e)``; ``w_e = gate[e] dropout_e p_e``.
    - ``out[t] = sum_e w_e (value_filter[e] * v_e + Y[e] (x) u_e)``.

    Args:
        edges: from :func:`hamfast.ops.edge_index`.
        query_edge, query_sender, query_receiver: ``[edges | num_senders | num_receivers, heads,
            width]``; keys alike.
        value_edge, value_sender, value_receiver: with a width of their own, or ``[rows, heads,
            components, width]``: irreps.
        edge: ``[edges, features]``, with edge_key_weight and edge_value_weight ``[heads, (value)
            width, features]``.
        score: ``dot``, ``additive`` or ``given`` (the bias is the score).
        vector: ``[heads, width]`` of additive scores, with score_activation ``leaky_relu``,
            ``smooth_leaky_relu`` (Equiformer) or ``silu`` and their negative_slope.
        key_filter, value_filter: ``[edges, heads, width]``, multiplied with key and value. A value
            with components takes one filter for all of them.
        outer: ``(Y [edges, components], u [rows, heads, width], "sender" or "edge")``: values of
            rank one.
        bias, score_scale, envelope, gate: ``[edges]`` or ``[edges, heads]``. The envelope must not
            be negative; with one that ends smoothly at the cutoff so do the results.
        scale: factor of z: by default ``1 / sqrt(width)`` for dot, 1 for additive.
        clip: scores are clipped to ``[-clip, clip]``; None: not clipped.
        weight: ``softmax``, ``identity``, ``silu``, ``sigmoid`` or ``softplus``.
        dropout, seed: probability, and an int64 scalar tensor; the same seed gives the same mask,
            which is made again in the backward pass and not stored. No seed: no dropout.
        return_weights, return_logits, return_lse: return an :class:`AttentionOutput`; all its
            members are differentiable.

    Returns:
        Tensor ``[num_receivers, heads, (components,) value width]``, or :class:`AttentionOutput`;
        zero for receivers without edges. Deterministic. The first two derivatives are kernels. All
        further ones, forward mode and ``torch.func`` run on differentiable sums over edges.
        bfloat16 and float16 operands are computed in float32. Queries, keys, values and edges'
        features stay as they are stored, in memory and for the backward pass, but with filters,
        rank-one values and ``torch.func``. Under autocast these may be of half precision and all
        else float32.

    Raises:
        ValueError: operands that exclude each other, or a shape, dtype or device that does not fit;
            the message names it.
    """
    check_graph(_NAME, edges)
    if outer is not None and not (isinstance(outer, (tuple, list)) and len(outer) == 3):
        raise TypeError(f"{_NAME}: outer: expected (Y, u, sender or edge), found {found(outer)}")
    given = {
        "query_edge": query_edge,
        "query_sender": query_sender,
        "query_receiver": query_receiver,
        "key_edge": key_edge,
        "key_sender": key_sender,
        "key_receiver": key_receiver,
        "value_edge": value_edge,
        "value_sender": value_sender,
        "value_receiver": value_receiver,
        "edge": edge,
        "edge_key_weight": edge_key_weight,
        "edge_value_weight": edge_value_weight,
        "vector": vector,
        "key_filter": key_filter,
        "value_filter": value_filter,
        "outer Y": outer[0] if outer else None,
        "outer u": outer[1] if outer else None,
        "bias": bias,
        "score_scale": score_scale,
        "envelope": envelope,
        "gate": gate,
    }
    given, dtype = _in_one_precision(edges, given)
    outer_rows_of = outer[2] if outer else "edge"
    heads, width = check_operands(edges, given, outer_rows_of, score, score_activation, weight)
    check_numbers(negative_slope, clip, epsilon, dropout, seed)
    if scale is None:
        scale = 1 / math.sqrt(width) if width and score == "dot" else 1.0
    settings = Settings(
        heads=heads,
        score=SCORES.index(score),
        activation=ACTIVATIONS.index(score_activation),
        weighting=WEIGHTINGS.index(weight),
        slope=float(negative_slope),
        scale=float(scale),
        clip=math.inf if clip is None else float(clip),
        epsilon=float(epsilon),
        dropout=float(dropout),
    )
    wanted = (return_weights, return_logits, return_lse)
    with torch.autocast(edges.senders.device.type, enabled=False):
        results = _attend(given, outer_rows_of, seed if dropout > 0 else None, edges.graph, settings, *wanted[:2])
    results = Results(*(t.to(dtype) for t in results)) if dtype in HALF else results
    if not any(wanted):
        return results.out
    extra = zip((results.weights, results.logits, results.lse), wanted, strict=True)
    return AttentionOutput(results.out, *(t if is_wanted else None for t, is_wanted in extra))


def _in_one_precision(edges: EdgeIndex, given: dict[str, Any]) -> tuple[dict[str, Any], torch.dtype]:
    """The operands as the kernel takes them, and the dtype of the results.

    Rows stay in half precision where the kernel reads them so; all else is float32 then.

    Raises:
        ValueError: dtypes that differ, outside of autocast; or devices.
        TypeError: what is no tensor.
    """
    if torch.is_autocast_enabled(edges.senders.device.type):
        for name, tensor in given.items():
            if tensor is not None:
                check_tensor(_NAME, name, tensor)
        if len({t.dtype for t in given.values() if t is not None}) > 1:
            # Weights and biases are float32 then; rows stay as they are stored if they all are so.
            dtypes = {t.dtype for name, t in given.items() if name in STORED and t is not None}
            stays = STORED if len(dtypes) == 1 and dtypes <= {*HALF} else ()
            given = _widened(given, stays)
            check_device(_NAME, **given)
        else:
            check_same(_NAME, True, **given)
    else:
        check_same(_NAME, True, **given)
    found_types = [(name in STORED, t.dtype) for name, t in given.items() if t is not None]
    dtype = next((dtype for is_stored, dtype in found_types if is_stored), found_types[0][1])
    if dtype in HALF:
        # The kernel reads rows as they are stored; all that is small, or that it does not know, is
        # float32.
        sums_outside = any(given[name] is not None for name in ("key_filter", "value_filter", "outer Y"))
        given = _widened(given, () if sums_outside or is_transformed(given.values()) else STORED)
    return given, dtype


def _widened(given: dict[str, Any], stays: Sequence[str]) -> dict[str, Any]:
    """The operands in float32, but those that stay as they are."""
    return {name: t if t is None or name in stays else t.float() for name, t in given.items()}


def _attend(given, outer_rows_of, seed, graph, settings, want_weights, want_logits) -> Any:
    """What the kernel does not know is computed before it (scores) or after it (sums with its
    weights)."""
    operands = {name: given.get(name) for name in OPERANDS}
    for name in ("bias", "score_scale", "envelope", "gate"):
        tensor = operands[name]
        if tensor is not None:
            operands[name] = (tensor if tensor.dim() == 2 else tensor.unsqueeze(-1)).expand(-1, settings.heads)
    transformed = is_transformed(given.values())
    edge, key_weight, value_weight = given["edge"], given["edge_key_weight"], given["edge_value_weight"]

    scores_before = given["key_filter"] is not None
    if key_weight is not None:
        only_receivers = operands["query_edge"] is None and operands["query_sender"] is None
        if settings.score != SCORES.index("dot") or not only_receivers or scores_before:
            operands["key_edge"] = _plus(operands["key_edge"], _project(edge, key_weight))
            key_weight = None
        elif transformed:
            operands["query_on_edge"] = query_on_edge(operands["query_receiver"], key_weight)
    if scores_before:
        logits = raw_scores(operands, graph, settings, given["key_filter"])
        if operands["score_scale"] is not None:
            logits = logits * operands["score_scale"]
        operands["bias"] = _plus(operands["bias"], logits)
        operands["score_scale"] = operands["vector"] = None
        operands |= {f"{name}_{part}": None for name in ("query", "key") for part in PARTS}
        settings = settings._replace(score=SCORES.index("given"))

    values = {part: operands[f"value_{part}"] for part in PARTS}
    components = next((v.shape[2:-1] for v in values.values() if v is not None), ())
    sums_after = given["value_filter"] is not None
    if sums_after and value_weight is not None:
        values["edge"] = _plus(values["edge"], _project(edge, value_weight))
        value_weight = None
    for part, value in values.items():
        operands[f"value_{part}"] = None if value is None or sums_after else value.flatten(2)
    if value_weight is None and key_weight is None:
        operands["edge"] = None
    outer = given["outer Y"] is not None
    run = attention_formula if transformed else run_kernel
    extra = (
        () if transformed else (key_weight, want_weights or sums_after or outer, want_logits, value_weight is not None)
    )
    found = run(Operands(**{name: operands[name] for name in OPERANDS}), seed, graph, settings, *extra)

    out = found.out.unflatten(2, (*components, -1)) if components and found.out.shape[2] else found.out
    terms = [] if found.out.shape[2] == 0 else [out]
    if value_weight is not None:
        projected = torch.matmul(found.out_on_edge.transpose(0, 1), value_weight.flatten(1, -2).transpose(1, 2))
        terms.append(projected.transpose(0, 1).unflatten(2, value_weight.shape[1:-1]))
    if sums_after:
        for part, value in values.items():
            if value is not None:
                filters = given["value_filter"].unsqueeze(2)
                summed = weighted_sum(
                    found.weights, value.unsqueeze(2) if value.dim() == 3 else value, part, graph, filters
                )
                terms.append(summed.squeeze(2) if value.dim() == 3 else summed)
    if outer:
        harmonics = given["outer Y"][:, None, :, None]
        terms.append(weighted_sum(found.weights, given["outer u"].unsqueeze(2), outer_rows_of, graph, harmonics))
    total = sum(terms[1:], terms[0]) if terms else found.out
    return found._replace(out=total if total.is_contiguous() else total.contiguous())


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _project(edge: Tensor, weight: Tensor) -> Tensor:
    """``W e`` for every edge: ``[edges, heads, (components,) width]``."""
    count, features = edge.shape
    matrix = weight.flatten(0, -2).T.to(edge.dtype)
    made = block_matmul(edge.flatten(), matrix.flatten(), count, [(1, features, matrix.shape[1])])
    return made.view(count, *weight.shape[:-1])
