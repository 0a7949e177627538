"""One structure with its matrices, as read from any format, and the checks that every one passes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols

from hamfast.data.blocks import BlockMatrix, pair_name
from hamfast.errors import HamfastError


@dataclass
class Snapshot:
    """A crystal, its orbitals, and its matrices where there are any. Angstrom, eV, orbital order m = -l ... l."""

    label: str
    cell: np.ndarray
    """``[3, 3]``, rows are lattice vectors."""
    positions: np.ndarray
    """``[atoms, 3]`` Cartesian."""
    numbers: np.ndarray
    """``[atoms]`` atomic numbers."""
    shells: dict[int, tuple[int, ...]]
    """Atomic number -> l of the shells, in orbital order."""
    spinful: bool = False
    hamiltonian: BlockMatrix | None = None
    overlap: BlockMatrix | None = None
    fermi_energy: float | None = None
    occupation: float | None = None
    """Electrons per cell."""
    info: dict = field(default_factory=dict)
    """Whatever else the format's info file holds; written back as it was read."""

    @property
    def num_atoms(self) -> int:
        return len(self.numbers)

    def num_orbitals(self, atom: int) -> int:
        """Spatial orbitals."""
        return sum(2 * l + 1 for l in self.shells[int(self.numbers[atom])])

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers in order of first appearance."""
        return tuple(dict.fromkeys(int(z) for z in self.numbers))

    def pair_vectors(self, pairs: np.ndarray) -> np.ndarray:
        """``[pairs, 3]``: from atom i in the home cell to atom j in cell R."""
        return self.positions[pairs[:, 4]] + pairs[:, :3] @ self.cell - self.positions[pairs[:, 3]]


HERMITICITY_TOLERANCE = 1e-3
"""eV (and plain numbers for overlaps): larger differences between (R, i, j) and (-R, j, i) are an error."""


def check_snapshot(snapshot: Snapshot, where: str) -> Snapshot:
    """Checks both matrices: finite, shapes from the orbital lists, Hermitian, S within the pairs of H.

    Raises:
        HamfastError: with ``where``, what was expected and what was found.
    """
    for z in snapshot.elements:
        if z not in snapshot.shells:
            raise HamfastError(f"{where}: no orbital list for element {chemical_symbols[z]}")
    for name, matrix in (("Hamiltonian", snapshot.hamiltonian), ("overlap", snapshot.overlap)):
        if matrix is not None:
            _check_matrix(snapshot, name, matrix, where)
    h, s = snapshot.hamiltonian, snapshot.overlap
    if h is not None and s is not None:
        extra = [pair for pair in s.index if pair not in h.index]
        if extra:
            raise HamfastError(
                f"{where}: the overlap has {len(extra)} atom pairs that the Hamiltonian lacks, the first is "
                f"{pair_name(extra[0])}; expected every overlap pair in the Hamiltonian ({len(h)} pairs, overlap {len(s)})"
            )
    return snapshot


def _check_matrix(snapshot, name, matrix, where):
    if not np.all(np.isfinite(matrix.entries)):
        bad = int(np.sum(~np.isfinite(matrix.entries)))
        n = int(np.searchsorted(matrix.boundaries, np.flatnonzero(~np.isfinite(matrix.entries))[0], side="right")) - 1
        raise HamfastError(
            f"{where}: {bad} entries of the {name} are NaN or infinite, the first at {pair_name(matrix.pairs[n])}"
        )
    atoms = matrix.pairs[:, 3:]
    if len(matrix) and not (atoms.min() >= 0 and atoms.max() < snapshot.num_atoms):
        raise HamfastError(
            f"{where}: the {name} names atoms {atoms.min()} to {atoms.max()}, but the structure has {snapshot.num_atoms} atoms"
        )
    spin = 2 if snapshot.spinful and name == "Hamiltonian" else 1
    orbitals = np.array([snapshot.num_orbitals(a) for a in range(snapshot.num_atoms)])
    expected = orbitals[atoms] * spin
    wrong = np.flatnonzero(np.any(matrix.shapes != expected, axis=1))
    if len(wrong):
        n = int(wrong[0])
        i, j = (int(a) for a in atoms[n])
        lists = ", ".join(
            f"{chemical_symbols[z]} {list(snapshot.shells[z])}"
            for z in dict.fromkeys(map(int, snapshot.numbers[[i, j]]))
        )
        raise HamfastError(
            f"{where}: block {pair_name(matrix.pairs[n])} of the {name} has shape {tuple(matrix.shapes[n])}, expected "
            f"{tuple(expected[n])} from the orbital lists {lists}{' with spin' if spin == 2 else ''}"
        )
    try:
        error, n = matrix.hermiticity_error()
    except HamfastError as problem:
        raise HamfastError(f"{where}: {name}: {problem}") from problem
    if error > HERMITICITY_TOLERANCE:
        raise HamfastError(
            f"{where}: the {name} is not Hermitian: block {pair_name(matrix.pairs[n])} differs from the conjugate "
            f"transpose of its reverse by {error:.3g}, expected at most {HERMITICITY_TOLERANCE:g}"
        )
    if name == "Hamiltonian":
        missing = [a for a in range(snapshot.num_atoms) if (0, 0, 0, a, a) not in matrix.index]
        if missing:
            raise HamfastError(f"{where}: the Hamiltonian has no on-site block for atom {missing[0]}")
