"""The tensor product's ops on tensors, for the kernels of kernels/channel.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.kernels.channel import channel_backward, channel_forward
from hamfast.triton import configurations
from hamfast.triton.general import add_general
from hamfast.triton.launch import launch, pieces, power_of_two, real_of
from hamfast.triton.units import BLOCKS, make_units

X, Y, W, G = range(4)


class Call(NamedTuple):
    """One call of the op, its tensors contiguous. ``hidden``: rows that make the weights with the matrix ``operands[W]``."""

    operands: list[Tensor | None]
    directions: list[Tensor | None]
    tables: Sequence[Tensor]
    senders: tuple[Tensor | None, ...]
    """Index, order, pointers."""
    receivers: tuple[Tensor | None, ...]
    wanted: int
    edges: int
    shared: bool
    layouts: tuple[int, int]
    dims: Sequence[int]
    hidden: Tensor | None = None

    @property
    def like(self) -> Tensor:
        return next(t for t in self.operands if t is not None)

    def wants(self, slot: int) -> bool:
        return bool(self.wanted >> slot & 1)

    def rows(self, slot: int) -> int:
        ptr = self.senders[2] if slot == X else self.receivers[2] if slot == G else None
        return self.edges if ptr is None else ptr.shape[0] - 1

    def scale(self, side: int) -> int:
        return self.rows(G if side else X) if self.layouts[side] == BLOCKS else 1


def tensor_product(*arguments: Any) -> tuple[Tensor, ...]:
    """``hamfast::tensor_product``: see csrc/library.cpp."""
    tensors: list[Any] = [t if t is None else t.contiguous() for t in arguments[:22]]
    wanted, edges, shared, x_layout, g_layout, dims = arguments[22:]
    graph = (tuple(tensors[16:19]), tuple(tensors[19:22]))
    call = Call(
        tensors[:4], tensors[4:8], tensors[11:16], *graph, wanted, int(edges), shared, (x_layout, g_layout), dims
    )
    none = call.like.new_empty(0)
    if tensors[11].shape[0]:
        found = channel_product(call)
    else:
        found = [_new(call, slot, torch.zeros) if call.wants(slot) else none for slot in range(4)]
    if tensors[8].shape[0]:
        add_general(call, tensors[8:11], found)
    return tuple(found)


def channel_product(call: Call) -> list[Tensor]:
    out = [call.like.new_empty(0)] * 4
    if call.wants(G):
        out[G] = _forward(call)
    if call.wanted & 7:
        out[X], out[Y], out[W], _ = _backward(call, (call.wants(X), call.wants(Y), call.wants(W), False))
    return out


def radial_tensor_product(x, y, h, matrix, g, *rest):
    """``hamfast::radial_tensor_product``: see csrc/library.cpp. Weights are made in the kernel, by its matrix units, in float32."""
    *tensors, x_layout, g_layout, dims = rest
    graph = [t if t is None else t.contiguous() for t in tensors[8:]]
    x, y, h, matrix = (t.contiguous() for t in (x, y, h, matrix))
    g = None if g is None else g.contiguous()
    call = Call(
        [x, y, matrix, g], [None] * 4, tensors[3:8], tuple(graph[:3]), tuple(graph[3:]), 0, h.shape[0], False,
        (x_layout, g_layout), dims, h,
    )  # fmt: skip
    none = x.new_empty(0)
    if g is None:
        return (_forward(call), none, none, none, none)
    # One after the other: registers do not hold the sums of all.
    grad_x, grad_y, *_ = _backward(call, (True, True, False, False))
    *_, grad_matrix, _ = _backward(call, (False, False, True, False))
    *_, grad_h = _backward(call, (False, False, False, True))
    return none, grad_x, grad_y, grad_h, grad_matrix


def _new(call: Call, slot: int, make) -> Tensor:
    shape = (call.dims[W],) if slot == W and call.shared else (call.rows(slot), call.dims[slot])
    return make(shape, dtype=call.like.dtype, device=call.like.device)


def _constants(call: Call, group, configuration) -> dict:
    constants = {
        "TASKS": group.shape.tasks,
        "ENTRIES": group.shape.entries,
        "OWN": group.shape.own,
        "D": group.shape.d,
        "ADD": group.shape.adds,
        "SHARED": call.shared,
        "K": 0 if call.hidden is None else max(16, power_of_two(call.hidden.shape[1])),
        "PRECISION": configurations.PRECISION[configurations.architecture()],
        "REAL": real_of(call.like),
        "EDGES": configuration.edges(group.shape.channels),
        "CHANNELS": group.shape.channels,
    }
    return constants


def _forward(call: Call) -> Tensor:
    configuration = configurations.configuration_of("forward", call.hidden is not None)
    units = make_units(call.tables, call.dims, True, call.layouts, configuration)
    out = _new(call, G, torch.empty if units.covers else torch.zeros)
    x, y, w, _ = call.operands
    dx, dy, dw, _ = call.directions
    _, order, ptr = call.receivers
    rows = call.rows(G)
    k = 0 if call.hidden is None else call.hidden.shape[1]
    for group in units.groups:
        constants = _constants(call, group, configuration)
        turns = rows if ptr is not None else pieces(rows, constants["EDGES"])
        arguments = (
            x, y, w, call.hidden, dx, dy, dw, out, call.senders[0], order, ptr, group.table, rows, call.scale(0),
            call.scale(1), call.dims[Y], call.dims[W], k, group.table.shape[1],
        )  # fmt: skip
        launch(channel_forward, (turns, group.units), arguments, constants, out, configuration.num_warps)
    return out


def _backward(call: Call, wanted: tuple[bool, bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in x, y, the weights (or their matrix) and the hidden rows; empty where not wanted."""
    configuration = configurations.configuration_of(
        "backward" if wanted[X] or call.hidden is None else "to weights", call.hidden is not None
    )
    units = make_units(call.tables, call.dims, False, call.layouts, configuration)
    like, edges = call.like, call.edges
    index, order, ptr = call.senders
    rows = call.rows(X)
    k = 0 if call.hidden is None else call.hidden.shape[1]
    keeps_weights = wanted[W] and (call.shared or call.hidden is not None)
    compute = torch.float64 if like.dtype == torch.float64 else torch.float32
    grad_x = _new(call, X, torch.empty if units.covers else torch.zeros) if wanted[X] else None
    y_parts = like.new_zeros(units.parts, edges, call.dims[Y], dtype=compute) if wanted[Y] else None
    h_parts = like.new_empty(units.parts, edges, k, dtype=compute) if wanted[3] else None
    programs = [_turns(group, rows, ptr, configuration) for group in units.groups]
    most = max((min(turns, MOST_PARTS) for turns in programs), default=0)
    out_w = None
    if keeps_weights:
        shape = (most, k, call.dims[W]) if k else (most, call.dims[W])
        out_w = like.new_zeros(shape, dtype=compute)
    elif wanted[W]:
        out_w = _new(call, W, torch.empty if call.dims[8] else torch.zeros)
    x, y, w, g = call.operands
    for group, turns in zip(units.groups, programs, strict=True):
        constants = _constants(call, group, configuration) | {"Y": group.shape.y}
        per_program = max(1, pieces(turns, MOST_PARTS)) if keeps_weights else 1
        arguments = (
            x, y, w, call.hidden, g, *call.directions, grad_x, y_parts, out_w, h_parts, index, call.receivers[0], order,
            ptr, group.table, turns, per_program, edges, call.scale(0), call.scale(1), call.dims[Y], call.dims[W], k,
            group.table.shape[1],
        )  # fmt: skip
        grid = (pieces(turns, per_program), group.units)
        launch(channel_backward, grid, arguments, constants, like, configuration.num_warps)
    none = like.new_empty(0)
    return (
        none if grad_x is None else grad_x,
        none if y_parts is None else y_parts.sum(0).to(like.dtype),
        none if out_w is None else out_w.sum(0).to(like.dtype) if keeps_weights else out_w,
        none if h_parts is None else h_parts.sum(0).to(like.dtype),
    )


MOST_PARTS = 256
"""Of sums over all edges for weights that edges share: enough programs for a GPU, few enough to add up."""


def _turns(group, rows, ptr, configuration) -> int:
    return rows if ptr is not None else pieces(rows, configuration.edges(group.shape.channels))
