"""What expected errors of H do to band energies, to first order.

For a level c with c^+ S c = 1, H c = E S c, and an error dH of H alone,

    dE = c^+ dH c + O(dH^2)

(the Hellmann-Feynman theorem; an error of S would add - E c^+ dS c). Degenerate levels have no c of
their own; there it is the change of one of their combinations.

Errors that blocks share are matrices, and each gives its dE. Errors of a block's own are
independent: real normal numbers with mean square v for every element, Hermitian together. With
p_i = sum |c_m|^2 and s_i = sum c_m^2 over the orbitals m of atom i, the variance of dE is exactly

    sum over R, i, j of  v_Rij ( p_i p_j + Re( exp(4 pi i k.R) conj(s_i) s_j ) )

which for complex elements, with spin, is the sum of v p_i p_j alone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from hamfast.analysis.bands import BandStructure
from hamfast.analysis.bloch import BlochMatrix
from hamfast.analysis.eigen import EigenProblem, eigen_problem
from hamfast.analysis.solvers import DENSE_LIMIT
from hamfast.analysis.uncertainty import FILE, MEV, Uncertainty
from hamfast.data.blocks import BlockMatrix, pair_name
from hamfast.data.snapshot import Snapshot
from hamfast.errors import DataWarning, HamfastError

WINDOW = 3.0
"""eV around the Fermi level, of the levels that count beside the occupied ones, as in
``hamfast evaluate``."""


@dataclass(frozen=True)
class LevelErrors:
    """Expected errors of the levels at some k-points."""

    energies: np.ndarray
    """``[kpoints, bands]`` eV; NaN where directions of S(k) were left out."""
    independent: np.ndarray
    """``[kpoints, bands]`` eV^2: the variance that errors of single blocks make."""
    shared: np.ndarray
    """``[errors, kpoints, bands]`` eV: what each shared error of the blocks does."""

    def spread(self, counts: np.ndarray) -> np.ndarray:
        """``[kpoints, bands]`` eV: the expected error of each level.

        An error that moves all levels alike is none, as the zero of energy is a choice.

        Args:
            counts: ``[kpoints, bands]`` bool, the levels whose median shift is removed.
        """
        square = self.independent.copy()
        for shared in self.shared:
            shift = np.median(shared[counts]) if counts.any() else 0.0
            square += (shared - shift) ** 2 / len(self.shared)
        return np.sqrt(square)


def level_errors(snapshot: Snapshot, problem: EigenProblem, uncertainty: Uncertainty, kpoints) -> LevelErrors:
    """Expected errors of all levels at some k-points.

    Args:
        snapshot: the structure.
        problem: of the predicted Hamiltonian.
        uncertainty: of it.
        kpoints: ``[kpoints, 3]``, in fractions of the reciprocal lattice vectors.

    Raises:
        HamfastError: there are too many orbitals for all levels; S(k) is not positive definite.
    """
    problem.check_all_levels("uncertainties of bands")
    kpoints = np.asarray(kpoints, dtype=np.float64).reshape(-1, 3)
    sizes = np.array([snapshot.num_orbitals(a) for a in range(snapshot.num_atoms)]) * (2 if snapshot.spinful else 1)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    stack = _Stack(uncertainty.shared, sizes)
    shape = len(kpoints), problem.size
    energies, independent = np.full(shape, np.nan), np.zeros(shape)
    shared = np.zeros((len(uncertainty.shared), *shape))
    own = _between_atoms(uncertainty, len(sizes))
    for n, k in enumerate(kpoints):
        found, states = problem.states(k)
        width = len(found)
        energies[n, :width] = found
        weight = np.add.reduceat(np.abs(states) ** 2, starts, axis=0)
        variance = np.sum(weight * (own @ weight), axis=0)
        if not snapshot.spinful:
            square = np.add.reduceat(states**2, starts, axis=0)
            turned = _between_atoms(uncertainty, len(sizes), np.exp(4j * np.pi * (uncertainty.pairs[:, :3] @ k)))
            variance = variance + np.sum(square.conj() * (turned @ square), axis=0).real
        independent[n, :width] = np.maximum(variance, 0.0)
        shared[:, n, :width] = stack.first_order(k, states)
    return LevelErrors(energies, independent, shared)


def band_half_width(
    snapshot: Snapshot, matrix: BlockMatrix, uncertainty: Uncertainty, bands: BandStructure
) -> np.ndarray | None:
    """``[kpoints, columns]`` eV: the half-width of each level of predicted bands.

    The level that is stated is that of held-out levels which are occupied, or within ``WINDOW`` of
    the Fermi level, relative to their median shift.

    Args:
        snapshot: the structure.
        matrix: its predicted Hamiltonian.
        uncertainty: of it.
        bands: of ``matrix``.

    Returns:
        None, and a warning, where there are no half-widths: band energies were not calibrated,
        there are too many orbitals, or not all levels were computed.

    Raises:
        HamfastError: the uncertainty is of another Hamiltonian.
    """
    unknown = [pair for pair in map(tuple, uncertainty.pairs.tolist()) if pair not in matrix.index]
    if unknown:
        raise HamfastError(
            f"{snapshot.label}: {FILE} has {len(unknown)} blocks that the predicted Hamiltonian lacks, the first is "
            f"{pair_name(unknown[0])}; make both with `hamfast predict --uncertainty`"
        )
    why = None
    if uncertainty.band_factor is None:
        why = "no held-out structure had an overlap and electrons"
    elif snapshot.matrix_size > DENSE_LIMIT:
        why = f"there are more than {DENSE_LIMIT} orbitals"
    elif bands.first_band != 0 or bands.energies.shape[1] < snapshot.matrix_size:
        why = "only some of the levels were computed"
    if why is not None:
        warnings.warn(f"{snapshot.label}: no uncertainty of the bands: {why}", DataWarning, stacklevel=2)
        return None
    problem = eigen_problem(snapshot, matrix, projection=bands.projection)
    levels = level_errors(snapshot, problem, uncertainty, bands.path.kpoints)
    with np.errstate(invalid="ignore"):
        counts = np.abs(levels.energies - bands.fermi_energy) < WINDOW
        counts |= levels.energies <= bands.fermi_energy
    return uncertainty.band_factor * levels.spread(counts)


def band_lines(bands: BandStructure, half_width: np.ndarray, level: float, window: tuple[float, float]) -> list[str]:
    """What there is to say of the half-widths ``[kpoints, columns]`` (eV) of predicted bands.

    It is of the levels within a window (eV) around the Fermi level.
    """
    with np.errstate(invalid="ignore"):
        energies = bands.energies - bands.fermi_energy
        own = MEV * half_width[(energies > window[0]) & (energies < window[1])]
    if not len(own):
        return []
    return [
        f"{level:.0%} of levels within {own.mean():.2f} meV of DFT, apart from a common shift, on average in the window; at "
        f"most {own.max():.2f}"
    ]


def _between_atoms(uncertainty: Uncertainty, atoms: int, phase: np.ndarray | None = None):
    """``[atoms, atoms]`` sparse: the mean squares of all cells, times a phase."""
    values = uncertainty.independent**2 if phase is None else phase * uncertainty.independent**2
    i, j = uncertainty.pairs[:, 3], uncertainty.pairs[:, 4]
    return scipy.sparse.csr_matrix((values, (i, j)), shape=(atoms, atoms))


class _Stack:
    """c^+ M(k) c of several matrices."""

    def __init__(self, matrices: tuple[BlockMatrix, ...], sizes: np.ndarray):
        self.matrices = [BlochMatrix(matrix, sizes) for matrix in matrices]

    def first_order(self, k: np.ndarray, states: np.ndarray) -> np.ndarray:
        """``[matrices, bands]``: c^+ M(k) c of each column c of ``states``."""
        found = np.zeros((len(self.matrices), states.shape[1]))
        for row, matrix in zip(found, self.matrices, strict=True):
            row[:] = np.sum(states.conj() * (matrix.at(k).toarray() @ states), axis=0).real
        return found
