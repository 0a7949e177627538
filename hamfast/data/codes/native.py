"""A DFT code's own output folder as a format, and what the readers of all codes share."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from ase.data import atomic_numbers

from hamfast.data import deeph
from hamfast.data.blocks import BlockMatrix
from hamfast.data.orbitals import OrbitalOrder
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

TWICE = 1e-6
"""eV, and plain numbers for S: a code may write an element and its reverse, equal but for this."""


class Code(Protocol):
    """The module of a code."""

    NAME: str
    """What ``hamfast data import --code`` calls it."""
    FILE: str
    """In words, the file by which its folders are known."""

    def main_file(self, folder: Path) -> Path | None:
        """The file by which a folder is known as this code's; None if it is another's.

        Raises:
            HamfastError: there are several, and it cannot be said which one is meant.
        """

    def read(self, path: Path, matrices: bool) -> Snapshot:
        """Reads a calculation, in the units and the orbital order of a :class:`Snapshot`.

        Args:
            path: of the main file.
            matrices: read H and S, too.

        Raises:
            HamfastError: something is missing, damaged, unfinished or of an unknown version.
        """


class NativeFormat:
    """A code's folder as a :class:`hamfast.data.formats.Format`; it is read, never written.

    Copies with predictions are written in the new DeepH layout.
    """

    HAMILTONIAN, PREDICTION = "dft", deeph.PREDICTION
    """The first is no file: a code may have many for its matrices."""
    FILES: tuple[str, ...] = (deeph.PREDICTION,)

    def __init__(self, code: Code):
        self.code, self.NAME, self.FILE = code, code.NAME, code.FILE

    def is_this_layout(self, folder: Path) -> bool:
        """Does a folder hold a calculation of this code?"""
        return self.code.main_file(folder) is not None

    def has_prediction(self, folder: Path) -> bool:
        """Is there a Hamiltonian of ``hamfast predict``?"""
        return deeph.has_prediction(folder)

    def _read(self, folder: Path, matrices: bool) -> Snapshot:
        path = self.code.main_file(folder)
        if path is None:
            raise HamfastError(f"{folder}: expected a calculation of {self.NAME} ({self.FILE}), found none")
        try:
            return self.code.read(path, matrices)
        except (ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
            # What a damaged file makes of sizes and indices has no end.
            words = " ".join(str(error).split())[:200]
            raise HamfastError(
                f"{path}: damaged, or files of two calculations ({type(error).__name__}: {words})"
            ) from error

    def read_structure(self, folder: Path) -> Snapshot:
        """Reads all but the matrices."""
        return self._read(folder, False)

    def read_pairs(self, folder: Path) -> np.ndarray | None:
        """``[pairs, 5]`` int64: the atom pairs of the Hamiltonian."""
        matrix = self._read(folder, True).first_matrix
        return None if matrix is None else matrix.pairs

    def read(self, folder: Path, hamiltonian: str | None = HAMILTONIAN) -> Snapshot:
        """Reads a structure with its matrices; see :class:`hamfast.data.formats.Format`."""
        snapshot = self._read(folder, True)
        if hamiltonian is None:
            snapshot.hamiltonian = None
        elif hamiltonian != self.HAMILTONIAN:
            snapshot.hamiltonian = deeph.read_matrix(folder / hamiltonian)
        return snapshot

    def write(self, snapshot: Snapshot, folder: Path) -> None:
        """Writes a structure in the new DeepH layout."""
        deeph.write(snapshot, folder)

    def write_prediction(self, snapshot: Snapshot, matrix: BlockMatrix, folder: Path, compress: bool = True) -> Path:
        """Writes a predicted Hamiltonian beside the code's files; returns the path."""
        return deeph.write_prediction(snapshot, matrix, folder, compress)


@dataclass(frozen=True)
class Orbitals:
    """Where each orbital of a code's matrices stands in blocks of atoms.

    Args:
        atoms: ``[orbitals]`` the atom of each.
        positions: ``[orbitals]`` its position among the orbitals of its atom, as hamfast has them.
        signs: ``[orbitals]`` +1 or -1.
        shells: of each atom, the l of its shells.
    """

    atoms: np.ndarray
    positions: np.ndarray
    signs: np.ndarray
    shells: list[tuple[int, ...]]

    @staticmethod
    def of_shells(shells: list[tuple[int, ...]], order: OrbitalOrder) -> Orbitals:
        """Atom after atom, shell after shell, in a code's order of the orbitals of a shell."""
        atoms, positions, signs = [], [], []
        for atom, ls in enumerate(shells):
            start = 0
            for l in ls:
                index, sign = order.of(l)
                # The code's orbital index[m] is hamfast's m: so that one stands at m.
                place = np.argsort(index)
                positions.append(start + place)
                signs.append(sign[place])
                atoms.append(np.full(2 * l + 1, atom))
                start += 2 * l + 1
        if not atoms:
            raise HamfastError("expected atoms with orbitals, found none")
        return Orbitals(np.concatenate(atoms), np.concatenate(positions), np.concatenate(signs), shells)

    @property
    def counts(self) -> np.ndarray:
        """``[atoms]``: orbitals of each."""
        return np.array([sum(2 * l + 1 for l in ls) for ls in self.shells])


def block_matrix(
    orbitals: Orbitals, cells: np.ndarray, rows: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> BlockMatrix:
    """Blocks of atoms from single matrix elements ``<row in cell 0 | M | column in cell R>``.

    Elements that are not named are zero. A pair (R, i, j) without its reverse gets the conjugate
    transpose as such.

    Args:
        orbitals: of the code.
        cells: ``[elements, 3]`` R.
        rows, columns: ``[elements]`` orbitals of the home cell, from 0.
        values: ``[elements]``; or ``[elements, 2, 2]`` with spin.
    """
    spins, size = 1 if values.ndim == 1 else values.shape[1], len(orbitals.atoms)
    if not len(rows):
        raise HamfastError("expected matrix elements, found none")
    if min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) >= size:
        raise HamfastError(f"expected rows and columns of {size} orbitals, found others")
    # Codes write zeros for atoms that are too far apart to have anything else.
    there = np.flatnonzero(values.reshape(len(values), -1).any(axis=1))
    cells, rows, columns, values = cells[there], rows[there], columns[there], values[there]
    pairs = np.column_stack([cells, orbitals.atoms[rows], orbitals.atoms[columns]]).astype(np.int64)
    low = pairs.min(axis=0, initial=0)
    size = pairs.max(axis=0, initial=0) - low + 1
    code = np.zeros(len(pairs), dtype=np.int64)
    for column in range(5):
        code = code * size[column] + (pairs[:, column] - low[column])
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    found = pairs[first]
    counts = orbitals.counts
    shapes = counts[found[:, 3:]] * spins
    boundaries = np.concatenate([[0], np.cumsum(shapes[:, 0] * shapes[:, 1])]).astype(np.int64)
    entries = np.zeros(boundaries[-1], dtype=values.dtype)
    signed = values * (orbitals.signs[rows] * orbitals.signs[columns]).reshape(-1, *[1] * (values.ndim - 1))
    n_row, n_column = counts[pairs[:, 3]], counts[pairs[:, 4]]
    for a in range(spins):
        for b in range(spins):
            row = orbitals.positions[rows] + a * n_row
            position = boundaries[which] + row * (spins * n_column) + orbitals.positions[columns] + b * n_column
            own = signed if spins == 1 else signed[:, a, b]
            entries[position] = own
            if np.abs(entries[position] - own).max() > TWICE:
                raise HamfastError("a matrix element is there twice, with two values")
    return with_reverses(BlockMatrix(found, shapes, boundaries, entries))


def with_reverses(matrix: BlockMatrix) -> BlockMatrix:
    """The matrix, with the conjugate transposes of those pairs whose reverse is not there."""
    lacking = [n for n, (a, b, c, i, j) in enumerate(matrix.pairs.tolist()) if (-a, -b, -c, j, i) not in matrix.index]
    if not lacking:
        return matrix
    reverse = matrix.pairs[lacking]
    reverse = np.column_stack([-reverse[:, :3], reverse[:, 4], reverse[:, 3]])
    return matrix.joined(reverse, [matrix.block(n).conj().T for n in lacking])


def on_pairs_of(overlap: BlockMatrix, hamiltonian: BlockMatrix, orbitals: Orbitals) -> tuple[BlockMatrix, BlockMatrix]:
    """H and S; H gets zeros for those pairs that S alone has."""
    lacking = np.array([n for n, p in enumerate(overlap.pairs.tolist()) if tuple(p) not in hamiltonian.index], int)
    if not len(lacking):
        return hamiltonian, overlap
    spins = hamiltonian.shapes[0, 0] // orbitals.counts[hamiltonian.pairs[0, 3]]
    zeros = [np.zeros(overlap.shapes[n] * spins, hamiltonian.entries.dtype) for n in lacking]
    return hamiltonian.joined(overlap.pairs[lacking], zeros), overlap


def two_channels(up: BlockMatrix, down: BlockMatrix) -> BlockMatrix:
    """Two collinear spin channels as one matrix of 2 x 2 spin blocks.

    Pairs that one of them lacks are zero there, as codes leave out small blocks.
    """
    blocks, pairs = [], np.unique(np.concatenate([up.pairs, down.pairs]), axis=0)
    for pair in map(tuple, pairs.tolist()):
        found = [m.block(m.index[pair]) if pair in m.index else None for m in (up, down)]
        zero = np.zeros_like(next(block for block in found if block is not None))
        a, b = (zero if block is None else block for block in found)
        blocks.append(np.block([[a, zero], [zero, b]]).astype(np.complex128))
    return BlockMatrix.from_blocks(pairs, blocks)


def shells_of_elements(symbols: list[str], shells: list[tuple[int, ...]], where: Path) -> dict[int, tuple[int, ...]]:
    """Atomic number -> l of the shells.

    Raises:
        HamfastError: an element is unknown, or two of its atoms have other orbitals.
    """
    found: dict[int, tuple[int, ...]] = {}
    for symbol, ls in zip(symbols, shells, strict=True):
        if symbol not in atomic_numbers or symbol == "X":
            raise HamfastError(f"{where}: expected the symbol of an element, found {symbol!r}")
        if found.setdefault(atomic_numbers[symbol], ls) != ls:
            raise HamfastError(
                f"{where}: {symbol} has two sets of orbitals, {list(found[atomic_numbers[symbol]])} and {list(ls)}; "
                "hamfast knows one for each element"
            )
    return found


def one_of(paths: list[Path], folder: Path, what: str) -> Path | None:
    """The only path; None if there is none.

    Raises:
        HamfastError: there are several.
    """
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths[:3])
        raise HamfastError(f"{folder}: expected one {what}, found {len(paths)}: {names}; give each its own folder")
    return paths[0] if paths else None


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A binary file, also one that ends in .xz.

    Raises:
        HamfastError: it cannot be read.
    """
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise HamfastError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def element_symbol(label: str, where: Path) -> str:
    """The element in a code's name of a species, as carbon in "C.pbe", "C1" or "C_surface".

    Raises:
        HamfastError: no element begins it.
    """
    found = re.match(r"([A-Z][a-z]?)(?![a-z])", label) or re.match(r"([a-z]{1,2})(?![a-zA-Z])", label)
    symbol = found[1].capitalize() if found else ""
    if symbol in atomic_numbers and symbol != "X":
        return symbol
    raise HamfastError(f"{where}: expected a species named after its element, found {label!r}")
