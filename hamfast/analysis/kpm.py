"""The density of states of systems too large to diagonalise, by the kernel polynomial method.

Weisse et al., Reviews of Modern Physics 78, 275 (2006). With the spectrum of ``A = S^-1 H`` scaled
to x = (E - b) / a in (-1, 1) and x = cos t, the density of states is

    D(E) = 1 / (pi a sin t) * sum_n (2 - [n = 0]) mu_n cos(n t) exp(-(n w / (a sin t))^2 / 2)

with the moments ``mu_n = Tr T_n((A - b) / a)`` of Chebyshev polynomials. The last factor widens
each level to a Gaussian of width w, where w is small beside a. The trace is the mean of ``z^+ T_n
z`` over random vectors z, whose elements have the modulus 1 and independent phases. The spread over
these vectors tells the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse.linalg

from hamfast.analysis.direct import Factor, factorized
from hamfast.analysis.shift_invert import not_positive

VECTORS = 8
"""Random vectors of a k-point."""
CUT = 5.0
"""Moments are left out where the argument of the Gaussian factor is larger."""
MARGIN = 0.01
"""Of the spectrum's width, by which the scaled spectrum stays within -1 and 1."""


def density_by_moments(
    matrices: Callable[[np.ndarray], tuple[Any, Any]],
    kpoints: np.ndarray,
    grid: np.ndarray,
    width: float,
    degeneracy: int,
    vectors: int | None = VECTORS,
    report: Callable[[], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """``[points]`` states / eV / cell, and its standard error from the random vectors.

    Args:
        matrices: H(k) and S(k), sparse, of a k-point.
        kpoints: ``[kpoints, 3]``, of a whole mesh.
        grid: ``[points]`` eV.
        width: eV, the standard deviation of the Gaussian on each level.
        degeneracy: electrons that a band holds.
        vectors: of each k-point; None takes the exact trace, for tests.
        report: called after every k-point.

    Raises:
        HamfastError: S(k) is not positive definite.
    """
    generator = np.random.default_rng(0)
    found = []
    for k in kpoints:
        h, s = matrices(k)
        z = np.eye(h.shape[0]) if vectors is None else np.exp(2j * np.pi * generator.random((h.shape[0], vectors)))
        # A sum over vectors of the exact trace, a mean over random ones.
        found.append(_densities(h, s, z, grid, width, f"k = {k}") * (1 if vectors is not None else h.shape[0]))
        if report is not None:
            report()
    each = degeneracy * np.mean(found, axis=0)  # [vectors, points]
    error = np.zeros(len(grid)) if vectors is None else each.std(axis=0, ddof=1) / np.sqrt(vectors)
    return each.mean(axis=0), error


def _densities(h: Any, s: Any, z: np.ndarray, grid: np.ndarray, width: float, where: str) -> np.ndarray:
    """``[vectors, points]``: what each vector says of the density of states."""
    factor = factorized(s)
    if factor.negative != 0:
        raise not_positive(where, -1.0)
    low, high = _range(h, s, factor)
    a, b = (high - low) / 2 * (1 + MARGIN), (high + low) / 2
    x = (grid - b) / a
    inside = np.abs(x) < 1 - MARGIN / 2  # no level lies beyond
    angle = np.arccos(np.where(inside, x, 0.0))
    narrow = width / (a * np.sin(angle))
    total = np.zeros((z.shape[1], len(grid)))

    def scaled(v: np.ndarray) -> np.ndarray:
        return (_solve(factor, h @ v) - b * v) / a

    before, now = z, scaled(z)
    for n in range(int(np.ceil(CUT / narrow.min())) + 1):
        moment = np.einsum("nv,nv->v", z.conj(), before).real
        total += (1 if n == 0 else 2) * np.outer(moment, np.cos(n * angle) * np.exp(-((n * narrow) ** 2) / 2))
        before, now = now, 2 * scaled(now) - before
    return np.where(inside, total / (np.pi * a * np.sin(angle)), 0.0)


def _solve(factor: Factor, b: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(b) and not np.issubdtype(factor.dtype, np.complexfloating):
        return factor.solve(b.real) + 1j * factor.solve(b.imag)
    return factor.solve(b)


def _range(h: Any, s: Any, factor: Factor) -> tuple[float, float]:
    """eV: the lowest and the highest level, or a little beyond."""
    dtype = np.result_type(h.dtype, s.dtype)
    inverse = scipy.sparse.linalg.LinearOperator(s.shape, matvec=lambda b: factor.solve(np.ravel(b)), dtype=dtype)
    start = np.random.default_rng(1).normal(size=s.shape[0])
    ends = []
    for which in ("SA", "LA"):
        found = scipy.sparse.linalg.eigsh(
            h, k=1, M=s, Minv=inverse, which=which, tol=1e-3, v0=start, return_eigenvectors=False
        )
        ends.append(float(found[0].real))
    beyond = MARGIN * (ends[1] - ends[0])
    return ends[0] - beyond, ends[1] + beyond
