"""``hamfast::edge_update`` and its derivatives on tensors, for the kernels of kernels/edge_update.py."""

from __future__ import annotations

import torch

from hamfast.kernels.edge_update import edge_update as forward_kernel
from hamfast.kernels.edge_update import edge_update_backward as backward_kernel
from hamfast.kernels.edge_update import edge_update_double_backward as double_backward_kernel
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
    return _gradients(backward_kernel, (grad,), 0, (edge, sender, receiver), weight, bias, senders, rest)


def edge_update_double_backward(tangent_sum, tangent_norm, grad, edge, sender, receiver, weight, bias, senders, *rest):
    """See csrc/library.cpp."""
    given = (tangent_sum, tangent_norm, grad)
    return _gradients(double_backward_kernel, given, 1, (edge, sender, receiver), weight, bias, senders, rest)


def _gradients(kernel, given, more, rows, weight, bias, senders, rest):
    """A pass back over parts of the edges. more: rows of edges that it makes besides the gradient of the sum."""
    receivers = rest[2]
    rows, weight, bias, like, constants = _prepared(rows, weight, bias, *rest[-2:])
    edges, width = senders.shape[0], like.shape[1]
    made = [like.new_empty(edges, width) for _ in range(more + 1)]
    parts = min(pieces(edges, 16), MAX_PARTS)
    number = torch.float64 if like.dtype == torch.float64 else torch.float32
    of_norm = like.new_empty(parts, 2, 0 if weight is None else width, dtype=number)
    given = [t if t is None else t.contiguous() for t in given]
    arguments = (*given, *rows, weight, bias, senders, receivers, *made, of_norm, edges, width, parts)
    launch(kernel, (parts if width else 0,), arguments, constants, made[0], UPDATE.num_warps)
    return *made, of_norm.sum(0)
