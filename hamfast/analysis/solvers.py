"""Which solver finds the levels of a structure, and why."""

from __future__ import annotations

from typing import NamedTuple

from hamfast.analysis.direct import has_pardiso, pardiso_solver
from hamfast.errors import HamfastError

SOLVERS = ("auto", "dense", "arpack", "pardiso", "slepc")
"""``dense``: LAPACK, all levels. The others find levels next to an energy by shift-invert:
``arpack`` with SciPy's SuperLU, ``pardiso`` the same with MKL's Pardiso, ``slepc`` by SLEPc with
MUMPS, also on several machines."""
DENSE_LIMIT = 2500
"""Orbitals up to which all levels are computed with LAPACK."""


class Choice(NamedTuple):
    """A solver."""

    name: str
    reason: str
    """For the reader."""

    @property
    def direct(self) -> str:
        """What factorises matrices, see :func:`hamfast.analysis.direct.factorized_by`."""
        return "pardiso" if self.name == "pardiso" else "superlu"


def choose(size: int, few: bool, wanted: str = "auto") -> Choice:
    """The solver for matrices with so many rows.

    Args:
        size: orbitals, spin included.
        few: are only some levels asked for?
        wanted: of ``SOLVERS``.

    Raises:
        HamfastError: there is no such solver, or its package is not installed.
    """
    if wanted not in SOLVERS:
        raise HamfastError(f"--solver: expected one of {', '.join(SOLVERS)}, found {wanted!r}")
    if wanted == "pardiso":
        pardiso_solver()
    if wanted != "auto":
        return Choice(wanted, "as asked for")
    if size <= DENSE_LIMIT and not few:
        return Choice("dense", f"{size} orbitals are at most {DENSE_LIMIT}")
    if size <= DENSE_LIMIT:
        return Choice("arpack", "some levels were asked for")
    many = f"{size} orbitals are more than {DENSE_LIMIT}"
    if has_pardiso():
        return Choice("pardiso", f"{many}, and pypardiso is installed")
    return Choice("arpack", f"{many}; pypardiso, which is not installed, is several times faster")
