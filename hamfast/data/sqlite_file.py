"""A file of SQLite that hamfast has made: opening it, refusing others, and writing whole or not.

Any number of processes may read, and one at a time writes. SQLite undoes what a process that was
killed had not finished. Its plain journal is used: a journal of the newer kind (WAL) needs memory
that all processes share, which machines of a cluster do not have.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from hamfast.errors import HamfastError

PATIENCE = 120.0
"""Seconds that a process waits for another one that writes."""
SECONDS, BYTES = 2.0, 2**26
"""After so many seconds, or of so many bytes, what was made is written: that much is lost where a
process is killed."""
SQLITE = b"SQLite format 3\0"
Item = TypeVar("Item")


class SqliteFile:
    """One file, with a connection of each process's own.

    A kind of files is a class with these names.

    Args:
        path: of the file.
    """

    APPLICATION: int
    """By this number in its header a file of SQLite is one of this kind."""
    FORMAT: int
    """The number of its tables' format."""
    TABLES: tuple[str, ...]
    """Statements that make them."""
    PAGE: int
    """Bytes of a page. What is larger is a chain of pages, and the last one has room left."""
    WHAT: str
    """In words, what the file holds."""
    ADVICE: str
    """What to do where a file of the name is something else."""
    SYNCHRONOUS = "FULL"
    """``NORMAL`` is faster, and may lose the whole file where the power fails."""

    def __init__(self, path: Path):
        self.path = path
        self.connections: dict[int, sqlite3.Connection] = {}
        self.opened: int | None = None

    def __getstate__(self) -> dict:
        """Without connections: another process opens its own."""
        return self.__dict__ | {"connections": {}}

    def refuse_others(self) -> None:
        """Raises HamfastError if there is something of that name that hamfast has not made."""
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise HamfastError(f"{self.path}: expected a file of {self.WHAT}, found a folder")
        with self.path.open("rb") as file:
            head = file.read(100)
        # Bytes 68 to 71 are the number of the application. A file that was not begun is empty; one
        # with a journal is not yet what it will be.
        foreign = head[:16] != SQLITE or head[68:72] != self.APPLICATION.to_bytes(4, "big")
        if head and foreign and not self.path.with_name(f"{self.path.name}-journal").exists():
            raise HamfastError(f"{self.path}: expected {self.WHAT} of hamfast, found another file; {self.ADVICE}")

    def make_tables(self) -> None:
        """In a file that has none."""
        self.connection().execute(f"PRAGMA page_size = {self.PAGE}")
        with self.writing() as file:
            if self.format() is None:
                for statement in self.TABLES:
                    file.execute(statement)
                file.execute(f"PRAGMA application_id = {self.APPLICATION}")
                file.execute(f"PRAGMA user_version = {self.FORMAT}")

    def format(self) -> int | None:
        """Of the file; None if there are no tables."""
        file = self.connection()
        if not file.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            return None
        return file.execute("PRAGMA user_version").fetchone()[0]

    def inode(self) -> int | None:
        """Of the file that has the name now."""
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    def close(self) -> None:
        """Closes this process's connection; it is opened again where it is needed."""
        own = self.connections.pop(os.getpid(), None)
        if own is not None:
            own.close()

    def connection(self) -> sqlite3.Connection:
        """This process's own: a connection must not be carried over a fork."""
        own = self.connections.get(os.getpid())
        if own is None:
            own = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self.connections[os.getpid()], self.opened = own, self.inode()
            own.execute(f"PRAGMA synchronous = {self.SYNCHRONOUS}")
        return own

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it counts, or nothing."""
        file = self.connection()
        file.execute("BEGIN IMMEDIATE")
        try:
            yield file
            file.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                file.execute("ROLLBACK")
            raise


class Some(Generic[Item]):
    """Writes what a pass makes, some at a time.

    Args:
        keep: writes a list of it.
    """

    def __init__(self, keep: Callable[[list[Item]], None]):
        self.keep = keep
        self.waiting: list[Item] = []
        self.bytes, self.written = 0, time.monotonic()

    def add(self, item: Item, size: int) -> None:
        """Of so many bytes."""
        self.waiting.append(item)
        self.bytes += size
        if self.bytes > BYTES or time.monotonic() - self.written > SECONDS:
            self.write()

    def write(self) -> None:
        """Writes what waits."""
        waiting, self.waiting = self.waiting, []
        if waiting:
            self.keep(waiting)
        self.bytes, self.written = 0, time.monotonic()
