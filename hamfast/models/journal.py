"""Which pieces of which sweep are done, in a file that an evaluation that goes on reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hamfast.errors import HamfastError

Rows = dict[str, list[int]]
"""The name of a file -> first row, rows and width of a piece's."""


class Journal:
    """The journal of one process.

    Args:
        folder: of the evaluation's files.
        rank: of the process.
        key: of the evaluation.

    Attributes:
        edges_at_once: of the evaluation that is gone on with; None: there is none.
        done: sweep and piece -> where its rows are.
    """

    def __init__(self, folder: Path, rank: int, key: str):
        self.folder, self.rank, self.key = folder, rank, key
        self.path = folder / f"journal-{rank}.jsonl"
        self.edges_at_once: int | None = None
        self.done: dict[tuple[int, int], Rows] = {}
        if not self.path.exists():
            return
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # it was stopped within a line
                return
            if self.edges_at_once is None:
                if entry.get("key") != key:
                    return
                self.edges_at_once = int(entry["edges_at_once"])
            else:
                self.done[entry["sweep"], entry["piece"]] = entry["rows"]

    def begin(self, edges_at_once: int, go_on: bool) -> None:
        """Writes the journal so far; of another evaluation, or without ``go_on``, all is removed.

        Raises:
            HamfastError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not go_on:
                self.done = {}
                for path in self.folder.glob(f"*-{self.rank}.*"):
                    path.unlink()
            lines = [{"key": self.key, "edges_at_once": edges_at_once}]
            lines += [{"sweep": s, "piece": p, "rows": rows} for (s, p), rows in self.done.items()]
            temporary = self.path.with_suffix(".new")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
            os.replace(temporary, self.path)
        except OSError as error:
            raise HamfastError(
                f"{self.folder}: cannot be written ({error.strerror}); choose another --output"
            ) from error

    def add(self, sweep: int, piece: int, rows: Rows) -> None:
        """Takes down that a piece is done; what it has written is on the disk before."""
        entry: dict[str, Any] = {"sweep": sweep, "piece": piece, "rows": rows}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
