"""Linear maps of the channels of irreps, and products that are such maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from hamfast.plan.plan import IrrepBlock, Plan, irreps_dim
from hamfast.records.tables import LinearDims, LinearTask


@dataclass(frozen=True)
class LinearPlan:
    """Which blocks of irreps lead to which, and where the weights of each pair are."""

    irreps_in: tuple[IrrepBlock, ...]
    irreps_out: tuple[IrrepBlock, ...]
    pairs: tuple[tuple[int, int], ...]
    """(block of ``irreps_in``, block of ``irreps_out``), in the order of the weights; both have the
    same irrep."""
    species: int = 1
    """How many matrices each pair has. Weights of a pair are ``[mul_in, species, mul_out]``."""

    @property
    def weight_numel(self) -> int:
        """How many weights there are."""
        return self.species * sum(self.irreps_in[i][0] * self.irreps_out[o][0] for i, o in self.pairs)


@cache
def linear_of_scalars(plan: Plan) -> LinearPlan | None:
    """The linear maps that a product with scalars is, one for each channel of them.

    None where the second operand is anything else, or a path does not mix channels.
    """
    if len(plan.irreps_in2) != 1 or plan.irreps_in2[0][1] != 0 or not plan.instructions:
        return None
    if any(ins.mode != "uvw" or not ins.has_weight for ins in plan.instructions):
        return None
    pairs = tuple((ins.i_in1, ins.i_out) for ins in plan.instructions)
    return LinearPlan(plan.irreps_in1, plan.irreps_out, pairs, plan.irreps_in2[0][0])


@cache
def linear_tasks(plan: LinearPlan) -> tuple[tuple[LinearTask, ...], LinearDims]:
    """The tasks of ``irreps_linear``, by block of the result, and the sizes."""
    starts_in, starts_out = _starts(plan.irreps_in), _starts(plan.irreps_out)
    tasks, offset = [], 0
    for i, o in plan.pairs:
        (k, l, _), n = plan.irreps_in[i], plan.irreps_out[o][0]
        if k and n:
            step = n if plan.species > 1 else 0
            task = LinearTask(2 * l + 1, k, n, starts_in[i], starts_out[o], offset, plan.species * n, step)
            tasks.append(task)
        offset += k * plan.species * n
    tasks.sort(key=lambda task: task.c_offset)
    a, c = irreps_dim(plan.irreps_in), irreps_dim(plan.irreps_out)
    covered_a = sum({t.a_offset: t.d * t.k for t in tasks}.values()) == a
    covered_c = sum({t.c_offset: t.d * t.n for t in tasks}.values()) == c
    return tuple(tasks), LinearDims(a, offset, c, int(covered_a), int(covered_c))


def _starts(irreps: Sequence[IrrepBlock]) -> list[int]:
    return [irreps_dim(irreps[:n]) for n in range(len(irreps))]
