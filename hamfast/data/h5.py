"""HDF5, JSON and text files with errors in one sentence, and files that are never half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from hamfast.errors import HamfastError

LARGEST_RATIO = 1100
"""Bytes that one byte of a compressed file may stand for: gzip's limit is 1032."""


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Opens for reading.

    Raises:
        HamfastError: the file is missing, truncated, or no HDF5 file.
    """
    if not path.exists():
        raise HamfastError(f"{path}: file not found")
    if not path.is_file():
        raise HamfastError(f"{path}: expected an HDF5 file, found a folder")
    try:
        with h5py.File(path, "r") as file:
            yield file
    # h5py raises these too, from damaged headers and chunks.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise HamfastError(f"{path}: not a readable HDF5 file, perhaps truncated ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return str(error).split("(")[-1].rstrip(")") or type(error).__name__


def read_array(file: h5py.File, name: str, letters: str, what: str) -> Any:
    """A data set, after a look at its type and size.

    Args:
        file: that is open.
        name: of the data set.
        letters: the allowed letters of ``numpy.dtype.kind``, as ``iu`` for whole numbers.
        what: the expected type in words.

    Raises:
        HamfastError: it is missing, no data set, or of another type; or it declares more than the
            file can hold.
    """
    if name not in file:
        raise HamfastError(f"{file.filename}: expected the data set {name}, found {sorted(file)}")
    data = file[name]
    if not isinstance(data, h5py.Dataset):
        raise HamfastError(f"{file.filename}: {name}: expected a data set, found a group")
    if data.dtype.kind not in letters:
        raise HamfastError(f"{file.filename}: {name}: expected {what}, found type {data.dtype}")
    if data.size is not None and data.size * data.dtype.itemsize > LARGEST_RATIO * data.id.get_storage_size() + 4096:
        raise HamfastError(
            f"{file.filename}: {name} declares {data.size:,} numbers, but only {data.id.get_storage_size():,} bytes are stored"
        )
    return data[()]


@contextmanager
def replacing(path: Path, once: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends without an error.

    Args:
        path: of the file.
        once: nobody else writes it at the same time. What a process that was killed has left is
            then written over.

    Raises:
        HamfastError: the file cannot be written; what was there before is untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if once:
            temporary = path.with_name(f".{path.name[:100]}.part")
        else:
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
        yield temporary
        # mkstemp makes private files; give the usual permissions back.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise HamfastError(
            f"{path}: could not be written ({error.strerror or error}); what was there before is untouched"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a file whole or not at all; raises as :func:`replacing`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes text whole or not at all; raises as :func:`replacing`."""
    write_bytes(path, text.encode())


def compression(compress: bool) -> dict[str, Any]:
    """The options of a data set that is compressed by gzip, or is not."""
    return {"compression": "gzip", "shuffle": True} if compress else {}


def write_h5(path: Path, fill: Callable[[h5py.File], Any]) -> None:
    """Writes an HDF5 file whole or not at all; ``fill`` puts the data sets into it.

    The file is made in memory, because the HDF5 library does not survive a disk that is full when
    it closes a file. Raises as :func:`replacing`.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        image = file.id.get_file_image()
    write_bytes(path, image)


def read_text(path: Path) -> str:
    """Raises HamfastError if the file is missing, unreadable, or no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise HamfastError(f"{path}: file not found") from error
    except IsADirectoryError as error:
        raise HamfastError(f"{path}: expected a file, found a folder") from error
    except UnicodeDecodeError as error:
        raise HamfastError(f"{path}: expected text in UTF-8, found other bytes at position {error.start}") from error
    except (OSError, ValueError) as error:
        raise HamfastError(f"{path}: not readable ({getattr(error, 'strerror', None) or error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        HamfastError: as :func:`read_text`; the file holds no object; or a key is given twice, as
            one of the two values would be lost.
    """
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise HamfastError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise HamfastError(f"{path}: expected a JSON object {{...}}, found {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all; raises as :func:`replacing`."""
    write_text(path, json.dumps(content, indent=1) + "\n")
