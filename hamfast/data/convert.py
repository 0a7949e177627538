"""Data sets from one layout into another, with all that their folders hold."""

from __future__ import annotations

import shutil
from pathlib import Path

from hamfast.data.formats import by_name, find_structures, format_of, read_snapshot
from hamfast.data.h5 import write_bytes
from hamfast.data.split import SPLIT_FILE
from hamfast.errors import HamfastError


def convert(source: Path, target: Path, layout: str) -> tuple[int, list[Path]]:
    """Writes every structure of ``source`` in another layout: matrices, predictions, split, and other files as they are.

    Returns:
        The number of structures, and what was left behind (folders inside structure folders).

    Raises:
        HamfastError: a target folder is not empty, or a structure cannot be read.
    """
    writer = by_name(layout)
    folders = find_structures(source)
    places = [target / "dft" / f.name if writer.NAME == "deeph" else target / f.name for f in folders]
    for place in places:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise HamfastError(f"{place}: not empty; choose another target")
    left: list[Path] = []
    for folder, place in zip(folders, places, strict=True):
        reader = format_of(folder)
        snapshot = read_snapshot(folder)
        writer.write(snapshot, place)
        if (folder / reader.PREDICTION).exists():
            predicted = read_snapshot(folder, hamiltonian="prediction").hamiltonian
            assert predicted is not None
            writer.write_prediction(snapshot, predicted, place)
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                left.append(path)
            elif path.name not in reader.FILES:
                shutil.copyfile(path, place / path.name)
    split = source / SPLIT_FILE
    if split.exists():
        write_bytes(target / SPLIT_FILE, split.read_bytes())
    return len(folders), left
