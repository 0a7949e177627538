"""The update of edges' features, by torch's own layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def edge_update(
    senders: Tensor,
    receivers: Tensor,
    edge: Tensor | None = None,
    sender: Tensor | None = None,
    receiver: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-5,
    activation: str = "silu",
) -> Tensor:
    """Arguments as :func:`hamfast.ops.edge_update` has them."""
    terms = [] if edge is None else [edge]
    if sender is not None:
        terms.append(sender[senders])
    if receiver is not None:
        terms.append(receiver[receivers])
    x = torch.stack(terms).sum(0)
    if weight is not None:
        x = functional.layer_norm(x, weight.shape, weight, bias, epsilon)
    return functional.silu(x) if activation == "silu" else x
