"""The legacy DeepH layout, of DeepH-pack 0.2, DeepH-E3 and MACE-H.

A folder holds text files, and HDF5 files with one data set for each block. Atoms count from 1 in
them. The public names are those of :class:`hamfast.data.formats.Format`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hamfast.data.blocks import BlockMatrix
from hamfast.data.checked import HIGHEST_Z, boolean, check_count, number, shells, usual_precision
from hamfast.data.deeph import first_file
from hamfast.data.h5 import compression, open_h5, read_array, read_json, read_text, write_h5, write_json, write_text
from hamfast.data.orbitals import from_openmx, to_openmx
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

NAME, FILE = "deeph-legacy", "lat.dat and element.dat"
HAMILTONIAN, OVERLAP, PREDICTION = "hamiltonians.h5", "overlaps.h5", "hamiltonians_pred.h5"
TABLES = ("lat.dat", "rlat.dat", "site_positions.dat", "element.dat", "orbital_types.dat")
FILES: tuple[str, ...] = (*TABLES, "info.json", HAMILTONIAN, OVERLAP, PREDICTION)

_INFO_KEYS = {"nsites", "isorthogonal", "isspinful", "fermi_level", "occupation"}


def is_this_layout(folder: Path) -> bool:
    """Does a folder hold a structure of this layout?"""
    return (folder / "lat.dat").exists() and (folder / "element.dat").exists()


def has_prediction(folder: Path) -> bool:
    """Is there a Hamiltonian of ``hamfast predict``?"""
    return (folder / PREDICTION).exists()


def read(folder: Path, hamiltonian: str | None = HAMILTONIAN) -> Snapshot:
    """Reads one structure; matrices that are not there are None.

    Args:
        folder: of the structure.
        hamiltonian: the name of the Hamiltonian's file; None to leave it out.
    """
    snapshot = read_structure(folder)
    per_atom = [snapshot.shells[int(z)] for z in snapshot.numbers]
    if hamiltonian is not None:
        snapshot.hamiltonian = read_matrix(folder / hamiltonian, per_atom, snapshot.spinful)
    snapshot.overlap = read_matrix(folder / OVERLAP, per_atom, False)
    return snapshot


def read_structure(folder: Path) -> Snapshot:
    """Reads all but the matrices."""
    cell = _columns(folder / "lat.dat", 3).T
    positions = _columns(folder / "site_positions.dat").T
    numbers = _atomic_numbers(folder / "element.dat")
    if len(numbers) != len(positions):
        raise HamfastError(f"{folder}: element.dat has {len(numbers)} atoms, site_positions.dat has {len(positions)}")
    if (folder / "rlat.dat").exists():
        product = _columns(folder / "rlat.dat", 3).T @ cell.T
        if not np.allclose(product, 2 * np.pi * np.eye(3), atol=1e-3):
            raise HamfastError(
                f"{folder}: rlat.dat does not hold the reciprocal vectors of lat.dat; vectors are columns in both: is one "
                "of the two transposed?"
            )
    shells = _read_shells(folder / "orbital_types.dat", numbers)
    path = folder / "info.json"
    info = read_json(path) if path.exists() else {}
    check_count(info, "nsites", path, len(numbers), "the atoms of element.dat are")
    if boolean(info, "isorthogonal", path):
        raise HamfastError(f"{path}: isorthogonal is true; expected false, a basis with an overlap matrix")
    return Snapshot(
        label=folder.name,
        cell=cell,
        positions=positions,
        numbers=numbers,
        shells=shells,
        spinful=boolean(info, "isspinful", path),
        fermi_energy=number(info, "fermi_level", path),
        occupation=number(info, "occupation", path),
        info={k: v for k, v in info.items() if k not in _INFO_KEYS},
    )


def _table(path: Path) -> np.ndarray:
    """Rows of numbers, ``[rows, columns]``."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise HamfastError(f"{path}: expected a table of numbers, found an empty file")
    try:
        return np.loadtxt(lines, dtype=np.float64, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise HamfastError(f"{path}: expected a table of numbers ({error})") from error


def _columns(path: Path, count: int | None = None) -> np.ndarray:
    """``[3, count]``: vectors as columns."""
    table = _table(path)
    if count is None and table.shape[0] == 3:
        return table
    if table.shape != (3, count):
        wanted = "3 x N, a column of x, y, z per atom" if count is None else f"3 x {count}, vectors as columns"
        hint = "; is it transposed?" if table.shape[1] == 3 else ""
        raise HamfastError(f"{path}: expected {wanted}, found {table.shape[0]} x {table.shape[1]}{hint}")
    return table


def _atomic_numbers(path: Path) -> np.ndarray:
    table = _table(path)
    if 1 not in table.shape:
        raise HamfastError(
            f"{path}: expected one atomic number per atom, found {table.shape[0]} x {table.shape[1]} numbers"
        )
    values = table.ravel()
    wrong = ~np.isin(values, np.arange(1, HIGHEST_Z + 1))
    if wrong.any():
        raise HamfastError(f"{path}: expected atomic numbers from 1 to {HIGHEST_Z}, found {values[wrong][0]:g}")
    return values.astype(np.int64)


def _read_shells(path: Path, numbers) -> dict[int, tuple[int, ...]]:
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if len(lines) != len(numbers):
        raise HamfastError(f"{path}: expected one line for each of the {len(numbers)} atoms, found {len(lines)}")
    found: dict[int, tuple[int, ...]] = {}
    for n, (z, line) in enumerate(zip(numbers.tolist(), lines, strict=True), start=1):
        ls = shells([int(word) if word.isdecimal() else word for word in line], f"{path}: line {n}")
        if found.setdefault(z, ls) != ls:
            raise HamfastError(f"{path}: atoms of atomic number {z} have different orbitals: {found[z]} and {ls}")
    return found


def read_pairs(folder: Path) -> np.ndarray | None:
    """``[pairs, 5]`` int64: the atom pairs of the Hamiltonian, or else of the overlap."""
    path = first_file(folder, HAMILTONIAN, OVERLAP)
    if path is None:
        return None
    with open_h5(path) as file:
        pairs = np.array([_pair(key, path) for key in file], dtype=np.int64).reshape(-1, 5)
    pairs[:, 3:] -= 1
    return pairs


def read_matrix(path: Path, per_atom: list[tuple[int, ...]], spinful: bool) -> BlockMatrix | None:
    """The matrix in a file; None if there is no such file.

    Args:
        per_atom: shells of each atom, by which rows and columns go from OpenMX's order to the
            standard one.
        spinful: blocks carry spin.

    Raises:
        HamfastError: the file is damaged, or is no such matrix.
    """
    if not path.exists():
        return None
    pairs, blocks = [], []
    with open_h5(path) as file:
        for key in file:
            a, b, c, i, j = _pair(key, path)
            if not (1 <= i <= len(per_atom) and 1 <= j <= len(per_atom)):
                raise HamfastError(f"{path}: block {key} names an atom outside 1 to {len(per_atom)}")
            block = usual_precision(read_array(file, key, "fc", "real or complex numbers"))
            rows, columns = from_openmx(per_atom[i - 1], spinful), from_openmx(per_atom[j - 1], spinful)
            if block.shape != (len(rows), len(columns)):
                raise HamfastError(
                    f"{path}: block {key} has shape {block.shape}, expected {(len(rows), len(columns))} from the orbital "
                    f"types {per_atom[i - 1]} and {per_atom[j - 1]}{' with spin' if spinful else ''}"
                )
            pairs.append((a, b, c, i - 1, j - 1))
            blocks.append(block[np.ix_(rows, columns)])
    return BlockMatrix.from_blocks(pairs, blocks)


def _pair(key: str, path: Path) -> list[int]:
    try:
        pair = json.loads(key)
    except ValueError:
        pair = None
    if not isinstance(pair, list) or len(pair) != 5 or not all(type(n) is int for n in pair):
        raise HamfastError(f"{path}: expected block names like [0, 0, 0, 1, 2], found {key!r}")
    return pair


def write(snapshot: Snapshot, folder: Path) -> None:
    """Writes one structure in the legacy layout."""
    per_atom = [snapshot.shells[int(z)] for z in snapshot.numbers]
    tables = {
        "lat.dat": snapshot.cell.T,
        "rlat.dat": (2 * np.pi * np.linalg.inv(snapshot.cell).T).T,
        "site_positions.dat": snapshot.positions.T,
        "element.dat": snapshot.numbers[:, None],
    }
    for name, table in tables.items():
        rows = (" ".join(f"{x:d}" if table.dtype.kind == "i" else f"{x:.18e}" for x in row) for row in table)
        write_text(folder / name, "".join(f"{row}\n" for row in rows))
    write_text(folder / "orbital_types.dat", "".join("  ".join(map(str, shells)) + "\n" for shells in per_atom))
    info = {
        **snapshot.info,
        "nsites": snapshot.num_atoms,
        "isorthogonal": False,
        "isspinful": snapshot.spinful,
        "fermi_level": snapshot.fermi_energy,
    }
    if snapshot.occupation is not None:
        info["occupation"] = snapshot.occupation
    write_json(folder / "info.json", info)
    for name, matrix, spinful in (
        (HAMILTONIAN, snapshot.hamiltonian, snapshot.spinful),
        (OVERLAP, snapshot.overlap, False),
    ):
        if matrix is not None:
            write_matrix(matrix, per_atom, spinful, folder / name)


def write_matrix(
    matrix: BlockMatrix, per_atom: list[tuple[int, ...]], spinful: bool, path: Path, compress: bool = False
) -> None:
    """Writes a matrix in OpenMX's order of orbitals; arguments as :func:`read_matrix`."""
    options = compression(compress)

    def fill(file):
        for n, (a, b, c, i, j) in enumerate(matrix.pairs.tolist()):
            rows, columns = to_openmx(per_atom[i], spinful), to_openmx(per_atom[j], spinful)
            block = matrix.block(n)[np.ix_(rows, columns)]
            file.create_dataset(json.dumps([a, b, c, i + 1, j + 1]), data=block, **options)

    write_h5(path, fill)


def write_prediction(snapshot: Snapshot, matrix: BlockMatrix, folder: Path, compress: bool = False) -> Path:
    """Writes a predicted Hamiltonian beside the input's files; returns the path."""
    per_atom = [snapshot.shells[int(z)] for z in snapshot.numbers]
    write_matrix(matrix, per_atom, snapshot.spinful, folder / PREDICTION, compress)
    return folder / PREDICTION
