"""Levels next to an energy by SLEPc, with MUMPS for the factors: on one machine or on many.

Started by ``mpiexec``, all processes call :func:`levels_near` together. Each of them has the whole
matrices and gives its rows to PETSc, so that the factors, which need most memory, are shared.

A complex build of PETSc does not count levels: MUMPS has no L D L^H of complex matrices. A real one
counts them, and takes complex matrices in their :func:`hamfast.analysis.direct.real_form`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hamfast.analysis.direct import real_form
from hamfast.analysis.shift_invert import ON_LEVEL, RESIDUAL, STEPS, NearLevels
from hamfast.errors import HamfastError

COUNT_NEGATIVE = 12
"""MUMPS's INFOG of how many pivots are negative."""


class _Libraries(NamedTuple):
    PETSc: Any
    SLEPc: Any

    @property
    def is_complex(self) -> bool:
        return np.issubdtype(self.PETSc.ScalarType, np.complexfloating)


def libraries() -> _Libraries:
    """PETSc and SLEPc.

    Raises:
        HamfastError: they are not installed, or do not fit this Python.
    """
    try:
        import petsc4py

        petsc4py.init([])
        import slepc4py

        slepc4py.init([])
        from petsc4py import PETSc
        from slepc4py import SLEPc
    except (ImportError, ValueError, OSError) as error:
        raise HamfastError(
            f"--solver slepc: expected petsc4py and slepc4py, found {type(error).__name__}: {error}; how to install them is "
            "in docs/large_systems.md"
        ) from error
    return _Libraries(PETSc, SLEPc)


def rank() -> int:
    """The number of this process among those of ``mpiexec``."""
    return int(libraries().PETSc.COMM_WORLD.getRank())


def levels_near(h: Any, s: Any, sigma: float, count: int, where: str) -> NearLevels:
    """Levels next to ``sigma``, half of them below and half above it, as far as there are so many.

    Args:
        h, s: ``[size, size]`` sparse, Hermitian; S is positive definite.
        sigma: eV.
        count: how many.
        where: the k-point, for messages.

    Raises:
        HamfastError: SLEPc does not converge, or a level does not solve the equation.
    """
    found = libraries()
    embedded = not found.is_complex and np.iscomplexobj(h.data)
    if embedded:
        h, s = real_form(h), real_form(s)
    count = min(count, h.shape[0] // (2 if embedded else 1))
    times = 2 if embedded else 1
    matrices = [_matrix(found.PETSc, m) for m in (h, s)]
    for step in (0.0, *STEPS):
        solver = _solver(found, matrices[0], matrices[1], sigma + step)
        try:
            low, below = _levels(found, solver, h, s, times * (count + 4), where)
        except found.PETSc.Error:
            continue
        if len(low) and np.abs(low - sigma - step).min() > ON_LEVEL:
            break
    else:
        raise HamfastError(f"slepc at {where} around {sigma} eV found no stable factors; give another energy")
    chosen, first = _half_of_each(low[::times], sigma + step, count, below if below is None else below // times)
    return NearLevels(chosen, first)


def _half_of_each(levels: np.ndarray, sigma: float, count: int, below: int | None) -> tuple[np.ndarray, int | None]:
    """``count`` levels on both sides of sigma, and the number of the first."""
    left = int(np.searchsorted(levels, sigma))
    begin = max(0, min(left - count // 2, len(levels) - count))
    return levels[begin : begin + count], None if below is None else below - left + begin


def _matrix(petsc: Any, matrix: Any) -> Any:
    """This process's rows, in PETSc's form."""
    matrix = matrix.tocsr()
    matrix.sort_indices()
    found = petsc.Mat().create(petsc.COMM_WORLD)
    found.setSizes(matrix.shape)
    found.setType("aij")
    found.setUp()
    first, last = found.getOwnershipRange()
    part = matrix[first:last]
    arrays = part.indptr.astype(petsc.IntType), part.indices.astype(petsc.IntType), part.data.astype(petsc.ScalarType)
    found.setPreallocationCSR(arrays)
    found.assemble()
    found.setOption(petsc.Mat.Option.HERMITIAN, True)
    if not np.iscomplexobj(arrays[2]):
        found.setOption(petsc.Mat.Option.SYMMETRIC, True)
    return found


def _solver(found: _Libraries, h: Any, s: Any, sigma: float) -> Any:
    """Shift-invert Krylov-Schur around sigma."""
    solver = found.SLEPc.EPS().create(found.PETSc.COMM_WORLD)
    solver.setOperators(h, s)
    solver.setProblemType(found.SLEPc.EPS.ProblemType.GHEP)
    solver.setWhichEigenpairs(found.SLEPc.EPS.Which.TARGET_MAGNITUDE)
    solver.setTarget(sigma)
    solver.setTolerances(1e-10, 500)
    transform = solver.getST()
    transform.setType("sinvert")
    linear = transform.getKSP()
    linear.setType("preonly")
    condition = linear.getPC()
    condition.setType("lu" if found.is_complex else "cholesky")
    condition.setFactorSolverType("mumps")
    return solver


def _levels(found, solver, h, s, count, where) -> tuple[np.ndarray, int | None]:
    """Levels nearest to the target, ascending, and how many there are below it."""
    size = h.shape[0]
    solver.setDimensions(min(count, size), min(size, max(2 * count, count + 40)))
    solver.solve()
    converged = solver.getConverged()
    if converged < min(count, size) // 2:
        raise HamfastError(f"slepc at {where}: {converged} of {count} levels converged; expected at least half")
    levels, right = [], solver.getOperators()[0].createVecRight()
    scale = max(1.0, float(np.abs(h.data).max(initial=0.0)))
    for n in range(converged):
        levels.append(solver.getEigenpair(n, right).real)
        error = solver.computeError(n, found.SLEPc.EPS.ErrorType.ABSOLUTE)
        if not error <= RESIDUAL * scale:
            raise HamfastError(f"slepc at {where}: the level {levels[-1]:.4f} eV has a residual of {error:.2g} eV")
    below = None
    if not found.is_complex:
        below = int(solver.getST().getKSP().getPC().getFactorMatrix().getMumpsInfog(COUNT_NEGATIVE))
    return np.sort(levels), below
