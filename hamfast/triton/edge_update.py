"""``hamfast::edge_update`` and its backward pass on tensors, for the kernels of kernels/edge_update.py."""

from __future__ import annotations

import torch

from hamfast.kernels.edge_update import edge_update as forward_kernel
from hamfast.kernels.edge_update import edge_update_backward as backward_kernel
from hamfast.triton.configurations import UPDATE
from hamfast.triton.launch import launch, pieces, power_of_two, real_of

MAX_PARTS = 4096
"""Of the edges, for the sums that all edges share: as many as fill a GPU."""


def _prepared(rows, weight, bias, epsilon, silu):
    rows = [t if t is None else t.contiguous() for t in rows]
    like = next(t for t in rows if t is not None)
    columns = power_of_two(like.shape[1])
    edges_at_once = max(1, UPDATE.edges * UPDATE.columns // columns)
    constants = {"EPSILON": epsilon, "SILU": silu, "REAL": real_of(like), "EDGES": edges_at_once, "COLUMNS": columns}
    return rows, *(t if t is None else t.contiguous() for t in (weight, bias)), like, constants


def edge_update(edge, sender, receiver, weight, bias, senders, *rest):
    """See csrc/library.cpp."""
    receivers = rest[2]
    rows, weight, bias, like, constants = _prepared((edge, sender, receiver), weight, bias, *rest[-2:])
    edges, width = senders.shape[0], like.shape[1]
    out = like.new_empty(edges, width)
    arguments = (*rows, weight, bias, senders, receivers, out, edges, width)
    grid = (pieces(edges, constants["EDGES"]) if width else 0,)
    launch(forward_kernel, grid, arguments, constants, out, UPDATE.num_warps)
    return out


def edge_update_backward(grad, edge, sender, receiver, weight, bias, senders, *rest):
    """See csrc/library.cpp."""
    receivers = rest[2]
    rows, weight, bias, like, constants = _prepared((edge, sender, receiver), weight, bias, *rest[-2:])
    edges, width = senders.shape[0], like.shape[1]
    of_sum = like.new_empty(edges, width)
    parts = min(pieces(edges, 16), MAX_PARTS)
    number = torch.float64 if like.dtype == torch.float64 else torch.float32
    of_norm = like.new_empty(parts, 2, 0 if weight is None else width, dtype=number)
    arguments = (
        grad.contiguous(), *rows, weight, bias, senders, receivers, of_sum, of_norm, edges, width, parts
    )  # fmt: skip
    launch(backward_kernel, (parts if width else 0,), arguments, constants, of_sum, UPDATE.num_warps)
    return of_sum, of_norm.sum(0)
