"""The plan of an equivariant tensor product: irreps and instructions, frozen and hashable.

A plan is made once and read by every backend. Conventions (weight order, normalisation, the layout
``mul_ir``) are those of ``e3nn.o3.TensorProduct``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from functools import cache

from e3nn.o3 import Irreps

from hamfast.plan.coupling import wigner_3j

MODES = ("uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw")
"""The connection modes of e3nn: which multiplicity indices of the operands are tied to which."""

IrrepBlock = tuple[int, int, int]
"""One block of an irreps list: multiplicity, l, parity."""


@dataclass(frozen=True)
class Instruction:
    """One path of a plan: ``irreps_in1[i_in1] x irreps_in2[i_in2] -> irreps_out[i_out]``."""

    i_in1: int
    i_in2: int
    i_out: int
    mode: str
    has_weight: bool
    coefficient: float
    """Normalisation, multiplies the path: e3nn's ``sqrt(alpha)``."""
    weight_shape: tuple[int, ...]
    weight_offset: int
    """First element in the flat weight; meaningless without a weight."""

    @property
    def weight_numel(self) -> int:
        """How many weights the path has; 0 without a weight."""
        return math.prod(self.weight_shape) if self.has_weight else 0


@dataclass(frozen=True)
class Plan:
    """A tensor product, described for every backend. Make one with :func:`make_plan`."""

    irreps_in1: tuple[IrrepBlock, ...]
    irreps_in2: tuple[IrrepBlock, ...]
    irreps_out: tuple[IrrepBlock, ...]
    instructions: tuple[Instruction, ...]

    # Derived, computed once.
    dim_in1: int = field(init=False, compare=False, repr=False)
    dim_in2: int = field(init=False, compare=False, repr=False)
    dim_out: int = field(init=False, compare=False, repr=False)
    weight_numel: int = field(init=False, compare=False, repr=False)
    id: str = field(init=False, compare=False, repr=False)
    """Digest of the plan: equal plans, and only those, have equal ids."""

    def __post_init__(self):
        text = repr((self.irreps_in1, self.irreps_in2, self.irreps_out, self.instructions))
        derived = {
            "dim_in1": irreps_dim(self.irreps_in1),
            "dim_in2": irreps_dim(self.irreps_in2),
            "dim_out": irreps_dim(self.irreps_out),
            "weight_numel": sum(ins.weight_numel for ins in self.instructions),
            "id": hashlib.sha256(text.encode()).hexdigest()[:32],
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def text(self) -> str:
        """The plan as JSON; :meth:`parse` is the inverse."""
        return json.dumps([self.irreps_in1, self.irreps_in2, self.irreps_out, [astuple(i) for i in self.instructions]])

    @staticmethod
    @cache
    def parse(text: str) -> Plan:
        """The plan of a :meth:`text`."""
        in1, in2, out, instructions = json.loads(text)

        def blocks(lists) -> tuple[IrrepBlock, ...]:
            return tuple((mul, l, p) for mul, l, p in lists)

        made = tuple(
            Instruction(i1, i2, i_out, mode, has_weight, coefficient, tuple(shape), offset)
            for i1, i2, i_out, mode, has_weight, coefficient, shape, offset in instructions
        )
        return Plan(blocks(in1), blocks(in2), blocks(out), made)

    def operations(self) -> int:
        """Multiply-adds per row of the forward pass: CG contraction plus weights, path by path."""
        return sum(cg + mix for _, cg, mix in self.path_costs())

    def path_costs(self) -> list[tuple[Instruction, int, int]]:
        """Of each path: multiply-adds per row of the CG contraction, and of the weights."""
        costs = []
        for ins in self.instructions:
            (n1, l1, _), (n2, l2, _) = self.irreps_in1[ins.i_in1], self.irreps_in2[ins.i_in2]
            n3, l3, _ = self.irreps_out[ins.i_out]
            pairs = pair_count(ins.mode, n1, n2)
            cg = pairs * int((wigner_3j(l1, l2, l3) != 0).sum())
            mix = pairs * (2 * l3 + 1) * (n3 if ins.mode in ("uvw", "uuw", "u<vw") else 1)
            costs.append((ins, cg, mix))
        return costs


def pair_count(mode: str, n1: int, n2: int) -> int:
    """How many (u, v) pairs of channels a path multiplies."""
    if mode in ("uuw", "uuu"):
        return n1
    if mode in ("uvu<v", "u<vw"):
        return n1 * (n1 - 1) // 2
    return n1 * n2


def irreps_dim(blocks: Iterable[IrrepBlock]) -> int:
    """The number of components of a row of these irreps."""
    return sum(mul * (2 * l + 1) for mul, l, _ in blocks)


def format_irreps(blocks: Iterable[IrrepBlock]) -> str:
    """The irreps in e3nn's notation, as ``8x0e+4x1o``."""
    return "+".join(f"{mul}x{l}{'e' if p == 1 else 'o'}" for mul, l, p in blocks)


def as_blocks(irreps: Irreps | str) -> tuple[IrrepBlock, ...]:
    """e3nn's irreps, or their notation, as plain tuples (multiplicity, l, parity)."""
    return tuple((mul, ir.l, ir.p) for mul, ir in Irreps(irreps))


_WEIGHT_SHAPES = {
    "uvw": lambda n1, n2, n3: (n1, n2, n3),
    "uvu": lambda n1, n2, n3: (n1, n2),
    "uvv": lambda n1, n2, n3: (n1, n2),
    "uuw": lambda n1, n2, n3: (n1, n3),
    "uuu": lambda n1, n2, n3: (n1,),
    "uvuv": lambda n1, n2, n3: (n1, n2),
    "uvu<v": lambda n1, n2, n3: (n1 * (n2 - 1) // 2,),
    "u<vw": lambda n1, n2, n3: (n1 * (n2 - 1) // 2, n3),
}

# How many products are summed into one output element: e3nn's `num_elements`.
_FAN_IN = {
    "uvw": lambda n1, n2: n1 * n2,
    "uvu": lambda n1, n2: n2,
    "uvv": lambda n1, n2: n1,
    "uuw": lambda n1, n2: n1,
    "uuu": lambda n1, n2: 1,
    "uvuv": lambda n1, n2: 1,
    "uvu<v": lambda n1, n2: 1,
    "u<vw": lambda n1, n2: n1 * (n2 - 1) // 2,
}

_MULTIPLICITIES = {
    "uvw": (lambda n1, n2, n3: True, "any multiplicities"),
    "uvu": (lambda n1, n2, n3: n1 == n3, "mul_in1 = mul_out"),
    "uvv": (lambda n1, n2, n3: n2 == n3, "mul_in2 = mul_out"),
    "uuw": (lambda n1, n2, n3: n1 == n2, "mul_in1 = mul_in2"),
    "uuu": (lambda n1, n2, n3: n1 == n2 == n3, "mul_in1 = mul_in2 = mul_out"),
    "uvuv": (lambda n1, n2, n3: n1 * n2 == n3, "mul_in1 * mul_in2 = mul_out"),
    "uvu<v": (
        lambda n1, n2, n3: n1 == n2 and n1 * (n1 - 1) // 2 == n3,
        "mul_in1 = mul_in2 and mul_in1 (mul_in1 - 1) / 2 = mul_out",
    ),
    "u<vw": (lambda n1, n2, n3: n1 == n2, "mul_in1 = mul_in2"),
}


def make_plan(
    irreps_in1: Irreps | str,
    irreps_in2: Irreps | str,
    irreps_out: Irreps | str,
    instructions: Iterable[Sequence],
    *,
    in1_var: Sequence[float] | None = None,
    in2_var: Sequence[float] | None = None,
    out_var: Sequence[float] | None = None,
    irrep_normalization: str = "component",
    path_normalization: str = "element",
) -> Plan:
    """Makes the plan of a tensor product; the arguments are those of ``e3nn.o3.TensorProduct``.

    Args:
        instructions: ``(i_in1, i_in2, i_out, mode, has_weight[, path_weight])`` each, ``mode`` one
            of :data:`MODES`.
        in1_var, in2_var, out_var: assumed variance of each irreps block, 1 by default.
        irrep_normalization: ``component``, ``norm`` or ``none``.
        path_normalization: ``element``, ``path`` or ``none``.

    Raises:
        ValueError: an option, an index, a mode, a selection rule or a multiplicity is wrong; the
            message names the path.
    """
    blocks1, blocks2, blocks3 = as_blocks(irreps_in1), as_blocks(irreps_in2), as_blocks(irreps_out)
    _one_of("irrep_normalization", irrep_normalization, ("component", "norm", "none"))
    _one_of("path_normalization", path_normalization, ("element", "path", "none"))
    var1, var2, var3 = (
        _variances(name, var, blocks)
        for name, var, blocks in (
            ("in1_var", in1_var, blocks1),
            ("in2_var", in2_var, blocks2),
            ("out_var", out_var, blocks3),
        )
    )
    paths = [_checked_path(n, tuple(path), blocks1, blocks2, blocks3) for n, path in enumerate(instructions)]

    def fan_in(path):
        i1, i2, _, mode, _, _ = path
        return var1[i1] * var2[i2] * _FAN_IN[mode](blocks1[i1][0], blocks2[i2][0])

    made, offset = [], 0
    for path in paths:
        i1, i2, i3, mode, has_weight, path_weight = path
        (n1, l1, _), (n2, l2, _), (n3, l3, _) = blocks1[i1], blocks2[i2], blocks3[i3]
        alpha = {"component": 2 * l3 + 1, "norm": (2 * l1 + 1) * (2 * l2 + 1), "none": 1}[irrep_normalization]
        same_out = [other for other in paths if other[2] == i3]
        if path_normalization == "element":
            total = sum(map(fan_in, same_out))
        else:
            total = fan_in(path) * len(same_out) if path_normalization == "path" else 1.0
        if total > 0:
            alpha /= total
        shape = _WEIGHT_SHAPES[mode](n1, n2, n3)
        made.append(Instruction(i1, i2, i3, mode, has_weight, math.sqrt(alpha * var3[i3] * path_weight), shape, offset))
        offset += made[-1].weight_numel
    return Plan(blocks1, blocks2, blocks3, tuple(made))


def plan_of_e3nn(irreps_in1, irreps_in2, irreps_out, instructions) -> Plan:
    """The plan of instructions as ``e3nn.o3.TensorProduct`` keeps them: their ``path_weight`` holds
    the whole normalisation.
    """
    made, offset = [], 0
    for ins in instructions:
        shape = tuple(ins.path_shape)
        path = (ins.i_in1, ins.i_in2, ins.i_out, ins.connection_mode, bool(ins.has_weight), float(ins.path_weight))
        made.append(Instruction(*path, shape, offset))
        offset += made[-1].weight_numel
    return Plan(as_blocks(irreps_in1), as_blocks(irreps_in2), as_blocks(irreps_out), tuple(made))


def _checked_path(number, path, blocks1, blocks2, blocks3):
    if len(path) not in (5, 6):
        raise ValueError(f"instruction {number}: expected 5 or 6 entries, found {path}")
    i1, i2, i3, mode, has_weight, path_weight = path if len(path) == 6 else (*path, 1.0)
    for name, i, blocks in (("i_in1", i1, blocks1), ("i_in2", i2, blocks2), ("i_out", i3, blocks3)):
        if not 0 <= i < len(blocks):
            raise ValueError(f"instruction {number}: {name} is {i}, but there are {len(blocks)} irreps blocks")
    _one_of(f"instruction {number}: mode", mode, MODES)
    (n1, l1, p1), (n2, l2, p2), (n3, l3, p3) = blocks1[i1], blocks2[i2], blocks3[i3]
    name = " x ".join(format_irreps((b,)) for b in (blocks1[i1], blocks2[i2])) + f" -> {format_irreps((blocks3[i3],))}"
    if p1 * p2 != p3 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"instruction {number}: {name} violates the selection rules of O(3)")
    fits, rule = _MULTIPLICITIES[mode]
    if not fits(n1, n2, n3):
        raise ValueError(f"instruction {number}: {name} in mode {mode} needs {rule}")
    if not has_weight and (mode in ("uvw", "u<vw") or (mode == "uuw" and n3 != 1)):
        raise ValueError(f"instruction {number}: {name} in mode {mode} needs a weight")
    if path_weight < 0:
        raise ValueError(f"instruction {number}: path_weight must not be negative, found {path_weight}")
    return i1, i2, i3, mode, bool(has_weight), float(path_weight)


def _one_of(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def _variances(name, values, blocks):
    if values is None:
        return [1.0] * len(blocks)
    values = [float(v) for v in values]
    if len(values) != len(blocks):
        raise ValueError(f"{name}: expected {len(blocks)} values, one for each irreps block, found {len(values)}")
    return values
