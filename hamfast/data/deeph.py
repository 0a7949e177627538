"""The new DeepH layout (DeepH-dock, JAX DeepH-pack): POSCAR, info.json, hamiltonian.h5, overlap.h5 in one folder."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from ase.io import read as ase_read
from ase.io import write as ase_write

from hamfast.data.blocks import BlockMatrix
from hamfast.data.h5 import open_h5, read_json, replacing, write_json
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

NAME = "deeph"
HAMILTONIAN, OVERLAP, PREDICTION = "hamiltonian.h5", "overlap.h5", "hamiltonian_pred.h5"

_INFO_KEYS = {
    "atoms_quantity",
    "orbits_quantity",
    "orthogonal_basis",
    "spinful",
    "fermi_energy_eV",
    "elements_orbital_map",
    "occupation",
}


def is_this_layout(folder: Path) -> bool:
    return (folder / "POSCAR").exists() and (folder / "info.json").exists()


def read(folder: Path, hamiltonian: str | None = HAMILTONIAN) -> Snapshot:
    """Reads one structure; matrices that are not there are None. ``hamiltonian``: file name, None to skip it."""
    snapshot = read_structure(folder)
    snapshot.hamiltonian = None if hamiltonian is None else read_matrix(folder / hamiltonian)
    snapshot.overlap = read_matrix(folder / OVERLAP)
    return snapshot


def read_structure(folder: Path) -> Snapshot:
    """Reads all but the matrices."""
    info = read_json(folder / "info.json")
    if "elements_orbital_map" not in info:
        raise HamfastError(f"{folder / 'info.json'}: expected the key elements_orbital_map, found {sorted(info)}")
    unknown = [symbol for symbol in info["elements_orbital_map"] if symbol not in atomic_numbers]
    if unknown:
        raise HamfastError(f"{folder / 'info.json'}: elements_orbital_map: {unknown[0]!r} is not an element")
    shells = {atomic_numbers[s]: tuple(int(l) for l in ls) for s, ls in info["elements_orbital_map"].items()}
    atoms = read_poscar(folder / "POSCAR")
    return Snapshot(
        label=folder.name,
        cell=np.asarray(atoms.cell.array, dtype=np.float64),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        shells=shells,
        spinful=bool(info.get("spinful", False)),
        fermi_energy=_number(info.get("fermi_energy_eV")),
        occupation=_number(info.get("occupation")),
        info={k: v for k, v in info.items() if k not in _INFO_KEYS},
    )


def _number(value):
    return None if value is None else float(value)


def read_poscar(path: Path) -> Atoms:
    try:
        return ase_read(path, index=-1, format="vasp")  # type: ignore[return-value]
    except FileNotFoundError as error:
        raise HamfastError(f"{path}: file not found") from error
    except Exception as error:  # ASE raises whatever its parser stumbles on
        raise HamfastError(f"{path}: not a readable POSCAR ({error})") from error


def read_matrix(path: Path) -> BlockMatrix | None:
    if not path.exists():
        return None
    with open_h5(path) as file:
        missing = [k for k in ("atom_pairs", "chunk_boundaries", "chunk_shapes", "entries") if k not in file]
        if missing:
            raise HamfastError(f"{path}: expected the data set {missing[0]}, found {sorted(file)}")
        try:
            return BlockMatrix(
                file["atom_pairs"][:].astype(np.int64),
                file["chunk_shapes"][:].astype(np.int64),
                file["chunk_boundaries"][:].astype(np.int64),
                file["entries"][:],
            )
        except HamfastError as error:
            raise HamfastError(f"{path}: {error}") from error


def write(snapshot: Snapshot, folder: Path) -> None:
    """Writes one structure; the Hamiltonian keeps its dtype, SOC blocks are 2 x 2 spin blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    atoms = Atoms(numbers=snapshot.numbers, positions=snapshot.positions, cell=snapshot.cell, pbc=True)
    with replacing(folder / "POSCAR") as temporary:
        ase_write(temporary, atoms, format="vasp", direct=True)
    orbitals = sum(snapshot.num_orbitals(a) for a in range(snapshot.num_atoms))
    info = {
        "atoms_quantity": snapshot.num_atoms,
        "orbits_quantity": orbitals,
        "orthogonal_basis": False,
        "spinful": snapshot.spinful,
        "fermi_energy_eV": snapshot.fermi_energy,
        "elements_orbital_map": {chemical_symbols[z]: list(snapshot.shells[z]) for z in snapshot.elements},
        **snapshot.info,
    }
    if snapshot.occupation is not None:
        occupation = snapshot.occupation
        info["occupation"] = int(occupation) if float(occupation).is_integer() else occupation
    write_json(folder / "info.json", info)
    for name, matrix in ((HAMILTONIAN, snapshot.hamiltonian), (OVERLAP, snapshot.overlap)):
        if matrix is not None:
            write_matrix(matrix, folder / name)


def write_matrix(matrix: BlockMatrix, path: Path) -> None:
    options = {"compression": "gzip", "shuffle": True}
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("atom_pairs", data=matrix.pairs.astype(np.int32), **options)
        file.create_dataset("chunk_boundaries", data=matrix.boundaries, **options)
        file.create_dataset("chunk_shapes", data=matrix.shapes.astype(np.int32), **options)
        file.create_dataset("entries", data=matrix.entries, **options)


def write_prediction(snapshot: Snapshot, matrix: BlockMatrix, folder: Path) -> Path:
    """Writes a predicted Hamiltonian beside the input's files; returns the path."""
    write_matrix(matrix, folder / PREDICTION)
    return folder / PREDICTION
