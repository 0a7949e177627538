"""The tensor product's ops on tensors, for the kernels of kernels/channel.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.kernels.channel import Gradients, Graph, Operands, Sizes, channel_backward, channel_forward
from hamfast.ops.general_formula import add_general
from hamfast.records.choices import Layout, Slot
from hamfast.records.ops import PRODUCT_OPERANDS, RADIAL_TENSOR_PRODUCT, TENSOR_PRODUCT
from hamfast.records.tables import ProductDims
from hamfast.triton import configurations
from hamfast.triton.launch import contiguous, launch, pieces, power_of_two, real_of
from hamfast.triton.units import Units, make_units

X, Y, W, G = Slot.X, Slot.Y, Slot.W, Slot.G
_NO_TANGENTS = Operands(None, None, None, None)


class Call(NamedTuple):
    """One call of an op, its tensors contiguous."""

    operands: Operands
    tangents: Operands
    tables: Any
    """The group ``tables`` of the ops' records."""
    graph: Any
    """The group ``graph``."""
    edges: int
    shared: bool
    layouts: tuple[int, int]
    """Of x and of g."""
    dims: ProductDims

    @property
    def like(self) -> Tensor:
        """Any operand."""
        return next(t for t in self.operands if t is not None)

    @property
    def k(self) -> int:
        """Length of the hidden rows; 0 without."""
        return 0 if self.operands.hidden is None else self.operands.hidden.shape[1]

    def ptr(self, slot: int) -> Tensor | None:
        """Where the edges of each row of an operand begin; None: its rows are the edges'."""
        return self.graph.sender_ptr if slot == X else self.graph.receiver_ptr if slot == G else None

    def rows(self, slot: int) -> int:
        """Of an operand and its gradient."""
        ptr = self.ptr(slot)
        return self.edges if ptr is None else ptr.shape[0] - 1

    def sizes(self, table: Tensor, rows: int) -> Sizes:
        """What the kernels are told; table: of units."""
        scales = (
            self.rows(s) if layout == Layout.BLOCKS else 1 for s, layout in zip((X, G), self.layouts, strict=True)
        )
        return Sizes(rows, self.edges, *scales, self.dims.y, self.dims.w, self.k, table.shape[1])

    def new(self, slot: int, make) -> Tensor:
        """Room for the derivative in a slot."""
        shape = (self.dims.w,) if slot == W and self.shared else (self.rows(slot), self.dims[slot])
        return make(shape, dtype=self.like.dtype, device=self.like.device)


class Wanted(NamedTuple):
    """The gradients of a backward pass; with hidden rows, that of w is the matrix's."""

    x: bool = False
    y: bool = False
    w: bool = False
    hidden: bool = False


def tensor_product(*flat: Any) -> tuple[Tensor, ...]:
    """``hamfast::tensor_product``, with its arguments as its record has them."""
    arguments = contiguous(TENSOR_PRODUCT.read(flat))
    edges, shared, x_layout, g_layout, dims = arguments.settings
    operands, tangents = Operands(*arguments.operands), Operands(*arguments.tangents)
    layouts = (x_layout, g_layout)
    call = Call(operands, tangents, arguments.tables, arguments.graph, int(edges), shared, layouts, ProductDims(*dims))
    wants = [bool(arguments.wanted >> slot & 1) for slot in range(4)]
    none = call.like.new_empty(0)
    if arguments.tables.tasks.shape[0]:
        found = _channel_product(call, wants)
    else:
        found = [call.new(slot, torch.zeros) if wants[slot] else none for slot in range(4)]
    if arguments.tables.paths.shape[0]:
        add_general(arguments, found)
    return tuple(found)


def _channel_product(call: Call, wants: list[bool]) -> list[Tensor]:
    out = [call.like.new_empty(0)] * len(PRODUCT_OPERANDS)
    if wants[G]:
        out[G] = _forward(call)
    if wants[X] or wants[Y] or wants[W]:
        out[X], out[Y], out[W], _ = _backward(call, Wanted(wants[X], wants[Y], wants[W]))
    return out


def radial_tensor_product(*flat: Any) -> tuple[Tensor, ...]:
    """``hamfast::radial_tensor_product``: weights are made in the kernel, by its matrix units, in
    float32.
    """
    arguments = contiguous(RADIAL_TENSOR_PRODUCT.read(flat))
    x, y, hidden, matrix, g = arguments.operands
    call = Call(
        Operands(x, y, matrix, g, hidden),
        _NO_TANGENTS,
        arguments.tables,
        arguments.graph,
        hidden.shape[0],
        False,
        (arguments.x_layout, arguments.g_layout),
        ProductDims(*arguments.dims),
    )
    none = x.new_empty(0)
    if g is None:
        return (_forward(call), none, none, none, none)
    # One after the other: registers do not hold the sums of all.
    grad_x, grad_y, *_ = _backward(call, Wanted(x=True, y=True))
    *_, grad_matrix, _ = _backward(call, Wanted(w=True))
    *_, grad_hidden = _backward(call, Wanted(hidden=True))
    return none, grad_x, grad_y, grad_hidden, grad_matrix


def _constants(call: Call, group, configuration) -> dict:
    return {
        "TASKS": group.shape.tasks,
        "ENTRIES": group.shape.entries,
        "OWN": group.shape.own,
        "D": group.shape.d,
        "ADD": group.shape.adds,
        "SHARED": call.shared,
        "K": max(16, power_of_two(call.k)) if call.operands.hidden is not None else 0,
        "PRECISION": configurations.PRECISION[configurations.architecture()],
        "REAL": real_of(call.like),
        "EDGES": configuration.edges(group.shape.channels),
        "CHANNELS": group.shape.channels,
    }


def _units(call: Call, making: str) -> tuple[configurations.ChannelConfiguration, Units]:
    configuration = configurations.configuration_of(making, call.operands.hidden is not None)
    return configuration, make_units(call.tables, call.dims, making == "forward", call.layouts, configuration)


def _forward(call: Call) -> Tensor:
    configuration, units = _units(call, "forward")
    out = call.new(G, torch.empty if units.covers else torch.zeros)
    graph = Graph(call.graph.senders, None, call.graph.receiver_order, call.graph.receiver_ptr)
    operands, tangents = (t._replace(g=None) for t in (call.operands, call.tangents))
    rows = call.rows(G)
    for group in units.groups:
        constants = _constants(call, group, configuration)
        arguments = (operands, tangents, out, graph, call.sizes(group.table, rows), group.table)
        grid = (_steps(group, rows, graph.ptr, configuration), group.units)
        launch(channel_forward, grid, arguments, constants, out, configuration.num_warps)
    return out


def _backward(call: Call, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in x, y, the weights (or their matrix) and the hidden rows; empty where not
    wanted."""
    has_hidden = call.operands.hidden is not None
    configuration, units = _units(call, "backward" if wanted.x or not has_hidden else "to weights")
    like, edges, k, dims = call.like, call.edges, call.k, call.dims
    graph = Graph(call.graph.senders, call.graph.receivers, call.graph.sender_order, call.graph.sender_ptr)
    rows = call.rows(X)
    keeps_weights = wanted.w and (call.shared or has_hidden)
    compute = torch.float64 if like.dtype == torch.float64 else torch.float32
    grad_x = call.new(X, torch.empty if units.covers else torch.zeros) if wanted.x else None
    y_chunks = like.new_zeros(units.chunks, edges, dims.y, dtype=compute) if wanted.y else None
    hidden_chunks = like.new_empty(units.chunks, edges, k, dtype=compute) if wanted.hidden else None
    steps_of = [_steps(group, rows, graph.ptr, configuration) for group in units.groups]
    most = max((min(steps, MOST_CHUNKS) for steps in steps_of), default=0)
    grad_w = None
    if keeps_weights:
        grad_w = like.new_zeros((most, k, dims.w) if k else (most, dims.w), dtype=compute)
    elif wanted.w:
        grad_w = call.new(W, torch.empty if dims.covers_weights else torch.zeros)
    gradients = Gradients(grad_x, y_chunks, grad_w, hidden_chunks)
    for group, steps in zip(units.groups, steps_of, strict=True):
        constants = _constants(call, group, configuration) | {"Y": group.shape.y}
        per_program = max(1, pieces(steps, MOST_CHUNKS)) if keeps_weights else 1
        sizes = call.sizes(group.table, rows)
        arguments = (call.operands, call.tangents, gradients, graph, sizes, group.table, steps, per_program)
        grid = (pieces(steps, per_program), group.units)
        launch(channel_backward, grid, arguments, constants, like, configuration.num_warps)
    none = like.new_empty(0)
    return (
        none if grad_x is None else grad_x,
        none if y_chunks is None else y_chunks.sum(0).to(like.dtype),
        none if grad_w is None else grad_w.sum(0).to(like.dtype) if keeps_weights else grad_w,
        none if hidden_chunks is None else hidden_chunks.sum(0).to(like.dtype),
    )


MOST_CHUNKS = 256
"""Of sums over all edges for weights that edges share: enough programs for a GPU, few enough to add
up.
"""


def _steps(group, rows, ptr, configuration) -> int:
    """How many programs a unit has: one per row, or per tile of edges."""
    return rows if ptr is not None else pieces(rows, configuration.edges(group.shape.channels))
