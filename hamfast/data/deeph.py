"""The new DeepH layout, of DeepH-dock and the JAX version of DeepH-pack.

A folder holds ``POSCAR``, ``info.json``, ``hamiltonian.h5`` and ``overlap.h5``. The public names
are those of :class:`hamfast.data.formats.Format`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from hamfast.data.blocks import BlockMatrix
from hamfast.data.checked import boolean, check_count, number, shells_by_element, usual_precision
from hamfast.data.h5 import compression, open_h5, read_array, read_json, read_text, write_h5, write_json, write_text
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

if TYPE_CHECKING:
    from ase import Atoms

NAME, FILE = "deeph", "POSCAR and info.json"
HAMILTONIAN, OVERLAP, PREDICTION = "hamiltonian.h5", "overlap.h5", "hamiltonian_pred.h5"
FILES: tuple[str, ...] = ("POSCAR", "info.json", HAMILTONIAN, OVERLAP, PREDICTION)

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
    """Does a folder hold a structure of this layout?"""
    if not ((folder / "POSCAR").exists() and (folder / "info.json").exists()):
        return False
    if not (folder / "lat.dat").exists():
        return True
    # A folder of the legacy layout may hold a POSCAR, too.
    return "elements_orbital_map" in read_json(folder / "info.json")


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
    snapshot.hamiltonian = None if hamiltonian is None else read_matrix(folder / hamiltonian)
    snapshot.overlap = read_matrix(folder / OVERLAP)
    return snapshot


def read_structure(folder: Path) -> Snapshot:
    """Reads all but the matrices."""
    path = folder / "info.json"
    info = read_json(path)
    if "elements_orbital_map" not in info:
        raise HamfastError(f"{path}: expected the key elements_orbital_map, found {sorted(info)}")
    atoms = read_poscar(folder / "POSCAR")
    snapshot = Snapshot(
        label=folder.name,
        cell=np.asarray(atoms.cell.array, dtype=np.float64),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        shells=shells_by_element(info["elements_orbital_map"], f"{path}: elements_orbital_map"),
        spinful=boolean(info, "spinful", path),
        fermi_energy=number(info, "fermi_energy_eV", path),
        occupation=number(info, "occupation", path),
        info={k: v for k, v in info.items() if k not in _INFO_KEYS},
    )
    check_count(info, "atoms_quantity", path, snapshot.num_atoms, "the atoms of POSCAR are")
    if boolean(info, "orthogonal_basis", path):
        raise HamfastError(f"{path}: orthogonal_basis is true; expected false, a basis with an overlap matrix")
    return snapshot


def read_poscar(path: Path) -> Atoms:
    """The atoms and the cell of a POSCAR, in angstrom.

    Raises:
        HamfastError: it is missing, or cannot be read without guessing.
    """
    from ase.io import read as ase_read  # takes most of a second, which finding structures need not

    text = read_text(path)
    lines = text.splitlines()
    if len(lines) > 5 and lines[5].split() and all(word.isdecimal() for word in lines[5].split()):
        raise HamfastError(
            f"{path}: line 6: expected the symbols of the elements, found their numbers {lines[5].strip()}"
        )
    symbols, counts = ([*line.split(), ""] for line in [*lines, *[""] * 7][5:7])
    if counts[0].isdecimal() and symbols[0].isalpha() and len(counts) != len(symbols):
        raise HamfastError(
            f"{path}: expected a number of atoms for each of {' '.join(symbols).strip()}, found {' '.join(counts).strip()}"
        )
    try:
        return ase_read(io.StringIO(text), index=-1, format="vasp")  # type: ignore[return-value]
    except Exception as error:  # ASE raises whatever its parser stumbles on
        raise HamfastError(
            f"{path}: not a readable POSCAR ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def read_pairs(folder: Path) -> np.ndarray | None:
    """``[pairs, 5]`` int64: the atom pairs of the Hamiltonian, or else of the overlap."""
    path = first_file(folder, HAMILTONIAN, OVERLAP)
    return None if path is None else _pairs_of(path)


def first_file(folder: Path, *names: str) -> Path | None:
    """The first of these files that a folder has; None if it has none of them."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def _pairs_of(path: Path) -> np.ndarray:
    with open_h5(path) as file:
        pairs = read_array(file, "atom_pairs", "iu", "whole numbers").astype(np.int64)
    if pairs.shape != (len(pairs) if pairs.ndim else 0, 5):
        raise HamfastError(f"{path}: expected atom_pairs [N, 5], found {pairs.shape}")
    return pairs


def read_matrix(path: Path) -> BlockMatrix | None:
    """The matrix in a file; None if there is no such file.

    Raises:
        HamfastError: the file is damaged, or is no such matrix.
    """
    if not path.exists():
        return None
    with open_h5(path) as file:
        pairs, shapes, boundaries = (
            read_array(file, name, "iu", "whole numbers").astype(np.int64)
            for name in ("atom_pairs", "chunk_shapes", "chunk_boundaries")
        )
        entries = read_array(file, "entries", "fc", "real or complex numbers")
        try:
            return BlockMatrix(pairs, shapes, boundaries, usual_precision(entries))
        except HamfastError as error:
            raise HamfastError(f"{path}: {error}") from error


def write(snapshot: Snapshot, folder: Path) -> None:
    """Writes one structure; the Hamiltonian keeps its dtype, SOC blocks are 2 x 2 spin blocks."""
    from ase.io import write as ase_write

    text = io.StringIO()
    ase_write(text, snapshot.atoms, format="vasp", direct=True)
    write_text(folder / "POSCAR", text.getvalue())
    orbitals = sum(snapshot.num_orbitals(a) for a in range(snapshot.num_atoms))
    info = {
        **snapshot.info,
        "atoms_quantity": snapshot.num_atoms,
        "orbits_quantity": orbitals,
        "orthogonal_basis": False,
        "spinful": snapshot.spinful,
        "fermi_energy_eV": snapshot.fermi_energy,
        "elements_orbital_map": {chemical_symbols[z]: list(snapshot.shells[z]) for z in snapshot.elements},
    }
    if snapshot.occupation is not None:
        occupation = snapshot.occupation
        info["occupation"] = int(occupation) if float(occupation).is_integer() else occupation
    write_json(folder / "info.json", info)
    for name, matrix in ((HAMILTONIAN, snapshot.hamiltonian), (OVERLAP, snapshot.overlap)):
        if matrix is not None:
            write_matrix(matrix, folder / name)


def write_matrix(matrix: BlockMatrix, path: Path, compress: bool = True) -> None:
    """Writes a matrix with its dtype; ``compress`` by gzip."""
    options = compression(compress)
    arrays = {
        "atom_pairs": matrix.pairs.astype(np.int32),
        "chunk_boundaries": matrix.boundaries,
        "chunk_shapes": matrix.shapes.astype(np.int32),
        "entries": matrix.entries,
    }

    def fill(file):
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)

    write_h5(path, fill)


def write_prediction(snapshot: Snapshot, matrix: BlockMatrix, folder: Path, compress: bool = True) -> Path:
    """Writes a predicted Hamiltonian beside the input's files; returns the path."""
    write_matrix(matrix, folder / PREDICTION, compress)
    return folder / PREDICTION
