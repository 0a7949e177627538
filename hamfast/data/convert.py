"""Data sets from one layout into another, with all that their folders hold."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from hamfast.data import deeph, packed
from hamfast.data.formats import (
    IN_FOLDERS,
    by_name,
    find_structures,
    folder_of,
    format_of,
    has_prediction,
    label_of,
    read_snapshot,
)
from hamfast.data.split import SPLIT_FILE
from hamfast.data.sqlite_file import Some
from hamfast.errors import HamfastError


def convert(source: Path, target: Path, layout: str) -> tuple[int, list[Path]]:
    """Writes every structure of a data set in another layout.

    Matrices, predictions, the split and all other files go along. All structures are read before
    the first is written, so that one that cannot be read leaves nothing half done.

    Args:
        source: a structure folder, or a data set.
        target: folder of the new data set.
        layout: the ``NAME`` of a format.

    Returns:
        The number of structures, and what was left behind: folders, links to nowhere, and files
        whose names mean something in the new layout, or which it has no place for.

    Raises:
        HamfastError: a target folder is not empty, or a structure cannot be read.
    """
    writer = by_name(layout)
    folders = find_structures(source)
    parent = target / {deeph.NAME: "dft", packed.NAME: packed.STRUCTURES}.get(layout, "")
    pack = writer is packed
    for own in [parent] if pack else [parent / label_of(f) for f in folders]:
        if own.exists() and (not own.is_dir() or any(own.iterdir())):
            raise HamfastError(f"{own}: not empty; choose another target")
    for folder in folders:
        read_snapshot(folder)
        if has_prediction(folder):
            read_snapshot(folder, hamiltonian="prediction")
    left: list[Path] = []
    rows = Some(partial(packed.keep, parent))
    for folder in folders:
        reader, label = format_of(folder), label_of(folder)
        snapshot = read_snapshot(folder)
        predicted = read_snapshot(folder, hamiltonian="prediction").hamiltonian if has_prediction(folder) else None
        if pack:
            row = packed.row_of(snapshot, label, predicted)
            rows.add(row, row.size)
        else:
            writer.write(snapshot, parent / label)
            if predicted is not None:
                writer.write_prediction(snapshot, predicted, parent / label)
        if reader in IN_FOLDERS:  # a DFT code's files are not part of a data set
            left += _copy_others(folder, None if pack else parent / label, reader.FILES, writer.FILES)
    rows.write()
    if folders != [source]:  # what lies beside the structures: the split, and whatever else is there
        root, parents = folder_of(source), {f.parent for f in folders if format_of(f) is not packed}
        known, own_files = {*folders, *parents}, (packed.STRUCTURES, f"{packed.STRUCTURES}-journal")
        for beside in dict.fromkeys((root, *sorted(parents))):
            beyond = target if beside == root or pack else parent
            left += [p for p in _copy_others(beside, beyond, own_files, ()) if p not in known]
        split = root.parent / SPLIT_FILE
        if root.name == "dft" and split.is_file() and not (target / SPLIT_FILE).exists():
            shutil.copyfile(split, target / SPLIT_FILE)
    return len(folders), left


def _copy_others(folder: Path, target: Path | None, read: tuple[str, ...], written: tuple[str, ...]) -> list[Path]:
    """Copies the files of a folder that belong to no layout.

    Args:
        folder: where they are.
        target: where they go; None: there is no place for them.
        read, written: the names that the old and the new layout give a meaning.

    Returns:
        What cannot be copied, or would be taken for something else.
    """
    left = []
    for path in sorted(folder.iterdir()):
        if path.name in read or path.name.startswith("."):
            continue
        if target is None or not path.is_file() or path.name in written or (target / path.name).exists():
            left.append(path)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.name)
    return left
