"""HDF5 files with errors in one sentence, and files that are never half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from hamfast.errors import HamfastError


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Opens for reading.

    Raises:
        HamfastError: the file is missing, truncated, or no HDF5 file.
    """
    if not path.exists():
        raise HamfastError(f"{path}: file not found")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise HamfastError(f"{path}: not a readable HDF5 file, perhaps truncated ({_reason(error)})") from error


def _reason(error: OSError) -> str:
    return str(error).split("(")[-1].rstrip(")") or type(error).__name__


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
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
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    if not path.exists():
        raise HamfastError(f"{path}: file not found")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise HamfastError(f"{path}: not valid JSON ({error})") from error


def write_json(path: Path, content) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
