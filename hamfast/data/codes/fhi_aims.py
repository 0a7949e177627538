"""FHI-aims: ``rs_indices.out``, ``rs_hamiltonian.out`` and ``rs_overlap.out``.

``output_rs_matrices plain`` in ``control.in`` writes them; with ``hdf5`` the two matrices are
``rs_hamiltonian.h5`` and ``rs_overlap.h5``. Only half of the elements is stored: those of a row and
a column of which the row is not the later one. The structure is in ``geometry.in``, the shells in
``basis-indices.out``, the Fermi level in the output. H is in hartree.

A row belongs to the atom in the cell of ``cell_index``, a column to the one in the home cell.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np

from hamfast.data.blocks import BlockMatrix
from hamfast.data.codes.native import Orbitals, block_matrix, on_pairs_of, shells_of_elements, two_channels
from hamfast.data.h5 import open_h5, read_array, read_text
from hamfast.data.orbitals import AIMS_ORDER
from hamfast.data.snapshot import Snapshot
from hamfast.errors import DataWarning, HamfastError

NAME, FILE = "fhi-aims", "rs_indices.out"
HARTREE = 27.2113845
"""eV, as FHI-aims has it."""
STRUCTURE, BASIS = "geometry.in", "basis-indices.out"
NO_CELL = 999999999
"""In ``cell_index``: the last row, which stands for none."""


def main_file(folder: Path) -> Path | None:
    """``rs_indices.out``."""
    path = folder / FILE
    return path if path.is_file() else None


def read(path: Path, matrices: bool) -> Snapshot:
    """Reads a calculation; see :class:`hamfast.data.codes.native.Code`."""
    folder = path.parent
    atoms = _atoms(folder / STRUCTURE)
    orbitals = _basis(folder / BASIS, len(atoms))
    text = _output(folder)
    spins = [_values_file(folder, name) for name in ("rs_hamiltonian_up", "rs_hamiltonian_dn", "rs_hamiltonian_down")]
    up, down = spins[0], spins[1] or spins[2]
    if (up or down) and _values_file(folder, "rs_hamiltonian"):
        raise HamfastError(
            f"{folder}: expected one Hamiltonian, found rs_hamiltonian and one with spin: of two calculations?"
        )
    if down and not up:
        raise HamfastError(f"{folder}: expected rs_hamiltonian_up beside {down.name}, found none")
    if text is not None and "Have a nice day" not in text:
        raise HamfastError(f"{folder}: its output does not end with `Have a nice day.`: the calculation did not end")
    if text is not None and "Self-consistency cycle converged" not in text:
        raise HamfastError(f"{folder}: the SCF did not converge; its matrices are not those of DFT")
    fermi = re.findall(r"Chemical potential \(Fermi level\) in eV\s*:\s*(\S+)", text or "")
    electrons = re.findall(r"number of electrons.*?:\s*([\d.]+)", text or "", re.IGNORECASE)
    symbols = list(atoms.get_chemical_symbols())
    snapshot = Snapshot(
        label=folder.name,
        cell=np.asarray(atoms.cell.array),
        positions=np.asarray(atoms.positions),
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        shells=shells_of_elements(symbols, orbitals.shells, folder / BASIS),
        spinful=up is not None,
        fermi_energy=float(fermi[-1]) if fermi else None,
        occupation=float(electrons[-1]) if electrons else None,
        info={"code": "FHI-aims"} | ({"collinear": True} if up is not None else {}),
    )
    if not matrices:
        return snapshot
    indices = _indices(path, len(orbitals.atoms))
    overlap_file = _values_file(folder, "rs_overlap")
    if overlap_file is None:
        raise HamfastError(f"{folder}: expected rs_overlap.out or rs_overlap.h5, found none")
    overlap = _matrix(overlap_file, indices, orbitals, 1.0)
    if up is not None:
        if down is None:
            raise HamfastError(f"{folder}: expected rs_hamiltonian_dn.out beside {up.name}, found none")
        hamiltonian = two_channels(*(_matrix(p, indices, orbitals, HARTREE) for p in (up, down)))
    else:
        file = _values_file(folder, "rs_hamiltonian")
        if file is None:
            raise HamfastError(f"{folder}: expected rs_hamiltonian.out or rs_hamiltonian.h5, found none")
        hamiltonian = _matrix(file, indices, orbitals, HARTREE)
    snapshot.hamiltonian, snapshot.overlap = on_pairs_of(overlap, hamiltonian, orbitals)
    _check_sense(snapshot, path)
    return snapshot


def _values_file(folder: Path, name: str) -> Path | None:
    return next((folder / f"{name}{end}" for end in (".out", ".h5") if (folder / f"{name}{end}").is_file()), None)


def _atoms(path: Path):
    from ase.io import read as ase_read

    if not path.is_file():
        raise HamfastError(f"{path}: expected the structure of the calculation, found no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of ASE, about a plugin to come
            atoms = ase_read(path, format="aims")
    except Exception as error:  # ASE raises whatever its parser stumbles on
        raise HamfastError(f"{path}: not a readable geometry.in ({type(error).__name__}: {error})") from error
    if not atoms.pbc.all():  # type: ignore[union-attr]
        raise HamfastError(f"{path}: expected three lattice_vector lines, found fewer; hamfast reads crystals")
    return atoms


def _output(folder: Path) -> str | None:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".out", ".log", "") and not path.name.startswith(("rs_", "basis-")):
            text = path.read_text(errors="replace")
            if "FHI-aims" in text and "Invoking" in text:
                return text
    warnings.warn(
        f"{folder}: no output of FHI-aims: that the SCF converged is not known, nor E_F", DataWarning, stacklevel=2
    )
    return None


def _basis(path: Path, atoms: int) -> Orbitals:
    """The orbitals, from the lines `number type atom n l m`, in the order of the file."""
    kinds: list[str] = []
    numbers: list[list[int]] = []
    for line in read_text(path).splitlines():
        words = line.split()
        if len(words) == 6 and words[0].isdecimal():
            kinds.append(words[1])
            numbers.append([int(word) for word in words[2:]])
    if not numbers:
        raise HamfastError(f"{path}: expected lines `number type atom n l m`, found none")
    atom = np.array([row[0] for row in numbers]) - 1
    if atom.min() < 0 or atom.max() != atoms - 1:
        raise HamfastError(f"{path}: expected orbitals of {atoms} atoms, found those of {atom.max() + 1}")
    # A shell is 2 l + 1 orbitals of one atom, type, n and l, from m = -l on; there may be several.
    shells: list[list[int]] = [[] for _ in range(atoms)]
    starts = [0] * atoms
    position, sign = np.empty(len(kinds), dtype=np.int64), np.empty(len(kinds), dtype=np.int64)
    first = 0
    while first < len(kinds):
        _, n, l, _ = numbers[first]
        own = slice(first, first + 2 * l + 1)
        expected = [[int(atom[first]) + 1, n, l, m] for m in range(-l, l + 1)]
        if numbers[own] != expected or len(set(kinds[own])) > 1:
            raise HamfastError(
                f"{path}: expected the orbitals m = {-l} ... {l} of a shell from number {first + 1} on, found others"
            )
        a = atom[first]
        position[own] = starts[a] + np.arange(2 * l + 1)
        sign[own] = AIMS_ORDER.of(l)[1]
        shells[a].append(l)
        starts[a] += 2 * l + 1
        first += 2 * l + 1
    return Orbitals(atom, position, sign, [tuple(ls) for ls in shells])


def _indices(path: Path, orbitals: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """R, row and column of each stored element, and how many values a file of a matrix has."""
    lines = iter(read_text(path).splitlines())

    def count(name):
        word, _, value = next(lines).partition(":")
        if word.strip() != name:
            raise ValueError(f"expected {name}, found {word.strip()!r}")
        return int(value)

    def table(name, rows, columns):
        title = next(lines).strip()
        if title != name:
            raise ValueError(f"expected {name}, found {title!r}")
        numbers: list[int] = []
        while len(numbers) < rows * columns:  # Fortran may break long lines
            numbers += map(int, next(lines).split())
        return np.array(numbers, dtype=np.int64).reshape(rows, columns)

    try:
        size, cells, basis = (
            count(f"n_{name}") for name in ("hamiltonian_matrix_size", "cells_in_hamiltonian", "basis")
        )
        if basis != orbitals:
            raise ValueError(f"expected {orbitals} orbitals as in {BASIS}, found {basis}")
        cell = table("cell_index", cells, 3)
        first = table("index_hamiltonian(1,:,:)", cells, basis)
        last = table("index_hamiltonian(2,:,:)", cells, basis)
        column = table("column_index_hamiltonian", size, 1)[:, 0]
    except StopIteration:
        raise HamfastError(f"{path}: ends in the middle: the calculation or the copy was not finished") from None
    except ValueError as error:
        raise HamfastError(f"{path}: not a readable list of indices: {error}") from error
    row_of, cell_of = np.full(size, -1), np.full(size, -1)
    for c in range(cells):
        if NO_CELL in cell[c]:
            continue
        for row in range(basis):
            begin, end = first[c, row], last[c, row]
            if begin > 0 and end >= begin:
                row_of[begin - 1 : end], cell_of[begin - 1 : end] = row, c
    kept = np.flatnonzero((row_of >= 0) & (column > 0))
    if not len(kept):
        raise HamfastError(f"{path}: names no matrix element")
    return cell[cell_of[kept]], np.column_stack([row_of[kept], column[kept] - 1]), kept, size


def _matrix(path: Path, indices, orbitals: Orbitals, unit: float) -> BlockMatrix:
    """A matrix from its values: those that are stored, and by symmetry the others."""
    cells, elements, kept, size = indices
    if path.suffix == ".h5":
        with open_h5(path) as file:
            values = np.asarray(read_array(file, "sparse_matrix", "f", "real numbers"), dtype=np.float64).ravel()
    else:
        try:
            values = np.array(read_text(path).replace("D", "E").split(), dtype=np.float64)
        except ValueError as error:
            raise HamfastError(f"{path}: expected one number in each line, found {error}") from error
    if len(values) not in (size, size - 1):
        raise HamfastError(f"{path}: expected {size} numbers as in {FILE}, found {len(values)}")
    values = values[kept] * unit
    rows, columns = elements.T
    # <row in cell R | M | column in cell 0> is <row in cell 0 | M | column in cell -R>.
    R = np.concatenate([-cells, cells])
    return block_matrix(
        orbitals, R, np.concatenate([rows, columns]), np.concatenate([columns, rows]), np.concatenate([values, values])
    )


def _check_sense(snapshot: Snapshot, path: Path) -> None:
    """Raises HamfastError if the overlaps say that R points the other way.

    Overlaps decay with distance, so the largest must belong to the nearest atoms.
    """
    overlap = snapshot.overlap
    assert overlap is not None
    size = np.sqrt(np.add.reduceat(overlap.entries**2, overlap.boundaries[:-1]))
    length = np.linalg.norm(snapshot.pair_vectors(overlap.pairs), axis=1)
    flipped = overlap.pairs * np.array([-1, -1, -1, 1, 1])
    other = np.linalg.norm(snapshot.pair_vectors(flipped), axis=1)
    if float((size * other).sum()) < 0.999 * float((size * length).sum()):
        raise HamfastError(
            f"{path}: large overlaps belong to distant atoms; expected rows in the cells of cell_index, columns in the "
            "home cell"
        )
