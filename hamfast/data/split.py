"""The subsets of a data set: training, validation, test. ``dataset_split.json`` lists them.

Needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from hamfast.data.formats import find_structures, folder_of
from hamfast.data.h5 import read_json, write_json
from hamfast.errors import HamfastError

SUBSETS = ("train", "validate", "test")
SPLIT_FILE = "dataset_split.json"
WHAT_FOR = {
    "train": "the weights are fitted to it",
    "validate": "the best weights are chosen by it",
}


def read_split(root: Path, file: Path | None = None) -> dict[str, list[Path]]:
    """The folders of each subset. Without a test set there is no key ``test``.

    Args:
        root: of the data set.
        file: with the split; None: ``dataset_split.json`` of the data set.

    Raises:
        HamfastError: there is no such file; it holds no lists of labels; a subset or label is
            unknown; a label is there twice; or there is nothing to train or validate with.
    """
    path = file if file is not None else folder_of(root) / SPLIT_FILE
    content = _read(path, root)
    folders = {p.name: p for p in find_structures(root)}
    split: dict[str, list[Path]] = {}
    seen: dict[str, str] = {}
    for subset in SUBSETS:
        labels = content.get(subset, [])
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise HamfastError(f'{path}: {subset}: expected a list of labels like ["a", "b"], found {_short(labels)}')
        if not labels and subset in WHAT_FOR:
            raise HamfastError(
                f"{path}: the subset {subset!r} is empty or missing; expected at least one label, because {WHAT_FOR[subset]}"
            )
        for label in labels:
            if label not in folders:
                raise HamfastError(f"{path}: {subset}: no structure folder {label!r} in {root}")
            if label in seen:
                where = f"twice in {subset}" if seen[label] == subset else f"in {seen[label]} and in {subset}"
                raise HamfastError(f"{path}: {label!r} is {where}")
            seen[label] = subset
        if labels:
            split[subset] = [folders[label] for label in labels]
    return split


def _read(path: Path, root: Path) -> dict:
    if not path.exists():
        raise HamfastError(f"{path}: file not found; make one with `hamfast data split {root}`")
    content = read_json(path)
    unknown = [subset for subset in content if subset not in SUBSETS]
    if unknown:
        raise HamfastError(f"{path}: expected the subsets {', '.join(SUBSETS)}, found {_short(unknown[0])}")
    return content


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def write_split(root: Path, fractions: Sequence[float], seed: int, *, overwrite: bool = False) -> dict[str, list[str]]:
    """Splits the structures at random and writes ``dataset_split.json``.

    Args:
        root: of the data set.
        fractions: of the structures that train, validate and test; the last may be 0.
        seed: of the order.
        overwrite: replace a file that is there.

    Raises:
        HamfastError: the fractions do not fit, a subset would be empty, or the file exists and
            ``overwrite`` is not set.

    Returns:
        The labels of each subset.
    """
    path = folder_of(root) / SPLIT_FILE
    if path.exists() and not overwrite:
        raise HamfastError(f"{path}: exists already; use --overwrite to replace it")
    if (
        len(fractions) != 3
        or not all(f > 0 for f in fractions[:2])
        or not fractions[2] >= 0
        or not abs(sum(fractions) - 1) <= 1e-6
    ):
        raise HamfastError(
            f"fractions: expected three positive numbers with sum 1 (the last may be 0), found {tuple(fractions)}"
        )
    labels = [p.name for p in find_structures(root)]
    random.Random(seed).shuffle(labels)
    first = round(fractions[0] * len(labels))
    second = first + max(1, round(fractions[1] * len(labels))) if fractions[2] else len(labels)
    split = {
        "train": sorted(labels[:first]),
        "validate": sorted(labels[first:second]),
        "test": sorted(labels[second:]),
    }
    if not fractions[2]:
        del split["test"]
    for subset, chosen in split.items():
        if not chosen:
            raise HamfastError(
                f"{root}: {len(labels)} structures with fractions {tuple(fractions)} leave the subset {subset!r} empty"
            )
    write_json(path, split)
    return split
