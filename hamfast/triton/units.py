"""The channel-wise plan cut into the units of kernels/channel.py.

A unit has the constants that its kernel is compiled for, and a row of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.constants import on_host
from hamfast.kernels.channel import BlockRow, EntryShape, TaskRow, TaskShape, UnitHead
from hamfast.records.choices import Layout
from hamfast.records.tables import ChannelBlock, ChannelTask, CouplingEntry, ProductDims
from hamfast.triton.configurations import ChannelConfiguration
from hamfast.triton.launch import pieces, power_of_two


class Shape(NamedTuple):
    """What a kernel is compiled for."""

    own: tuple[tuple[int, int], ...]
    """Components of each of the unit's own blocks, and the first of them among all."""
    d: int
    """Components of all."""
    tasks: tuple[tuple, ...]
    """The values of :class:`TaskShape`; plain tuples in one, no deeper: Triton 3.6 knows no
    more."""
    entries: tuple[tuple, ...]
    """The values of :class:`EntryShape`."""
    y: int
    """Components of y that the unit reads or writes."""
    channels: int
    adds: bool


@dataclass(frozen=True)
class Group:
    """Units of one shape: one launch."""

    shape: Shape
    table: Tensor
    """``[units, columns]`` int64, on the device."""

    @property
    def units(self) -> int:
        """How many units the launch computes."""
        return self.table.shape[0]


@dataclass(frozen=True)
class Units:
    """All launches of a plan in one direction, forward or backward."""

    groups: tuple[Group, ...]
    chunks: int
    """Of the sums for y and the hidden rows: one per unit."""
    covers: bool
    """Does every element of the units' blocks belong to one?"""


@dataclass
class _Task:
    row: ChannelTask
    entries: tuple[tuple, ...]
    """The values of :class:`EntryShape`."""


_CACHE: dict[tuple, Units] = {}


def make_units(
    tables: Any, dims: ProductDims, forward: bool, layouts: tuple[int, int], limits: ChannelConfiguration
) -> Units:
    """Units of the plan whose tables these are, the group ``tables`` of the ops' records.

    Args:
        forward: units write blocks of the result, else of x.
        layouts: of x and of the result.
    """
    coupling = tables.coupling  # as exact as its dtype
    key = (dims.key, forward, layouts, limits, coupling.device, coupling.dtype)
    if key not in _CACHE:
        _CACHE[key] = _make_units(tables, dims, forward, layouts, limits)
    return _CACHE[key]


class _Host(NamedTuple):
    """The plan's tables in host memory, row by row."""

    tasks: list[_Task]
    x_blocks: list[ChannelBlock]
    g_blocks: list[ChannelBlock]


def _read(tables: Any) -> _Host:
    tasks = [ChannelTask(*row) for row in on_host(tables.tasks).tolist()]
    x_blocks = [ChannelBlock(*row) for row in on_host(tables.x_blocks).tolist()]
    g_blocks = [ChannelBlock(*row) for row in on_host(tables.g_blocks).tolist()]
    entries = [CouplingEntry(*row) for row in on_host(tables.entries).tolist()]
    coupling = on_host(tables.coupling)
    found = []
    for task in tasks:
        if x_blocks[task.x_block].d != task.d1 or g_blocks[task.g_block].d != task.d3:
            raise ValueError(f"tensor_product: expected tasks that name a block of x and of g, found {task}")
        values = coupling[task.coupling_at :]
        if task.diagonal:
            shapes = (EntryShape(i, 0, i, float(values[0])) for i in range(task.d1))
        else:
            own = entries[task.entries_begin : task.entries_end]
            shapes = (EntryShape(entry.i, entry.j, entry.k, float(values[entry.at])) for entry in own)
        found.append(_Task(task, tuple(tuple(shape) for shape in shapes)))
    return _Host(found, x_blocks, g_blocks)


def _block_row(block: ChannelBlock, layout: int, dim: int, first: int) -> BlockRow:
    """A block of a tensor as kernels/channel.py reads it."""
    if layout == Layout.BLOCKS:
        return BlockRow(block.offset, block.d * block.mul, block.mul, 1, first)
    if layout == Layout.IR_MUL:
        return BlockRow(block.offset, dim, block.mul, 1, first)
    return BlockRow(block.offset, dim, 1, block.d, first)


class _Own(NamedTuple):
    """What a unit writes: channels of a block."""

    block: int
    first: int
    channels: int


def _make_units(tables, dims, forward, layouts, limits):
    host = _read(tables)
    blocks, layout, dim = (host.g_blocks, layouts[1], dims.g) if forward else (host.x_blocks, layouts[0], dims.x)
    by_own: dict[_Own, list[_Task]] = {}
    for task in host.tasks:
        row = task.row
        own = _Own(row.g_block, row.g_first, row.n) if forward else _Own(row.x_block, 0, row.n)
        by_own.setdefault(own, []).append(task)
    rows: dict[tuple[int, Shape], list[list[int]]] = {}
    chunks = 0
    for unit in _cut(by_own, blocks, limits, limits.components if forward else 0):
        if forward:
            unit.tasks.sort(key=lambda t: (t.row.x_block, t.row.y_offset))
        else:
            unit.tasks.sort(key=lambda t: t.row.y_offset)
        n = unit.own[0].channels
        channels = max(limits.least_channels, min(power_of_two(n), limits.channels))
        starts: dict[tuple[int, int], int] = {}
        d = 0
        for own in unit.own:
            starts[own.block, own.first] = d
            d += blocks[own.block].d
        tasks, entries, y = _describe(unit.tasks, starts if forward else None)
        own_shapes = tuple((blocks[own.block].d, starts[own.block, own.first]) for own in unit.own)
        shape = Shape(own_shapes, d, tasks, entries, y, channels, unit.before > 0)
        values: list[int] = []
        for own in unit.own:
            values += _block_row(blocks[own.block], layout, dim, own.first)
        for task in unit.tasks:
            row = task.row
            if forward:
                values += _block_row(host.x_blocks[row.x_block], layouts[0], dims.x, 0)
            else:
                values += _block_row(host.g_blocks[row.g_block], layouts[1], dims.g, row.g_first)
            values += TaskRow(row.y_offset, row.w_offset, row.w_stride)
        for piece in range(pieces(n, channels)):
            head = UnitHead(piece * channels, n, chunks)
            rows.setdefault((unit.before, shape), []).append([*head, *values])
            chunks += 1
    # Those that add to what others have stored come after them.
    groups = [
        Group(shape, torch.tensor(found, dtype=torch.int64).to(tables.tasks.device))
        for (_, shape), found in sorted(rows.items(), key=lambda item: item[0][0])
    ]
    covered = sum(own.channels * blocks[own.block].d for own in by_own)
    return Units(tuple(groups), chunks, covered == dim)


class _Unit(NamedTuple):
    before: int
    """How many units before it write the same."""
    own: list[_Own]
    tasks: list[_Task]


def _cut(
    by_own: dict[_Own, list[_Task]], blocks: list[ChannelBlock], limits: ChannelConfiguration, components: int
) -> list[_Unit]:
    """Small blocks of as many channels share a unit, up to so many components; one whose tasks are
    too many is cut.
    """
    units: list[_Unit] = []
    open_units: dict[int, _Unit] = {}
    for own, tasks in sorted(by_own.items(), key=lambda item: min(t.row.x_block for t in item[1])):
        cuts: list[list[_Task]] = [[]]
        for task in sorted(tasks, key=lambda t: t.row.y_offset):
            if cuts[-1] and (_size([*cuts[-1], task]) > limits.entries or len(cuts[-1]) >= limits.tasks):
                cuts.append([])
            cuts[-1].append(task)
        if len(cuts) > 1 or not components:
            units += [_Unit(before, [own], cut) for before, cut in enumerate(cuts)]
            continue
        unit = open_units.get(own.channels)
        d = blocks[own.block].d + sum(blocks[other.block].d for other in (unit.own if unit else ()))
        if unit is None or d > components or _size([*unit.tasks, *tasks]) > limits.entries:
            unit = open_units[own.channels] = _Unit(0, [], [])
            units.append(unit)
        unit.own.append(own)
        unit.tasks.extend(tasks)
    return units


def _size(tasks: list[_Task]) -> int:
    return sum(len(task.entries) for task in tasks)


def _describe(tasks: list[_Task], starts: dict[tuple[int, int], int] | None) -> tuple[tuple, tuple, int]:
    """The constants of a unit's tasks, their couplings, and how many components of y they read.

    starts: the first component of each block, by block and channel, among those of the unit.
    """
    described: list[tuple] = []
    entries: list[tuple] = []
    y_starts: dict[int, int] = {}
    y, before = 0, None
    for task in tasks:
        row = task.row
        if row.y_offset not in y_starts:
            y_starts[row.y_offset] = y
            y += row.d2
        shape = TaskShape(
            d1=row.d1,
            d2=row.d2,
            d3=row.d3,
            begin=len(entries),
            end=len(entries) + len(task.entries),
            weighted=row.w_offset >= 0,
            new_x=row.x_block != before,
            y=y_starts[row.y_offset],
            to=0 if starts is None else starts[row.g_block, row.g_first],
        )
        described.append(tuple(shape))
        entries += task.entries
        before = row.x_block
    return tuple(described), tuple(entries), y
