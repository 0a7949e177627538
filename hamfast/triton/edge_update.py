"""``hamfast::edge_update`` and its derivatives on tensors, for the kernels of
kernels/edge_update.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hamfast.kernels.edge_update import Graph, Operands
from hamfast.kernels.edge_update import edge_update as forward_kernel
from hamfast.kernels.edge_update import edge_update_backward as backward_kernel
from hamfast.kernels.edge_update import edge_update_double_backward as double_backward_kernel
from hamfast.records.ops import EDGE_UPDATE, EDGE_UPDATE_BACKWARD, EDGE_UPDATE_DOUBLE_BACKWARD
from hamfast.triton.configurations import UPDATE
from hamfast.triton.launch import contiguous, launch, pieces, power_of_two, real_of

MAX_CHUNKS = 4096
"""Of the edges, for the sums that all edges share: as many as fill a GPU."""


class _Call:
    """What all three ops take, as the kernels do."""

    def __init__(self, arguments: Any):
        edge, sender, receiver, weight, bias = arguments.operands
        senders, receivers = arguments.graph.senders, arguments.graph.receivers
        self.edges = senders.shape[0]
        self.operands = Operands((edge, sender, receiver), weight, bias)
        self.graph = Graph(senders, receivers, self.edges)
        self.like = next(t for t in (edge, sender, receiver) if t is not None)
        self.width = self.like.shape[1]
        columns = power_of_two(self.width)
        self.constants = {
            "EPSILON": arguments.settings.epsilon,
            "SILU": arguments.settings.silu,
            "REAL": real_of(self.like),
            "EDGES": max(1, UPDATE.edges * UPDATE.columns // columns),
            "COLUMNS": columns,
        }

    def new_rows(self) -> Tensor:
        """An empty tensor ``[edges, width]`` for results."""
        return self.like.new_empty(self.edges, self.width)


def edge_update(*flat: Any) -> Tensor:
    """The op, with its arguments as its record has them."""
    call = _Call(contiguous(EDGE_UPDATE.read(flat)))
    out = call.new_rows()
    grid = (pieces(call.edges, call.constants["EDGES"]) if call.width else 0,)
    arguments = (call.operands, call.graph, out, call.width)
    launch(forward_kernel, grid, arguments, call.constants, out, UPDATE.num_warps)
    return out


def edge_update_backward(*flat: Any) -> tuple[Tensor, ...]:
    """The op, with its arguments as its record has them."""
    arguments = contiguous(EDGE_UPDATE_BACKWARD.read(flat))
    return _gradients(backward_kernel, _Call(arguments), (arguments.grad,), 1)


def edge_update_double_backward(*flat: Any) -> tuple[Tensor, ...]:
    """The op, with its arguments as its record has them."""
    arguments = contiguous(EDGE_UPDATE_DOUBLE_BACKWARD.read(flat))
    given = (arguments.tangent_sum, arguments.tangent_norm, arguments.grad)
    return _gradients(double_backward_kernel, _Call(arguments), given, 2)


def _gradients(kernel: Any, call: _Call, given: tuple, count: int) -> tuple[Tensor, ...]:
    """A pass back over chunks of the edges, which makes so many tensors of rows, and the gradients
    of the norm.
    """
    rows = [call.new_rows() for _ in range(count)]
    chunks = min(pieces(call.edges, 16), MAX_CHUNKS)
    compute = torch.float64 if call.like.dtype == torch.float64 else torch.float32
    norm_width = 0 if call.operands.weight is None else call.width
    grad_norm = call.like.new_empty(chunks, 2, norm_width, dtype=compute)
    arguments = (*given, call.operands, call.graph, *rows, grad_norm, call.width, chunks)
    launch(kernel, (chunks if call.width else 0,), arguments, call.constants, rows[0], UPDATE.num_warps)
    return *rows, grad_norm.sum(0)
