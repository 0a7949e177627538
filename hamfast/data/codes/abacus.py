"""ABACUS 3 with atomic orbitals: sparse H(R) and S(R) of ``out_mat_hs2 1``.

``OUT.SUFFIX`` holds ``data-HR-sparse_SPIN0.csr`` and ``data-SR-sparse_SPIN0.csr`` (``hrs1_nao.csr``
and ``srs1_nao.csr`` in later versions), and ``running_scf.log`` with the Fermi level. The structure
is in ``STRU`` above. H is in rydberg.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from hamfast.data.blocks import BlockMatrix
from hamfast.data.codes.native import (
    Orbitals,
    block_matrix,
    element_symbol,
    on_pairs_of,
    shells_of_elements,
    two_channels,
)
from hamfast.data.h5 import read_text
from hamfast.data.orbitals import ABACUS_ORDER
from hamfast.data.snapshot import Snapshot
from hamfast.errors import DataWarning, HamfastError

NAME, FILE = "abacus", "data-HR-sparse_SPIN0.csr or hrs1_nao.csr, in OUT.SUFFIX"
RYDBERG, BOHR = 13.605698, 0.529177249
"""eV and angstrom, as ABACUS has them."""
HAMILTONIANS = (("data-HR-sparse_SPIN0.csr", "data-HR-sparse_SPIN1.csr"), ("hrs1_nao.csr", "hrs2_nao.csr"))
OVERLAPS = ("data-SR-sparse_SPIN0.csr", "srs1_nao.csr", "sr_nao.csr")


def main_file(folder: Path) -> Path | None:
    """The Hamiltonian of a calculation's folder, or of its ``OUT.SUFFIX``."""
    folders = [folder, *sorted(p for p in folder.glob("OUT.*") if p.is_dir())]
    found = [own / names[0] for own in folders for names in HAMILTONIANS if (own / names[0]).is_file()]
    if len(found) > 1:
        raise HamfastError(f"{folder}: expected one H(R) of ABACUS, found {', '.join(map(str, found))}")
    return found[0] if found else None


def read(path: Path, matrices: bool) -> Snapshot:
    """Reads a calculation; see :class:`hamfast.data.codes.native.Code`."""
    folder = path.parent
    log, text = _log(folder)
    stru = next((p for p in (folder / "STRU", folder.parent / "STRU", folder / "STRU.cif") if p.is_file()), None)
    if stru is None or stru.suffix:
        raise HamfastError(f"{folder}: expected STRU here or one folder above, found none")
    cell, labels, positions, orbital_files = _structure(stru)
    if text is not None and re.search(r"convergence has NOT been achieved|SCF.*NOT.*CONVERGE", text, re.IGNORECASE):
        raise HamfastError(f"{log}: the SCF did not converge; its matrices are not those of DFT")
    if text is not None and "EFERMI" not in text:
        raise HamfastError(f"{log}: expected a line with EFERMI, found none: the calculation did not end")
    basis = _basis(labels, orbital_files, text, stru)
    symbols = [element_symbol(label, stru) for label in labels]
    shells = [basis[label] for label in labels]
    orbitals = Orbitals.of_shells(shells, ABACUS_ORDER)
    dimension = _dimension(path)
    spinor = dimension == 2 * len(orbitals.atoms)
    second = next((folder / names[1] for names in HAMILTONIANS if names[0] == path.name), None)
    collinear = second is not None and second.is_file()
    if not spinor and dimension != len(orbitals.atoms):
        raise HamfastError(
            f"{path}: has {dimension} orbitals, but the basis of {stru} has {len(orbitals.atoms)}; expected as many, "
            "or twice as many with spin-orbit coupling"
        )
    snapshot = Snapshot(
        label=folder.parent.name if folder.name.startswith("OUT.") else folder.name,
        cell=cell,
        positions=positions,
        numbers=np.array([atomic_numbers[symbol] for symbol in symbols]),
        shells=shells_of_elements(symbols, shells, stru),
        spinful=spinor or collinear,
        fermi_energy=_last(r"EFERMI\s*=\s*(\S+)", text),
        occupation=_last(r"(?:AUTOSET )?number of electrons:?\s*=?\s*(\S+)", text) or _last(r"nelec\s*=\s*(\S+)", text),
        info={"code": "ABACUS"} | ({"collinear": True} if collinear else {}),
    )
    if not matrices:
        return snapshot
    overlaps = [folder / name for name in OVERLAPS if (folder / name).is_file()]
    if not overlaps:
        raise HamfastError(f"{folder}: expected S(R) ({' or '.join(OVERLAPS)}), found none")
    overlap = _matrix(overlaps[0], orbitals, spinor, 1.0, spin_diagonal=True)
    if second is not None and collinear:
        hamiltonian = two_channels(*(_matrix(p, orbitals, False, RYDBERG) for p in (path, second)))
    else:
        hamiltonian = _matrix(path, orbitals, spinor, RYDBERG)
    snapshot.hamiltonian, snapshot.overlap = on_pairs_of(overlap, hamiltonian, orbitals)
    return snapshot


def _log(folder: Path) -> tuple[Path, str | None]:
    """The log of the calculation, and its text; None if it is not there."""
    path = folder / "running_scf.log"
    if path.is_file():
        return path, path.read_text(errors="replace")
    others = sorted(p.name for p in folder.glob("running_*.log"))
    if others:
        raise HamfastError(
            f"{folder}: expected running_scf.log, found {', '.join(others)}: after a relaxation or dynamics the matrices are "
            "not those of the atoms in STRU; run `calculation scf` for them"
        )
    warnings.warn(
        f"{folder}: no running_scf.log: that the SCF converged is not known, nor E_F", DataWarning, stacklevel=2
    )
    return path, None


def _last(pattern: str, text: str | None) -> float | None:
    found = re.findall(pattern, text or "", re.IGNORECASE)
    try:
        return float(found[-1]) if found else None
    except ValueError:
        return None


SECTIONS = (
    "ATOMIC_SPECIES", "NUMERICAL_ORBITAL", "NUMERICAL_DESCRIPTOR", "LATTICE_CONSTANT", "LATTICE_VECTORS",
    "LATTICE_PARAMETERS", "ATOMIC_POSITIONS", "PAW_FILES", "ABFS_ORBITAL",
)  # fmt: skip


def _structure(path: Path) -> tuple[np.ndarray, list[str], np.ndarray, dict[str, str]]:
    """The cell and the positions in angstrom, the label of each atom, and label -> orbital file."""
    sections: dict[str, list[list[str]]] = {}
    name = None
    for line in read_text(path).splitlines():
        words = re.split(r"//|#", line)[0].split()
        if words and words[0] in SECTIONS:
            name = words[0]
            sections[name] = []
        elif words and name is not None:
            sections[name].append(words)
    try:
        species = [words[0] for words in sections["ATOMIC_SPECIES"]]
        files = {s: words[0] for s, words in zip(species, sections.get("NUMERICAL_ORBITAL", []), strict=False)}
        constant = float(sections["LATTICE_CONSTANT"][0][0]) * BOHR
        cell = np.array([[float(x) for x in words[:3]] for words in sections["LATTICE_VECTORS"][:3]]) * constant
        rows = sections["ATOMIC_POSITIONS"]
        mode = rows[0][0].lower()
        labels, positions, n = [], [], 1
        while n < len(rows):
            label, count = rows[n][0], int(rows[n + 2][0])
            labels += [label] * count
            positions += [[float(x) for x in words[:3]] for words in rows[n + 3 : n + 3 + count]]
            n += 3 + count
        given = np.array(positions).reshape(len(labels), 3)
    except (KeyError, IndexError, ValueError) as error:
        raise HamfastError(f"{path}: not a readable STRU of ABACUS ({type(error).__name__}: {error})") from error
    if mode == "direct":
        return cell, labels, given @ cell, files
    units = {"cartesian": constant, "cartesian_angstrom": 1.0, "cartesian_au": BOHR}
    if mode not in units:
        raise HamfastError(f"{path}: expected positions as Direct or {', '.join(units)}, found {rows[0][0]!r}")
    return cell, labels, given * units[mode], files


def _basis(labels, files, text, stru) -> dict[str, tuple[int, ...]]:
    """Label -> l of the shells: from the names of the orbital files, or from the log."""
    found = {}
    for label in dict.fromkeys(labels):
        counted = re.search(r"_((?:\d+[spdfghi])+)(?:\.orb)?$", files.get(label, ""))
        if counted is not None:
            pairs = [(int(n), letter) for n, letter in re.findall(r"(\d+)([spdfghi])", counted[1])]
            found[label] = tuple(l for n, letter in pairs for l in ["spdfghi".index(letter)] * n)
            continue
        part = re.search(rf"atom label = {re.escape(label)}\b(.*?)(?:atom label =|\Z)", text or "", re.DOTALL)
        zetas = re.findall(r"L=(\d+), number of zeta = (\d+)", part[1]) if part else []
        if not zetas:
            raise HamfastError(
                f"{stru}: expected an orbital file like C_gga_7au_100Ry_2s2p1d.orb for {label}, found "
                f"{files.get(label, 'none')!r}, and running_scf.log does not tell its shells"
            )
        found[label] = tuple(l for l, n in dict(zetas).items() for l in [int(l)] * int(n))
    return found


def _lines(path: Path):
    with path.open(errors="replace") as file:
        yield from file


def _dimension(path: Path) -> int:
    """How many orbitals the matrix has, with spin."""
    for n, line in enumerate(_lines(path)):
        found = re.search(r"Matrix Dimension of [HS]\(R\):\s*(\d+)", line)
        if found:
            return int(found[1])
        if n > 100:
            break
    raise HamfastError(f"{path}: expected a line `Matrix Dimension of H(R): n`, found none; an unknown version?")


def _matrix(path: Path, orbitals: Orbitals, spinor: bool, unit: float, spin_diagonal: bool = False) -> BlockMatrix:
    """A matrix from its file; of an overlap with spin the part of spin up, as down is the same."""
    lines = _lines(path)
    total = None
    for line in lines:
        if "Matrix number of" in line:
            words = line.split(":")[-1].strip()
            total = int(words) if words.isdecimal() else None
            break
    if total is None:
        raise HamfastError(
            f"{path}: expected a line `Matrix number of H(R): n` (or S), found none; an unknown version?"
        )
    parts: list[tuple[np.ndarray, ...]] = []
    try:
        for _ in range(total):
            *cell, count = (int(word) for word in next(lines).split())
            if count == 0:
                continue
            values = _numbers(next(lines))
            columns = np.array(next(lines).split(), dtype=np.int64)
            pointers = np.array(next(lines).split(), dtype=np.int64)
            if not len(values) == len(columns) == count == pointers[-1]:
                raise ValueError(
                    f"R = {tuple(cell)} has {len(values)} values and {len(columns)} columns instead of {count}"
                )
            rows = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
            parts.append((np.tile(cell, (count, 1)), rows, columns, values))
    except StopIteration:
        raise HamfastError(
            f"{path}: ends before its {total} lattice vectors: the calculation or the copy was not finished"
        ) from None
    except ValueError as error:
        raise HamfastError(f"{path}: damaged: {error}") from error
    if any(line.strip() for line in lines):
        raise HamfastError(f"{path}: goes on after its {total} lattice vectors; expected the matrix of one step")
    if not parts:
        raise HamfastError(f"{path}: holds no matrix element")
    R, rows, columns, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not spinor:
        return block_matrix(orbitals, R, rows, columns, values * unit)
    if spin_diagonal:
        up = (rows % 2 == 0) & (columns % 2 == 0)
        return block_matrix(orbitals, R[up], rows[up] // 2, columns[up] // 2, values[up].real * unit)
    # Orbital and spin alternate: the four elements of a pair of orbitals come together.
    size = len(orbitals.atoms)
    low = R.min(axis=0)
    span = R.max(axis=0) - low + 1
    code = ((R - low) @ [span[1] * span[2], span[2], 1] * size + rows // 2) * size + columns // 2
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    spins = np.zeros((len(first), 2, 2), dtype=np.complex128)
    spins[which, rows % 2, columns % 2] = values * unit
    return block_matrix(orbitals, R[first], rows[first] // 2, columns[first] // 2, spins)


def _numbers(line: str) -> np.ndarray:
    if "(" not in line:
        return np.array(line.split(), dtype=np.float64)
    pairs = np.array(re.findall(r"\(([^,]+),([^)]+)\)", line), dtype=np.float64)
    return pairs[:, 0] + 1j * pairs[:, 1]
