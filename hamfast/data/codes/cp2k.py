"""CP2K: ``PROJECT-KS_SPIN_1_R_1-1_0.csr`` and its like, of ``KS_CSR_WRITE`` and ``S_CSR_WRITE``.

There is a file for each lattice vector R (``REAL_SPACE .TRUE.``), with the elements as text or,
with ``BINARY .TRUE.``, in Fortran records. Cell, atoms, basis, the list of R and the Fermi level
come from the output file beside them. Cell and positions have more digits in the input or the
restart file, if one is there. H is in hartree.

R in the file belongs to atoms that are wrapped into [-1/2, 1/2) of the cell. Here it belongs to the
atoms as the input has them.
"""

from __future__ import annotations

import re
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
from hamfast.data.orbitals import CP2K_ORDER
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

NAME, FILE = "cp2k", "*-KS_SPIN_1_R_1-1_0.csr"
HARTREE = 27.21138386
"""eV, as CP2K has it (CODATA 2006)."""
BOHR = 0.529177208590
_MATRIX = re.compile(r"^(.*?)-?(KS|S)_SPIN_(\d)_R_(\d+)-(\d+)_(\d+)\.csr$")


def main_file(folder: Path) -> Path | None:
    """The Hamiltonian of the first R and the last step of a folder."""
    found = [p for p in folder.glob("*KS_SPIN_1_R_1-*.csr") if _MATRIX.match(p.name)]
    projects = sorted({_MATRIX.match(p.name)[1] for p in found})  # type: ignore[index]
    if len(projects) > 1:
        raise HamfastError(
            f"{folder}: expected one CP2K project, found {', '.join(projects)}; give each its own folder"
        )
    return max(found, key=_step) if found else None


def _step(path: Path) -> tuple[int, int]:
    found = _MATRIX.match(path.name)
    assert found is not None
    return int(found[5]), int(found[6])


def read(path: Path, matrices: bool) -> Snapshot:
    """Reads a calculation; see :class:`hamfast.data.codes.native.Code`."""
    folder = path.parent
    if _step(path)[1] != 0:
        raise HamfastError(
            f"{path}: of step {_step(path)[1]} of a relaxation or of dynamics; expected a single point (RUN_TYPE ENERGY), as "
            "the output has the atoms of the start"
        )
    log, text = _output(folder)
    if "SCF run NOT converged" in text or not re.search(r"SCF run converged in", text):
        raise HamfastError(f"{log}: the SCF run did not converge, or did not end; its matrices are not those of DFT")
    cell, kinds, symbols, positions = _atoms(text, log)
    cell, positions = _digits(folder, cell, positions)
    basis = _basis(text, log)
    lacking = [kind for kind in kinds if kind not in basis]
    if lacking:
        raise HamfastError(
            f"{log}: expected the basis set of the kind {lacking[0]}, found none; set PRINT_LEVEL MEDIUM"
        )
    shells = [basis[kind] for kind in kinds]
    fermi = re.findall(r"Fermi energy:\s+(\S+)", text)
    electrons = re.findall(r"Number of electrons:\s+(\d+)", text)
    # Files of another run may lie there; the output tells how many channels this one has.
    restricted = re.search(r"DFT\| Spin restricted", text) is not None
    spins = 2 if not restricted and (folder / path.name.replace("SPIN_1", "SPIN_2")).exists() else 1
    snapshot = Snapshot(
        label=folder.name,
        cell=cell,
        positions=positions,
        numbers=np.array([atomic_numbers[symbol] for symbol in symbols]),
        shells=shells_of_elements(symbols, shells, log),
        spinful=spins == 2,
        fermi_energy=float(fermi[-1]) * HARTREE if fermi else None,
        occupation=float(sum(int(n) for n in electrons[:spins])) if electrons else None,
        info={"code": "CP2K"} | ({"collinear": True} if spins == 2 else {}),
    )
    if not matrices:
        return snapshot
    orbitals = Orbitals.of_shells(shells, CP2K_ORDER)
    # The cell that each atom of the input is in, where atoms of the file are in the home cell.
    shift = -np.round(positions @ np.linalg.inv(cell)).astype(np.int64)
    channels = [_matrix(path, text, log, "KS", spin, orbitals, shift, HARTREE) for spin in range(1, spins + 1)]
    overlap = _matrix(path, text, log, "S", 1, orbitals, shift, 1.0)
    hamiltonian = channels[0] if spins == 1 else two_channels(*channels)
    snapshot.hamiltonian, snapshot.overlap = on_pairs_of(overlap, hamiltonian, orbitals)
    return snapshot


def _output(folder: Path) -> tuple[Path, str]:
    """The output file of the calculation: the newest that has CP2K's tables of R."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".out", ".log", ".txt", "") and path.stat().st_size < 2**30:
            text = path.read_text(errors="replace")
            if "KS CSR write|" in text and "CELL|" in text:
                found.append((path, text[max(0, text.rfind("PROGRAM STARTED AT")) :]))  # runs may be appended
    if not found:
        raise HamfastError(
            f"{folder}: expected CP2K's output (*.out) with the tables `KS CSR write|` beside the matrices, found none; "
            "it alone says which lattice vector each file has"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path, _ in found)
        raise HamfastError(f"{folder}: expected one output of CP2K, found {names}")
    return found[0]


def _atoms(text: str, log: Path) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    """The cell in angstrom, and the kind, the element and the position of each atom."""
    vectors = re.findall(r"CELL\| Vector ([abc]) \[angstrom\]:\s+(\S+)\s+(\S+)\s+(\S+)", text)
    if len(vectors) < 3:
        raise HamfastError(f"{log}: expected the lines `CELL| Vector a [angstrom]`, found {len(vectors)} of 3")
    cell = _finer(np.array([[float(x) for x in v[1:]] for v in vectors[:3]]), text)
    table = re.search(r"ATOMIC COORDINATES IN ANGSTROM\s*\n\s*\n.*\n((?:\s*\n)?(?:\s+\d+\s+\d+\s+\S+.*\n)+)", text)
    names = dict(re.findall(r"^\s*(\d+)\. Atomic kind: (\S+)", text, re.MULTILINE))
    if table is None or not names:
        raise HamfastError(f"{log}: expected the table ATOMIC COORDINATES IN ANGSTROM and the kinds, found none")
    rows = [line.split() for line in table[1].splitlines() if line.split()]
    kinds = [names[row[1]] for row in rows]
    symbols = [element_symbol(row[2], log) for row in rows]
    return cell, kinds, symbols, np.array([[float(x) for x in row[4:7]] for row in rows])


def _digits(folder: Path, cell: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cell and positions with the digits of those input or restart files that agree with them."""
    for path in sorted([*folder.glob("*.inp"), *folder.glob("*.restart")]):
        text = read_text(path)
        found = re.search(r"&CELL\b(.*?)&END", text, re.DOTALL | re.IGNORECASE)
        given = _given_cell(found[1]) if found else None
        if given is not None and np.abs(given - cell).max() < 6e-4:
            cell = given
        found = re.search(r"&COORD\b(.*?)&END", text, re.DOTALL | re.IGNORECASE)
        rows = [re.split(r"[!#]", line)[0].split() for line in found[1].splitlines()] if found else []
        try:
            coordinates = np.array([[float(x) for x in row[1:4]] for row in rows if len(row) >= 4])
        except ValueError:
            continue
        for own in (coordinates, coordinates @ cell if coordinates.ndim == 2 else coordinates):  # SCALED is the second
            if own.shape == positions.shape and np.abs(own - positions).max() < 1e-4:
                positions = own
    return cell, positions


def _given_cell(section: str) -> np.ndarray | None:
    """The cell of a section &CELL in angstrom; None if it has neither vectors nor right angles."""
    lines = [re.split(r"[!#]", line)[0].split() for line in section.splitlines()]
    words = {line[0].upper(): line[1:] for line in lines if line}
    try:
        if all(name in words for name in "ABC"):
            return np.array([[float(x) for x in words[name] if not x.startswith("[")][:3] for name in "ABC"])
        if "ABC" in words and "ALPHA_BETA_GAMMA" not in words:
            return np.diag([float(x) for x in words["ABC"] if not x.startswith("[")][:3])
    except ValueError:
        pass
    return None


def _finer(cell: np.ndarray, text: str) -> np.ndarray:
    """The cell, whose vectors have three decimals, with the lengths and angles that have six."""
    from ase.geometry import cellpar_to_cell

    lengths = re.findall(r"CELL\| Vector [abc] \[angstrom\]:.*\|[abc]\| =\s+(\S+)", text)[:3]
    angles = re.findall(r"CELL\| Angle \([abc],[abc]\), (?:alpha|beta|gamma) +\[degree\]:\s+(\S+)", text)[:3]
    if len(lengths) < 3 or len(angles) < 3:
        return cell
    own = cellpar_to_cell([float(x) for x in [*lengths, *angles]])
    left, _, right = np.linalg.svd(own.T @ cell)  # the rotation that turns it into the printed one
    found = own @ left @ right
    return found if np.abs(found - cell).max() < 2e-3 else cell


def _basis(text: str, log: Path) -> dict[str, tuple[int, ...]]:
    """Kind -> l of its shells, from the tables of the basis sets."""
    found = {}
    parts = re.split(r"^\s*\d+\. Atomic kind: (\S+).*$", text, flags=re.MULTILINE)
    for kind, table in zip(parts[1::2], parts[2::2], strict=True):
        own = re.search(r"Orbital Basis Set(.*?)(?:Auxiliary|GTH Potential|Atomic covalent|\Z)", table, re.DOTALL)
        if own is None:
            continue
        shells: dict[tuple[int, int], int] = {}
        for one, two, name in re.findall(r"^\s+(\d+)\s+(\d+)\s+(\d*[spdfgh])\S*\s+\d", own[1], re.MULTILINE):
            shells.setdefault((int(one), int(two)), "spdfgh".index(name[-1]))
        if shells:
            found[kind] = tuple(shells.values())
    return found


def _cells(text: str, log: Path, kind: str) -> np.ndarray:
    """``[images, 3]``: R of each file, counted from 1 there."""
    tables = re.findall(
        rf"{kind} CSR write\|\s+(\d+) periodic images\s*\n.*\n((?:\s+\d+\s+-?\d+\s+-?\d+\s+-?\d+\s*\n)+)", text
    )
    if not tables:
        raise HamfastError(f"{log}: expected the table `{kind} CSR write|`, found none; was REAL_SPACE .TRUE. set?")
    count, body = tables[-1]
    rows = np.array([line.split() for line in body.splitlines() if line.strip()], dtype=np.int64)
    if len(rows) != int(count):
        raise HamfastError(
            f"{log}: expected {count} lattice vectors in the table `{kind} CSR write|`, found {len(rows)}"
        )
    return rows[np.argsort(rows[:, 0]), 1:]


def _matrix(path, text, log, kind, spin, orbitals: Orbitals, shift: np.ndarray, unit: float) -> BlockMatrix:
    """A matrix from all of its files."""
    found = _MATRIX.match(path.name)
    assert found is not None
    cells = _cells(text, log, kind)
    dash = "-" if f"{found[1]}-KS" in path.name else ""
    parts: list[tuple[np.ndarray, ...]] = []
    for n, R in enumerate(cells, 1):
        file = path.parent / f"{found[1]}{dash}{kind}_SPIN_{spin}_R_{n}-{found[5]}_{found[6]}.csr"
        rows, columns, values = _elements(file, len(orbitals.atoms))
        i, j = orbitals.atoms[rows], orbitals.atoms[columns]
        parts.append((R + shift[j] - shift[i], rows, columns, values * unit))
    R, rows, columns, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not (rows > columns).any():  # UPPER_TRIANGULAR: of each two that are equal one is there
        above = rows < columns
        R = np.concatenate([R, -R[above]])
        rows, columns = np.concatenate([rows, columns[above]]), np.concatenate([columns, rows[above]])
        values = np.concatenate([values, values[above]])
    return block_matrix(orbitals, R, rows, columns, values)


_RECORD = np.dtype([("begin", "<i4"), ("row", "<i4"), ("column", "<i4"), ("value", "<f8"), ("end", "<i4")])


def _elements(path: Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns, from 0, and values."""
    if not path.is_file():
        raise HamfastError(f"{path}: expected a file for each lattice vector, this one is not there")
    content = path.read_bytes()
    if not content.strip():
        raise HamfastError(f"{path}: is empty: the calculation or the copy was not finished")
    if content[:4] == b"\x10\0\0\0":
        if len(content) % _RECORD.itemsize:
            raise HamfastError(f"{path}: ends in the middle of a record: the calculation or the copy was not finished")
        data = np.frombuffer(content, _RECORD)
        rows, columns, values = (data[name] for name in ("row", "column", "value"))
        whole = bool((data["begin"] == 16).all() and (data["end"] == 16).all())
    else:
        try:
            table = np.array(content.split(), dtype=np.float64).reshape(-1, 3)
        except ValueError as error:
            raise HamfastError(f"{path}: expected lines `row column value`, found {error}") from error
        rows, columns, values = table[:, 0], table[:, 1], table[:, 2]
        whole = True
    rows, columns = rows.astype(np.int64) - 1, columns.astype(np.int64) - 1
    if not whole or (
        len(rows) and not (min(rows.min(), columns.min()) >= 0 and max(rows.max(), columns.max()) < count)
    ):
        raise HamfastError(
            f"{path}: expected rows and columns from 1 to {count}, the orbitals of the output, found others"
        )
    return rows, columns, np.asarray(values, dtype=np.float64)
