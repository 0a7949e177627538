"""The edge-frame lowering: a tensor product with spherical harmonics of an edge's direction, in
that edge's own frame.

Rotate an edge so that it points along e3nn's polar axis (y). There the harmonics have known values,
``Y_l2m = delta_m0 sqrt(2 l2 + 1)`` (component normalisation), so the path (l1, l2, l3) with weight
``W[u, w]`` maps

    out_l3,m [w] = sum_u sum_m' K[m', m] x_l1,m' [u] W[u, w],    K[m', m] = coefficient sqrt(2 l2 +
    1) w3j[m', 0, m]

and K couples m' = m only (l1 + l2 + l3 even) or m' = -m only (odd). All paths l2 of one (l1, l3)
therefore add up to one
matrix per |m|:  A_m[u, w] = sum_l2 k_l2(m) W_l2[u, w].  Odd paths are brought to the same form by
swapping (m, -m) of every
irrep of unnatural parity, p = -(-1)^l, with a sign. The result is exact: same function, same
weights, O(l^3) work instead
of O(l^6) (Passaro & Zitnick, arXiv 2302.03655, give the reduction; the bookkeeping here keeps
e3nn's weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from hamfast.plan.coupling import wigner_3j
from hamfast.plan.plan import Plan, format_irreps


@dataclass(frozen=True)
class Coupling:
    """What the paths of one (block of in1, block of out) add to the matrix of one m."""

    i_in1: int
    i_out: int
    terms: tuple[tuple[int, float], ...]
    """(instruction, factor): the matrix is the sum of factor x weight of that instruction."""


@dataclass(frozen=True)
class Channel:
    """Where one component pair (+m, -m) of one irreps block lives in an edge-frame tensor."""

    block: int
    start: int
    """First channel in the matrix of this m."""
    mul: int


@dataclass(frozen=True)
class MBlock:
    """All that happens at one m >= 0. At m = 0 natural and unnatural irreps do not couple and form
    two blocks.
    """

    m: int
    rows: tuple[Channel, ...]
    columns: tuple[Channel, ...]
    couplings: tuple[Coupling, ...]

    @property
    def width_in(self) -> int:
        """Rows of this m's matrix: channels of in1 that have a component m."""
        return sum(c.mul for c in self.rows)

    @property
    def width_out(self) -> int:
        """Columns of this m's matrix: channels of out that have a component m."""
        return sum(c.mul for c in self.columns)


@dataclass(frozen=True)
class EdgeFramePlan:
    """The per-|m| matrices of a plan whose second operand are spherical harmonics of the edge
    direction.
    """

    plan: Plan
    blocks: tuple[MBlock, ...]
    onsite: tuple[Coupling, ...]
    """Zero-length edges: there only Y_00 is not zero, and every m of a block sees the same
    matrix."""

    def operations(self) -> int:
        """Multiply-adds per edge of the matrix products (the two rotations come on top)."""
        return sum(b.width_in * b.width_out * (1 if b.m == 0 else 2) for b in self.blocks)

    def explain(self) -> str:
        """Multiply-adds per edge beside those of the paths, then the size of the matrix of each
        m."""
        lines = [
            f"edge frame of {format_irreps(self.plan.irreps_in1)} x {format_irreps(self.plan.irreps_in2)} -> "
            f"{format_irreps(self.plan.irreps_out)}: {self.operations():,} multiply-adds per edge and two rotations, "
            f"against {self.plan.operations():,} path by path"
        ]
        lines += [f"  m = {b.m}: {b.width_in} x {b.width_out}" for b in self.blocks]
        return "\n".join(lines)


def is_natural(block: tuple[int, int, int]) -> bool:
    """Parity (-1)^l, as spherical harmonics have it."""
    _, l, p = block
    return p == (-1) ** l


@cache
def edge_frame_plan(plan: Plan) -> EdgeFramePlan:
    """Lowers a plan to the edge frame.

    Raises:
        ValueError: a path is not ``uvw``, or the second operand is not one irrep of natural parity
            per block.
    """
    for mul, l, p in plan.irreps_in2:
        if mul != 1 or not is_natural((mul, l, p)):
            raise ValueError(
                f"edge frame: the second operand must be spherical harmonics, 1x0e+1x1o+1x2e+..., "
                f"found {format_irreps(plan.irreps_in2)}"
            )
    if any(ins.mode != "uvw" or not ins.has_weight for ins in plan.instructions):
        raise ValueError("edge frame: every path must be of mode uvw with a weight")

    l_max = max((l for _, l, _ in plan.irreps_in1 + plan.irreps_out), default=0)
    blocks = []
    for m in range(l_max + 1):
        # At m = 0 the mirror planes through the edge forbid natural <-> unnatural.
        for natural in (True, False) if m == 0 else (None,):
            rows, columns = _channels(plan.irreps_in1, m, natural), _channels(plan.irreps_out, m, natural)
            if rows and columns:
                blocks.append(MBlock(m, rows, columns, _couplings(plan, m, rows, columns)))
    return EdgeFramePlan(plan, tuple(blocks), _onsite(plan))


def _channels(irreps, m, natural):
    channels, start = [], 0
    for i, block in enumerate(irreps):
        if block[1] >= m and block[0] > 0 and natural in (None, is_natural(block)):
            channels.append(Channel(i, start, block[0]))
            start += block[0]
    return tuple(channels)


def _couplings(plan, m, rows, columns):
    found = []
    for row in rows:
        for column in columns:
            terms = []
            for n, ins in enumerate(plan.instructions):
                if (ins.i_in1, ins.i_out) == (row.block, column.block):
                    factor = _factor(plan, ins, m)
                    if factor != 0.0:
                        terms.append((n, factor))
            if terms:
                found.append(Coupling(row.block, column.block, tuple(terms)))
    return tuple(found)


def _factor(plan, ins, m):
    """k(m) of the module's docstring, after components +m and -m of unnatural irreps are
    swapped."""
    l1, l2, l3 = plan.irreps_in1[ins.i_in1][1], plan.irreps_in2[ins.i_in2][1], plan.irreps_out[ins.i_out][1]
    table = wigner_3j(l1, l2, l3)[:, l2, :]
    natural1, natural3 = is_natural(plan.irreps_in1[ins.i_in1]), is_natural(plan.irreps_out[ins.i_out])
    # In the swapped basis component (+m) of an unnatural irrep is its (-m), and (-m) is minus its
    # (+m).
    row = l1 + m if natural1 else l1 - m
    column = l3 + m if natural3 else l3 - m
    return float(ins.coefficient * np.sqrt(2 * l2 + 1) * table[row, column])


def _onsite(plan):
    terms: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for n, ins in enumerate(plan.instructions):
        l1, l2, l3 = plan.irreps_in1[ins.i_in1][1], plan.irreps_in2[ins.i_in2][1], plan.irreps_out[ins.i_out][1]
        if l2 == 0:
            factor = float(ins.coefficient * wigner_3j(l1, 0, l3)[0, 0, 0])
            terms.setdefault((ins.i_in1, ins.i_out), []).append((n, factor))
    return tuple(Coupling(i, o, tuple(t)) for (i, o), t in terms.items())
