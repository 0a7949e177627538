"""Which lowering of a plan runs: an estimate of each one's time, from what it has to do.

A lowering's work is counted (:class:`Work`), and each count has a rate: ``RATES``.
``bench/lowerings.py --fit`` fitted the rates to ``bench/results/lowerings.csv``, which it had made:
float32, one core, few and many rows, with and without derivatives.
A test asserts that the choice is within 1.3x of the fastest on that table, in which e3nn's own code
stands beside the lowerings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from hamfast.plan.channel import (
    channel_tables,
    is_channel_wise,
    is_mixing,
    live_paths,
    mix_tables,
    reversed_plan,
    row_tasks,
)
from hamfast.plan.edge_frame import edge_frame_plan
from hamfast.plan.linear import linear_of_scalars
from hamfast.plan.plan import Instruction, Plan, format_irreps, pair_count

TYPICAL_ROWS = 1024
"""For how many rows the choice is made where their number is not known."""

TUNED = ("cpu", "cuda", "xpu")
"""Devices that have kernels. On GPUs the rates of a CPU choose, among the lowerings that have a
fast kernel there: they were not measured on GPUs.
"""


class Work(NamedTuple):
    """What a lowering has to do: per call, then per row."""

    calls: float = 0.0
    steps: float = 0.0
    """Operations of torch, or blocks of them, that are called one after the other."""
    call_bytes: float = 0.0
    """Of shared weights."""
    call_harmonics: float = 0.0
    """Operations that make spherical harmonics: a few for each."""
    rows: float = 0.0
    row_steps: float = 0.0
    """Loops over channels that are begun."""
    light: float = 0.0
    """Multiply-adds outside matrix products."""
    heavy: float = 0.0
    """Multiply-adds in matrix products."""
    bytes: float = 0.0
    """Read and written, intermediate tensors included."""
    harmonics: float = 0.0
    """How many of them."""

    def plus(self, other: Work) -> Work:
        """The sum, count by count."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def for_rows(self, rows: int) -> tuple[float, ...]:
        """The counts of a call with so many rows."""
        return (*self[:4], *(rows * count for count in self[4:]))


# Microseconds per count of Work, forward and with derivatives. Written by bench/lowerings.py --fit.
RATES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "channel": (
        (75.57, 0, 0, 0, 0.03464, 0.007675, 0, 0, 6.505e-05, 0),
        (803.8, 0, 0, 0, 0.9202, 0.05352, 0.0007653, 0, 0.0001241, 0),
    ),
    "edge_frame": (
        (148.9, 71.69, 0.0001682, 0, 0.01788, 0.04569, 0.0004831, 1.584e-05, 0, 0),
        (662.2, 405.6, 0.0004819, 0, 0.3298, 0, 0.001125, 0.000141, 0.0003707, 0),
    ),
    "einsum": (
        (25.73, 27.84, 1.545e-05, 30.64, 0, 0.09064, 0, 2.566e-05, 4.922e-05, 0.0584),
        (0, 295.1, 0.000974, 53.72, 0, 1.057, 0, 0.0003069, 0.0007291, 0),
    ),
    "general": (
        (62.87, 0, 0, 28.11, 0.08174, 0.001305, 0.0004576, 4.399e-05, 2.093e-05, 0.06592),
        (542.1, 0, 0.001428, 65.37, 0.5647, 0.02479, 0.006081, 0.0007181, 0.0007426, 0.1126),
    ),
    "mix": (
        (77.26, 22.73, 0.000118, 30.3, 0.02676, 0.008977, 0, 2.589e-05, 2.761e-05, 0.04148),
        (613.8, 395.4, 0.001926, 56.6, 0.1065, 0.05049, 0, 0.0001272, 0.0008909, 0.03234),
    ),
    "mix, weights per row": (
        (40.79, 18.8, 0, 0, 0, 0.01327, 0.0007682, 0, 2.934e-05, 0),
        (638.8, 86.77, 0, 0, 0, 0.09661, 3.085e-05, 0, 0.0007678, 0),
    ),
}


_COLUMNS = 16
"""A matrix product with fewer columns takes the time of one with so many."""


@dataclass(frozen=True)
class Estimate:
    """What one lowering of a plan costs (float32)."""

    lowering: str
    operations: int
    """Multiply-adds per row."""
    bytes: int
    """Per row, read and written, intermediate tensors included."""
    microseconds: float
    """Of a call, on one core of the machine of bench/results/lowerings.csv."""


def rows_like(rows: int) -> int:
    """The power of 2 by which the choice for so many rows is made: few different choices."""
    return 2 ** min(max(round(math.log2(max(rows, 1))), 4), 16)


def _row_bytes(plan: Plan, shared: bool) -> int:
    return 4 * (plan.dim_in1 + plan.dim_in2 + plan.dim_out + (0 if shared else plan.weight_numel))


def _general(plan: Plan, shared: bool) -> Work:
    live = live_paths(plan)
    costs = [(cg, mix) for ins, cg, mix in plan.path_costs() if ins in live]
    light, heavy = sum(cg for cg, _ in costs), sum(mix for _, mix in costs)
    weights = 4 * plan.weight_numel if shared else 0
    pairs = sum(pair_count(i.mode, plan.irreps_in1[i.i_in1][0], plan.irreps_in2[i.i_in2][0]) for i in live)
    return Work(1, 0, weights, 0, 1, pairs, light, heavy, _row_bytes(plan, shared))


def _task_operations(tasks) -> int:
    # n d1 d3, or n d1 where the small matrix is diagonal.
    return int(sum(n * d1 * (1 if diagonal else d3) for n, d1, _, d3, *_, diagonal in tasks.tolist()))


def _channel(plan: Plan, shared: bool) -> Work:
    tasks = channel_tables(plan).tasks
    return Work(1, 0, 0, 0, 1, len(tasks), _task_operations(tasks), 0, _row_bytes(plan, shared))


def _mix(plan: Plan, shared: bool) -> Work:
    tables, mixes = mix_tables(plan)
    pairs = sum(mix.pairs * (2 * mix.l + 1) for mix in mixes)
    size, light = _row_bytes(plan, shared) + 2 * 4 * pairs, _task_operations(tables.tasks)
    if shared:
        heavy = sum(mix.pairs * (2 * mix.l + 1) * max(mix.mul, _COLUMNS) for mix in mixes)
        return Work(1, len(mixes), 4 * plan.weight_numel, 0, 1, len(tables.tasks), light, heavy, size)
    tasks, _ = row_tasks(plan)
    heavy = sum(mix.pairs * (2 * mix.l + 1) * -(-mix.mul // _COLUMNS) * _COLUMNS for mix in mixes)
    return Work(1, len(mixes), 0, 0, 1, len(tables.tasks) + len(tasks), light, heavy, size)


def _einsum(plan: Plan, shared: bool, paths: Sequence[Instruction]) -> Work:
    """As ``hamfast/ops/path_einsum.py`` computes it."""
    light = heavy = size = 0.0
    small = 0  # matrices of a row that are multiplied one by one
    for ins in paths:
        (n1, l1, _), (n2, l2, _) = plan.irreps_in1[ins.i_in1], plan.irreps_in2[ins.i_in2]
        n3, l3, _ = plan.irreps_out[ins.i_out]
        d1, d2, d3 = 2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1
        tied = ins.mode not in ("uvw", "uvuv") and not (ins.mode == "uvu" and n2 == 1)
        first = ins.mode == "uvw" and n3 == 1
        if first or (tied and ins.mode in ("uvu", "uvv")):
            d, n = (d1, n2) if ins.mode == "uvv" else (d2, n1)
            heavy += n1 * n2 // n * d * max(n, _COLUMNS)  # weights first
            pairs, coupled = (n1 if ins.mode != "uvv" else n2), min(d1, d2) > 1
        else:
            pairs, coupled = pair_count(ins.mode, n1, n2), min(d1, d2) > 1
        if coupled and (tied or first):
            size += 4 * pairs * d1 * d2
            heavy += pairs * d1 * d2 * max(d3, _COLUMNS)
        elif coupled:
            heavy += pairs * d1 * d3 + n2 * d1 * d2 * d3
            small += 1 if ins.mode == "uvw" else n2
        light += pairs * d3
        size += 2 * 4 * pairs * (d3 + (d1 + d2 if "<" in ins.mode else 0))
        if ins.mode in ("uvw", "uuw", "u<vw") and not first:
            heavy += pairs * d3 * (max(n3, _COLUMNS) if shared else n3)
    weights = 4 * sum(ins.weight_numel for ins in paths)
    size += 4 * (plan.dim_in1 + plan.dim_in2 + plan.dim_out) + (0 if shared else weights)
    return Work(1, len(paths), weights if shared else 0, 0, 1, small, light, heavy, size)


def _edge_frame(plan: Plan) -> Work:
    lowered = edge_frame_plan(plan)
    rotations = sum(mul * (2 * l + 1) ** 2 for mul, l, _ in plan.irreps_in1 + plan.irreps_out)
    frame = sum((b.width_in + b.width_out) * (1 if b.m == 0 else 2) for b in lowered.blocks)
    l_max = max((l for _, l, _ in plan.irreps_in1 + plan.irreps_out), default=0)
    wigner = 4 * (l_max + 1) * (2 * l_max + 1) * (2 * l_max + 3) // 3
    size = _row_bytes(plan, True) + 2 * 4 * frame + 3 * wigner
    blocks = len(lowered.blocks)
    return Work(1, blocks, 4 * plan.weight_numel, 0, 1, blocks, rotations, lowered.operations(), size)


@cache
def works(plan: Plan, shared_weights: bool, device: str, harmonics: bool = False) -> dict[str, dict[str, Work]]:
    """Of each lowering that can run a plan: its parts, by whose rates they have, and their work.

    Paths that a lowering does not cover run on the channel-wise kernel, or on torch's operations.
    """
    live = live_paths(plan)
    made = Work(call_harmonics=4 + plan.dim_in2, harmonics=plan.dim_in2) if harmonics else Work()
    found = {"einsum": {"einsum": _einsum(plan, shared_weights, live).plus(made)}}
    if device not in TUNED:
        return found
    if device == "cpu":
        found["general"] = {"general": _general(plan, shared_weights).plus(made)}
    wise = [ins for ins in live if is_channel_wise(plan, ins)]
    mixing = [ins for ins in live if is_mixing(plan, ins)]
    channel = {"channel": _channel(plan, shared_weights)} if wise else {}

    def rest(covered: list[Instruction]) -> dict[str, Work]:
        left = [ins for ins in live if ins not in covered]
        return {"einsum": _einsum(plan, shared_weights, left)} if left else {}

    if wise:
        found["channel"] = channel | rest(wise)
    if mixing:
        name = "mix" if shared_weights else "mix, weights per row"
        found["mix"] = {name: _mix(plan, shared_weights).plus(made)} | channel | rest(wise + mixing)
    if harmonics and shared_weights:
        found["edge_frame"] = {"edge_frame": _edge_frame(plan)}
    return found


@cache
def _at_nodes(plan: Plan, at_receivers: bool) -> tuple[int, int]:
    """Coupled pairs, and multiply-adds of pairs with weights, of an edge: of the plan, or of the
    reversed one."""
    _, mixes = mix_tables(plan if at_receivers else reversed_plan(plan))
    pairs = sum(mix.pairs * (2 * mix.l + 1) for mix in mixes)
    return pairs, sum(mix.pairs * (2 * mix.l + 1) * mix.mul for mix in mixes)


def fewer_at_nodes(plan: Plan, width: int, edges: int, nodes: int, at_receivers: bool) -> bool:
    """Are there fewer multiply-adds if a radial layer's matrix meets sums over a node's edges, in
    place of making weights for each edge?

    Args:
        width: of the radial network before its last layer.
        at_receivers: results are summed over edges; else each edge has one, and ``nodes`` are
        senders.
    """
    pairs, mixing = _at_nodes(plan, at_receivers)
    return width * (pairs * edges + mixing * nodes) < (width * plan.weight_numel + mixing) * edges


@cache
def estimates(
    plan: Plan,
    shared_weights: bool,
    device: str,
    harmonics: bool = False,
    rows: int = TYPICAL_ROWS,
    derivatives: bool = True,
) -> tuple[Estimate, ...]:
    """The lowerings that can run a plan, cheapest first.

    Args:
        shared_weights: one weight for all rows.
        device: ``cpu``, ``cuda``, ...
        harmonics: the second operand is made of spherical harmonics of each row's direction, and
            need not exist.
        rows: how many.
        derivatives: gradients will be taken, or the forward pass is all.
    """
    found = []
    for lowering, parts in works(plan, shared_weights, device, harmonics).items():
        time = sum(
            count * rate
            for name, work in parts.items()
            for count, rate in zip(work.for_rows(rows), RATES[name][derivatives], strict=True)
        )
        operations, size = (
            sum(f(work) for work in parts.values()) for f in (lambda w: w.light + w.heavy, lambda w: w.bytes)
        )
        found.append(Estimate(lowering, int(operations), int(size), time))
    return tuple(sorted(found, key=lambda e: e.microseconds))


@cache
def choose_lowering(
    plan: Plan,
    shared_weights: bool,
    device: str,
    harmonics: bool = False,
    rows: int = TYPICAL_ROWS,
    derivatives: bool = True,
) -> str:
    """The cheapest of :func:`estimates`."""
    return estimates(plan, shared_weights, device, harmonics, rows, derivatives)[0].lowering


def explain(
    plan: Plan,
    shared_weights: bool = True,
    device: str = "cpu",
    harmonics: bool = False,
    rows: int = TYPICAL_ROWS,
    derivatives: bool = True,
) -> str:
    """A table of the paths, then the lowerings.

    A path has its shapes, its normalisation and its multiply-adds per row.
    Of the lowerings it says what each costs, which one runs, and why.

    Args:
        shared_weights, device, harmonics, rows, derivatives: as in :func:`estimates`.
    """
    lines = [
        f"{format_irreps(plan.irreps_in1)} x {format_irreps(plan.irreps_in2)} -> {format_irreps(plan.irreps_out)}",
        f"{len(plan.instructions)} paths, {plan.weight_numel:,} weights, {plan.operations():,} multiply-adds per row",
        f"{'path':<24}{'mode':<8}{'weight':<16}{'coefficient':>12}{'CG':>10}{'mix':>12}",
    ]
    for ins, cg, mix in plan.path_costs():
        blocks = (plan.irreps_in1[ins.i_in1], plan.irreps_in2[ins.i_in2], plan.irreps_out[ins.i_out])
        name = "{} x {} -> {}".format(*(format_irreps((b,)) for b in blocks))
        shape = "x".join(map(str, ins.weight_shape)) if ins.has_weight else "-"
        lines.append(f"{name:<24}{ins.mode:<8}{shape:<16}{ins.coefficient:>12.6f}{cg:>10,}{mix:>12,}")
    table = estimates(plan, shared_weights, device, harmonics, rows, derivatives)
    lines.append(f"{'lowering':<12}{'multiply-adds':>15}{'bytes':>12}{'relative time':>15}")
    for e in table:
        lines.append(
            f"{e.lowering:<12}{e.operations:>15,}{e.bytes:>12,}{e.microseconds / table[0].microseconds:>15.1f}"
        )
    linear = linear_of_scalars(plan)
    if linear is not None and linear.species == 1 and shared_weights:
        lines.append("runs: irreps_linear, as the second operand is one number per row")
        return "\n".join(lines)
    call = f"{rows:,} rows, {'with derivatives' if derivatives else 'forward alone'}"
    lines.append(f"runs, for {call}: {table[0].lowering}, {_reason(plan, table, device)}")
    return "\n".join(lines)


def _reason(plan: Plan, table: tuple[Estimate, ...], device: str) -> str:
    reason = "the only one" if device in TUNED else f"the only one on {device}"
    if len(table) > 1:
        reason = f"estimated {table[1].microseconds / table[0].microseconds:.1f}x faster than {table[1].lowering}"
    covers = {"channel": is_channel_wise, "mix": lambda p, i: is_channel_wise(p, i) or is_mixing(p, i)}.get(
        table[0].lowering
    )
    left = {ins.mode for ins in live_paths(plan) if covers is not None and not covers(plan, ins)}
    return f"{reason}, with einsum for its paths of mode {', '.join(sorted(left))}" if left else reason
