"""L D L^H of sparse Hermitian matrices, by SuperLU or by MKL's Pardiso.

By Sylvester's law of inertia, D of ``H - E S`` has as many negative entries as there are levels
below E, if S is positive definite.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from hamfast.errors import HamfastError

_chosen: ContextVar[str] = ContextVar("direct solver", default="superlu")


class Unstable(Exception):
    """An energy at which the factors are of no use, or on which a level lies.

    Another energy nearby will do.
    """


class Factor(Protocol):
    """Factors of a matrix."""

    dtype: np.dtype
    """Of the matrix."""
    negative: int | None
    """How many of its eigenvalues are negative; None if they could not be counted."""

    def solve(self, b: np.ndarray) -> np.ndarray:
        """The x of ``matrix x = b``; ``b`` is ``[size]`` or ``[size, columns]``."""


def factorized(matrix: Any) -> Factor:
    """The factors of a sparse Hermitian matrix, by the solver that :func:`factorized_by` has named.

    Raises:
        Unstable: the matrix is singular to rounding.
    """
    return Pardiso(matrix) if _chosen.get() == "pardiso" else SuperLU(matrix)


@contextmanager
def factorized_by(name: str) -> Iterator[None]:
    """Within the block matrices are factorised by ``superlu`` or ``pardiso``."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def is_accurate(matrix: Any, solve) -> bool:
    """Is the backward error of a solution at rounding? Pivots that were too small show here."""
    b = np.random.default_rng(0).normal(size=matrix.shape[0]).astype(matrix.dtype)
    x = solve(b)
    scale = scipy.sparse.linalg.norm(matrix, np.inf) * np.linalg.norm(x) + np.linalg.norm(b)
    return bool(np.all(np.isfinite(x)) and np.linalg.norm(matrix @ x - b) <= 1e-10 * scale)


class SuperLU:
    """By SciPy's SuperLU, without pivoting where that is accurate; see :class:`Factor`.

    Raises:
        Unstable: the matrix is singular to rounding.
    """

    def __init__(self, matrix: Any):
        matrix = scipy.sparse.csc_matrix(matrix)
        self.dtype = matrix.dtype
        self.negative: int | None = None
        try:
            self.lu = scipy.sparse.linalg.splu(
                matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
            )
            if np.array_equal(self.lu.perm_r, self.lu.perm_c) and is_accurate(matrix, self.lu.solve):
                self.negative = int(np.sum(self.lu.U.diagonal().real < 0))
                return
        except RuntimeError:  # a pivot of zero
            pass
        # Rows are exchanged: solves, but its pivots are no inertia.
        try:
            self.lu = scipy.sparse.linalg.splu(matrix)
        except RuntimeError as error:
            raise Unstable("H - E S is singular") from error

    def solve(self, b: np.ndarray) -> np.ndarray:
        """See :meth:`Factor.solve`."""
        return self.lu.solve(np.ascontiguousarray(b, dtype=self.dtype))


def real_form(matrix: Any) -> Any:
    """``[2 size, 2 size]`` sparse: [[A, -B], [B, A]] of A + i B, with each eigenvalue twice."""
    a, b = matrix.real, matrix.imag
    return scipy.sparse.bmat([[a, -b], [b, a]], format="csr")


def upper_triangle(matrix: Any) -> Any:
    """``[size, size]`` CSR, with sorted columns: the upper triangle of a real symmetric matrix.

    It needs less memory than :func:`scipy.sparse.triu`, as the columns of the matrix are its rows.
    """
    matrix = matrix if matrix.format == "csr" else scipy.sparse.csc_matrix(matrix)
    matrix.sort_indices()
    counts = np.diff(matrix.indptr)
    kept = matrix.indices >= np.repeat(np.arange(len(counts), dtype=matrix.indices.dtype), counts)
    before = np.concatenate([[0], np.cumsum(kept, dtype=matrix.indptr.dtype)])
    return scipy.sparse.csr_matrix((matrix.data[kept], matrix.indices[kept], before[matrix.indptr]), shape=matrix.shape)


REAL = -2
"""Pardiso's name of symmetric indefinite matrices."""
FACTORISE, SOLVE, RELEASE = 12, 33, -1
PERTURBED, POSITIVE, NEGATIVE = 13, 21, 22
"""Where Pardiso says how many pivots it has perturbed, and how many are positive and negative."""
REFINEMENT = 7
"""Where it is told how many steps of refinement a solve may take."""


class Pardiso:
    """By MKL's Pardiso through pypardiso, with symmetric pivoting; see :class:`Factor`.

    Pardiso counts pivots of real matrices alone. So a complex one is factorised in its
    :func:`real_form`.

    Raises:
        Unstable: the matrix is singular to rounding.
        HamfastError: pypardiso is not installed, or memory does not suffice.
    """

    def __init__(self, matrix: Any):
        solver = pardiso_solver()
        self.dtype, self.is_complex = matrix.dtype, np.iscomplexobj(matrix.data)
        self.upper = upper_triangle(real_form(matrix) if self.is_complex else matrix)
        self.call = solver(mtype=REAL)
        self._do(FACTORISE, np.zeros(self.upper.shape[0]))
        positive, negative = int(self.call.iparm[POSITIVE]), int(self.call.iparm[NEGATIVE])
        counted = positive + negative == self.upper.shape[0] and not self.call.iparm[PERTURBED]
        counted = counted and (negative % 2 == 0 or not self.is_complex)
        # Each step of refinement takes as long as a solve: only where it is not accurate without.
        for steps in (0, 2):
            self.call.iparm[REFINEMENT] = steps
            if is_accurate(matrix, self.solve):
                break
        else:
            raise Unstable("H - E S is singular")
        self.negative = negative // (2 if self.is_complex else 1) if counted else None

    def _do(self, phase: int, b: np.ndarray) -> np.ndarray:
        self.call.set_phase(phase)
        try:
            return self.call._call_pardiso(self.upper, b)
        except Exception as error:  # pypardiso's own type, which is none without the package
            code = getattr(error, "value", None)
            if code == -2:
                raise HamfastError("pardiso: the memory does not suffice for the factors; use fewer atoms") from error
            if code is None:
                raise
            raise Unstable(f"pardiso failed with code {code}") from error

    def solve(self, b: np.ndarray) -> np.ndarray:
        """See :meth:`Factor.solve`."""
        if not self.is_complex:
            return self._do(SOLVE, np.asfortranarray(b, dtype=np.float64))
        x = self._do(SOLVE, np.asfortranarray(np.concatenate([b.real, b.imag])))
        return x[: len(b)] + 1j * x[len(b) :]

    def __del__(self) -> None:
        if hasattr(self, "call"):  # MKL keeps the factors until it is told
            self.call.set_phase(RELEASE)
            self.call._call_pardiso(self.upper, np.zeros(0))


@cache
def pardiso_solver() -> Any:
    """The class of pypardiso.

    Raises:
        HamfastError: it is not installed, or finds no MKL.
    """
    try:
        from pypardiso import PyPardisoSolver

        # It searches the whole environment for MKL each time, unless it is told where that is.
        os.environ.setdefault("PYPARDISO_MKL_RT", PyPardisoSolver().libmkl._name)
    except (ImportError, OSError) as error:
        raise HamfastError(
            f"--solver pardiso: expected pypardiso and MKL, found none ({error}); pip install pypardiso, or take arpack"
        ) from error
    return PyPardisoSolver


def has_pardiso() -> bool:
    """Can matrices be factorised by Pardiso here?"""
    try:
        pardiso_solver()
    except HamfastError:
        return False
    return True
