"""``hamfast::radial_tensor_product`` from ops that know one block of edges, for CUDA.

The weights of one block, or their gradients, are stored; CUDA kernels make the weights themselves,
so that only gradients go in blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.records.choices import Slot
from hamfast.records.ops import (
    PRODUCT_OPERANDS,
    PRODUCT_SETTINGS,
    RADIAL_OPERANDS,
    RADIAL_TENSOR_PRODUCT,
    TENSOR_PRODUCT,
    TENSOR_PRODUCT_FROM_HIDDEN,
)

_product = torch.ops.hamfast.tensor_product.default
_from_hidden = torch.ops.hamfast.tensor_product_from_hidden.default

LEAST_BLOCK = 1 << 15
MOST_BLOCKS = 16


def radial_in_blocks(*flat: Any) -> tuple[Tensor, ...]:
    """The op, with its arguments as its record has them.

    Edges are taken in the order of the rows that are summed, so that a row ends in the block after
    the one it began in, if that. No number leaves the device.
    """
    arguments = RADIAL_TENSOR_PRODUCT.read(flat)
    x, y, hidden, matrix, g = arguments.operands
    graph, dims = arguments.graph, arguments.dims
    none = x.new_empty(0)
    product = _ProductOfBlock(arguments)
    if g is None and product.makes_weights:
        return (product(arguments.operands, graph)[Slot.G], *(none,) * 4)
    order, ptr = (graph.receiver_order, graph.receiver_ptr) if g is None else (graph.sender_order, graph.sender_ptr)
    edges = hidden.shape[0]
    size = max(LEAST_BLOCK, -(-edges // MOST_BLOCKS))
    shape = (edges if ptr is None else ptr.shape[0] - 1, dims[Slot.G] if g is None else dims[Slot.X])
    sums = torch.promote_types(x.dtype, torch.float32)
    rows, grad_matrix = x.new_zeros(shape, dtype=sums), torch.zeros_like(matrix, dtype=sums)
    grad_y, grad_hidden = torch.empty_like(y), torch.empty_like(hidden)
    for begin in range(0, edges, size):
        end = min(begin + size, edges)
        chosen = slice(begin, end) if order is None else order[begin:end]
        own_ptr = None if ptr is None else ptr.clamp(begin, end) - begin
        x_block = _rows_of(x, graph.senders, chosen)
        g_block = _Rows(None, None) if g is None else _rows_of(g, graph.receivers, chosen)
        own = RADIAL_OPERANDS.fields(x_block.rows, y[chosen], hidden[chosen], matrix, g_block.rows)
        indices = graph._replace(
            senders=x_block.of_edges, receivers=g_block.of_edges, sender_order=None, receiver_order=None
        )
        if g is None:
            found = product(own, indices._replace(sender_ptr=None, receiver_ptr=own_ptr))[Slot.G]
        else:
            made = product(own, indices._replace(sender_ptr=own_ptr, receiver_ptr=None))
            found, grad_y[chosen], grad_w = made[Slot.X], made[Slot.Y], made[Slot.W]
            grad_hidden[chosen] = grad_w @ matrix.T
            grad_matrix += own.hidden.T @ grad_w
        if ptr is None:
            rows[chosen] = found
        else:
            rows += found
    rows = rows.to(x.dtype)
    return (rows, *(none,) * 4) if g is None else (none, rows, grad_y, grad_hidden, grad_matrix.to(x.dtype))


class _Rows(NamedTuple):
    rows: Tensor | None
    of_edges: Tensor | None
    """Which row each edge reads; None: its own."""


def _rows_of(t: Tensor, index: Tensor | None, chosen: Any) -> _Rows:
    """Rows and index of an operand for the chosen edges."""
    return _Rows(t[chosen], None) if index is None else _Rows(t, index[chosen])


class _ProductOfBlock:
    """The product of some edges, or its gradients in x, y and the weights, for weights ``hidden @
    matrix``."""

    def __init__(self, arguments: Any):
        self.arguments = arguments
        x = arguments.operands.x
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(_from_hidden.name(), x.device.type.upper())
        self.makes_weights = has_kernel and x.dtype != torch.float64
        self.one_pass = torch.get_float32_matmul_precision() != "highest"

    def __call__(self, operands: Any, graph: Any) -> tuple[Tensor, ...]:
        """The results of ``tensor_product``."""
        given = self.arguments
        if self.makes_weights:
            op = TENSOR_PRODUCT_FROM_HIDDEN
            layouts = (given.x_layout, given.g_layout)
            arguments = op.Arguments(operands, given.tables, graph, self.one_pass, *layouts, given.dims)
            return _from_hidden(*op.flatten(arguments))
        x, y, hidden, matrix, g = operands
        wanted = (Slot.G,) if g is None else (Slot.X, Slot.Y, Slot.W)
        settings = PRODUCT_SETTINGS.fields(hidden.shape[0], False, given.x_layout, given.g_layout, given.dims)
        arguments = TENSOR_PRODUCT.Arguments(
            operands=PRODUCT_OPERANDS.fields(x, y, hidden @ matrix, g),
            tangents=PRODUCT_OPERANDS.fields(None, None, None, None),
            tables=given.tables,
            graph=graph,
            wanted=sum(1 << slot for slot in wanted),
            settings=settings,
        )
        return _product(*TENSOR_PRODUCT.flatten(arguments))
