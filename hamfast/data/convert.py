"""Data sets from one layout into another, with all that their folders hold."""

from __future__ import annotations

import shutil
from pathlib import Path

from hamfast.data.formats import WRITTEN, by_name, find_structures, format_of, label_of, read_snapshot
from hamfast.data.split import SPLIT_FILE
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
        whose names mean something in the new layout.

    Raises:
        HamfastError: a target folder is not empty, or a structure cannot be read.
    """
    writer = by_name(layout)
    folders = find_structures(source)
    parent = target / "dft" if writer.NAME == "deeph" else target
    targets = [parent / label_of(f) for f in folders]
    for own in targets:
        if own.exists() and (not own.is_dir() or any(own.iterdir())):
            raise HamfastError(f"{own}: not empty; choose another target")
    for folder in folders:
        read_snapshot(folder)
        if (folder / format_of(folder).PREDICTION).exists():
            read_snapshot(folder, hamiltonian="prediction")
    left: list[Path] = []
    for folder, own in zip(folders, targets, strict=True):
        reader = format_of(folder)
        snapshot = read_snapshot(folder)
        writer.write(snapshot, own)
        if (folder / reader.PREDICTION).exists():
            predicted = read_snapshot(folder, hamiltonian="prediction").hamiltonian
            assert predicted is not None
            writer.write_prediction(snapshot, predicted, own)
        if reader in WRITTEN:  # a DFT code's files are not part of a data set
            left += _copy_others(folder, own, reader.FILES, writer.FILES)
    if folders != [source]:  # what lies beside the structures: the split, and whatever else is there
        for beside in dict.fromkeys((source, folders[0].parent)):
            beyond = target if beside == source else parent
            left += [p for p in _copy_others(beside, beyond, (), ()) if p not in folders and p != folders[0].parent]
        split = source.parent / SPLIT_FILE
        if source.name == "dft" and split.is_file() and not (target / SPLIT_FILE).exists():
            shutil.copyfile(split, target / SPLIT_FILE)
    return len(folders), left


def _copy_others(folder: Path, target: Path, read: tuple[str, ...], written: tuple[str, ...]) -> list[Path]:
    """Copies the files of a folder that belong to no layout.

    Args:
        folder: where they are.
        target: where they go.
        read, written: the names that the old and the new layout give a meaning.

    Returns:
        What cannot be copied, or would be taken for something else.
    """
    left = []
    for path in sorted(folder.iterdir()):
        if path.name in read or path.name.startswith("."):
            continue
        if not path.is_file() or path.name in written or (target / path.name).exists():
            left.append(path)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.name)
    return left
