"""The legacy DeepH layout (DeepH-pack 0.2, DeepH-E3, MACE-H): text files and one h5 data set per block."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from hamfast.data.blocks import BlockMatrix
from hamfast.data.h5 import open_h5, read_json, replacing, write_json
from hamfast.data.orbitals import from_openmx, to_openmx
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

NAME = "deeph-legacy"
HAMILTONIAN, OVERLAP, PREDICTION = "hamiltonians.h5", "overlaps.h5", "hamiltonians_pred.h5"

_INFO_KEYS = {"nsites", "isorthogonal", "isspinful", "fermi_level", "occupation"}


def is_this_layout(folder: Path) -> bool:
    return (folder / "lat.dat").exists() and (folder / "element.dat").exists()


def read(folder: Path, hamiltonian: str | None = HAMILTONIAN) -> Snapshot:
    """Reads one structure; matrices that are not there are None. ``hamiltonian``: file name, None to skip it."""
    snapshot = read_structure(folder)
    per_atom = [snapshot.shells[int(z)] for z in snapshot.numbers]
    if hamiltonian is not None:
        snapshot.hamiltonian = read_matrix(folder / hamiltonian, per_atom, snapshot.spinful)
    snapshot.overlap = read_matrix(folder / OVERLAP, per_atom, False)
    return snapshot


def read_structure(folder: Path) -> Snapshot:
    """Reads all but the matrices."""
    cell = _table(folder / "lat.dat").reshape(3, 3).T
    positions = _table(folder / "site_positions.dat").reshape(3, -1).T
    numbers = _table(folder / "element.dat").astype(np.int64).reshape(-1)
    if len(numbers) != len(positions):
        raise HamfastError(f"{folder}: element.dat has {len(numbers)} atoms, site_positions.dat has {len(positions)}")
    shells = _read_shells(folder / "orbital_types.dat", numbers)
    info = read_json(folder / "info.json") if (folder / "info.json").exists() else {}
    fermi, occupation = info.get("fermi_level"), info.get("occupation")
    return Snapshot(
        label=folder.name,
        cell=cell,
        positions=positions,
        numbers=numbers,
        shells=shells,
        spinful=bool(info.get("isspinful", False)),
        fermi_energy=None if fermi is None else float(fermi),
        occupation=None if occupation is None else float(occupation),
        info={k: v for k, v in info.items() if k not in _INFO_KEYS},
    )


def _table(path: Path) -> np.ndarray:
    if not path.exists():
        raise HamfastError(f"{path}: file not found")
    try:
        return np.loadtxt(path, dtype=np.float64)
    except ValueError as error:
        raise HamfastError(f"{path}: expected a table of numbers ({error})") from error


def _read_shells(path: Path, numbers) -> dict[int, tuple[int, ...]]:
    if not path.exists():
        raise HamfastError(f"{path}: file not found")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if len(lines) != len(numbers):
        raise HamfastError(f"{path}: expected one line for each of the {len(numbers)} atoms, found {len(lines)}")
    shells: dict[int, tuple[int, ...]] = {}
    for z, line in zip(numbers.tolist(), lines, strict=True):
        found = tuple(int(l) for l in line)
        if shells.setdefault(z, found) != found:
            raise HamfastError(f"{path}: atoms of atomic number {z} have different orbitals: {shells[z]} and {found}")
    return shells


def read_matrix(path: Path, per_atom: list[tuple[int, ...]], spinful: bool) -> BlockMatrix | None:
    """``per_atom``: shells of each atom, to bring rows and columns from OpenMX's to the standard order."""
    if not path.exists():
        return None
    pairs, blocks = [], []
    with open_h5(path) as file:
        for key in file:
            try:
                a, b, c, i, j = json.loads(key)
            except ValueError as error:
                raise HamfastError(f"{path}: expected block names like [0, 0, 0, 1, 2], found {key!r}") from error
            if not (1 <= i <= len(per_atom) and 1 <= j <= len(per_atom)):
                raise HamfastError(f"{path}: block {key} names an atom outside 1 to {len(per_atom)}")
            block = file[key][:]
            rows, columns = from_openmx(per_atom[i - 1], spinful), from_openmx(per_atom[j - 1], spinful)
            if block.shape != (len(rows), len(columns)):
                raise HamfastError(
                    f"{path}: block {key} has shape {block.shape}, expected {(len(rows), len(columns))} from the orbital "
                    f"types {per_atom[i - 1]} and {per_atom[j - 1]}{' with spin' if spinful else ''}"
                )
            pairs.append((a, b, c, i - 1, j - 1))
            blocks.append(block[np.ix_(rows, columns)])
    return BlockMatrix.from_blocks(pairs, blocks)


def write(snapshot: Snapshot, folder: Path) -> None:
    """Writes one structure in the legacy layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "lat.dat": snapshot.cell.T,
        "rlat.dat": (2 * np.pi * np.linalg.inv(snapshot.cell).T).T,
        "site_positions.dat": snapshot.positions.T,
    }
    for name, table in tables.items():
        with replacing(folder / name) as temporary:
            np.savetxt(temporary, table, fmt="%.18e")
    with replacing(folder / "element.dat") as temporary:
        np.savetxt(temporary, snapshot.numbers, fmt="%d")
    per_atom = [snapshot.shells[int(z)] for z in snapshot.numbers]
    with replacing(folder / "orbital_types.dat") as temporary:
        temporary.write_text("".join("  ".join(map(str, shells)) + "\n" for shells in per_atom))
    info = {
        "nsites": snapshot.num_atoms,
        "isorthogonal": False,
        "isspinful": snapshot.spinful,
        "fermi_level": snapshot.fermi_energy,
        **snapshot.info,
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


def write_matrix(matrix: BlockMatrix, per_atom: list[tuple[int, ...]], spinful: bool, path: Path) -> None:
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for n, (a, b, c, i, j) in enumerate(matrix.pairs.tolist()):
            rows, columns = to_openmx(per_atom[i], spinful), to_openmx(per_atom[j], spinful)
            file[json.dumps([a, b, c, i + 1, j + 1])] = matrix.block(n)[np.ix_(rows, columns)]


def write_prediction(snapshot: Snapshot, matrix: BlockMatrix, folder: Path) -> Path:
    """Writes a predicted Hamiltonian beside the input's files; returns the path."""
    per_atom = [snapshot.shells[int(z)] for z in snapshot.numbers]
    write_matrix(matrix, per_atom, snapshot.spinful, folder / PREDICTION)
    return folder / PREDICTION
