"""A matrix of the new DeepH layout that is written some blocks at a time."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hamfast.data.blocks import BlockMatrix
from hamfast.data.h5 import compression, replacing
from hamfast.errors import HamfastError

CHUNK = 2**20
"""Bytes of a chunk of the file, about."""
MARGIN = 2**24
"""Bytes that are left free on the disk."""


class MatrixFile:
    """Writes a matrix some blocks at a time, whole or not at all: a context manager.

    Args:
        path: of the file.
        compress: by gzip.

    Raises:
        HamfastError: the file cannot be written, or the disk is full; what was there before is
            untouched.
    """

    def __init__(self, path: Path, compress: bool = True):
        self.path, self.stack = path, ExitStack()
        self.options = compression(compress)

    def __enter__(self) -> MatrixFile:
        temporary = self.stack.enter_context(replacing(self.path, once=True))
        self.file = self.stack.enter_context(h5py.File(temporary, "w"))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def add(self, matrix: BlockMatrix) -> None:
        """Writes further blocks."""
        # HDF5 does not survive a disk that is full when it closes a file.
        if shutil.disk_usage(self.path.parent).free < 2 * matrix.entries.nbytes + MARGIN:
            raise HamfastError(f"{self.path}: the disk is full; what was there before is untouched")
        first = "entries" not in self.file
        begin = 0 if first else int(self.file["chunk_boundaries"][-1])
        self._append("atom_pairs", matrix.pairs.astype(np.int32))
        self._append("chunk_shapes", matrix.shapes.astype(np.int32))
        self._append("chunk_boundaries", (matrix.boundaries if first else matrix.boundaries[1:]) + begin)
        self._append("entries", matrix.entries)

    def _append(self, name: str, rows: np.ndarray) -> None:
        if name not in self.file:
            chunk = (max(1, CHUNK // max(1, rows[:1].nbytes)), *rows.shape[1:])
            options = self.options | {"maxshape": (None, *rows.shape[1:]), "chunks": chunk}
            self.file.create_dataset(name, data=rows, **options)
            return
        data = self.file[name]
        data.resize(len(data) + len(rows), axis=0)
        data[len(data) - len(rows) :] = rows
