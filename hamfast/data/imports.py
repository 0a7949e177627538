"""Trees of DFT calculations, as data sets in the new DeepH layout."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from hamfast.data import deeph
from hamfast.data.codes import CODES
from hamfast.data.codes.native import NativeFormat
from hamfast.data.formats import names_apart, read_snapshot
from hamfast.data.h5 import write_json
from hamfast.errors import DataWarning, HamfastError

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
        hint = "; PySCF is read in Python, hamfast.data.codes.pyscf.from_mean_field" if name == "pyscf" else ""
        raise HamfastError(f"--code: expected one of {names}, found {name!r}{hint}")
    return found


def find_calculations(source: Path, name: str = ANY) -> list[tuple[Path, NativeFormat | HamfastError]]:
    """Every folder at or below ``source`` that holds a calculation, sorted by path.

    A folder of which a code cannot say which calculation is meant comes with that error.

    Raises:
        HamfastError: there is no such folder, or no calculation in it.
    """
    if not source.is_dir():
        raise HamfastError(f"{source}: folder not found")
    wanted = codes(name)
    found: list[tuple[Path, NativeFormat | HamfastError]] = []
    for parent, folders, _ in os.walk(source):
        folders.sort()
        folder = Path(parent)
        try:
            code = next((code for code in wanted if code.is_this_layout(folder)), None)
        except HamfastError as error:
            found.append((folder, error))
            folders.clear()
            continue
        if code is not None:
            found.append((folder, code))
            folders.clear()  # what lies in a calculation belongs to it
    if not found:
        files = "; ".join(f"{code.NAME}: {code.FILE}" for code in wanted)
        raise HamfastError(f"{source}: no calculation found in it or below; expected the files of {files}")
    return found


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
    labels = names_apart([folder for folder, _ in found])
    result = ImportReport()
    waiting = []
    try:
        (target / "dft").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HamfastError(f"{target}: cannot be made a data set ({error.strerror or error})") from error
    for label, (folder, known) in zip(labels, found, strict=True):
        own = target / "dft" / label
        if isinstance(known, HamfastError):
            result.skipped[label] = str(known)
        elif own.exists():
            result.there[label] = folder
        else:
            waiting.append((label, folder, own))
            continue
        report()
    for label, folder, why, words in _read_all(waiting, processes):
        report()
        if why is None:
            result.written[label] = folder
        else:
            result.skipped[label] = why
        if words:
            result.warnings[label] = words
    content = {
        "source": str(source),
        "imported": sorted([*result.written, *result.there]),
        "skipped": result.skipped,
        "warnings": result.warnings,
    }
    write_json(target / REPORT, content)
    return result


def _read_all(waiting, processes: int | None):
    """Yields label, folder, error and warnings of each calculation, as they are done."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(processes or cores, len(waiting))
    if count <= 1:
        for label, folder, own in waiting:
            yield label, folder, *import_one(folder, own)
        return
    # Spawned, since libraries with threads of their own do not survive a fork.
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        futures = [(label, folder, pool.submit(import_one, folder, own)) for label, folder, own in waiting]
        for label, folder, future in futures:
            yield label, folder, *future.result()


def import_one(folder: Path, target: Path) -> tuple[str | None, list[str]]:
    """Reads a calculation and writes its structure folder: why not, if not, and what looks odd."""
    partial = target.with_name(f".{target.name}.partial")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            snapshot = read_snapshot(folder)
            if snapshot.hamiltonian is None:
                raise HamfastError(f"{folder}: there is no Hamiltonian")
            shutil.rmtree(partial, ignore_errors=True)
            deeph.write(snapshot, partial)
            partial.rename(target)
        except HamfastError as error:
            shutil.rmtree(partial, ignore_errors=True)
            return str(error), []
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            return f"{error.filename or target}: {error.strerror or error}", []
    return None, [str(word.message) for word in caught if issubclass(word.category, DataWarning)]
