"""One structure with its matrices, as read from any format, and the checks that it passes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from hamfast.data.blocks import BlockMatrix, find_pairs, onsite_pairs, pair_name
from hamfast.data.cell_size import half_cell
from hamfast.errors import HamfastError

if TYPE_CHECKING:
    from ase import Atoms


@dataclass
class Snapshot:
    """A crystal, its orbitals, and its matrices where there are any.

    Lengths are in angstrom, energies in eV. Orbitals of a shell are in the order m = -l ... l, and
    with spin all orbitals with spin up come before those with spin down.
    """

    label: str
    """The name of its folder."""
    cell: np.ndarray
    """``[3, 3]``, rows are lattice vectors."""
    positions: np.ndarray
    """``[atoms, 3]`` Cartesian."""
    numbers: np.ndarray
    """``[atoms]`` atomic numbers."""
    shells: dict[int, tuple[int, ...]]
    """Atomic number -> l of the shells, in orbital order."""
    spinful: bool = False
    """Does the Hamiltonian carry spin (spin-orbit coupling)? The overlap never does."""
    hamiltonian: BlockMatrix | None = None
    overlap: BlockMatrix | None = None
    fermi_energy: float | None = None
    """eV, as the DFT code gives it."""
    occupation: float | None = None
    """Electrons per cell."""
    info: dict = field(default_factory=dict)
    """Whatever else the format's info file holds; written back as it was read."""

    @property
    def num_atoms(self) -> int:
        """Atoms of the cell."""
        return len(self.numbers)

    def num_orbitals(self, atom: int) -> int:
        """Orbitals of an atom, without spin."""
        return sum(2 * l + 1 for l in self.shells[int(self.numbers[atom])])

    @property
    def matrix_size(self) -> int:
        """Rows of H(k), spin included."""
        return (2 if self.spinful else 1) * sum(self.num_orbitals(atom) for atom in range(self.num_atoms))

    @property
    def first_matrix(self) -> BlockMatrix | None:
        """The Hamiltonian, or the overlap if there is none: its pairs are the structure's."""
        return self.hamiltonian if self.hamiltonian is not None else self.overlap

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers in order of first appearance."""
        return tuple(dict.fromkeys(int(z) for z in self.numbers))

    @property
    def atoms(self) -> Atoms:
        """For ASE, periodic in all directions."""
        from ase import Atoms

        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=True)

    def neighbors(self, quantities: str, cutoff: float | np.ndarray) -> tuple[np.ndarray, ...]:
        """``ase.neighborlist.neighbor_list`` of the crystal.

        Args:
            quantities: as ``ijdS``, in ASE's letters.
            cutoff: angstrom.
        """
        from ase.neighborlist import neighbor_list  # takes half a second to load

        return neighbor_list(quantities, self.atoms, cutoff)

    @property
    def half_cell(self) -> float:
        """Angstrom: half the distance between an atom and its nearest periodic image."""
        return half_cell(self.cell)

    def pair_vectors(self, pairs: np.ndarray) -> np.ndarray:
        """``[pairs, 3]`` angstrom: from atom i in the home cell to atom j in the cell at R.

        Args:
            pairs: ``[pairs, 5]``: R1, R2, R3, i, j.
        """
        return self.positions[pairs[:, 4]] + pairs[:, :3] @ self.cell - self.positions[pairs[:, 3]]


HERMITICITY_TOLERANCE = 1e-3
"""eV, and without a unit for overlaps: a larger difference between the blocks (R, i, j) and
(-R, j, i)^dagger is an error."""
SAME = 1e-3
"""Angstrom: structures whose pair vectors differ by less are the same."""


NEAREST = 0.3
"""Angstrom: atoms nearer than this are a mistake."""


def check_snapshot(snapshot: Snapshot, where: str) -> Snapshot:
    """Checks the structure and both matrices; returns the snapshot.

    Matrices must be finite and Hermitian, and their shapes must be those of the orbital lists. All
    pairs of the overlap must be pairs of the Hamiltonian. A complex matrix that has to be real
    becomes real.

    Raises:
        HamfastError: with ``where``, what was expected and what was found.
    """
    check_structure(snapshot, where)
    for name, matrix in (("Hamiltonian", snapshot.hamiltonian), ("overlap", snapshot.overlap)):
        if matrix is not None:
            check_matrix(snapshot, name, matrix, where)
            if np.iscomplexobj(matrix.entries) and (name == "overlap" or not snapshot.spinful):
                setattr(snapshot, name.lower(), replace(matrix, entries=matrix.entries.real.copy()))
    if snapshot.hamiltonian is not None and snapshot.overlap is not None:
        check_pairs(snapshot.hamiltonian, snapshot.overlap, where)
    return snapshot


def check_atoms(snapshot: Snapshot, name: str, pairs: np.ndarray, where: str) -> None:
    """Raises HamfastError if the pairs ``[pairs, 5]`` of a matrix name atoms that are not there."""
    atoms = pairs[:, 3:]
    if len(atoms) and not (atoms.min() >= 0 and atoms.max() < snapshot.num_atoms):
        raise HamfastError(
            f"{where}: the {name} names atoms {atoms.min()} to {atoms.max()}, but the structure has "
            f"{snapshot.num_atoms} atoms"
        )


def check_pairs(hamiltonian: BlockMatrix, overlap: BlockMatrix, where: str) -> None:
    """Raises HamfastError if the overlap has pairs that the Hamiltonian lacks."""
    extra = overlap.pairs[find_pairs(hamiltonian.pairs, overlap.pairs) < 0]
    if len(extra):
        raise HamfastError(
            f"{where}: the overlap has {len(extra)} atom pairs that the Hamiltonian lacks, the first is "
            f"{pair_name(extra[0])}; expected every overlap pair in the Hamiltonian ({len(hamiltonian)} pairs, overlap "
            f"{len(overlap)})"
        )


def check_structure(snapshot: Snapshot, where: str) -> Snapshot:
    """Checks cell, positions, elements, orbital lists and electrons.

    Raises:
        HamfastError: as :func:`check_snapshot`.
    """
    if snapshot.num_atoms == 0:
        raise HamfastError(f"{where}: expected atoms, found none")
    if snapshot.cell.shape != (3, 3) or snapshot.positions.shape != (snapshot.num_atoms, 3):
        raise HamfastError(
            f"{where}: expected a cell [3, 3] and positions [{snapshot.num_atoms}, 3], found {snapshot.cell.shape} and "
            f"{snapshot.positions.shape}"
        )
    for name, values in (("cell", snapshot.cell), ("positions", snapshot.positions)):
        if not np.all(np.isfinite(values)):
            raise HamfastError(f"{where}: {name}: expected finite numbers, found {values[~np.isfinite(values)][0]}")
    lengths = np.linalg.norm(snapshot.cell, axis=1)
    volume = abs(float(np.linalg.det(snapshot.cell)))
    if lengths.min() < NEAREST or volume < 1e-3 * np.prod(lengths):
        raise HamfastError(
            f"{where}: cell: expected three independent lattice vectors, found lengths "
            f"{', '.join(f'{x:.4g}' for x in lengths)} angstrom and a volume of {volume:.3g} cubic angstrom"
        )
    for z in snapshot.elements:
        if z not in snapshot.shells:
            raise HamfastError(f"{where}: no orbital list for element {chemical_symbols[z]}")
    _check_distances(snapshot, where)
    if snapshot.fermi_energy is not None and not np.isfinite(snapshot.fermi_energy):
        raise HamfastError(f"{where}: Fermi energy: expected a number of eV, found {snapshot.fermi_energy}")
    if snapshot.occupation is not None:
        most = 2 * sum(snapshot.num_orbitals(a) for a in range(snapshot.num_atoms))
        if not 0 < snapshot.occupation <= most:
            raise HamfastError(
                f"{where}: occupation: expected electrons per cell, more than 0 and at most the {most} that the orbitals "
                f"hold, found {snapshot.occupation:g}"
            )
    return snapshot


def _check_distances(snapshot, where):
    i, j, d = snapshot.neighbors("ijd", NEAREST)
    if len(i):
        n = int(np.argmin(d))
        raise HamfastError(
            f"{where}: atoms {i[n]} and {j[n]} are {d[n]:.3f} angstrom apart; expected at least {NEAREST} (atoms count from 0)"
        )


def check_matrix(snapshot: Snapshot, name: str, matrix: BlockMatrix, where: str) -> None:
    """Checks one matrix of a structure; ``name`` is ``Hamiltonian`` or ``overlap``.

    Raises:
        HamfastError: as :func:`check_snapshot`.
    """
    if len(matrix) == 0:
        raise HamfastError(f"{where}: the {name} has no blocks")
    if not np.all(np.isfinite(matrix.entries)):
        bad = int(np.sum(~np.isfinite(matrix.entries)))
        n = int(np.searchsorted(matrix.boundaries, np.flatnonzero(~np.isfinite(matrix.entries))[0], side="right")) - 1
        raise HamfastError(
            f"{where}: {bad} entries of the {name} are NaN or infinite, the first at {pair_name(matrix.pairs[n])}"
        )
    spin = 2 if snapshot.spinful and name == "Hamiltonian" else 1
    if spin == 1 and np.iscomplexobj(matrix.entries) and np.abs(matrix.entries.imag).max() > HERMITICITY_TOLERANCE:
        raise HamfastError(
            f"{where}: the {name} is complex, its imaginary part reaches {np.abs(matrix.entries.imag).max():.3g}; expected "
            f"real numbers{' without spin-orbit coupling' if name == 'Hamiltonian' else ''}"
        )
    check_atoms(snapshot, name, matrix.pairs, where)
    atoms = matrix.pairs[:, 3:]
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
            f"{where}: block {pair_name(matrix.pairs[n])} of the {name} has shape {tuple(matrix.shapes[n].tolist())}, "
            f"expected {tuple(expected[n].tolist())} from the orbital lists {lists}{' with spin' if spin == 2 else ''}"
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
    missing = np.flatnonzero(find_pairs(matrix.pairs, onsite_pairs(snapshot.num_atoms)) < 0)
    if len(missing):
        raise HamfastError(f"{where}: the {name} has no on-site block for atom {missing[0]}")


def difference(one: Snapshot, other: Snapshot, pairs: np.ndarray) -> str | None:
    """What tells two structures apart, in words; None if a matrix of one is a matrix of the other.

    An atom that one of them has in another cell is a difference, as R means another pair there.

    Args:
        one, other: the structures.
        pairs: ``[pairs, 5]``, of the matrix that is to serve for both. If there are none, positions
            are compared.
    """
    if one.num_atoms != other.num_atoms:
        return f"{one.num_atoms} atoms and {other.num_atoms}"
    if not np.array_equal(one.numbers, other.numbers):
        n = int(np.flatnonzero(one.numbers != other.numbers)[0])
        return f"atom {n} is {chemical_symbols[one.numbers[n]]} and {chemical_symbols[other.numbers[n]]}"
    if one.spinful != other.spinful:
        return f"spin-orbit coupling is {one.spinful} and {other.spinful}"
    for z in one.elements:
        if one.shells[z] != other.shells[z]:
            return f"{chemical_symbols[z]} has shells {list(one.shells[z])} and {list(other.shells[z])}"
    if np.abs(one.cell - other.cell).max() > SAME:
        return f"lattice vectors differ by {np.abs(one.cell - other.cell).max():.3g} angstrom"
    if len(pairs) == 0:
        moved = np.abs(one.positions - other.positions).max(axis=1)
        if moved.max() > SAME:
            return f"atom {int(np.argmax(moved))} has moved by {moved.max():.3g} angstrom"
    vectors = np.abs(one.pair_vectors(pairs) - other.pair_vectors(pairs)).max(axis=1)
    if vectors.max(initial=0.0) > SAME:
        return f"the vectors of pair {pair_name(pairs[np.argmax(vectors)])} differ by {vectors.max():.3g} angstrom"
    return None
