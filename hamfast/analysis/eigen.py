"""H(k) c = E S(k) c from real-space blocks: bands, Fermi level, density of states.

H(k) = sum over R of exp(2 pi i k.R) H(R), k in fractions of the reciprocal lattice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from hamfast.data.blocks import BlockMatrix
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

KELVIN = 8.617333262e-5  # eV
DENSE_LIMIT = 2500
"""Orbitals up to which all bands are computed with LAPACK."""


class BlochMatrix:
    """M(k) of a block matrix, assembled without ever holding a dense M(R)."""

    def __init__(self, matrix: BlockMatrix, sizes: np.ndarray, spin_copies: int = 1):
        """``sizes``: orbitals of each atom in this matrix; ``spin_copies`` = 2 repeats the matrix for both spins."""
        starts = np.concatenate([[0], np.cumsum(sizes * spin_copies)])
        self.size = int(starts[-1])
        rows, columns, cells, values = [], [], [], []
        shifts, which_cell = np.unique(matrix.pairs[:, :3], axis=0, return_inverse=True)
        for shape in np.unique(matrix.shapes, axis=0):
            which = np.flatnonzero(np.all(matrix.shapes == shape, axis=1))
            blocks = matrix.group(which)
            i, j = matrix.pairs[which, 3], matrix.pairs[which, 4]
            for spin in range(spin_copies):
                r = (starts[i] + spin * shape[0])[:, None, None] + np.arange(shape[0])[None, :, None]
                c = (starts[j] + spin * shape[1])[:, None, None] + np.arange(shape[1])[None, None, :]
                r, c = np.broadcast_arrays(r, c)
                rows.append(r.ravel())
                columns.append(c.ravel())
                cells.append(np.repeat(which_cell[which], blocks[0].size))
                values.append(blocks.ravel())
        self.rows, self.columns = np.concatenate(rows), np.concatenate(columns)
        self.cells, self.values = (
            np.concatenate(cells),
            np.concatenate(values).astype(np.complex128 if np.iscomplexobj(matrix.entries) else np.float64),
        )
        self.shifts = shifts

    def at(self, k) -> scipy.sparse.csc_matrix:
        """M(k), Hermitian, complex."""
        phase = np.exp(2j * np.pi * (self.shifts @ np.asarray(k, dtype=np.float64)))
        entries = self.values * phase[self.cells]
        matrix = scipy.sparse.coo_matrix((entries, (self.rows, self.columns)), shape=(self.size, self.size)).tocsc()
        return (matrix + matrix.conj().T) / 2


@dataclass
class EigenProblem:
    """H(k) and S(k) of one structure."""

    hamiltonian: BlochMatrix
    overlap: BlochMatrix
    spinful: bool
    occupation: float | None

    @property
    def size(self) -> int:
        return self.hamiltonian.size

    def bands(self, kpoints, num_bands: int | None = None, around: float | None = None) -> np.ndarray:
        """``[kpoints, bands]`` eV, ascending.

        All bands with LAPACK; or the ``num_bands`` nearest to the energy ``around`` by sparse shift-invert, for large systems.

        Raises:
            HamfastError: S(k) is not positive definite, or the sparse solver does not converge.
        """
        return np.array([self._solve(k, num_bands, around) for k in kpoints])

    def _solve(self, k, num_bands, around):
        h, s = self.hamiltonian.at(k), self.overlap.at(k)
        if num_bands is None or num_bands >= self.size - 1:
            try:
                return scipy.linalg.eigh(h.toarray(), s.toarray(), eigvals_only=True)
            except np.linalg.LinAlgError as error:
                raise HamfastError(
                    f"the overlap matrix at k = {tuple(k)} is not positive definite ({error})"
                ) from error
        try:
            values = scipy.sparse.linalg.eigsh(h, k=num_bands, M=s, sigma=around, which="LM", return_eigenvectors=False)
        except (scipy.sparse.linalg.ArpackError, RuntimeError) as error:
            raise HamfastError(f"shift-invert at k = {tuple(k)} around {around} eV failed: {error}") from error
        return np.sort(values)

    def fermi_energy(self, mesh, temperature: float = 300.0) -> float:
        """Fermi level from the number of electrons, on a k-mesh (all bands, dense); raises as :meth:`fermi_energy_of`."""
        self._electrons()
        return self.fermi_energy_of(self.bands(mesh), temperature)

    def fermi_energy_of(self, energies: np.ndarray, temperature: float = 300.0) -> float:
        """The same from all bands on a mesh, ``[kpoints, bands]`` eV.

        Raises:
            HamfastError: the number of electrons is not known.
        """
        return fermi_level(energies, self._electrons(), self.degeneracy, temperature)

    @property
    def degeneracy(self) -> int:
        """Electrons a band holds."""
        return 1 if self.spinful else 2

    def _electrons(self) -> float:
        if self.occupation is None:
            raise HamfastError(
                "the Fermi level needs the number of electrons per cell: add the key occupation to info.json, or give --fermi"
            )
        return self.occupation


def eigen_problem(snapshot: Snapshot, hamiltonian: BlockMatrix | None = None) -> EigenProblem:
    """The eigenvalue problem of a structure, with its own Hamiltonian or another one of the same structure.

    Raises:
        HamfastError: the Hamiltonian or the overlap is missing.
    """
    matrix = hamiltonian if hamiltonian is not None else snapshot.hamiltonian
    if matrix is None:
        raise HamfastError(f"{snapshot.label}: there is no Hamiltonian")
    if snapshot.overlap is None:
        raise HamfastError(f"{snapshot.label}: there is no overlap matrix; bands need H and S")
    sizes = np.array([snapshot.num_orbitals(a) for a in range(snapshot.num_atoms)])
    spins = 2 if snapshot.spinful else 1
    return EigenProblem(
        BlochMatrix(matrix, sizes * spins),
        BlochMatrix(snapshot.overlap, sizes, spins),
        snapshot.spinful,
        snapshot.occupation,
    )


def fermi_level(energies: np.ndarray, electrons: float, degeneracy: int, temperature: float = 300.0) -> float:
    """Energy at which ``energies`` ``[kpoints, bands]`` hold so many electrons per cell (Fermi-Dirac, bisection)."""
    width = max(KELVIN * temperature, 1e-6)
    low, high = energies.min() - 10, energies.max() + 10
    if electrons > degeneracy * energies.shape[1]:
        raise HamfastError(f"{electrons} electrons do not fit into {energies.shape[1]} bands of {degeneracy}")
    for _ in range(200):
        middle = (low + high) / 2
        filled = degeneracy * np.mean(np.sum(1 / (1 + np.exp(np.clip((energies - middle) / width, -60, 60))), axis=1))
        low, high = (middle, high) if filled < electrons else (low, middle)
    return (low + high) / 2


def monkhorst_pack(mesh) -> np.ndarray:
    """``[points, 3]``: Gamma-centred mesh in fractional coordinates."""
    axes = [np.arange(n) / n for n in mesh]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def default_mesh(cell: np.ndarray, spacing: float = 0.35) -> tuple[int, int, int]:
    """A mesh with about ``spacing`` 1/angstrom between points; 1 along vacuum-sized axes."""
    a, b, c = np.linalg.norm(2 * np.pi * np.linalg.inv(cell).T, axis=1)

    def points(length: float) -> int:
        return 1 if 2 * np.pi / length > 11 else max(1, int(np.ceil(length / spacing)))

    return points(a), points(b), points(c)


def density_of_states(energies: np.ndarray, grid: np.ndarray, width: float, degeneracy: int) -> np.ndarray:
    """``[grid]`` states / eV / cell: Gaussians of the given standard deviation (eV) on each level."""
    x = (grid[:, None] - energies.ravel()[None, :]) / width
    return degeneracy * np.exp(-0.5 * x**2).sum(axis=1) / (width * np.sqrt(2 * np.pi) * energies.shape[0])
