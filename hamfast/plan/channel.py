"""The channel-wise lowering: what the kernels with channels as vector lanes are told.

A *task* multiplies the n channels of one irreps block of x by one channel of one block of y: one small matrix
``M[k, i] = coefficient sum_j C_ijk y_j`` per row, then ``out[k, u] += w[u] sum_i M[k, i] x[i, u]``. A ``uvu`` path is one task
per channel of y. A ``uvw`` path with shared weights is the same without weights, into a block of coupled pairs, and one matrix
product of those pairs with the weights for all rows at once: the *mix* lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from hamfast.plan.coupling import wigner_3j
from hamfast.plan.plan import Instruction, IrrepBlock, Plan, pair_count

PAD = 16
"""Channels are padded to a multiple of it: ``kPad`` in csrc/tensor_product/channel_kernel.h."""

L_MAX = 6
"""Highest l of the first operand for which the kernel exists."""


@dataclass(frozen=True)
class ChannelTables:
    """The arrays of one kernel call: ``ChannelTask`` and ``ChannelBlock`` rows of csrc/tensor_product/channel_kernel.h."""

    tasks: np.ndarray
    """``[tasks, 16]`` int64."""
    x_blocks: np.ndarray
    """``[blocks, 5]`` int64."""
    g_blocks: np.ndarray
    entries: np.ndarray
    """``[entries, 3]`` int64: where couplings are not 0."""
    coupling: np.ndarray
    """float64, matrices ``C[j][k * d1 + i]`` with padded rows."""
    x_padded: int
    g_padded: int
    max_coupling: int


@dataclass(frozen=True)
class MixBlock:
    """The coupled pairs of all uvw paths to one output block: ``[2 l + 1, pairs]`` per row, times ``[pairs, mul]``."""

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
    builder = _Builder(plan)
    for ins in live_paths(plan):
        if not is_channel_wise(plan, ins):
            continue
        mul2 = plan.irreps_in2[ins.i_in2][0]
        for v in range(mul2):
            weight = (ins.weight_offset + v, mul2) if ins.has_weight else (-1, 0)
            builder.add(ins, v, tuple(out_blocks[ins.i_out, 3:]), weight)
    return builder.tables(out_blocks, g_padded)


@cache
def mix_tables(plan: Plan) -> tuple[ChannelTables, tuple[MixBlock, ...]]:
    """Tables that make the coupled pairs of a plan's uvw paths, block after block, and those blocks."""
    mixes = []
    for i_out, (mul, l, _) in enumerate(plan.irreps_out):
        paths = [n for n, ins in enumerate(plan.instructions) if ins.i_out == i_out and is_mixing(plan, ins)]
        chosen = [plan.instructions[n] for n in paths]
        pairs = sum(pair_count(i.mode, plan.irreps_in1[i.i_in1][0], plan.irreps_in2[i.i_in2][0]) for i in chosen)
        if pairs * mul:
            mixes.append(MixBlock(i_out, l, mul, pairs, tuple(paths)))
    pair_blocks, g_padded = _blocks(tuple((mix.pairs, mix.l, 1) for mix in mixes))
    builder = _Builder(plan)
    for mix, (_, _, _, at, stride) in zip(mixes, pair_blocks, strict=True):
        for n in mix.instructions:
            ins = plan.instructions[n]
            for v in range(plan.irreps_in2[ins.i_in2][0]):
                builder.add(ins, v, (at, stride), (-1, 0))
                at += plan.irreps_in1[ins.i_in1][0]
    # The last vector of a block may reach over its end, into zeros that are added to whatever is there.
    return builder.tables(pair_blocks, g_padded + PAD), tuple(mixes)


def _blocks(irreps: tuple[IrrepBlock, ...]) -> tuple[np.ndarray, int]:
    rows, offset, at = [], 0, 0
    for mul, l, _ in irreps:
        d, stride = 2 * l + 1, -(-mul // PAD) * PAD
        rows.append([mul, d, offset, at, stride])
        offset += mul * d
        at += stride * d
    return np.array(rows, dtype=np.int64).reshape(-1, 5), at


class _Builder:
    def __init__(self, plan: Plan):
        self.plan = plan
        self.x_blocks, self.x_padded = _blocks(plan.irreps_in1)
        self.y_offsets = np.cumsum([0] + [mul * (2 * l + 1) for mul, l, _ in plan.irreps_in2])
        self.rows: list[list[int]] = []
        self.couplings: dict[tuple, tuple[int, int, int, int]] = {}
        self.values: list[np.ndarray] = []
        self.entries: list[np.ndarray] = []
        self.size = 0

    def add(self, ins: Instruction, v: int, out: tuple[int, int], weight: tuple[int, int]) -> None:
        (n, l1, _), (_, l2, _) = self.plan.irreps_in1[ins.i_in1], self.plan.irreps_in2[ins.i_in2]
        l3 = self.plan.irreps_out[ins.i_out][1]
        key = (l1, l2, l3, ins.coefficient)
        if key not in self.couplings:
            c = np.asarray(wigner_3j(l1, l2, l3)) * ins.coefficient  # [i, j, k]
            if l2 == 0:
                flat = c[0, 0, 0].reshape(1, 1)  # M is y times this times the unit matrix
            else:
                flat = c.transpose(1, 2, 0).reshape(2 * l2 + 1, -1)
            padded = np.zeros((flat.shape[0], -(-flat.shape[1] // PAD) * PAD))
            padded[:, : flat.shape[1]] = flat
            j, p = np.nonzero(padded)
            begin = sum(len(e) for e in self.entries)
            self.entries.append(np.stack([j, p, j * padded.shape[1] + p], axis=1))
            self.couplings[key] = (self.size, padded.shape[1], begin, begin + len(j))
            self.values.append(padded.ravel())
            self.size += padded.size
        d1, d2, d3 = 2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1
        _, _, _, x_at, x_stride = self.x_blocks[ins.i_in1]
        y_offset = self.y_offsets[ins.i_in2] + v * d2
        self.rows.append(
            [n, d1, d2, d3, x_at, x_stride, y_offset, *out, *weight, *self.couplings[key], int(l2 == 0)],
        )

    def tables(self, g_blocks: np.ndarray, g_padded: int) -> ChannelTables:
        return ChannelTables(
            np.array(self.rows, dtype=np.int64).reshape(-1, 16),
            self.x_blocks,
            g_blocks,
            np.concatenate(self.entries) if self.entries else np.zeros((0, 3), dtype=np.int64),
            np.concatenate(self.values) if self.values else np.zeros(0),
            self.x_padded,
            g_padded,
            max((size for _, size, _, _ in self.couplings.values()), default=0),
        )
