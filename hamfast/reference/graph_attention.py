"""Attention over the incoming edges of each node, edge by edge in plain torch."""

import math

import torch
from torch import Tensor


def graph_attention(
    senders: Tensor,
    receivers: Tensor,
    num_receivers: int,
    query: tuple[Tensor | None, Tensor | None, Tensor | None],
    key: tuple[Tensor | None, Tensor | None, Tensor | None],
    value: tuple[Tensor | None, Tensor | None, Tensor | None],
    scale: float | None = None,
    clip: float | None = None,
) -> Tensor:
    """See :func:`hamfast.ops.graph_attention`; each operand is (edge part, source part, target part)."""

    def per_edge(parts):
        edge, source, target = parts
        terms = [edge, None if source is None else source[senders], None if target is None else target[receivers]]
        return sum(t for t in terms if t is not None)

    q, k, v = per_edge(query), per_edge(key), per_edge(value)
    score = (q * k).sum(-1) * (scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    if clip is not None:
        score = score.clamp(-clip, clip)
    # Subtracting the node's maximum changes nothing but keeps exp finite.
    index = receivers[:, None].expand_as(score)
    top = torch.full((num_receivers, score.shape[1]), -math.inf, dtype=score.dtype, device=score.device)
    top = top.scatter_reduce(0, index, score.detach(), "amax")
    weight = torch.exp(score - top[receivers])
    total = torch.zeros_like(top).index_add(0, receivers, weight)
    weight = weight / total[receivers]
    return v.new_zeros(num_receivers, *v.shape[1:]).index_add(0, receivers, weight[..., None] * v)
