"""Attention over the incoming edges of each node, edge by edge in plain torch."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def graph_attention(
    senders: Tensor, receivers: Tensor, num_receivers: int, **given
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention as :func:`hamfast.ops.graph_attention` has it.

    Args:
        senders, receivers: ``[edges]``, the ends of every edge.
        given: as there. Dropout is a tensor ``dropout_factors`` ``[edges, heads]`` here.

    Returns:
        out, weights, logits, lse.
    """

    def per_edge(name):
        index = {"edge": slice(None), "sender": senders, "receiver": receivers}
        return [given[f"{name}_{p}"][i] for p, i in index.items() if given.get(f"{name}_{p}") is not None]

    def projected(name):
        if given.get(name) is None:
            return []
        weight = given[name]  # [heads, (components,) width, features]
        return [torch.tensordot(given["edge"], weight, dims=([1], [weight.dim() - 1]))]

    def per_head(name):
        tensor = given[name]
        return tensor if tensor.dim() == 2 else tensor[:, None]

    def by_receiver(x):
        return x.new_zeros(num_receivers, *x.shape[1:]).index_add(0, receivers, x)

    query, key, value = sum(per_edge("query")), sum(per_edge("key") + projected("edge_key_weight")), per_edge("value")
    value += projected("edge_value_weight")
    score_type = given.get("score", "dot")
    if score_type == "dot":
        if given.get("key_filter") is not None:
            key = key * given["key_filter"]
        score = (query * key).sum(-1) * given.get("scale", 1 / math.sqrt(max(query.shape[-1], 1)))
    elif score_type == "additive":
        x, slope = query + key, given.get("negative_slope", 0.2)
        activations = {
            "leaky_relu": lambda: functional.leaky_relu(x, slope),
            "silu": lambda: functional.silu(x),
            # Equiformer's SmoothLeakyReLU
            "smooth_leaky_relu": lambda: (1 + slope) / 2 * x + (1 - slope) / 2 * x * (2 * torch.sigmoid(x) - 1),
        }
        score = (activations[given.get("score_activation", "leaky_relu")]() * given["vector"]).sum(-1)
        score = score * given.get("scale", 1.0)
    else:
        score = 0.0
    if given.get("score_scale") is not None:
        score = score * per_head("score_scale")
    if given.get("bias") is not None:
        score = score + per_head("bias")
    if given.get("clip") is not None:
        score = score.clamp(-given["clip"], given["clip"])
    envelope = per_head("envelope") if given.get("envelope") is not None else torch.ones_like(score)

    lse = score.new_zeros(num_receivers, score.shape[1])
    name = given.get("weight", "softmax")
    if name == "softmax":
        # Subtracting a constant per node changes nothing but keeps exp finite.
        index = receivers[:, None].expand_as(score)
        top = torch.full_like(lse, -math.inf).scatter_reduce(0, index, score.detach(), "amax")
        top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
        plain = envelope * torch.exp(score - top[receivers])
        total = by_receiver(plain) + given.get("epsilon", 0.0) * torch.exp(-top)
        weights = plain / torch.where(total == 0, torch.ones_like(total), total)[receivers]
        lse = top + torch.log(total)
    else:
        activated = {
            "identity": lambda: score,
            "silu": lambda: functional.silu(score),
            "sigmoid": lambda: torch.sigmoid(score),
            "softplus": lambda: functional.softplus(score),
        }[name]()
        weights = envelope * activated
    if given.get("gate") is not None:
        weights = weights * per_head("gate")
    if given.get("dropout_factors") is not None:
        weights = weights * given["dropout_factors"]

    terms = []
    if value:
        summed = sum(value)
        wide = weights.reshape(*weights.shape, *(1,) * (summed.dim() - 2))
        if given.get("value_filter") is not None:
            summed = summed * (given["value_filter"][:, :, None] if summed.dim() == 4 else given["value_filter"])
        terms.append(wide * summed)
    if given.get("outer") is not None:
        y, u, rows_of = given["outer"]
        u = u[senders] if rows_of == "sender" else u
        terms.append(weights[:, :, None, None] * y[:, None, :, None] * u[:, :, None, :])
    return by_receiver(sum(terms)), weights, score, lse
