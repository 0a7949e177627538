"""The channel-wise lowering: what the kernels with channels as vector lanes are told.

A *task* multiplies the n channels of one irreps block of x by one channel of one block of y: one
small matrix
``M[k, i] = coefficient sum_j C_ijk y_j`` per row, then ``out[k, u] += w[u] sum_i M[k, i] x[i, u]``.
A ``uvu`` path is one task
per channel of y. A ``uvw`` path with shared weights is the same without weights, into a block of
coupled pairs, and one matrix
product of those pairs with the weights for all rows at once: the *mix* lowering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np

from hamfast.plan.coupling import wigner_3j
from hamfast.plan.plan import Instruction, IrrepBlock, Plan, pair_count
from hamfast.records.tables import ChannelBlock, ChannelTask, CouplingEntry, RowDims, RowTask

PAD = 16
"""Channels are padded to a multiple of it: ``kPad`` in csrc/tensor_product/channel_call.h."""

L_MAX = 6
"""Highest l of the first operand for which the kernel exists."""


@dataclass(frozen=True)
class ChannelTables:
    """What the channel-wise kernels read of a plan; rows of the integer tables are those of
    :mod:`hamfast.records.tables`.
    """

    tasks: np.ndarray
    """``[tasks, ChannelTask]`` int64."""
    x_blocks: np.ndarray
    g_blocks: np.ndarray
    """``[blocks, ChannelBlock]`` int64."""
    entries: np.ndarray
    """``[entries, CouplingEntry]`` int64: where couplings are not 0."""
    coupling: np.ndarray
    """float64, matrices ``C[j][k * d1 + i]`` with padded rows."""
    x_padded: int
    g_padded: int
    max_coupling: int


@dataclass(frozen=True)
class MixBlock:
    """The coupled pairs of all uvw paths to one output block: ``[2 l + 1, pairs]`` per row, times
    ``[pairs, mul]``.
    """

    i_out: int
    l: int
    mul: int
    pairs: int
    instructions: tuple[int, ...]
    """In the order of the pairs; each has its channels v slow, u fast."""


def live_paths(plan: Plan) -> list[Instruction]:
    """The paths that compute something: without those that have no channels on one side."""
    return [
        ins
        for ins in plan.instructions
        if plan.irreps_in1[ins.i_in1][0] * plan.irreps_in2[ins.i_in2][0] * plan.irreps_out[ins.i_out][0]
    ]


def is_channel_wise(plan: Plan, ins: Instruction) -> bool:
    """Can the channel-wise kernel run this path?"""
    mul2 = plan.irreps_in2[ins.i_in2][0]
    return (ins.mode == "uvu" or (ins.mode == "uvuv" and mul2 == 1)) and plan.irreps_in1[ins.i_in1][1] <= L_MAX


def is_mixing(plan: Plan, ins: Instruction) -> bool:
    """Can this path, its weights shared by all rows, be one matrix product over all of them?"""
    return ins.mode == "uvw" and plan.irreps_in1[ins.i_in1][1] <= L_MAX


@cache
def channel_tables(plan: Plan) -> ChannelTables:
    """Tables of the channel-wise paths of a plan; the other paths are left out."""
    out_blocks, g_padded = _blocks(plan.irreps_out)
    builder = _Builder(plan, out_blocks)
    for ins in live_paths(plan):
        if not is_channel_wise(plan, ins):
            continue
        mul2 = plan.irreps_in2[ins.i_in2][0]
        for v in range(mul2):
            weight = (ins.weight_offset + v, mul2) if ins.has_weight else (-1, 0)
            builder.add(ins, v, _Output(ins.i_out, 0), weight)
    return builder.tables(g_padded)


@cache
def mix_tables(plan: Plan) -> tuple[ChannelTables, tuple[MixBlock, ...]]:
    """Tables that make the coupled pairs of a plan's uvw paths, block after block, and those
    blocks.
    """
    mixes = []
    for i_out, (mul, l, _) in enumerate(plan.irreps_out):
        paths = [n for n, ins in enumerate(plan.instructions) if ins.i_out == i_out and is_mixing(plan, ins)]
        chosen = [plan.instructions[n] for n in paths]
        pairs = sum(pair_count(i.mode, plan.irreps_in1[i.i_in1][0], plan.irreps_in2[i.i_in2][0]) for i in chosen)
        if pairs * mul:
            mixes.append(MixBlock(i_out, l, mul, pairs, tuple(paths)))
    pair_blocks, g_padded = _blocks(tuple((mix.pairs, mix.l, 1) for mix in mixes))
    builder = _Builder(plan, pair_blocks)
    for block, mix in enumerate(mixes):
        first = 0
        for n in mix.instructions:
            ins = plan.instructions[n]
            for v in range(plan.irreps_in2[ins.i_in2][0]):
                builder.add(ins, v, _Output(block, first), (-1, 0))
                first += plan.irreps_in1[ins.i_in1][0]
    # The last vector of a block may reach over its end, into zeros that are added to whatever is
    # there.
    return builder.tables(g_padded + PAD), tuple(mixes)


@cache
def reversed_plan(plan: Plan) -> Plan:
    """The ``uvw`` plan with the first operand and the result exchanged, of the same form F(x, y, w,
    g).

    Its weights lie where those of the plan do, as ``[w, v, u]``. Couplings with two indices
    exchanged differ by a sign, ``(-1)^(l1 + l2 + l3)``, which is in the coefficients.
    """
    made = []
    for ins in plan.instructions:
        l1, l2, l3 = plan.irreps_in1[ins.i_in1][1], plan.irreps_in2[ins.i_in2][1], plan.irreps_out[ins.i_out][1]
        sign = -1 if (l1 + l2 + l3) % 2 else 1
        turned = replace(ins, i_in1=ins.i_out, i_out=ins.i_in1, weight_shape=ins.weight_shape[::-1])
        made.append(replace(turned, coefficient=sign * ins.coefficient))
    return Plan(plan.irreps_out, plan.irreps_in2, plan.irreps_in1, tuple(made))


@dataclass(frozen=True)
class Merged:
    """A plan in which output blocks of one irrep are one block: of attention's heads, for
    instance."""

    plan: Plan
    paths: tuple[tuple[int, ...], ...]
    """The plan's paths that each path of the merged one is made of; their channels follow each
    other."""
    blocks: tuple[tuple[int, ...], ...]
    """Likewise the output blocks."""


@cache
def merged_outputs(plan: Plan) -> Merged:
    """The ``uvw`` plan with equal irreps of the result merged, where each has the same paths.

    Elsewhere the blocks stay apart. Weights of the merged paths have no place of their own: those
    of the paths that they are made of are to be joined.
    """
    blocks: dict[tuple, list[int]] = {}
    for i_out, (_, l, p) in enumerate(plan.irreps_out):
        of_block = (ins for ins in plan.instructions if ins.i_out == i_out)
        paths = tuple((ins.i_in1, ins.i_in2, ins.coefficient) for ins in of_block)
        blocks.setdefault((l, p, paths), []).append(i_out)
    irreps_out, made, sources = [], [], []
    for i_merged, ((l, p, _), members) in enumerate(blocks.items()):
        mul = sum(plan.irreps_out[i][0] for i in members)
        irreps_out.append((mul, l, p))
        of_members = ([n for n, ins in enumerate(plan.instructions) if ins.i_out == i] for i in members)
        for numbers in zip(*of_members, strict=True):
            ins = plan.instructions[numbers[0]]
            made.append(replace(ins, i_out=i_merged, weight_shape=(*ins.weight_shape[:2], mul)))
            sources.append(numbers)
    merged = Plan(plan.irreps_in1, plan.irreps_in2, tuple(irreps_out), tuple(made))
    return Merged(merged, tuple(sources), tuple(map(tuple, blocks.values())))


@cache
def row_tasks(plan: Plan) -> tuple[np.ndarray, RowDims]:
    """``[tasks, RowTask]`` int64: the pairs of :func:`mix_tables` times weights per row."""
    rows, a_block, c_block, weights = [], 0, 0, 0
    for mix in mix_tables(plan)[1]:
        d, first = 2 * mix.l + 1, 0
        for n in mix.instructions:
            ins = plan.instructions[n]
            n1, n2, n3 = ins.weight_shape
            for v in range(n2):
                task = RowTask(
                    d=d,
                    n=n1,
                    a_block=a_block,
                    a_columns=mix.pairs,
                    a_first=first,
                    b_offset=ins.weight_offset + v * n3,
                    b_stride=n2 * n3,
                    c_block=c_block,
                    c_columns=mix.mul,
                    begins=int(first == 0),
                )
                rows.append(task)
                first += n1
            weights += ins.weight_numel
        a_block += d * mix.pairs
        c_block += d * mix.mul
    covers = int(weights == plan.weight_numel)
    return as_table(rows, RowTask), RowDims(a_block, plan.weight_numel, c_block, covers)


def as_table(rows: Sequence[Sequence[int]], row: type) -> np.ndarray:
    """``[rows, columns]`` int64 of rows of a class of :mod:`hamfast.records.tables`."""
    return np.array(rows, dtype=np.int64).reshape(-1, len(row._fields))  # type: ignore[attr-defined]


def _blocks(irreps: tuple[IrrepBlock, ...]) -> tuple[list[ChannelBlock], int]:
    rows, offset, at = [], 0, 0
    for mul, l, _ in irreps:
        block = ChannelBlock(mul=mul, d=2 * l + 1, offset=offset, at=at, stride=-(-mul // PAD) * PAD)
        rows.append(block)
        offset += mul * block.d
        at += block.stride * block.d
    return rows, at


class _Output(NamedTuple):
    """Where a task's channels go: a block of the result, and the first channel there."""

    block: int
    first: int


class _Coupling(NamedTuple):
    """Where a coupling matrix and its entries lie in the tables."""

    at: int
    size: int
    begin: int
    end: int


class _Builder:
    """Collects tasks, their coupling matrices and entries."""

    def __init__(self, plan: Plan, g_blocks: list[ChannelBlock]):
        self.plan = plan
        self.x_blocks, self.x_padded = _blocks(plan.irreps_in1)
        self.g_blocks = g_blocks
        self.y_offsets = np.cumsum([0] + [mul * (2 * l + 1) for mul, l, _ in plan.irreps_in2])
        self.rows: list[ChannelTask] = []
        self.couplings: dict[tuple, _Coupling] = {}
        self.values: list[np.ndarray] = []
        self.entries: list[CouplingEntry] = []
        self.size = 0

    def add(self, ins: Instruction, v: int, output: _Output, weight: tuple[int, int]) -> None:
        """The task of one channel v of y; weight: offset and stride."""
        (n, l1, _), (_, l2, _) = self.plan.irreps_in1[ins.i_in1], self.plan.irreps_in2[ins.i_in2]
        l3 = self.plan.irreps_out[ins.i_out][1]
        d1, d2, d3 = 2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1
        key = (l1, l2, l3, ins.coefficient)
        if key not in self.couplings:
            c = np.asarray(wigner_3j(l1, l2, l3)) * ins.coefficient  # [i, j, k]
            if l2 == 0:
                flat = c[0, 0, 0].reshape(1, 1)  # M is y times this times the unit matrix
            else:
                flat = c.transpose(1, 2, 0).reshape(2 * l2 + 1, -1)
            padded = np.zeros((flat.shape[0], -(-flat.shape[1] // PAD) * PAD))
            padded[:, : flat.shape[1]] = flat
            begin, size = len(self.entries), padded.shape[1]
            for j, p in np.argwhere(padded).tolist():
                self.entries.append(CouplingEntry(i=p % d1, j=j, k=p // d1, p=p, at=j * size + p))
            self.couplings[key] = _Coupling(self.size, size, begin, len(self.entries))
            self.values.append(padded.ravel())
            self.size += padded.size
        x, g, coupling = self.x_blocks[ins.i_in1], self.g_blocks[output.block], self.couplings[key]
        task = ChannelTask(
            n=n,
            d1=d1,
            d2=d2,
            d3=d3,
            x_at=x.at,
            x_stride=x.stride,
            y_offset=int(self.y_offsets[ins.i_in2]) + v * d2,
            g_at=g.at + output.first,
            g_stride=g.stride,
            w_offset=weight[0],
            w_stride=weight[1],
            coupling_at=coupling.at,
            coupling_size=coupling.size,
            entries_begin=coupling.begin,
            entries_end=coupling.end,
            diagonal=int(l2 == 0),
            x_block=ins.i_in1,
            g_block=output.block,
            g_first=output.first,
        )
        self.rows.append(task)

    def tables(self, g_padded: int) -> ChannelTables:
        """All that was added, as tables. ``g_padded``: elements of a padded row of the result."""
        return ChannelTables(
            as_table(self.rows, ChannelTask),
            as_table(self.x_blocks, ChannelBlock),
            as_table(self.g_blocks, ChannelBlock),
            as_table(self.entries, CouplingEntry),
            np.concatenate(self.values) if self.values else np.zeros(0),
            self.x_padded,
            g_padded,
            max((coupling.size for coupling in self.couplings.values()), default=0),
        )
