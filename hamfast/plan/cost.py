"""Which lowering of a plan runs: an estimate of each one's time, from its operations and bytes.

The rates below were set by hand to agree with bench/results/lowerings.csv.
bench/lowerings.py made that table: forward + backward, float32, on a CPU.
A test asserts that the choice is within 1.3x of the fastest on every row of it.
Only the ratios of the rates matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from hamfast.plan.channel import channel_tables, is_channel_wise, is_mixing, live_paths, mix_tables
from hamfast.plan.edge_frame import edge_frame_plan
from hamfast.plan.plan import Plan, format_irreps

# Multiply-adds per microsecond and bytes per microsecond, one core.
GENERAL_RATE = 700.0
CHANNEL_RATE = 9_000.0
GEMM_RATE = 25_000.0
ROTATION_RATE = 6_000.0
BANDWIDTH = 5_000.0
TASK_OVERHEAD = 0.012
"""Microseconds per task and row: the small matrix and the loop around it."""
HARMONICS = 0.02
"""Microseconds per row and number of Y, with its gradient's share."""

TYPICAL_ROWS = 1024
"""For how many rows the choice is made where their number is not known."""

TUNED = ("cpu", "cuda", "xpu")
"""Devices that have more than the general kernel. On GPUs the same rates choose: they were not
measured there.
"""


@dataclass(frozen=True)
class Estimate:
    """What one lowering of a plan costs per row, forward (float32)."""

    lowering: str
    operations: int
    """Multiply-adds."""
    bytes: int
    """Read and written, intermediate tensors included."""
    microseconds: float
    """On one core of the machine of bench/results/lowerings.csv."""


def rows_like(rows: int) -> int:
    """The power of 4 by which the choice for so many rows is made: few different choices."""
    return 4 ** min(max(round(math.log(max(rows, 1), 4)), 2), 8)


def _general(plan: Plan) -> Estimate:
    live = live_paths(plan)
    operations = sum(cg + mix for ins, cg, mix in plan.path_costs() if ins in live)
    size = _row_bytes(plan)
    return Estimate("general", operations, size, operations / GENERAL_RATE + size / BANDWIDTH)


def _row_bytes(plan: Plan) -> int:
    return 4 * (plan.dim_in1 + plan.dim_in2 + plan.dim_out)


def _task_operations(tasks) -> int:
    # n d1 d3, or n d1 where the small matrix is diagonal.
    return int(sum(n * d1 * (1 if diagonal else d3) for n, d1, _, d3, *_, diagonal in tasks.tolist()))


def _channel(plan: Plan, shared: bool) -> Estimate:
    tables = channel_tables(plan)
    operations = _task_operations(tables.tasks)
    size = _row_bytes(plan) + (0 if shared else 4 * plan.weight_numel)
    time = operations / CHANNEL_RATE + size / BANDWIDTH + TASK_OVERHEAD * len(tables.tasks)
    return Estimate("channel", operations, size, time)


def _mix(plan: Plan, harmonics: bool) -> Estimate:
    tables, mixes = mix_tables(plan)
    pairs = sum(mix.pairs * (2 * mix.l + 1) for mix in mixes)
    coupling = _task_operations(tables.tasks)
    gemm = sum(mix.pairs * (2 * mix.l + 1) * mix.mul for mix in mixes)
    size = _row_bytes(plan) + 2 * 4 * pairs
    # A product with few columns runs far below the rate of a square one.
    gemm_time = sum(mix.pairs * (2 * mix.l + 1) * max(mix.mul, 16) for mix in mixes) / GEMM_RATE
    time = coupling / CHANNEL_RATE + gemm_time + size / BANDWIDTH + TASK_OVERHEAD * len(tables.tasks)
    time += HARMONICS * plan.dim_in2 if harmonics else 0.0
    return Estimate("mix", coupling + gemm, size, time)


def _edge_frame(plan: Plan) -> Estimate:
    lowered = edge_frame_plan(plan)
    rotations = sum(mul * (2 * l + 1) ** 2 for mul, l, _ in plan.irreps_in1 + plan.irreps_out)
    gemm = lowered.operations()
    frame = sum((b.width_in + b.width_out) * (1 if b.m == 0 else 2) for b in lowered.blocks)
    l_max = max((l for _, l, _ in plan.irreps_in1 + plan.irreps_out), default=0)
    wigner = 4 * (l_max + 1) * (2 * l_max + 1) * (2 * l_max + 3) // 3
    size = _row_bytes(plan) + 2 * 4 * frame + 3 * wigner
    time = rotations / ROTATION_RATE + gemm / GEMM_RATE + size / BANDWIDTH
    return Estimate("edge_frame", rotations + gemm, size, time)


@cache
def estimates(plan: Plan, shared_weights: bool, device: str, harmonics: bool = False, rows: int = TYPICAL_ROWS) -> tuple[Estimate, ...]:
    """The lowerings that can run a plan, cheapest first.

    Args:
        shared_weights: one weight for all rows.
        device: ``cpu``, ``cuda``, ...
        harmonics: the second operand is made of spherical harmonics of each row's direction, and
            need not exist.
    """
    paths = live_paths(plan)
    found = [_general(plan), Estimate("einsum", 0, 0, 1e9)]
    if device in TUNED and all(is_channel_wise(plan, ins) for ins in paths):
        found.append(_channel(plan, shared_weights))
    if device in TUNED and any(is_mixing(plan, ins) for ins in paths):
        found.append(_mix(plan, harmonics))
    if harmonics and shared_weights:
        found.append(_edge_frame(plan))
    return tuple(sorted(found, key=lambda e: e.microseconds))


@cache
def choose_lowering(plan: Plan, shared_weights: bool, device: str, harmonics: bool = False, rows: int = TYPICAL_ROWS) -> str:
    """The cheapest of :func:`estimates`. What no lowering covers whole is split: see
    :func:`explain`.
    """
    best = estimates(plan, shared_weights, device, harmonics)[0].lowering
    if best == "general" and device in TUNED and any(is_channel_wise(plan, ins) for ins in live_paths(plan)):
        return "channel"  # for the paths that are, the general kernel for the others
    return best


def explain(plan: Plan, shared_weights: bool = True, device: str = "cpu", harmonics: bool = False) -> str:
    """A table of the paths, then the lowerings.

    A path has its shapes, its normalisation and its multiply-adds per row.
    Of the lowerings it says what each costs, which one runs, and why.

    Args:
        shared_weights: one weight for all rows.
        device: ``cpu``, ``cuda``, ...
        harmonics: the second operand is spherical harmonics of each row's direction.
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
    table = estimates(plan, shared_weights, device, harmonics)
    chosen = choose_lowering(plan, shared_weights, device, harmonics)
    lines.append(f"{'lowering':<12}{'multiply-adds':>15}{'bytes':>12}{'relative time':>15}")
    for e in table:
        lines.append(
            f"{e.lowering:<12}{e.operations:>15,}{e.bytes:>12,}{e.microseconds / table[0].microseconds:>15.1f}"
        )
    lines.append(f"runs: {chosen}, {_reason(plan, chosen, table, device)}")
    return "\n".join(lines)


def _reason(plan, chosen, table, device) -> str:
    left = [ins.mode for ins in live_paths(plan) if not is_channel_wise(plan, ins) and not is_mixing(plan, ins)]
    if chosen == "channel" and left:
        return f"with the general kernel for its paths of mode {', '.join(sorted(set(left)))}"
    if chosen == "general":
        return "the only one for these paths" if device in TUNED else f"the only one on {device}"
    if len(table) == 1:
        return "the only one"
    return f"estimated {table[1].microseconds / table[0].microseconds:.1f}x faster than {table[1].lowering}"
