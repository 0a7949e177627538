"""Ghosts: states that a small error of H makes of nearly dependent orbitals.

In a good basis set some combinations c of atomic orbitals have a norm c^+ S c of 1e-3 or less.
Their energies are c^+ H c / c^+ S c, mostly far above the Fermi level. An error of H of a few meV
is divided by the same small number there, and may bring such a state down among the bands.

A ghost is known by its coefficients. Normalised to c^+ S c = 1, a state of a crystal has a sum of
|c|^2 near 1, a ghost one near 1 over an eigenvalue of S. In h-BN (13 orbitals per atom) the first
is 2.1 at most up to 5 eV above the Fermi level, the second 40 to 180.
"""

from __future__ import annotations

import warnings

import numpy as np
import scipy.linalg

from hamfast.analysis.eigen import EigenProblem
from hamfast.analysis.fermi import occupied_bands, whole_electrons
from hamfast.analysis.solvers import DENSE_LIMIT
from hamfast.errors import DataWarning

WEIGHT = 10.0
"""A state with a larger sum of |c|^2 is a ghost."""
ABOVE = 5.0
"""eV above the highest occupied level up to which states are looked at."""
SAMPLE = 5
"""k-points that are looked at."""
STEP = 1.3
"""Factor between the thresholds that are tried."""
LARGEST = 0.05
"""Directions in which S(k) is larger belong to bands."""


def leave_out_ghosts(problem: EigenProblem, kpoints: np.ndarray, name: str) -> None:
    """Sets the problem's ``projection`` to the smallest threshold that leaves no ghosts, and warns.

    Nothing happens without ghosts, where ``projection`` is set already, where the number of
    electrons is not known, or with more than ``DENSE_LIMIT`` orbitals.

    Args:
        problem: changed in place.
        kpoints: ``[kpoints, 3]``, from which a few are looked at.
        name: of the Hamiltonian, for the warning.
    """
    if problem.projection is not None or problem.occupation is None or problem.size > DENSE_LIMIT:
        return
    chosen = np.unique(np.linspace(0, len(kpoints) - 1, min(SAMPLE, len(kpoints))).round().astype(int))
    found = [ghosts_at(problem, k) for k in np.asarray(kpoints)[chosen]]
    most = max((count for count, _ in found), default=0)
    if not most:
        return
    thresholds = [threshold for _, threshold in found if threshold is not None]
    what = f"{name}: {most} of its levels up to {ABOVE:g} eV above the Fermi level are ghosts"
    if len(thresholds) < len(found):
        warnings.warn(
            f"{what} that are not of nearly dependent orbitals alone: this Hamiltonian is too far from the true one",
            DataWarning,
            stacklevel=2,
        )
        return
    problem.projection = max(thresholds)
    warnings.warn(
        f"{what}, states that errors of H make of nearly dependent orbitals; directions in which S(k) is below "
        f"{problem.projection:.2g} were left out, which removes them and moves other levels by some meV (--keep-ghosts "
        "keeps them)",
        DataWarning,
        stacklevel=2,
    )


def ghosts_at(problem: EigenProblem, k: np.ndarray) -> tuple[int, float | None]:
    """How many ghosts there are at a k-point, and the smallest threshold for eigenvalues of S(k)
    without any.

    0 and 0.0 if there are none, or S(k) is not positive definite; None for the threshold if it were
    above ``LARGEST``.
    """
    overlap = problem.overlap.at(k).toarray()
    values, vectors = scipy.linalg.eigh(overlap)
    if values[0] <= 0 or values[0] > 1 / WEIGHT:  # the sum of |c|^2 is at most 1 over the smallest
        return 0, 0.0
    basis = vectors / np.sqrt(values)
    matrix = basis.conj().T @ problem.hamiltonian.at(k).toarray() @ basis
    count = first = _ghosts(problem, matrix, basis)
    threshold = 0.0
    while count:
        threshold = STEP * max(threshold, float(values[0]))
        if threshold > LARGEST:
            return first, None
        left = int(np.searchsorted(values, threshold))
        count = _ghosts(problem, matrix[left:, left:], basis[:, left:])
    return first, threshold


def _ghosts(problem: EigenProblem, matrix: np.ndarray, basis: np.ndarray) -> int:
    energies, states = scipy.linalg.eigh(matrix)
    occupied = occupied_bands(whole_electrons(problem.electrons()), problem.degeneracy)
    if occupied is None:  # half of a band is occupied
        occupied = int(np.ceil(problem.electrons() / problem.degeneracy))
    limit = energies[min(max(occupied, 1), len(energies)) - 1] + ABOVE
    low = states[:, energies < limit]
    return int(np.sum(np.sum(np.abs(basis @ low) ** 2, axis=0) > WEIGHT))
