"""The eigenvalue problem H(k) c = E S(k) c of one structure.

LAPACK finds all bands. A sparse solver (shift-invert) finds those next to an energy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.linalg

from hamfast.analysis import slepc, solvers
from hamfast.analysis.bloch import BlochMatrix
from hamfast.analysis.direct import factorized_by
from hamfast.analysis.fermi import fermi_level
from hamfast.analysis.in_parallel import at_each
from hamfast.analysis.shift_invert import SINGULAR, NearLevels, levels_near, near_null, not_positive, smallest_overlap
from hamfast.analysis.solvers import Choice, choose
from hamfast.data.blocks import BlockMatrix
from hamfast.data.snapshot import Snapshot, check_matrix
from hamfast.errors import DataWarning, HamfastError

SMALL_OVERLAP = 1e-4
"""A smallest eigenvalue of S(k) below this deserves a warning, as errors of H are divided by it."""


@dataclass
class Levels:
    """Energies at several k-points, eV."""

    energies: np.ndarray
    """``[kpoints, columns]``, ascending. If the levels were counted, a column is a band; NaN stands
    where it was not found."""
    first_band: int | None
    """The index, from 0, of the band in column 0. None if the levels could not be counted: then
    columns are no bands."""


@dataclass
class EigenProblem:
    """H(k) and S(k) of one structure."""

    hamiltonian: BlochMatrix
    overlap: BlochMatrix
    spinful: bool
    """Do H and S carry spin?"""
    occupation: float | None
    """Electrons per cell; None if not known."""
    projection: float | None = None
    """Eigenvectors of S(k) with eigenvalues below this are left out, as they hold little but
    rounding errors. None leaves out nothing: then S(k) must be positive definite."""
    solver: str = "auto"
    """One of :data:`hamfast.analysis.solvers.SOLVERS`."""
    jobs: int | None = None
    """Processes that work on k-points, of LAPACK; None: this one. They import the main module, as
    those of :mod:`multiprocessing` do."""

    @property
    def size(self) -> int:
        """Rows of H(k), one per orbital, spin included."""
        return self.hamiltonian.size

    @property
    def degeneracy(self) -> int:
        """Electrons a band holds."""
        return 1 if self.spinful else 2

    def choice(self, num_bands: int | None = None) -> Choice:
        """The solver of all levels, or of some; see :func:`hamfast.analysis.solvers.choose`."""
        if num_bands is not None and num_bands >= self.size - 2:  # ARPACK finds no more
            return Choice("dense", f"{num_bands} of {self.size} levels were asked for")
        return choose(self.size, num_bands is not None, self.solver)

    @property
    def has_all_levels(self) -> bool:
        """Are all levels computed?"""
        return self.choice().name == "dense"

    def levels(
        self,
        kpoints,
        num_bands: int | None = None,
        around: float | None = None,
        report: Callable[[], None] | None = None,
    ) -> Levels:
        """The levels at some k-points.

        Args:
            kpoints: ``[kpoints, 3]``, in fractions of the reciprocal lattice vectors.
            num_bands: how many, half of them below and half above ``around``, by shift-invert. None
                finds all with LAPACK, and so does the solver ``dense``.
            around: eV.
            report: called after every k-point.

        Raises:
            HamfastError: S(k) is not positive definite, or the sparse solver does not converge.
        """
        choice = self.choice(num_bands)
        sparse = num_bands is not None and choice.name != "dense"
        if sparse and (around is None or not np.isfinite(around)):
            raise HamfastError(f"levels next to an energy: expected a number of eV, found {around}")
        kpoints = np.asarray(kpoints, dtype=np.float64).reshape(-1, 3)
        for k in kpoints:
            if not np.all(np.isfinite(k)):
                raise HamfastError(f"k-point: expected three numbers, found {tuple(map(float, k))}")
        found: list[NearLevels] = []
        smallest: list[float] = []
        if sparse:
            work = partial(self._near, choice, float(around or 0.0), int(num_bands or 0))
            pairs: Iterator[tuple[NearLevels, float | None]] = map(work, kpoints)
        else:
            pairs = at_each(self._all, kpoints, self.jobs or 1, 10.0 * len(kpoints) * self.size**3)
        for levels, lowest in pairs:
            found.append(levels)
            smallest += [] if lowest is None else [lowest]
            if report is not None:
                report()
        if self.projection is None and smallest and min(smallest) < SMALL_OVERLAP:
            lowest = min(smallest)
            warnings.warn(
                f"the smallest eigenvalue of the overlap matrix is {lowest:.2g}: an error of 1 meV in H can move a level by "
                f"{1e-3 / lowest:.2g} eV; --project-overlap {SMALL_OVERLAP:g} leaves such directions out",
                DataWarning,
                stacklevel=2,
            )
        return _aligned(found)

    def _all(self, k: np.ndarray) -> tuple[NearLevels, float | None]:
        h, s = self.hamiltonian.at(k).toarray(), self.overlap.at(k).toarray()
        energies, lowest = _dense(h, s, in_words(k), self.projection)
        return NearLevels(energies, 0), lowest

    def _near(self, choice: Choice, around: float, count: int, k: np.ndarray) -> tuple[NearLevels, float | None]:
        where, h, s = in_words(k), self.hamiltonian.at(k), self.overlap.at(k)
        if choice.name == "slepc":
            if self.projection is not None:
                raise HamfastError("--solver slepc: expected no --project-overlap; take arpack or pardiso with it")
            return slepc.levels_near(h, s, around, count, where), None
        with factorized_by(choice.direct):
            if self.projection is None:
                lowest = smallest_overlap(s, where)
                return levels_near(h, s, around, count, where), lowest
            null = near_null(s, self.projection)
            return levels_near(h, s, around, count, where, null if null.shape[1] else None), None

    def bands(self, kpoints, num_bands: int | None = None, around: float | None = None) -> np.ndarray:
        """The energies of :meth:`levels`."""
        return self.levels(kpoints, num_bands, around).energies

    def states(self, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All levels at one k-point: energies ``[bands]`` (eV), and coefficients ``[size, bands]``.

        Each column c has c^+ S c = 1. There are fewer where directions of S(k) are left out.

        Raises:
            HamfastError: S(k) is not positive definite, or nothing of it is left.
        """
        h, s = self.hamiltonian.at(k).toarray(), self.overlap.at(k).toarray()
        if self.projection is None:
            try:
                return scipy.linalg.eigh(h, s)
            except np.linalg.LinAlgError:
                raise not_positive(in_words(k), float(scipy.linalg.eigvalsh(s, subset_by_index=(0, 0))[0])) from None
        basis, _ = _kept_basis(s, self.projection, in_words(k))
        energies, states = scipy.linalg.eigh(basis.conj().T @ h @ basis)
        return energies, basis @ states

    def check_all_levels(self, what: str) -> None:
        """Raises HamfastError if not all levels are computed, which ``what`` needs."""
        if not self.has_all_levels:
            raise HamfastError(
                f"{what}: expected at most {solvers.DENSE_LIMIT} orbitals, as all levels are needed, found {self.size}; "
                "--solver dense computes them all the same"
            )

    def fermi_energy(self, mesh, temperature: float = 300.0) -> float:
        """The Fermi level, eV, from all bands on a k-mesh ``[kpoints, 3]``.

        Args and errors are those of :meth:`fermi_energy_of`.
        """
        self.electrons()
        return self.fermi_energy_of(self.bands(mesh), temperature)

    def fermi_energy_of(self, energies: np.ndarray, temperature: float = 300.0) -> float:
        """The Fermi level, eV.

        Args:
            energies: ``[kpoints, bands]`` eV, all bands on a mesh.
            temperature: kelvin, of the Fermi-Dirac function in a metal.

        Raises:
            HamfastError: the number of electrons is not known.
        """
        return fermi_level(energies, self.electrons(), self.degeneracy, temperature)

    def electrons(self) -> float:
        """Per cell.

        Raises:
            HamfastError: their number is not known.
        """
        if self.occupation is None:
            raise HamfastError(
                "the Fermi level needs the number of electrons per cell: add the key occupation to info.json, or give --fermi"
            )
        return self.occupation


def in_words(k: np.ndarray) -> str:
    """A k-point, for messages."""
    return f"k = ({', '.join(f'{x:.4g}' for x in k)})"


def _kept_basis(s: np.ndarray, projection: float, where: str) -> tuple[np.ndarray, float]:
    """``[size, kept]``: the directions of S that are not left out, orthonormal in S; and the
    smallest eigenvalue of S."""
    values, vectors = scipy.linalg.eigh(s)
    kept = values > projection
    if not kept.any():
        raise HamfastError(
            f"--project-overlap {projection:g} leaves nothing of the overlap at {where}; use a smaller number"
        )
    return vectors[:, kept] / np.sqrt(values[kept]), float(values[0])


def _dense(h, s, where, projection) -> tuple[np.ndarray, float]:
    """All levels (NaN for those projected out) and the smallest eigenvalue of S."""
    if projection is not None:
        basis, lowest = _kept_basis(s, projection, where)
        energies = np.full(len(s), np.nan)
        energies[: basis.shape[1]] = scipy.linalg.eigvalsh(basis.conj().T @ h @ basis)
        return energies, lowest
    lowest = float(scipy.linalg.eigvalsh(s, subset_by_index=(0, 0))[0])
    if lowest < SINGULAR:
        raise not_positive(where, lowest)
    try:
        return scipy.linalg.eigh(h, s, eigvals_only=True), lowest
    except np.linalg.LinAlgError:
        raise not_positive(where, lowest) from None


def _aligned(found: list[NearLevels]) -> Levels:
    """One column per band over all k-points, if all were counted."""
    if any(levels.first_band is None for levels in found):
        width = max(len(levels.energies) for levels in found)
        energies = np.full((len(found), width), np.nan)
        for row, levels in zip(energies, found, strict=True):
            row[: len(levels.energies)] = levels.energies
        return Levels(energies, None)
    starts = [levels.first_band or 0 for levels in found]
    first = min(starts, default=0)
    stop = max((n + len(levels.energies) for n, levels in zip(starts, found, strict=True)), default=0)
    energies = np.full((len(found), stop - first), np.nan)
    for row, n, levels in zip(energies, starts, found, strict=True):
        row[n - first : n - first + len(levels.energies)] = levels.energies
    return Levels(energies, first)


def eigen_problem(
    snapshot: Snapshot,
    hamiltonian: BlockMatrix | None = None,
    *,
    projection: float | None = None,
    solver: str = "auto",
    jobs: int | None = None,
) -> EigenProblem:
    """The eigenvalue problem of a structure.

    Args:
        snapshot: the structure, with its overlap.
        hamiltonian: another one of the same structure; None takes the structure's own.
        projection, solver, jobs: see :class:`EigenProblem`.

    Raises:
        HamfastError: the Hamiltonian or the overlap is missing, or the Hamiltonian is not one of
            this structure; the solver is unknown or not installed.
    """
    matrix = hamiltonian if hamiltonian is not None else snapshot.hamiltonian
    if matrix is None:
        raise HamfastError(f"{snapshot.label}: there is no Hamiltonian")
    if hamiltonian is not None and hamiltonian is not snapshot.hamiltonian:
        check_matrix(snapshot, "Hamiltonian", matrix, snapshot.label)
    if snapshot.overlap is None:
        raise HamfastError(f"{snapshot.label}: there is no overlap matrix; bands need H and S")
    if projection is not None and not (np.isfinite(projection) and projection > 0):
        raise HamfastError(f"--project-overlap: expected a positive number, found {projection}")
    if jobs is not None and jobs < 1:
        raise HamfastError(f"--jobs: expected 1 or more, found {jobs}")
    choose(1, False, solver)
    sizes = np.array([snapshot.num_orbitals(a) for a in range(snapshot.num_atoms)])
    spins = 2 if snapshot.spinful else 1
    return EigenProblem(
        BlochMatrix(matrix, sizes * spins),
        BlochMatrix(snapshot.overlap, sizes, spins),
        snapshot.spinful,
        snapshot.occupation,
        projection,
        solver,
        jobs,
    )
