"""Linear least squares with a ridge, from sums over structures.

A row of the design matrix is a Kronecker product: amplitudes b, shared by the components of an
irrep, times features x. So the Gram matrix is a sum over rows of (b b^T) x (x x^T), and the two
symmetric factors are all that is kept of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RIDGES = tuple(10.0**-n for n in range(3, 12))
"""Candidates, relative to the mean square of a feature."""

SMALLEST = 1e-4
"""A feature whose root mean square is below this, where its amplitude is, is the rounding of one
that vanishes by symmetry, as in an ideal crystal; features are made of numbers of order 1."""

NOTHING = 1e-7
"""A difference of squared errors that does not count, as a share of the targets' squares."""

HELD_OUT = 4
"""Each fourth structure is held out where the ridge is chosen."""


class NormalEquations:
    """Sums for one least-squares problem with several right-hand sides.

    Args:
        amplitudes: how many numbers b a row has.
        features: how many numbers x a row has, for each component of the irrep.
        targets: right-hand sides.
    """

    def __init__(self, amplitudes: int, features: int, targets: int):
        self.shape = (amplitudes, features, targets)
        self.rows, self.columns = torch.triu_indices(features, features)
        self.upper = self.rows * features + self.columns
        self.first, self.second = torch.triu_indices(amplitudes, amplitudes)
        # For the structures that are fitted in the choice of the ridge, and for those held out.
        gram, right = self.sizes(amplitudes, features, targets)
        self.gram = torch.zeros(gram, dtype=torch.float64)
        self.right = torch.zeros(right, dtype=torch.float64)
        self.count = [0, 0]
        self.amplitude = torch.zeros(amplitudes, dtype=torch.float64)  # sums of b^2
        self.power = [0.0, 0.0]  # sums of y^2

    @staticmethod
    def sizes(amplitudes: int, features: int, targets: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the two large sums, in float64."""
        pairs = [n * (n + 1) // 2 for n in (amplitudes, features)]
        return (2, *pairs), (2, amplitudes, features, targets)

    def add(self, b: Tensor, x: Tensor, y: Tensor, structure: int) -> None:
        """Adds rows.

        Args:
            b: ``[rows, amplitudes]`` float64.
            x: ``[rows, features, components]`` float64.
            y: ``[rows, targets, components]`` float64.
            structure: the number of the structure that the rows belong to.
        """
        part = int(structure % HELD_OUT == HELD_OUT - 1)
        squares = (x @ x.transpose(1, 2)).flatten(1).index_select(1, self.upper)
        self.gram[part] += (b[:, self.first] * b[:, self.second]).T @ squares
        self.right[part] += (b.T @ (x @ y.transpose(1, 2)).flatten(1)).unflatten(1, self.shape[1:])
        self.count[part] += len(b)
        self.amplitude += b.square().sum(0)
        self.power[part] += float(y.square().sum())

    def __iadd__(self, other: NormalEquations) -> NormalEquations:
        """Adds the sums over other rows."""
        self.gram += other.gram
        self.right += other.right
        self.amplitude += other.amplitude
        self.count = [a + b for a, b in zip(self.count, other.count, strict=True)]
        self.power = [a + b for a, b in zip(self.power, other.power, strict=True)]
        return self

    def solve(self) -> Tensor:
        """The coefficients, ``[amplitudes, features, targets]`` float64.

        The ridge is the largest one whose error of the structures held out is the smallest, up to
        ``NOTHING``. A smaller ridge has larger coefficients, whose features cancel.
        """
        gram = [self._full(part) for part in range(2)]
        right = [self.right[part].flatten(0, 1) for part in range(2)]
        total = gram[0] + gram[1]
        square = total.diagonal()
        # A feature that never occurs gets zero: that of an element without neighbours, or one that
        # vanishes by symmetry. A coefficient of its rounding would be huge.
        floor = (SMALLEST**2 * self.amplitude).repeat_interleave(self.shape[1]).clamp(min=1e-14 * float(square.max()))
        scale = torch.where(square > floor, square.clamp(min=1e-300).rsqrt(), torch.zeros_like(square))
        gram = [scale[:, None] * g * scale for g in gram]
        right = [scale[:, None] * r for r in right]
        ridge = self._choose(gram, right) if min(self.count) else 1e-7
        total = gram[0] + gram[1] + ridge * torch.eye(len(scale), dtype=torch.float64)
        return (scale[:, None] * torch.linalg.solve(total, right[0] + right[1])).unflatten(0, self.shape[:2])

    def _choose(self, gram, right):
        identity = torch.eye(len(gram[0]), dtype=torch.float64)

        def error(ridge):
            factor, failed = torch.linalg.cholesky_ex(gram[0] + ridge * identity)
            if failed:
                return math.inf
            found = torch.cholesky_solve(right[0], factor)
            return float((found * (gram[1] @ found)).sum() - 2 * (found * right[1]).sum())

        errors = [error(ridge) for ridge in RIDGES]
        limit = min(errors) + NOTHING * self.power[1]
        return next(ridge for ridge, found in zip(RIDGES, errors, strict=True) if found <= limit)

    def _full(self, part):
        """``[amplitudes x features] ** 2``: the Gram matrix of all products."""
        amplitudes, features, _ = self.shape
        inner = torch.zeros(len(self.first), features, features, dtype=torch.float64)
        inner[:, self.rows, self.columns] = self.gram[part]
        inner[:, self.columns, self.rows] = self.gram[part]
        full = torch.zeros(amplitudes, amplitudes, features, features, dtype=torch.float64)
        full[self.first, self.second] = inner
        full[self.second, self.first] = inner
        return full.transpose(1, 2).reshape(amplitudes * features, amplitudes * features)
