"""Attention of graph nodes over their incoming edges: one op for the Transformers of atoms."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.ops.attention_checks import check_operands, check_outer, check_settings
from hamfast.ops.attention_formula import (
    ACTIVATIONS,
    OPERANDS,
    PARTS,
    SCALARS,
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
from hamfast.ops.checks import HALF, check_device, check_same, check_tensor
from hamfast.ops.edge_index import EdgeIndex, check_graph
from hamfast.ops.transforms import is_transformed
from hamfast.records.choices import Score

_NAME = "graph_attention"


class AttentionOutput(NamedTuple):
    """What :func:`graph_attention` returns where more than the sum is asked for.

    What is not asked for is None.
    """

    out: Tensor
    """``[receivers, heads, (components,) width]``: the weighted sum."""
    weights: Tensor | None
    """``[edges, heads]``: what each edge's value was multiplied with."""
    logits: Tensor | None
    """``[edges, heads]``: the scores, of which the weights are made."""
    lse: Tensor | None
    """``[receivers, heads]``: ``log(sum envelope exp(score) + epsilon)``.

    It is ``-inf`` for receivers without edges, if epsilon is 0.
    It is 0 for weights that are no softmax.
    """


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
    """Each receiver's weighted sum over its incoming edges.

    For every head and every edge e, from sender s to receiver t:

    - The query ``q_e`` is ``query_edge[e] + query_sender[s] + query_receiver[t]``.
    - The key ``k_e`` has three such parts, too, and ``edge_key_weight @ edge[e]``.
    - The value ``v_e`` has three such parts, too, and ``edge_value_weight @ edge[e]``.
    - The score ``z_e`` is ``<q_e, key_filter[e] * k_e>`` (dot), ``<vector, act(q_e + k_e)>``
      (additive, as GATv2's), or 0 (given).
    - ``s_e = clip(scale score_scale[e] z_e + bias[e])``.
    - ``p_e = envelope[e] exp(s_e) / (sum envelope exp(s) + epsilon)``, with the sum over the edges
      into t (softmax). Or ``p_e = envelope[e] act(s_e)``.
    - The weight is ``w_e = gate[e] dropout_e p_e``.
    - ``out[t] = sum_e w_e (value_filter[e] * v_e + Y[e] (x) u_e)``, with Y and u of ``outer``.

    The products with ``edge`` are not made for every edge where that can be avoided:
    ``<q, W e> = <W^T q, e>``, and ``sum w (W e) = W (sum w e)``.

    Args:
        edges: from :func:`hamfast.ops.edge_index`.
        query_edge, query_sender, query_receiver: ``[rows, heads, width]``, with a row per edge,
            sender and receiver. What is left out is zero.
        key_edge, key_sender, key_receiver: as the query's.
        value_edge, value_sender, value_receiver: as the query's, with a width of their own. Or
            ``[rows, heads, components, width]``, for irreps.
        edge: ``[edges, features]``: the edges' features.
        edge_key_weight: ``[heads, width, features]``: makes keys of the features.
        edge_value_weight: ``[heads, (components,) value width, features]``: makes values of them.
        score: ``dot``, ``additive`` or ``given``. Given: the bias is the score.
        vector: ``[heads, width]``, of additive scores.
        score_activation: of additive scores: ``leaky_relu``, ``smooth_leaky_relu`` (Equiformer's)
            or ``silu``.
        negative_slope: of the first two.
        key_filter: ``[edges, heads, width]``: multiplies the key.
        value_filter: ``[edges, heads, value width]``: multiplies the value, all components alike.
        outer: values of rank one, as ``(Y, u, "sender")`` or ``(Y, u, "edge")``. Y is
            ``[edges, components]``. u is ``[rows, heads, width]``, with a row per sender or edge.
        bias, score_scale, envelope, gate: ``[edges]`` or ``[edges, heads]``. The envelope must not
            be negative. With one that ends smoothly at the cutoff, so do the results.
        scale: factor of z. By default it is ``1 / sqrt(width)`` for dot and 1 for additive.
        clip: scores are clipped to ``[-clip, clip]``. None: they are not clipped.
        weight: ``softmax``, ``identity``, ``silu``, ``sigmoid`` or ``softplus``.
        epsilon: added to the softmax's sum.
        dropout: probability that a weight is set to 0. The others are divided by ``1 - dropout``.
        seed: an int64 tensor with one element, of the dropout. The same seed gives the same mask.
            The mask is made again in the backward pass, and not stored. None: no dropout.
        return_weights, return_logits, return_lse: return an :class:`AttentionOutput`.

    Returns:
        ``[receivers, heads, (components,) value width]``, or an :class:`AttentionOutput`.

        - A receiver without edges has zeros.
        - Sums are made in a fixed order, so results are deterministic.
        - All results are differentiable.
        - The first two derivatives are kernels. Further ones, forward mode and ``torch.func`` run
          on differentiable sums over edges.
        - bfloat16 and float16 operands are computed in float32. Queries, keys, values and edges'
          features stay as they are stored, in memory and for the backward pass. With filters,
          ``outer`` or ``torch.func`` they are converted.
        - Under autocast those may be of half precision while all else is float32.

    Raises:
        TypeError: an argument is no tensor, or of another type; the message names it.
        ValueError: operands exclude each other, or a shape, dtype or device does not fit; the
            message names the operand.
    """
    check_graph(_NAME, edges)
    y, u, outer_rows_of = check_outer(outer)
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
        "outer Y": y,
        "outer u": u,
        "bias": bias,
        "score_scale": score_scale,
        "envelope": envelope,
        "gate": gate,
    }
    device = edges.senders.device.type
    given, dtype = _in_precision(given, torch.is_autocast_enabled(device))
    heads, width = check_operands(edges, given, outer_rows_of, score, score_activation, weight)
    check_settings(negative_slope, clip, epsilon, dropout, seed)
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
    seed = seed if dropout > 0 else None
    with torch.autocast(device, enabled=False):
        results = _attend(given, outer_rows_of, seed, edges.graph, settings, return_weights, return_logits)
    if dtype in HALF:
        results = Results(*(t.to(dtype) for t in results))
    if not (return_weights or return_logits or return_lse):
        return results.out
    return AttentionOutput(
        results.out,
        results.weights if return_weights else None,
        results.logits if return_logits else None,
        results.lse if return_lse else None,
    )


_Tensors = dict[str, Tensor | None]


def _in_precision(given: _Tensors, autocast: bool) -> tuple[_Tensors, torch.dtype]:
    """The operands in the dtypes that the kernel takes, and the dtype of the results."""
    if autocast:
        for name, tensor in given.items():
            if tensor is not None:
                check_tensor(_NAME, name, tensor)
    if autocast and len({t.dtype for t in given.values() if t is not None}) > 1:
        # All else is float32 then. Rows stay as they are stored if they all are so.
        dtypes = {t.dtype for name, t in given.items() if name in STORED and t is not None}
        given = _in_float32(given, but=STORED if len(dtypes) == 1 and dtypes <= {*HALF} else ())
        check_device(_NAME, **given)
    else:
        check_same(_NAME, True, **given)
    dtypes_by_name = {name: t.dtype for name, t in given.items() if t is not None}
    rows = [dtype for name, dtype in dtypes_by_name.items() if name in STORED]
    dtype = (rows or [*dtypes_by_name.values()])[0]
    if dtype in HALF:
        # The kernel reads rows as they are stored. What is small, or unknown to it, is float32.
        sums_outside = any(given[name] is not None for name in ("key_filter", "value_filter", "outer Y"))
        given = _in_float32(given, but=() if sums_outside or is_transformed(given.values()) else STORED)
    return given, dtype


def _in_float32(given: _Tensors, but: tuple[str, ...]) -> _Tensors:
    """All operands in float32 but those of these names."""
    return {name: t if t is None or name in but else t.float() for name, t in given.items()}


def _attend(
    given: _Tensors,
    outer_rows_of: str,
    seed: Tensor | None,
    graph: Any,
    settings: Any,
    wants_weights: bool,
    wants_logits: bool,
) -> Any:
    """The results. What the kernel does not know is computed before it or after it."""
    operands = {name: given.get(name) for name in OPERANDS}
    for name in SCALARS:
        tensor = operands[name]
        if tensor is not None:
            operands[name] = (tensor if tensor.dim() == 2 else tensor.unsqueeze(-1)).expand(-1, settings.heads)
    transformed = is_transformed(given.values())
    key_weight = _meet_edge_keys(operands, given, settings, transformed)
    if given["key_filter"] is not None:
        settings = _score_before(operands, given["key_filter"], graph, settings)
    values, value_weight = _meet_values(operands, given)
    if value_weight is None and key_weight is None:
        operands["edge"] = None
    taken = Operands(**{name: operands[name] for name in OPERANDS})
    if transformed:
        found = attention_formula(taken, seed, graph, settings)
    else:
        wants_weights = wants_weights or given["value_filter"] is not None or given["outer Y"] is not None
        found = run_kernel(
            taken, seed, graph, settings, key_weight, wants_weights, wants_logits, value_weight is not None
        )
    return found._replace(out=_whole_sum(found, values, value_weight, given, outer_rows_of, graph))


def _meet_edge_keys(operands: _Tensors, given: _Tensors, settings: Any, transformed: bool) -> Tensor | None:
    """Puts the keys that are made of the edges' features into the operands.

    Returns:
        The edge_key_weight, if the kernel meets the features itself.
    """
    edge, key_weight = given["edge"], given["edge_key_weight"]
    if edge is None or key_weight is None:
        return None
    only_receivers = operands["query_edge"] is None and operands["query_sender"] is None
    if settings.score != Score.DOT or not only_receivers or given["key_filter"] is not None:
        operands["key_edge"] = _plus(operands["key_edge"], _project(edge, key_weight))
        return None
    if transformed:
        query = operands["query_receiver"]
        assert query is not None  # check_operands has seen it
        operands["query_on_edge"] = query_on_edge(query, key_weight)
    return key_weight


def _score_before(operands: _Tensors, key_filter: Tensor, graph: Any, settings: Any) -> Any:
    """Makes filtered scores here, so that the bias has them. Returns the settings for that."""
    logits = raw_scores(operands, graph, settings, key_filter)
    if operands["score_scale"] is not None:
        logits = logits * operands["score_scale"]
    operands["bias"] = _plus(operands["bias"], logits)
    operands |= {name: None for name in ("score_scale", "vector")}
    operands |= {f"{name}_{part}": None for name in ("query", "key") for part in PARTS}
    return settings._replace(score=Score.GIVEN)


def _meet_values(operands: _Tensors, given: _Tensors) -> tuple[_Tensors, Tensor | None]:
    """Puts the values into the operands, their components in one row.

    Filtered values are summed after the kernel, and do not go there.

    Returns:
        The parts of the values, and the edge_value_weight if it is applied to ``out_on_edge``.
    """
    values = {part: given[f"value_{part}"] for part in PARTS}
    edge, value_weight = given["edge"], given["edge_value_weight"]
    filtered = given["value_filter"] is not None
    if filtered and edge is not None and value_weight is not None:
        values["edge"] = _plus(values["edge"], _project(edge, value_weight))
        value_weight = None
    for part, value in values.items():
        operands[f"value_{part}"] = None if value is None or filtered else value.flatten(2)
    return values, value_weight


def _whole_sum(
    found: Any, values: _Tensors, value_weight: Tensor | None, given: _Tensors, outer_rows_of: str, graph: Any
) -> Tensor:
    """``out``: what the kernel has summed, and what is summed with its weights."""
    terms = []
    if found.out.shape[2]:
        components = next((v.shape[2:-1] for v in values.values() if v is not None), ())
        terms.append(found.out.unflatten(2, (*components, -1)) if components else found.out)
    if value_weight is not None:
        projected = torch.matmul(found.out_on_edge.transpose(0, 1), value_weight.flatten(1, -2).transpose(1, 2))
        terms.append(projected.transpose(0, 1).unflatten(2, value_weight.shape[1:-1]))
    if given["value_filter"] is not None:
        for part, value in values.items():
            if value is not None:
                filters = given["value_filter"].unsqueeze(2)
                with_components = value.unsqueeze(2) if value.dim() == 3 else value
                summed = weighted_sum(found.weights, with_components, part, graph, filters)
                terms.append(summed.squeeze(2) if value.dim() == 3 else summed)
    y, u = given["outer Y"], given["outer u"]
    if y is not None and u is not None:
        terms.append(weighted_sum(found.weights, u.unsqueeze(2), outer_rows_of, graph, y[:, None, :, None]))
    total = sum(terms[1:], terms[0]) if terms else found.out
    return total if total.is_contiguous() else total.contiguous()


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    """Their sum; None is zero."""
    return b if a is None else a + b


def _project(edge: Tensor, weight: Tensor) -> Tensor:
    """``W e`` for every edge: ``[edges, heads, (components,) width]``."""
    count, features = edge.shape
    matrix = weight.flatten(0, -2).T.to(edge.dtype)
    if edge.dtype in HALF or torch.is_autocast_enabled(edge.device.type):  # torch's product would round sums
        made = block_matmul(edge.flatten(), matrix.flatten(), count, [(1, features, matrix.shape[1])])
    else:  # costs less per call
        made = edge @ matrix
    return made.view(count, *weight.shape[:-1])
