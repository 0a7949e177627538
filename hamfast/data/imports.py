"""Trees of DFT calculations, as data sets in the new DeepH layout."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from hamfast.data import deeph
from hamfast.data.codes import CODES
from hamfast.data.codes.native import NativeFormat
from hamfast.data.formats import label_of
from hamfast.data.h5 import read_json, write_json
from hamfast.data.plausible import warn_of_mix_ups
from hamfast.data.snapshot import check_snapshot
from hamfast.errors import DataWarning, HamfastError
from hamfast.machine import cores

REPORT = "import.json"
"""In the data set: what each calculation became, or why it was skipped."""
ANY = "auto"


@dataclass
class ImportReport:
    """What an import did."""

    written: dict[str, Path] = field(default_factory=dict)
    """Label -> folder of the calculation, of those that were read now."""
    there: dict[str, Path] = field(default_factory=dict)
    """Of those that an earlier run had written."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Label -> why it cannot be used."""
    warnings: dict[str, list[str]] = field(default_factory=dict)
    """Label -> what looks odd."""


def codes(name: str) -> tuple[NativeFormat, ...]:
    """The formats of a code; all of them for ``auto``.

    Raises:
        HamfastError: there is no such code.
    """
    found = CODES if name == ANY else tuple(code for code in CODES if name == code.NAME)
    if not found:
        names = ", ".join(code.NAME for code in CODES)
        raise HamfastError(f"--code: expected one of {names}, found {name!r}")
    return found


def find_calculations(source: Path, name: str = ANY) -> list[tuple[Path, NativeFormat | HamfastError]]:
    """Every folder at or below ``source`` that holds a calculation, sorted by path.

    Links are followed. A folder that cannot be read, or of which cannot be said which calculation
    is meant, comes with that error.

    Raises:
        HamfastError: there is no such folder, or no calculation in it.
    """
    if not source.is_dir():
        raise HamfastError(f"{source}: folder not found")
    wanted = codes(name)
    found: list[tuple[Path, NativeFormat | HamfastError]] = []
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        found.append((Path(error.filename), HamfastError(f"{error.filename}: {error.strerror}")))

    for parent, folders, _ in os.walk(source, onerror=unreadable, followlinks=True):
        folder = Path(parent)
        about = folder.stat()
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        try:
            there = [code for code in wanted if code.is_this_layout(folder)]
            if len(there) > 1:
                names = " and ".join(code.NAME for code in there)
                raise HamfastError(f"{folder}: holds calculations of {names}; say which by --code")
            found += [(folder, code) for code in there]
        except HamfastError as error:
            there = []
            found.append((folder, error))
        if any(code.NAME == "abacus" for code in there):  # its output folder is part of it
            folders[:] = [f for f in folders if not f.startswith("OUT.")]
    if not found:
        files = "; ".join(f"{code.NAME}: {code.FILE}" for code in wanted)
        raise HamfastError(f"{source}: no calculation found in it or below; expected the files of {files}")
    return sorted(found, key=lambda entry: str(entry[0]))


def label_in(source: Path, folder: Path) -> str:
    """The name that a calculation gets in the data set: its path below ``source``."""
    parts = folder.relative_to(source).parts
    return "__".join(parts) if parts else label_of(folder)


def fingerprint(folder: Path, code: NativeFormat) -> list:
    """The folder, and size and time of its main file: other ones are another calculation."""
    path = code.code.main_file(folder)
    about = (folder if path is None else path).stat()
    return [str(folder.resolve()), code.NAME, about.st_size, about.st_mtime_ns]


def import_calculations(
    source: Path,
    target: Path,
    code: str = ANY,
    processes: int | None = None,
    report: Callable[[], None] = lambda: None,
) -> ImportReport:
    """Reads every calculation of a tree and writes ``target/dft/<label>/``.

    A structure is written whole or not at all. Those that are there already are not read again, so
    an interrupted import goes on where it was. What cannot be used is skipped and reported.

    Args:
        source: the folder of a calculation, or one with many below it.
        target: of the data set.
        code: the name of a code, or ``auto``.
        processes: that read at once; by default as many as there are cores.
        report: called after each calculation.

    Raises:
        HamfastError: there is no calculation, or the target cannot be written.
    """
    found = find_calculations(source, code)
    if target.resolve() == source.resolve():
        raise HamfastError(f"{target}: expected another folder than that of the calculations")
    result, waiting = ImportReport(), []
    try:
        (target / "dft").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HamfastError(f"{target}: cannot be made a data set ({error.strerror or error})") from error
    known = read_json(target / REPORT).get("imported", {}) if (target / REPORT).exists() else {}
    for folder, layout in found:
        label = label_in(source, folder)
        own = target / "dft" / label
        if isinstance(layout, HamfastError):
            result.skipped[label] = str(layout)
        elif own.exists() and known.get(label, fingerprint(folder, layout)) != fingerprint(folder, layout):
            result.skipped[label] = (
                f"{own}: holds another calculation, or an earlier state of this one; remove it first"
            )
        elif own.exists():
            result.there[label] = folder
            known[label] = fingerprint(folder, layout)
        else:
            waiting.append((label, folder, layout, own))
            continue
        report()
    try:
        for label, folder, layout, why, words in _read_all(waiting, processes):
            report()
            if why is None:
                result.written[label] = folder
                known[label] = fingerprint(folder, layout)
            else:
                result.skipped[label] = why
            if words:
                result.warnings[label] = words
    finally:
        content = {"imported": known, "skipped": result.skipped, "warnings": result.warnings}
        write_json(target / REPORT, content)
    return result


def _read_all(waiting, processes: int | None):
    """Yields label, folder, format, error and warnings of each calculation, as they are done."""
    count = min(processes or cores(), len(waiting))
    if count <= 1:
        for label, folder, layout, own in waiting:
            yield label, folder, layout, *import_one(folder, layout.NAME, own)
        return
    # Spawned, since libraries with threads of their own do not survive a fork.
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        futures = [(*entry[:3], pool.submit(import_one, entry[1], entry[2].NAME, entry[3])) for entry in waiting]
        for label, folder, layout, future in futures:
            try:
                why, words = future.result()
            except BrokenProcessPool:
                why, words = f"{folder}: the process that read it or another one has died; start the import again", []
            yield label, folder, layout, why, words


def import_one(folder: Path, name: str, target: Path) -> tuple[str | None, list[str]]:
    """Reads a calculation and writes its structure folder: why not, if not, and what looks odd.

    Args:
        folder: of the calculation.
        name: of its code.
        target: the structure folder; its parent's parent is the data set.
    """
    (layout,) = codes(name)
    partial = target.parent.parent / f".import-{os.getpid()}-{target.name}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            snapshot = check_snapshot(layout.read(folder), str(folder))
            snapshot.label = target.name
            warn_of_mix_ups(snapshot, str(folder))
            deeph.write(snapshot, partial)
            if not target.exists():  # another import may have been faster
                partial.rename(target)
        except HamfastError as error:
            return str(error), []
        except OSError as error:
            return f"{error.filename or target}: {error.strerror or error}", []
        except Exception as error:  # one bad calculation must not end the import of the others
            return f"{folder}: unexpected {type(error).__name__}: {error}", []
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return None, [str(word.message) for word in caught if issubclass(word.category, DataWarning)]
