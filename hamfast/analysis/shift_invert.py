"""Levels of H(k) c = E S(k) c next to an energy, for matrices too large to diagonalise.

The solver is sparse, and it counts the levels:

1. ARPACK in shift-invert mode finds levels on both sides of an energy sigma. It does not say which
   bands they are, or whether it missed one.
2. The factors L D L^H of H - sigma S do. By Sylvester's law of inertia, D has as many negative
   entries (pivots) as there are levels below sigma, if S is positive definite.
3. With such a count at both ends of what was found, the band of every level is known.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from hamfast.analysis.direct import Factor, Unstable, factorized
from hamfast.errors import DataWarning, HamfastError

STEPS = (1e-5, 1e-4, 1e-3, 1e-2)
"""eV by which an energy is moved where H - E S has no stable factors. That is on a level, or on a
diagonal element."""
SINGULAR = 1e-12
"""An eigenvalue of S below this is rounding."""
ON_LEVEL = 1e-6
"""eV: a level this near to sigma makes all others lose digits."""
RESIDUAL = 1e-6
"""Largest ``|H c - E S c| / |S c|`` of a level that is believed. The unit is the largest matrix
element of H, and at least 1 eV."""


@dataclass
class NearLevels:
    """Levels of one k-point, ascending, eV."""

    energies: np.ndarray
    first_band: int | None
    """The index, from 0, of the band of ``energies[0]``; None if levels could not be counted."""


class ShiftedFactor:
    """Solves with H - sigma S and counts its negative pivots.

    With ``null`` it does so on the complement of these vectors. Bordering the matrix A with them as
    columns N projects it. The count is then, by Haynsworth's additivity of inertia, that of A, plus
    the positive eigenvalues of N^H A^-1 N, less the number of vectors.

    Args:
        h, s: ``[size, size]`` sparse, Hermitian.
        sigma: eV.
        null: ``[size, m]``, orthonormal eigenvectors of S that are left out; None for none.

    Attributes:
        negative: how many levels lie below sigma; None if they could not be counted.

    Raises:
        Unstable: the matrix is singular to rounding.
    """

    def __init__(self, h, s, sigma: float, null: np.ndarray | None):
        self.make = lambda: factorized(h - sigma * s)
        self.factor: Factor | None = self.make()
        self.null = null
        self.dtype, self.shape = np.result_type(h.dtype, s.dtype), h.shape
        self.negative = self.factor.negative
        if null is not None:
            self.solved = self.factor.solve(null)
            self.schur = null.conj().T @ self.solved
            if self.negative is not None:
                self.negative += int(np.sum(scipy.linalg.eigvalsh(self.schur) > 0)) - null.shape[1]

    def solve(self, b):
        """The x of ``(H - sigma S) x = b``, ``[size]``, on the complement of ``null``."""
        if self.factor is None:
            self.factor = self.make()
        x = self.factor.solve(np.ravel(b))
        if self.null is not None:
            x = x - self.solved @ np.linalg.solve(self.schur, self.null.conj().T @ x)
        return x

    def forget(self) -> None:
        """Frees the memory of the factors, which are made anew if they are wanted again."""
        self.factor = None


def smallest_overlap(s, where: str) -> float:
    """The smallest eigenvalue of a sparse overlap matrix S.

    Raises:
        HamfastError: S is not positive definite; ``where`` names the k-point.
    """
    try:
        factor = factorized(s)
    except Unstable:
        raise not_positive(where, 0.0) from None
    # Without a row exchanged the factors of a positive definite matrix are always accurate.
    if factor.negative != 0:
        start = np.random.default_rng(0).normal(size=s.shape[0])  # the same words each time
        lowest = scipy.sparse.linalg.eigsh(
            s, k=1, which="SA", return_eigenvectors=False, v0=start, tol=1e-4, maxiter=10000
        )
        raise not_positive(where, float(lowest[0].real))
    operator = scipy.sparse.linalg.LinearOperator(s.shape, matvec=lambda b: factor.solve(np.ravel(b)), dtype=s.dtype)
    found = scipy.sparse.linalg.eigsh(s, k=1, sigma=0.0, which="LM", OPinv=operator, return_eigenvectors=False)
    lowest = float(found[0].real)
    if lowest < SINGULAR:
        raise not_positive(where, lowest)
    return lowest


def not_positive(where: str, lowest: float) -> HamfastError:
    """The error for an overlap at the k-point ``where`` with the smallest eigenvalue ``lowest``."""
    what = "not positive definite" if lowest < 0 else "singular to rounding"
    return HamfastError(
        f"the overlap matrix at {where} is {what}, its smallest eigenvalue is {lowest:.3g}: expected more than 1e-12; "
        "is the overlap cut off, or another structure's? --project-overlap 1e-3 leaves out what is below 1e-3"
    )


def near_null(s, threshold: float) -> np.ndarray:
    """``[size, m]``: orthonormal eigenvectors of S with eigenvalues below ``threshold``."""
    factor = factorized(s - threshold * scipy.sparse.identity(s.shape[0], format="csc"))
    count = factor.negative
    if count is None:
        raise HamfastError("the near-singular directions of the overlap could not be counted; use fewer orbitals")
    if count == 0:
        return np.zeros((s.shape[0], 0), dtype=s.dtype)
    if count >= s.shape[0] - 2:
        raise HamfastError(f"--project-overlap {threshold:g} leaves nothing of the overlap; use a smaller number")
    operator = scipy.sparse.linalg.LinearOperator(s.shape, matvec=lambda b: factor.solve(np.ravel(b)), dtype=s.dtype)
    _, vectors = scipy.sparse.linalg.eigsh(s, k=count, sigma=threshold, which="SA", OPinv=operator)
    return np.linalg.qr(vectors)[0]


def levels_near(h, s, sigma: float, count: int, where: str, null: np.ndarray | None = None) -> NearLevels:
    """Levels next to ``sigma``, half of them below and half above it, as far as there are so many.

    Args:
        h, s: ``[size, size]`` sparse, Hermitian; S is positive definite on the complement of
            ``null``.
        sigma: eV.
        count: how many, from 1 to size - 2.
        where: the k-point, for messages.
        null: see :class:`ShiftedFactor`.

    Raises:
        HamfastError: ARPACK does not converge, or a level does not solve the equation.
    """
    size = h.shape[0] - (0 if null is None else null.shape[1])
    count = min(count, size - 2)
    uncounted, problem = None, ""
    for step in (0.0, *STEPS):
        moved = sigma + step
        try:
            found = _both_sides(h, s, moved, count, ShiftedFactor(h, s, moved, null), size, null)
        except Unstable as reason:
            problem = str(reason)
            continue
        if found.first_band is not None:
            if step:
                warnings.warn(
                    f"{sigma:.4f} eV lies on a level or on a diagonal element at {where}; levels were searched around "
                    f"{moved:.5f} eV",
                    DataWarning,
                    stacklevel=2,
                )
            return found
        uncounted = uncounted or found
    if uncounted is None:
        raise HamfastError(f"shift-invert at {where} around {sigma} eV failed: {problem}; give another energy")
    warnings.warn(
        f"levels at {where} could not be counted; they are drawn as points, and one may be missing",
        DataWarning,
        stacklevel=2,
    )
    return uncounted


def _both_sides(h, s, sigma, count, factor, size, null) -> NearLevels:
    """Raises Unstable where a level lies on ``sigma``."""
    nu = factor.negative
    below, above = count // 2, count - count // 2
    if nu is not None:
        below = min(below, nu)
        above = min(count - below, size - nu)
        below = min(count - above, nu)
    half = max(below, above)
    if np.issubdtype(factor.dtype, np.floating) and below > 0 and abs(below - above) <= 1 and 2 * half < size - 1:
        # One Krylov space for both sides needs less than half of the solves. ARPACK has it for
        # real matrices.
        values, vectors = _search(h, s, sigma, 2 * half, factor, "BE", null)
        low, high = ((values[side], vectors[:, side]) for side in (values < sigma, values > sigma))
    else:
        low = _search(h, s, sigma, below, factor, "SA", null)
        high = _search(h, s, sigma, above, factor, "LA", null)
    for _ in range(6):
        energies = np.sort(np.concatenate([low[0], high[0]]))
        if nu is None:
            break
        factor.forget()  # those of the counts need the memory
        at_low = nu if len(low[0]) == 0 else _count(h, s, energies[0], -1, null)
        at_high = nu if len(high[0]) == 0 else _count(h, s, energies[-1], 1, null)
        if at_low is None or at_high is None:
            break
        # Levels that were passed over between sigma and the ends, or that lie beyond the ends.
        more_low = max(nu - at_low - len(low[0]), below - len(low[0]))
        more_high = max(at_high - nu - len(high[0]), above - len(high[0]))
        if len(low[0]) > nu - at_low or len(high[0]) > at_high - nu:
            break
        if more_low <= 0 and more_high <= 0:
            # A multiplet at the end was found whole; what was asked for is enough.
            chosen = np.concatenate([np.sort(low[0])[len(low[0]) - below :], np.sort(high[0])[:above]])
            return NearLevels(chosen, nu - below)
        # The Krylov space of one vector holds only one vector of a multiplet. So the others are
        # searched for on the complement of what was found.
        low = _search(h, s, sigma, max(0, more_low), factor, "SA", null, low)
        high = _search(h, s, sigma, max(0, more_high), factor, "LA", null, high)
    return NearLevels(energies, None)


def _count(h, s, end, sign, null) -> int | None:
    """How many levels lie below an energy a little beyond the level ``end``.

    None if they could not be counted.
    """
    for step in STEPS:
        try:
            count = ShiftedFactor(h, s, end + sign * step, null).negative
        except Unstable:
            continue
        if count is not None:
            return count
    return None


def _search(h, s, sigma, count, factor, which, null, known=None) -> tuple[np.ndarray, np.ndarray]:
    """Adds ``count`` levels to those that are ``known``: below sigma (``which`` is SA), above it
    (LA), or half of them on either side (BE).

    Each level is checked against the equation that it solves.

    Returns:
        Energies, and vectors that are orthonormal in S.

    Raises:
        Unstable: a level lies on sigma, so that the others lose digits; or a level does not solve
            the equation.
    """
    empty = np.zeros(0), np.zeros((h.shape[0], 0), dtype=factor.dtype)
    values, vectors = known or empty
    if count == 0:
        return values, vectors
    dual = (s @ vectors).conj().T

    def project(x):
        if null is not None:
            x = x - null @ (null.conj().T @ x)
        return x - vectors @ (dual @ x)

    operator = scipy.sparse.linalg.LinearOperator(
        factor.shape, matvec=lambda b: project(factor.solve(b)), dtype=factor.dtype
    )
    start = np.random.default_rng(len(values)).normal(size=h.shape[0]).astype(factor.dtype)
    try:
        found, new = scipy.sparse.linalg.eigsh(
            h.astype(factor.dtype), k=count, M=s.astype(factor.dtype), sigma=sigma, which=which, OPinv=operator,
            v0=project(start),
        )  # fmt: skip
    except (scipy.sparse.linalg.ArpackError, RuntimeError) as error:
        raise Unstable(" ".join(str(error).split())) from error
    found = found.real
    if np.min(np.abs(found - sigma)) < ON_LEVEL:
        raise Unstable(f"a level lies on {sigma:.6f} eV")
    overlap = s @ new
    residual = h @ new - overlap * found
    if null is not None:
        residual = residual - null @ (null.conj().T @ residual)
    misfit = np.linalg.norm(residual, axis=0) / np.linalg.norm(overlap, axis=0)
    scale = max(1.0, float(np.abs(h.data).max(initial=0.0)))
    if not np.all(misfit <= RESIDUAL * scale):
        worst = int(np.argmax(misfit))
        raise Unstable(
            f"the level {found[worst]:.4f} eV does not solve H c = E S c, its residual is {misfit[worst]:.2g} eV, expected at "
            f"most {RESIDUAL * scale:.2g}"
        )
    right = {"SA": found < sigma, "LA": found > sigma, "BE": found == found}[which]
    values, vectors = np.concatenate([values, found[right]]), np.concatenate([vectors, new[:, right]], axis=1)
    if vectors.shape[1]:
        # ARPACK's complex solver leaves vectors of one level at any angle.
        lower = np.linalg.cholesky(vectors.conj().T @ (s @ vectors))
        vectors = np.linalg.solve(lower, vectors.conj().T).conj().T
    return values, vectors
