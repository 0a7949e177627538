"""``prepared.sqlite``: the prepared structures of data sets, in one file.

Two tables: what is known about each structure, which is little and read at once; and its graph,
which is large and read when a batch has it. A third one keeps shifts of graphs' targets beside
them, and a fourth one results that took long, by name.
"""

from __future__ import annotations

import json
import sqlite3
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hamfast.data.sqlite_file import SqliteFile
from hamfast.errors import DataWarning, HamfastError

FILE = "prepared.sqlite"
MOST_SHIFTS = 3
"""So many kinds of shifts are kept; another one takes the place of the oldest."""
AT_ONCE = 1000
"""So many rows are deleted in a transaction, for which others wait."""
_KEEP_RESULT = "INSERT OR REPLACE INTO results VALUES (?, ?)"


class Entry(NamedTuple):
    """What is known about a prepared structure."""

    id: int
    """Of its graph."""
    state: str
    """Of its files, when it was prepared."""
    about: str


class Prepared(NamedTuple):
    """A structure that was prepared just now."""

    folder: str
    state: str
    about: str
    graph: bytes | None


class Store(SqliteFile):
    """The file of prepared structures in a folder. It is made where there is none.

    Args:
        folder: that holds the file; it need not be there.

    Raises:
        HamfastError: there is a file of this name that hamfast has not made, or it cannot be
            opened.
    """

    APPLICATION = 0x68616D66
    """The letters hamf."""
    FORMAT = 2
    """Files of another format are made anew."""
    TABLES = (
        "CREATE TABLE structures (id INTEGER PRIMARY KEY AUTOINCREMENT, folder TEXT NOT NULL, kind TEXT NOT NULL, "
        "state TEXT NOT NULL, about TEXT NOT NULL, UNIQUE (folder, kind))",
        "CREATE TABLE graphs (id INTEGER PRIMARY KEY, content BLOB NOT NULL)",
        "CREATE TABLE shifts (name TEXT NOT NULL, graph INTEGER NOT NULL, content BLOB NOT NULL, UNIQUE (name, graph))",
        "CREATE INDEX shifts_of_graph ON shifts (graph)",
        "CREATE TABLE results (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID",
    )
    PAGE = 65536
    WHAT = "prepared structures"
    ADVICE = "move it away, or set data.cache to another folder"
    SYNCHRONOUS = "NORMAL"

    def __init__(self, folder: Path):
        super().__init__(folder / FILE)
        self.refuse_others()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise HamfastError(f"{self.path}: cannot be written ({error.strerror or error}); set data.cache") from error
        except sqlite3.OperationalError as error:
            raise HamfastError(f"{self.path}: cannot be opened ({error}); set data.cache") from error

    def _open(self) -> None:
        """Makes the tables where there are none; makes a damaged or outdated file anew."""
        try:
            found = self.format()
            if found is None:
                self.make_tables()
            elif found != self.FORMAT:
                self.begin_anew(f"of format {found}, this version of hamfast has format {self.FORMAT}")
        except sqlite3.OperationalError:  # locked, or no file that can be opened
            raise
        except sqlite3.DatabaseError as error:
            self.begin_anew(f"damaged ({error})")

    def begin_anew(self, why: str) -> None:
        """Deletes the file and makes an empty one, with a warning."""
        self.close()
        if self.inode() == self.opened:  # else another process has done so
            warnings.warn(f"{self.path}: {why}; all structures are prepared again", DataWarning, stacklevel=2)
            for path in (self.path, self.path.with_name(f"{FILE}-journal")):
                path.unlink(missing_ok=True)
        self._open()

    # --- structures
    # ---------------------------------------------------------------------------------------------

    def entries(self, kind: str) -> dict[str, Entry]:
        """Folder -> what is known about it.

        Args:
            kind: of the preparation, as ``float32``.

        Raises:
            sqlite3.DatabaseError: the file is damaged.
        """
        rows = self.connection().execute("SELECT folder, id, state, about FROM structures WHERE kind = ?", (kind,))
        return {folder: Entry(*rest) for folder, *rest in rows}

    def keep(self, kind: str, prepared: Iterable[Prepared]) -> dict[str, Entry]:
        """Writes prepared structures in place of what there was of their folders.

        Returns:
            Their entries.

        Raises:
            sqlite3.Error: they cannot be written; nothing has changed.
        """
        found = {}
        with self.writing() as file:
            for one in prepared:
                for (old,) in file.execute(
                    "SELECT id FROM structures WHERE folder = ? AND kind = ?", (one.folder, kind)
                ).fetchall():
                    file.execute("DELETE FROM graphs WHERE id = ?", (old,))
                    file.execute("DELETE FROM shifts WHERE graph = ?", (old,))
                    file.execute("DELETE FROM structures WHERE id = ?", (old,))
                number = file.execute(
                    "INSERT INTO structures (folder, kind, state, about) VALUES (?, ?, ?, ?)",
                    (one.folder, kind, one.state, one.about),
                ).lastrowid
                assert number is not None
                if one.graph is not None:
                    file.execute("INSERT INTO graphs VALUES (?, ?)", (number, one.graph))
                found[one.folder] = Entry(number, one.state, one.about)
        return found

    def graph(self, number: int) -> bytes | None:
        """The bytes of a graph; None if there is none.

        Raises:
            sqlite3.DatabaseError: the file is damaged.
        """
        row = self.connection().execute("SELECT content FROM graphs WHERE id = ?", (number,)).fetchone()
        return None if row is None else row[0]

    # --- shifts
    # ---------------------------------------------------------------------------------------------

    def shift(self, name: str, number: int) -> bytes | None:
        """The bytes of a graph's shift of this name; None if there is none.

        Raises:
            sqlite3.DatabaseError: the file is damaged.
        """
        row = (
            self.connection()
            .execute("SELECT content FROM shifts WHERE name = ? AND graph = ?", (name, number))
            .fetchone()
        )
        return None if row is None else row[0]

    def shifted(self, name: str) -> set[int]:
        """The numbers of the graphs that have a shift of this name.

        Raises:
            sqlite3.DatabaseError: the file is damaged.
        """
        return {number for (number,) in self.connection().execute("SELECT graph FROM shifts WHERE name = ?", (name,))}

    def keep_shifts(self, name: str, shifts: Iterable[tuple[int, bytes]]) -> None:
        """Writes shifts of graphs, which are given by their numbers.

        Raises:
            sqlite3.Error: they cannot be written; nothing has changed.
        """
        with self.writing() as file:
            rows = ((name, number, content) for number, content in shifts)
            file.executemany("INSERT OR REPLACE INTO shifts VALUES (?, ?, ?)", rows)

    def begin_shifts(self, name: str) -> None:
        """Makes room for shifts of this name: those that were begun before others are deleted.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        with self.writing():
            names = [n for n in json.loads(self.result("shifts") or "[]") if n != name]
            old, kept = names[: max(0, len(names) + 1 - MOST_SHIFTS)], names[max(0, len(names) + 1 - MOST_SHIFTS) :]
            self.connection().execute(_KEEP_RESULT, ("shifts", json.dumps([*kept, name]).encode()))
        for other in old:
            deleted = AT_ONCE
            while deleted == AT_ONCE:
                with self.writing() as file:
                    rows = "SELECT rowid FROM shifts WHERE name = ? LIMIT ?"
                    deleted = file.execute(f"DELETE FROM shifts WHERE rowid IN ({rows})", (other, AT_ONCE)).rowcount

    # --- results
    # ---------------------------------------------------------------------------------------------

    def result(self, name: str) -> bytes | None:
        """What was kept under a name; None if nothing was."""
        row = self.connection().execute("SELECT content FROM results WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def keep_result(self, name: str, content: bytes) -> None:
        """Keeps a result that took long.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        with self.writing() as file:
            file.execute(_KEEP_RESULT, (name, content))
