"""Trees of DFT calculations, as data sets: folders in the new DeepH layout, or one file."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from hamfast.data import deeph, packed
from hamfast.data.codes import CODES
from hamfast.data.codes.native import NativeFormat
from hamfast.data.formats import label_of
from hamfast.data.h5 import read_json, write_json
from hamfast.data.plausible import warn_of_mix_ups
from hamfast.data.snapshot import check_snapshot
from hamfast.data.sqlite_file import Some
from hamfast.errors import DataWarning, HamfastError
from hamfast.machine import cores

REPORT = "import.json"
"""In the data set: what each calculation became, or why it was skipped."""
ANY = "auto"
AHEAD = 4
"""So many calculations for each process wait to be read, or to be taken when they were."""


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


class _Calculation(NamedTuple):
    """What is to be read."""

    label: str
    folder: Path
    layout: NativeFormat
    own: Path
    """Where its structure goes."""


class _Read(NamedTuple):
    """What reading a calculation has made of it."""

    why: str | None
    """Why it cannot be used, if it cannot."""
    words: list[str]
    """What looks odd."""
    row: packed.Row | None = None
    """For the file of structures; a folder was written already."""


def import_calculations(
    source: Path,
    target: Path,
    code: str = ANY,
    processes: int | None = None,
    report: Callable[[], None] = lambda: None,
    pack: bool = False,
) -> ImportReport:
    """Reads every calculation of a tree and writes ``target/dft/<label>/``, or one file.

    A structure is written whole or not at all. Those that are there already are not read again, so
    an interrupted import goes on where it was. What cannot be used is skipped and reported.

    Args:
        source: the folder of a calculation, or one with many below it.
        target: of the data set.
        code: the name of a code, or ``auto``.
        processes: that read at once; by default as many as there are cores.
        report: called after each calculation.
        pack: write ``target/structures.sqlite``. What was read is written every two seconds.

    Raises:
        HamfastError: there is no calculation, or the target cannot be written.
    """
    found = find_calculations(source, code)
    if target.resolve() == source.resolve():
        raise HamfastError(f"{target}: expected another folder than that of the calculations")
    result, waiting = ImportReport(), []
    parent, other = target / "dft", target / packed.STRUCTURES
    if pack:
        parent, other = other, parent
        packed.make(parent)
    else:
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HamfastError(f"{target}: cannot be made a data set ({error.strerror or error})") from error
    known = read_json(target / REPORT).get("imported", {}) if (target / REPORT).exists() else {}
    there, elsewhere = _inside(parent), _inside(other)
    for folder, layout in found:
        label = label_in(source, folder)
        own = parent / label
        if isinstance(layout, HamfastError):
            result.skipped[label] = str(layout)
        elif label in elsewhere:
            result.skipped[label] = f"{other / label}: is there already; import to another folder, or remove it first"
        elif label in there and known.get(label, fingerprint(folder, layout)) != fingerprint(folder, layout):
            result.skipped[label] = (
                f"{own}: holds another calculation, or an earlier state of this one; remove it first"
            )
        elif label in there:
            result.there[label] = folder
            known[label] = fingerprint(folder, layout)
        else:
            waiting.append(_Calculation(label, folder, layout, own))
            continue
        report()

    def keep(made: list[tuple[_Calculation, packed.Row | None]]) -> None:
        if pack:
            packed.keep(parent, [row for _, row in made if row is not None])
        for one, _ in made:
            result.written[one.label] = one.folder
            known[one.label] = fingerprint(one.folder, one.layout)

    some = Some(keep)
    try:
        for one, read in _read_all(waiting, processes, pack):
            report()
            if read.why is not None:
                result.skipped[one.label] = read.why
            if read.words:
                result.warnings[one.label] = read.words
            if read.why is None:
                some.add((one, read.row), 0 if read.row is None else read.row.size)
    finally:
        try:
            some.write()
        finally:
            content = {"imported": known, "skipped": result.skipped, "warnings": result.warnings}
            write_json(target / REPORT, content)
    return result


def _inside(parent: Path) -> set[str]:
    """The names of what is in a folder, or the labels in a file of structures."""
    if parent.is_dir():
        return {path.name for path in parent.iterdir()}
    return {path.name for path in packed.structures(parent)} if packed.is_packed(parent) else set()


def _read_all(waiting: list[_Calculation], processes: int | None, pack: bool) -> Iterator[tuple[_Calculation, _Read]]:
    """Each calculation and what was read, in their order."""
    count = min(processes or cores(), len(waiting))
    if count <= 1:
        for one in waiting:
            yield one, import_one(one.folder, one.layout.NAME, one.own, pack)
        return
    running: deque[tuple[_Calculation, Future[_Read]]] = deque()
    # Spawned, since libraries with threads of their own do not survive a fork.
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        for one in waiting:
            if len(running) >= AHEAD * count:
                yield _finished(*running.popleft())
            running.append((one, _started(pool, one, pack)))
        while running:
            yield _finished(*running.popleft())


def _started(pool: ProcessPoolExecutor, one: _Calculation, pack: bool) -> Future[_Read]:
    try:
        return pool.submit(import_one, one.folder, one.layout.NAME, one.own, pack)
    except BrokenProcessPool as error:
        future: Future[_Read] = Future()
        future.set_exception(error)
        return future


def _finished(one: _Calculation, future: Future[_Read]) -> tuple[_Calculation, _Read]:
    try:
        return one, future.result()
    except BrokenProcessPool:
        why = f"{one.folder}: the process that read it or another one has died; start the import again"
        return one, _Read(why, [])


def import_one(folder: Path, name: str, target: Path, pack: bool = False) -> _Read:
    """Reads a calculation, and writes its structure folder.

    Args:
        folder: of the calculation.
        name: of its code.
        target: the path of the structure; its parent's parent is the data set.
        pack: return what goes into a file of structures, and write nothing.
    """
    (layout,) = codes(name)
    partial, row = target.parent.parent / f".import-{os.getpid()}-{target.name}", None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            snapshot = check_snapshot(layout.read(folder), str(folder))
            snapshot.label = target.name
            warn_of_mix_ups(snapshot, str(folder))
            if pack:
                row = packed.row_of(snapshot, target.name)
            else:
                deeph.write(snapshot, partial)
                if not target.exists():  # another import may have been faster
                    partial.rename(target)
        except HamfastError as error:
            return _Read(str(error), [])
        except OSError as error:
            return _Read(f"{error.filename or target}: {error.strerror or error}", [])
        except Exception as error:  # one bad calculation must not end the import of the others
            return _Read(f"{folder}: unexpected {type(error).__name__}: {error}", [])
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _Read(None, [str(word.message) for word in caught if issubclass(word.category, DataWarning)], row)
