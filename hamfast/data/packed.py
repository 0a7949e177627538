"""``structures.sqlite``: the structures of a data set in one file.

A structure has the path ``structures.sqlite/<label>``, as if the file were the folder above it. The
public names are those of :class:`hamfast.data.formats.Format`.

Two tables: labels with a checksum of all that a calculation has made, and the parts of structures.
A part is an array or several with a checksum (:mod:`hamfast.data.array_bytes`): the structure
without matrices; of each matrix its pairs with the shapes of their blocks; and its entries. So what
is read is what is wanted, and a prediction is written without moving what was there. Each part says
whose it is, as SQLite itself has no checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hamfast.data.array_bytes import pack_arrays, unpack_arrays
from hamfast.data.blocks import BlockMatrix
from hamfast.data.checked import usual_precision
from hamfast.data.snapshot import Snapshot
from hamfast.data.sqlite_file import SqliteFile
from hamfast.errors import HamfastError

STRUCTURES = "structures.sqlite"
NAME, FILE = "packed", f"a structure's label in {STRUCTURES}"
STRUCTURE, HAMILTONIAN, OVERLAP, PREDICTION = "structure", "hamiltonian", "overlap", "hamiltonian_pred"
FILES: tuple[str, ...] = (STRUCTURE, HAMILTONIAN, OVERLAP, PREDICTION)
"""Names of parts, of which those of matrices go on with ``.pairs`` and ``.entries``."""
LARGEST = 10**9 - 10**6
"""Bytes of a part: SQLite takes 1e9 in a row."""


class Row(NamedTuple):
    """A structure as the file holds it."""

    label: str
    checksum: str
    """Of all parts but a prediction."""
    parts: dict[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(map(len, self.parts.values()))


class _File(SqliteFile):
    """The file; it has its tables, or is made if that is wanted.

    Raises:
        HamfastError: it is missing, damaged or something else, or cannot be written.
    """

    APPLICATION = 0x68616D73
    """The letters hams."""
    FORMAT = 1
    TABLES = (
        "CREATE TABLE structures (id INTEGER PRIMARY KEY, label TEXT NOT NULL UNIQUE, checksum TEXT NOT NULL)",
        "CREATE TABLE parts (structure INTEGER NOT NULL, name TEXT NOT NULL, content BLOB NOT NULL, "
        "UNIQUE (structure, name))",
        "CREATE TRIGGER parts_go_along AFTER DELETE ON structures BEGIN "
        "DELETE FROM parts WHERE structure = old.id; END",
    )
    PAGE = 4096
    """Of small structures, of which pages of 64 KiB would leave half of the file empty."""
    WHAT, ADVICE = "structures", "move it away, or choose another folder"

    def __init__(self, path: Path, make: bool):
        super().__init__(path)
        self.refuse_others()
        if make:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise HamfastError(f"{path}: cannot be written ({error.strerror or error})") from error
        elif not path.is_file():
            raise HamfastError(f"{path}: file not found")
        with self.saying("written" if make else "read"):
            found = self.format()
            if found is None and make:
                self.make_tables()
            elif found != self.FORMAT:
                there = "an empty file" if found is None else f"format {found}"
                raise HamfastError(f"{path}: expected structures in format {self.FORMAT}, found {there}")

    @contextlib.contextmanager
    def saying(self, what: str, label: str | None = None) -> Iterator[None]:
        """Errors of SQLite as sentences that name the file, and a structure."""
        where = self.path if label is None else self.path / label
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.InterfaceError) as error:
            raise HamfastError(f"{where}: cannot be {what} ({error})") from error
        except (sqlite3.Error, OverflowError) as error:
            raise HamfastError(f"{where}: damaged ({error})") from error


_FILES: dict[Path, _File] = {}
"""Those that were opened; each process has its own connections to them."""


def _opened(path: Path, make: bool = False) -> _File:
    """A file, which stays open; where another one has its name now, that one."""
    found = _FILES.get(path)
    if found is None or found.opened is None or found.inode() != found.opened:
        if found is not None:
            found.close()
        found = _FILES[path] = _File(path, make)
    return found


# --- the file as a whole
# -------------------------------------------------------------------------------------------------


def is_packed(path: Path) -> bool:
    """Is this a file of structures?"""
    return path.name == STRUCTURES and path.is_file()


def make(path: Path) -> None:
    """Makes a file without structures, where there is none.

    Raises:
        HamfastError: it cannot be written, or is something else.
    """
    _opened(path, make=True)


def structures(path: Path) -> list[Path]:
    """The paths of all structures in a file, sorted by label.

    Raises:
        HamfastError: it is damaged, or no such file.
    """
    file = _opened(path)
    with file.saying("read"):
        rows = file.connection().execute("SELECT label FROM structures").fetchall()
    return [path / label for label in sorted(label for (label,) in rows)]


def checksums(folders: Sequence[Path]) -> dict[Path, str]:
    """Of those of the structures that are in such a file, by one query for each file.

    Raises:
        HamfastError: a file is damaged, or has no such structure.
    """
    known: dict[Path, dict[str, str]] = {}
    for path in {folder.parent for folder in folders}:
        if is_packed(path):
            file = _opened(path)
            with file.saying("read"):
                known[path] = dict(file.connection().execute("SELECT label, checksum FROM structures").fetchall())
    found = {}
    for folder in folders:
        own = known.get(folder.parent)
        if own is not None:
            if folder.name not in own:
                raise _missing(folder)
            found[folder] = own[folder.name]
    return found


def row_of(snapshot: Snapshot, label: str, prediction: BlockMatrix | None = None, compress: bool = True) -> Row:
    """A structure as the file holds it.

    Args:
        snapshot: the structure, with the matrices that it has.
        label: its name.
        prediction: the predicted Hamiltonian, if there is one.
        compress: all parts, where that pays.

    Raises:
        HamfastError: the label cannot be one, or a matrix is too large for the file.
    """
    if label[:1] in ("", ".") or "/" in label or "\0" in label or not label.isprintable():
        raise HamfastError(f"{label!r}: expected a label in printable letters, without / and with no dot in front")
    matrices = {HAMILTONIAN: snapshot.hamiltonian, OVERLAP: snapshot.overlap}
    there = {name: matrix for name, matrix in matrices.items() if matrix is not None}
    header = {
        "shells": [[int(z), list(ls)] for z, ls in snapshot.shells.items()],
        "spinful": snapshot.spinful,
        "fermi_energy": snapshot.fermi_energy,
        "occupation": snapshot.occupation,
        "info": snapshot.info,
        "matrices": list(there),
    }
    arrays = {
        "cell": snapshot.cell.astype(np.float64),
        "positions": snapshot.positions.astype(np.float64),
        "numbers": snapshot.numbers,
    }
    parts = {STRUCTURE: _part(label, STRUCTURE, arrays, compress, header)}
    for name, matrix in there.items():
        parts |= _parts(matrix, name, label, compress)
    own = hashlib.sha256()
    for content in parts.values():
        own.update(hashlib.sha256(content).digest())
    if prediction is not None:
        parts |= _parts(prediction, PREDICTION, label, compress)
    return Row(label, own.hexdigest()[:32], parts)


def _parts(matrix: BlockMatrix, name: str, label: str, compress: bool) -> dict[str, bytes]:
    contents = {
        f"{name}.pairs": {"pairs": matrix.pairs, "shapes": matrix.shapes},
        f"{name}.entries": {"entries": matrix.entries},
    }
    return {part: _part(label, part, arrays, compress) for part, arrays in contents.items()}


def _part(label: str, name: str, arrays: dict[str, np.ndarray], compress: bool, header: dict | None = None) -> bytes:
    content = pack_arrays({"label": label, "part": name} | (header or {}), arrays, compress)
    if len(content) > LARGEST:
        raise HamfastError(
            f"{label}: {name} has {len(content):,} bytes; {STRUCTURES} takes {LARGEST:,} at most, folders any number"
        )
    return content


def keep(path: Path, rows: Iterable[Row]) -> None:
    """Writes structures in place of those of the same labels: all of them, or none.

    Args:
        path: of the file, which is made where there is none.
        rows: the structures.

    Raises:
        HamfastError: the file cannot be written, or is something else.
    """
    file = _opened(path, make=True)
    with file.saying("written"), file.writing() as table:
        for row in rows:
            table.execute("DELETE FROM structures WHERE label = ?", (row.label,))
            insert = "INSERT INTO structures (label, checksum) VALUES (?, ?)"
            number = table.execute(insert, (row.label, row.checksum)).lastrowid
            contents = ((number, name, content) for name, content in row.parts.items())
            table.executemany("INSERT INTO parts VALUES (?, ?, ?)", contents)


# --- one structure
# -------------------------------------------------------------------------------------------------


def is_this_layout(folder: Path) -> bool:
    """Is this path one in a file of structures? Whether the label is there is found by reading."""
    return is_packed(folder.parent)


def has_prediction(folder: Path) -> bool:
    """Does a structure have a predicted Hamiltonian?"""
    return f"{PREDICTION}.pairs" in _read(folder, f"{PREDICTION}.pairs")


def read(folder: Path, hamiltonian: str | None = HAMILTONIAN) -> Snapshot:
    """Reads one structure; matrices that are not there are None.

    Args:
        folder: the path of the structure.
        hamiltonian: the name of the Hamiltonian; None to leave it out.
    """
    matrices = [name for name in (hamiltonian, OVERLAP) if name is not None]
    found = _read(folder, STRUCTURE, *(f"{name}.{part}" for name in matrices for part in ("pairs", "entries")))
    with _damaged(folder):
        snapshot, there = _structure(found, folder.name)
        if hamiltonian in there or f"{hamiltonian}.pairs" in found:
            snapshot.hamiltonian = _matrix(found, folder.name, str(hamiltonian))
        if OVERLAP in there:
            snapshot.overlap = _matrix(found, folder.name, OVERLAP)
        return snapshot


def read_structure(folder: Path) -> Snapshot:
    """Reads all but the matrices."""
    found = _read(folder, STRUCTURE)
    with _damaged(folder):
        return _structure(found, folder.name)[0]


def read_pairs(folder: Path) -> np.ndarray | None:
    """``[pairs, 5]`` int64: the atom pairs of the Hamiltonian, or else of the overlap."""
    found = _read(folder, STRUCTURE, f"{HAMILTONIAN}.pairs", f"{OVERLAP}.pairs")
    with _damaged(folder):
        _, there = _structure(found, folder.name)
        return _pairs(found, folder.name, there[0])[0] if there else None


def write(snapshot: Snapshot, folder: Path) -> None:
    """Writes one structure, in place of one of the same label; matrices keep their dtype."""
    keep(folder.parent, [row_of(snapshot, folder.name)])


def write_prediction(snapshot: Snapshot, matrix: BlockMatrix, folder: Path, compress: bool = True) -> Path:
    """Writes a predicted Hamiltonian to the structure's other parts; returns its path."""
    parts = _parts(matrix, PREDICTION, folder.name, compress)
    file = _opened(folder.parent)
    with file.saying("written", folder.name), file.writing() as table:
        found = table.execute("SELECT id FROM structures WHERE label = ?", (folder.name,)).fetchone()
        if found is None:
            raise _missing(folder)
        contents = ((*found, name, content) for name, content in parts.items())
        table.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", contents)
    return folder / PREDICTION


def _missing(folder: Path) -> HamfastError:
    return HamfastError(f"{folder.parent}: no structure {folder.name!r} in it")


def _read(folder: Path, *names: str) -> dict[str, bytes]:
    """Those of the parts that a structure has."""
    file = _opened(folder.parent)
    query = (
        "SELECT name, content FROM structures LEFT JOIN parts ON structure = id "
        f"AND name IN ({', '.join('?' * len(names))}) WHERE label = ?"
    )
    with file.saying("read", folder.name):
        rows = file.connection().execute(query, (*names, folder.name)).fetchall()
    if not rows:
        raise _missing(folder)
    return {name: content for name, content in rows if name is not None}


@contextlib.contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    """What bytes that are no parts make of themselves, as a sentence with file and label."""
    try:
        yield
    except HamfastError as error:
        raise HamfastError(f"{folder}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise HamfastError(f"{folder}: damaged ({' '.join(str(error).split()) or type(error).__name__})") from error


def _arrays(found: dict[str, bytes], label: str, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The header and the arrays of a part."""
    if name not in found:
        raise ValueError(f"there is no part {name}")
    header, arrays = unpack_arrays(found[name])
    if (header["label"], header["part"]) != (label, name):
        raise ValueError(f"{name} is that of {header['label']}")
    return header, arrays


def _structure(found: dict[str, bytes], label: str) -> tuple[Snapshot, list[str]]:
    """The structure, and which matrices it has."""
    header, arrays = _arrays(found, label, STRUCTURE)
    snapshot = Snapshot(
        label=label,
        cell=np.array(arrays["cell"], np.float64),
        positions=np.array(arrays["positions"], np.float64),
        numbers=arrays["numbers"].astype(np.int64),
        shells={z: tuple(ls) for z, ls in header["shells"]},
        spinful=header["spinful"],
        fermi_energy=header["fermi_energy"],
        occupation=header["occupation"],
        info=header["info"],
    )
    return snapshot, header["matrices"]


def _matrix(found: dict[str, bytes], label: str, name: str) -> BlockMatrix:
    pairs, shapes = _pairs(found, label, name)
    boundaries = np.concatenate([[0], np.cumsum(shapes[:, 0] * shapes[:, 1])]).astype(np.int64)
    entries = np.array(_arrays(found, label, f"{name}.entries")[1]["entries"])
    return BlockMatrix(pairs, shapes, boundaries, usual_precision(entries))


def _pairs(found: dict[str, bytes], label: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pairs ``[pairs, 5]`` and shapes ``[pairs, 2]``, int64 both."""
    arrays = _arrays(found, label, f"{name}.pairs")[1]
    return arrays["pairs"].astype(np.int64), arrays["shapes"].astype(np.int64)
