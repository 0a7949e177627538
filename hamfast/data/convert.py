"""Data sets from one layout into another, with all that their folders hold."""

from __future__ import annotations

import shutil
from pathlib import Path

from hamfast.data.formats import by_name, find_structures, format_of, label_of, read_snapshot
from hamfast.data.split import SPLIT_FILE
from hamfast.errors import HamfastError


def convert(source: Path, target: Path, layout: str) -> tuple[int, list[Path]]:
    """Writes every structure of ``source`` in another layout: matrices, predictions, split, and other files as they are.

    All structures are read before the first is written, so that one that cannot be read leaves nothing half done.

    Returns:
        The number of structures, and what was left behind: folders, links to nowhere, and files that have a name of the new
        layout.

    Raises:
        HamfastError: a target folder is not empty, or a structure cannot be read.
    """
    writer = by_name(layout)
    folders = find_structures(source)
    parent = target / "dft" if writer.NAME == "deeph" else target
    places = [parent / label_of(f) for f in folders]
    for place in places:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise HamfastError(f"{place}: not empty; choose another target")
    for folder in folders:
        read_snapshot(folder)
        if (folder / format_of(folder).PREDICTION).exists():
            read_snapshot(folder, hamiltonian="prediction")
    left: list[Path] = []
    for folder, place in zip(folders, places, strict=True):
        reader = format_of(folder)
        snapshot = read_snapshot(folder)
        writer.write(snapshot, place)
        if (folder / reader.PREDICTION).exists():
            predicted = read_snapshot(folder, hamiltonian="prediction").hamiltonian
            assert predicted is not None
            writer.write_prediction(snapshot, predicted, place)
        left += _copy_others(folder, place, reader.FILES, writer.FILES)
    if folders != [source]:  # what lies beside the structures: the split, and whatever else is there
        for beside in dict.fromkeys((source, folders[0].parent)):
            place = target if beside == source else parent
            left += [p for p in _copy_others(beside, place, (), ()) if p not in folders and p != folders[0].parent]
        split = source.parent / SPLIT_FILE
        if source.name == "dft" and split.is_file() and not (target / SPLIT_FILE).exists():
            shutil.copyfile(split, target / SPLIT_FILE)
    return len(folders), left


def _copy_others(folder: Path, place: Path, read: tuple[str, ...], written: tuple[str, ...]) -> list[Path]:
    """Copies the files of a folder that belong to no layout; returns what cannot be copied, or would stand for something else."""
    left = []
    for path in sorted(folder.iterdir()):
        if path.name in read or path.name.startswith("."):
            continue
        if not path.is_file() or path.name in written or (place / path.name).exists():
            left.append(path)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / path.name)
    return left
