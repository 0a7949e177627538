"""The channel-wise plan cut into the units of kernels/channel.py: the constants a kernel is compiled for, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamfast.triton.configurations import ChannelConfiguration
from hamfast.triton.launch import on_host, pieces, power_of_two

MUL_IR, IR_MUL, BLOCKS = range(3)  # layouts, as hamfast/ops/multilinear.py numbers them

Entry = tuple[int, int, int, float]


class Shape(NamedTuple):
    """What a kernel is compiled for."""

    own: tuple[tuple[int, int], ...]
    """Components of each of the unit's own blocks, and their place among all of them."""
    d: int
    """Of all."""
    tasks: tuple[tuple[int, int, int, int, int, bool, bool, int, int], ...]
    entries: tuple[Entry, ...]
    """See kernels/channel.py. Tuples of tuples, no deeper: Triton 3.6 knows no more."""
    y: int
    """Components of y that the unit has a part in."""
    channels: int
    adds: bool


@dataclass(frozen=True)
class Group:
    """Units of one shape: one launch."""

    shape: Shape
    table: Tensor
    """``[units, numbers]`` int64, on the device."""

    @property
    def units(self) -> int:
        return self.table.shape[0]


@dataclass(frozen=True)
class Units:
    groups: tuple[Group, ...]
    parts: int
    """Of the sums for y: one per unit."""
    covers: bool
    """Does every element of the units' blocks belong to one?"""


@dataclass
class _Task:
    n: int
    d: tuple[int, int, int]
    x_block: int
    g_block: int
    g_first: int
    y_offset: int
    weight: tuple[int, int]
    entries: tuple[Entry, ...]


_CACHE: dict[tuple, Units] = {}


def make_units(
    tables: Sequence[Tensor], dims: Sequence[int], forward: bool, layouts: tuple[int, int], limits: ChannelConfiguration
) -> Units:
    """Units of the plan whose tables (tasks, x_blocks, g_blocks, entries, coupling) these are.

    Args:
        forward: units write blocks of the result, else of x.
        layouts: of x and of the result.
    """
    key = (dims[9], forward, layouts, limits, tables[0].device, tables[4].dtype)  # the couplings are as exact as that
    if key not in _CACHE:
        _CACHE[key] = _make_units(tables, dims, forward, layouts, limits)
    return _CACHE[key]


def _read_tasks(tables: Sequence[Tensor]) -> list[_Task]:
    rows, x_blocks, g_blocks, entries, coupling = (on_host(t) for t in tables)
    found = []
    for n, d1, d2, d3, x_at, _, y_offset, g_at, _, w_offset, w_stride, at, _, begin, end, diagonal in rows.tolist():
        x_block = int(np.nonzero(x_blocks[:, 3] == x_at)[0][-1])
        inside = (g_blocks[:, 3] <= g_at) & (g_at < g_blocks[:, 3] + g_blocks[:, 4])
        g_block = int(np.nonzero(inside)[0][0])
        if diagonal:
            values = tuple((i, 0, i, float(coupling[at])) for i in range(d1))
        else:
            values = tuple(
                (int(p) % d1, int(j), int(p) // d1, float(coupling[at + where]))
                for j, p, where in entries[begin:end].tolist()
            )
        first = int(g_at - g_blocks[g_block, 3])
        found.append(_Task(n, (d1, d2, d3), x_block, g_block, first, y_offset, (w_offset, w_stride), values))
    return found


def _place(block: np.ndarray, layout: int, dim: int, first: int) -> list[int]:
    """A block of a tensor as kernels/channel.py reads it."""
    mul, d, offset = (int(n) for n in block[:3])
    if layout == BLOCKS:
        return [offset, d * mul, mul, 1, first]
    return [offset, dim, mul, 1, first] if layout == IR_MUL else [offset, dim, 1, d, first]


_Own = tuple[int, int, int]
"""A block, its first channel, and how many: what a unit writes."""


def _make_units(tables, dims, forward, layouts, limits):
    tasks = _read_tasks(tables)
    x_blocks, g_blocks = on_host(tables[1]), on_host(tables[2])
    blocks, side = (g_blocks, 1) if forward else (x_blocks, 0)
    by_own: dict[_Own, list[_Task]] = {}
    for task in tasks:
        own = (task.g_block, task.g_first, task.n) if forward else (task.x_block, 0, task.n)
        by_own.setdefault(own, []).append(task)
    rows: dict[tuple[int, Shape], list[list[int]]] = {}
    parts = 0
    for number, owned, members in _cut(by_own, blocks, limits, limits.components if forward else 0):
        members.sort(key=(lambda t: (t.x_block, t.y_offset)) if forward else (lambda t: t.y_offset))
        n = owned[0][2]
        channels = max(limits.least_channels, min(power_of_two(n), limits.channels))
        places, d = {}, 0
        for own in owned:
            places[own[:2]] = d
            d += int(blocks[own[0], 1])
        shape = Shape(
            tuple((int(blocks[own[0], 1]), places[own[:2]]) for own in owned),
            d,
            *_describe(members, lambda task, places=places: places[task.g_block, task.g_first] if forward else 0),
            channels,
            number > 0,
        )
        numbers: list[int] = []
        for own in owned:
            numbers += _place(blocks[own[0]], layouts[side], dims[3 if forward else 0], own[1])
        for task in members:
            if forward:
                numbers += _place(x_blocks[task.x_block], layouts[0], dims[0], 0)
            else:
                numbers += _place(g_blocks[task.g_block], layouts[1], dims[3], task.g_first)
            numbers += [task.y_offset, *task.weight]
        for piece in range(pieces(n, channels)):
            rows.setdefault((number, shape), []).append([piece * channels, n, parts, *numbers])
            parts += 1
    # Those that add to what others have stored come after them.
    groups = [
        Group(shape, torch.tensor(found, dtype=torch.int64).to(tables[0].device))
        for (_, shape), found in sorted(rows.items(), key=lambda item: item[0][0])
    ]
    covered = sum(n * int(blocks[block, 1]) for block, _, n in by_own)
    return Units(tuple(groups), parts, covered == dims[3 if forward else 0])


def _cut(by_own: dict[_Own, list[_Task]], blocks: np.ndarray, limits: ChannelConfiguration, components: int):
    """Units: (how many before it write the same, what it writes, its tasks). Small blocks of as many channels share one, up to so
    many components; one whose tasks are too many is cut."""
    units: list[tuple[int, list[_Own], list[_Task]]] = []
    open_units: dict[int, tuple[list[_Own], list[_Task]]] = {}
    for own, tasks in sorted(by_own.items(), key=lambda item: min(t.x_block for t in item[1])):
        chunks: list[list[_Task]] = [[]]
        for task in sorted(tasks, key=lambda t: t.y_offset):
            if chunks[-1] and (_size([*chunks[-1], task]) > limits.entries or len(chunks[-1]) >= limits.tasks):
                chunks.append([])
            chunks[-1].append(task)
        if len(chunks) > 1 or not components:
            units += [(number, [own], chunk) for number, chunk in enumerate(chunks)]
            continue
        owned, members = open_units.get(own[2], ([], []))
        d = sum(int(blocks[block, 1]) for block, _, _ in [*owned, own])
        if own[2] not in open_units or d > components or _size([*members, *tasks]) > limits.entries:
            owned, members = open_units[own[2]] = ([], [])
            units.append((0, owned, members))
        owned.append(own)
        members += tasks
    return units


def _size(tasks: list[_Task]) -> int:
    return sum(len(task.entries) for task in tasks)


def _describe(tasks: list[_Task], place_of) -> tuple[tuple, tuple[Entry, ...], int]:
    """The constants of a unit's tasks, their couplings, and how many components of y they read."""
    described: list[tuple] = []
    entries: list[Entry] = []
    y_places: dict[int, int] = {}
    y, before = 0, None
    for task in tasks:
        if task.y_offset not in y_places:
            y_places[task.y_offset] = y
            y += task.d[1]
        new_x, before = task.x_block != before, task.x_block
        y_place = y_places[task.y_offset]
        place = (len(entries), len(entries) + len(task.entries))
        entries += task.entries
        described.append((*task.d, *place, task.weight[0] >= 0, new_x, y_place, place_of(task)))
    return tuple(described), tuple(entries), y
