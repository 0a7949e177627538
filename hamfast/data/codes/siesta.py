"""SIESTA 4 and 5: ``.TSHS``, ``.HSX`` or ``.nc``.

``TS.HS.Save T`` writes the first, in double precision; ``SaveHS T`` the second. The package sisl
reads them, but for ``.HSX`` of SIESTA 4, which lacks the cell: there it comes from ``.XV``, and the
Fermi level from ``.EIG``. Shells come from ``.ORB_INDX``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from hamfast.data.codes.native import (
    Orbitals,
    block_matrix,
    element_symbol,
    on_pairs_of,
    one_of,
    opened,
    shells_of_elements,
)
from hamfast.data.h5 import read_text
from hamfast.data.orbitals import SIESTA_ORDER
from hamfast.data.snapshot import Snapshot
from hamfast.errors import DataWarning, HamfastError

NAME, FILE = "siesta", "*.TSHS, *.HSX or *.nc"
RYDBERG, BOHR = 13.60580, 0.529177
"""eV and angstrom, as SIESTA 4 has them."""
SISL_RYDBERG = 13.605693122994
"""eV (CODATA 2018), as sisl and SIESTA 5 have it."""


def main_file(folder: Path) -> Path | None:
    """The file of the matrices: ``.TSHS``, else ``.nc``, else ``.HSX``, which has fewer digits."""
    for end in ("TSHS", "nc", "HSX"):
        found = sorted(p for p in folder.glob(f"*.{end}") if end != "nc" or _is_siesta(p))
        if found:
            return one_of(found, folder, f"*.{end} of SIESTA")
    return None


def _is_siesta(path: Path) -> bool:
    return any(path.with_suffix(end).exists() for end in (".ORB_INDX", ".XV", ".EIG", ".HSX"))


def read(path: Path, matrices: bool) -> Snapshot:
    """Reads a calculation; see :class:`hamfast.data.codes.native.Code`."""
    output = _finished_output(path)
    index = path.with_suffix(".ORB_INDX")
    if not index.is_file():
        raise HamfastError(f"{index}: expected SIESTA's list of orbitals beside {path.name}, found no such file")
    labels, shells = _basis(index)
    found = _old_hsx(path, labels) if path.suffix == ".HSX" and _hsx_version(path) == 0 else _with_sisl(path)
    orbitals = Orbitals.of_shells(shells, SIESTA_ORDER)
    if len(found.positions) != len(labels) or found.orbitals != len(orbitals.atoms):
        raise HamfastError(
            f"{path}: has {len(found.positions)} atoms with {found.orbitals} orbitals, {index.name} {len(labels)} atoms "
            f"with {len(orbitals.atoms)}"
        )
    symbols = _elements(path.with_suffix(".XV"), labels) or [element_symbol(label, index) for label in labels]
    snapshot = Snapshot(
        label=path.parent.name,
        cell=found.cell,
        positions=found.positions,
        numbers=np.array([atomic_numbers[symbol] for symbol in symbols]),
        shells=shells_of_elements(symbols, shells, index),
        spinful=found.hamiltonian.ndim == 3,
        fermi_energy=found.fermi,
        occupation=found.electrons if found.electrons is not None else _electrons(output),
        info={"code": "SIESTA"} | ({"collinear": True} if found.collinear else {}),
    )
    if not matrices:
        return snapshot
    overlap = block_matrix(orbitals, found.R, found.rows, found.columns, found.overlap)
    hamiltonian = block_matrix(orbitals, found.R, found.rows, found.columns, found.hamiltonian)
    snapshot.hamiltonian, snapshot.overlap = on_pairs_of(overlap, hamiltonian, orbitals)
    return snapshot


class _Content(NamedTuple):
    """What a file of matrices holds, in eV and angstrom."""

    cell: np.ndarray
    positions: np.ndarray
    orbitals: int
    R: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    overlap: np.ndarray
    hamiltonian: np.ndarray
    """``[elements]``, or ``[elements, 2, 2]`` with spin."""
    collinear: bool
    fermi: float | None
    electrons: float | None


def _check_tshs(path: Path) -> None:
    """Raises HamfastError if the sizes in the head are not those of such a file.

    sisl would take them as they are, and hang or end the process.
    """
    with opened(path) as file:
        head = np.frombuffer(file.read(36), "<i4")
    size = path.stat().st_size
    atoms, orbitals, _, spins, elements = head[4:9].tolist() if len(head) == 9 else (0,) * 5
    if not (0 < atoms <= orbitals <= elements and 1 <= spins <= 8 and 8 * elements * (spins + 1) <= size):
        raise HamfastError(f"{path}: damaged or cut: its head names {elements} elements of {orbitals} orbitals")


def _with_sisl(path: Path) -> _Content:
    if path.suffix == ".TSHS":
        _check_tshs(path)
    try:
        import sisl
    except ImportError as error:
        raise HamfastError(
            f"{path}: files of SIESTA are read by the package sisl, which is not there: pip install sisl"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            file = sisl.get_sile(path)
            matrix = file.read_hamiltonian()
            fermi = float(np.max(file.read_fermi_level()))  # a .nc has one for each spin
        except Exception as error:  # sisl raises what its Fortran code or its parser stumbles on
            words = " ".join(str(error).split())
            raise HamfastError(f"{path}: sisl cannot read it ({type(error).__name__}: {words})") from error
    # SIESTA's rydberg depends on its version; the Fermi level in eV beside the file tells which.
    own = _fermi_level(path)
    units = (1.0, RYDBERG / SISL_RYDBERG)
    unit = 1.0 if own is None else min(units, key=lambda u: abs(fermi * u - own))
    if own is not None and abs(fermi * unit - own) > 1e-3:
        raise HamfastError(
            f"{path}: has the Fermi level {fermi * unit:.4f} eV, the .EIG or .bands beside it {own:.4f}: of two calculations?"
        )
    geometry, spin = matrix.geometry, matrix.spin
    parts = [matrix.tocsr(n).tocsr() for n in range(matrix.shape[2])]
    pattern = sum(abs(part) for part in parts).tocoo()
    rows, columns = pattern.row, pattern.col
    *h, s = (np.asarray(part[rows, columns]).ravel() for part in parts)
    if spin.is_unpolarized:
        energies = h[0]
    else:
        energies = np.zeros((len(rows), 2, 2), dtype=np.complex128)
        energies[:, 0, 0], energies[:, 1, 1] = h[0], h[1]
        if not spin.is_polarized:
            energies[:, 0, 1], energies[:, 1, 0] = h[2] + 1j * h[3], h[2] - 1j * h[3]
        if spin.is_spinorbit:
            energies[:, 0, 0] += 1j * h[4]
            energies[:, 1, 1] += 1j * h[5]
            energies[:, 1, 0] = h[6] + 1j * h[7]
    # sisl counts energies from the Fermi level.
    shift = fermi * s
    energies = energies + (shift if energies.ndim == 1 else shift[:, None, None] * np.eye(2))
    return _Content(
        cell=np.array(geometry.cell, dtype=np.float64),
        positions=np.array(geometry.xyz, dtype=np.float64),
        orbitals=int(geometry.no),
        R=np.asarray(geometry.lattice.sc_off)[columns // geometry.no],
        rows=rows,
        columns=columns % geometry.no,
        overlap=s,
        hamiltonian=energies * unit,
        collinear=bool(spin.is_polarized),
        fermi=fermi * unit,
        electrons=None,
    )


# --- .HSX of SIESTA 4, which has neither cell nor Fermi level
# -------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[bytes]:
    """The records of a Fortran file."""
    with opened(path) as file:
        while head := file.read(4):
            size = int.from_bytes(head, "little")
            content = file.read(size + 4)
            if len(content) != size + 4 or content[-4:] != head:
                raise HamfastError(
                    f"{path}: ends in the middle of a record: the calculation or the copy was not finished"
                )
            yield content[:-4]


def _hsx_version(path: Path) -> int:
    """0 of SIESTA 4; later ones begin with their version."""
    with opened(path) as file:
        return 0 if file.read(4) == (16).to_bytes(4, "little") else 1


def _old_hsx(path: Path, labels: list[str]) -> _Content:
    records = _records(path)

    def integers() -> np.ndarray:
        return np.frombuffer(next(records), "<i4").astype(np.int64)

    def reals() -> np.ndarray:
        return np.frombuffer(next(records), "<f4").astype(np.float64)

    try:
        orbitals, _, spins, elements = integers().tolist()
        gamma = bool(integers()[0])
        home = None if gamma else integers() - 1
        counts = integers()
        columns = np.concatenate([integers() for _ in range(orbitals)]) - 1
        if counts.sum() != elements or len(columns) != elements or spins not in (1, 2, 4, 8):
            raise HamfastError(
                f"{path}: damaged: {elements} elements, rows with {counts.sum()}, {spins} spin components"
            )
        h = [np.concatenate([reals() for _ in range(orbitals)]) * RYDBERG for _ in range(spins)]
        s = np.concatenate([reals() for _ in range(orbitals)])
        electrons = float(np.frombuffer(next(records), "<f8")[0])
        vectors = np.concatenate([reals() for _ in range(orbitals)]).reshape(-1, 3) * BOHR
    except StopIteration:
        raise HamfastError(f"{path}: ends in the middle: the calculation or the copy was not finished") from None
    rows = np.repeat(np.arange(orbitals), counts)
    columns = columns if home is None else home[columns]
    cell, positions = _structure(path.with_suffix(".XV"))
    atom = _atom_of_orbitals(path.with_suffix(".ORB_INDX"))
    offset = (vectors - positions[atom[columns]] + positions[atom[rows]]) @ np.linalg.inv(cell)
    R = np.round(offset).astype(np.int64)
    if np.abs(offset - R).max() > 1e-3:
        raise HamfastError(
            f"{path}: the vectors between its orbitals do not fit {path.stem}.XV: of another calculation?"
        )
    if spins == 1:
        energies = h[0]
    else:
        energies = np.zeros((elements, 2, 2), dtype=np.complex128)
        energies[:, 0, 0], energies[:, 1, 1] = h[0], h[1]
        # SIESTA's matrix is that of <column | H | row>, with the conjugate phase.
        if spins >= 4:
            energies[:, 1, 0] = h[2] + 1j * h[3]
            energies[:, 0, 1] = h[2] - 1j * h[3]
        if spins == 8:
            energies[:, 0, 0] = h[0] - 1j * h[4]
            energies[:, 1, 1] = h[1] - 1j * h[5]
            energies[:, 0, 1] = h[6] - 1j * h[7]
    fermi = _fermi_level(path)
    return _Content(cell, positions, orbitals, R, rows, columns, s, energies, spins == 2, fermi, electrons)


def _elements(path: Path, labels: list[str]) -> list[str] | None:
    """The elements of a ``.XV``, which has their atomic numbers; None if it is not there."""
    if not path.is_file():
        return None
    lines = [line.split() for line in read_text(path).splitlines()]
    found = [chemical_symbols[int(line[1])] for line in lines[4:] if len(line) >= 5]
    if len(found) != len(labels):
        raise HamfastError(f"{path}: has {len(found)} atoms, .ORB_INDX {len(labels)}: of two calculations?")
    return found


def _structure(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Cell and positions of a ``.XV``, in angstrom."""
    try:
        lines = [line.split() for line in read_text(path).splitlines()]
        cell = np.array([[float(x) for x in line[:3]] for line in lines[:3]]) * BOHR
        count = int(lines[3][0])
        positions = np.array([[float(x) for x in line[2:5]] for line in lines[4 : 4 + count]]) * BOHR
        if positions.shape != (count, 3):
            raise ValueError(f"{count} atoms were announced, {len(positions)} are there")
    except (IndexError, ValueError) as error:
        raise HamfastError(f"{path}: not a readable .XV ({error})") from error
    return cell, positions


# --- the files beside
# -------------------------------------------------------------------------------------------------


def _rows(path: Path) -> list[list[str]]:
    """The rows of ``.ORB_INDX`` for the orbitals of the home cell."""
    lines = [line.split() for line in read_text(path).splitlines()]
    try:
        count = int(lines[0][0])
        rows = [words for words in lines[1:] if len(words) >= 15 and words[0].isdecimal()][:count]
        if len(rows) != count:
            raise ValueError(f"{count} orbitals were announced, {len(rows)} are there")
    except (IndexError, ValueError) as error:
        raise HamfastError(f"{path}: not a readable list of orbitals ({error})") from error
    return rows


def _atom_of_orbitals(path: Path) -> np.ndarray:
    return np.array([int(row[1]) - 1 for row in _rows(path)])


def _basis(path: Path) -> tuple[list[str], list[tuple[int, ...]]]:
    """The species of each atom, and the l of its shells."""
    labels: dict[int, str] = {}
    shells: dict[int, list[int]] = {}
    for row in _rows(path):
        atom, l, m = int(row[1]) - 1, int(row[6]), int(row[7])
        labels[atom] = row[3]
        if m == -l:
            shells.setdefault(atom, []).append(l)
    return [labels[a] for a in sorted(labels)], [tuple(shells[a]) for a in sorted(labels)]


def _fermi_level(path: Path) -> float | None:
    """eV, from ``.EIG``, or else from ``.bands``."""
    for end in (".EIG", ".bands"):
        file = path.with_suffix(end)
        if file.is_file():
            try:
                return float(read_text(file).split()[0])
            except (IndexError, ValueError) as error:
                raise HamfastError(f"{file}: expected the Fermi level in its first line ({error})") from error
    return None


def _output(path: Path) -> tuple[Path, str] | None:
    """SIESTA's output beside a file, and its text."""
    for file in sorted(path.parent.iterdir()):
        if file.is_file() and file.suffix in (".out", ".log", ""):
            text = file.read_text(errors="replace")
            if re.search(r"Siesta Version|^siesta:", text, re.MULTILINE):
                return file, text
    return None


def _finished_output(path: Path) -> str:
    """The text of the output; empty, with a warning, if there is none.

    Raises:
        HamfastError: it says that the calculation did not converge or end.
    """
    found = _output(path)
    if found is None:
        warnings.warn(
            f"{path.parent}: no output of SIESTA: that the SCF converged is not known", DataWarning, stacklevel=2
        )
        return ""
    file, text = found
    if "SCF_NOT_CONV" in text or re.search(r"SCF.*not converged|SCF did not converge", text):
        raise HamfastError(f"{file}: the SCF did not converge; its matrices are not those of DFT")
    if "Job completed" not in text and ">> End of run" not in text:
        raise HamfastError(f"{file}: expected `Job completed` at its end, found none: the calculation did not end")
    return text


def _electrons(output: str) -> float | None:
    counts = re.findall(r"Total number of electrons:\s+(\S+)", output)
    return float(counts[-1]) if counts else None
