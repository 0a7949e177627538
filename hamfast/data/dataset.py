"""Data sets of structure folders: splits, prepared graphs cached on disk, loading by several workers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from hamfast.data.build_graph import build_graph
from hamfast.data.formats import find_structures, format_of, read_snapshot
from hamfast.data.h5 import read_json, replacing, write_json
from hamfast.errors import HamfastError
from hamfast.graph import CrystalGraph, batch_graphs
from hamfast.targets import TargetSpec
from hamfast.version import __version__

PARTS = ("train", "validate", "test")
SPLIT_FILE = "dataset_split.json"


class GraphDataset(Dataset):
    """Crystal graphs of structure folders, read one at a time; each is prepared once and kept in ``cache``.

    Args:
        folders: one per structure.
        spec: elements and orbitals.
        cache: folder of prepared graphs, shared by any number of processes; None prepares them every time.
        dtype: of vectors and targets.
    """

    def __init__(
        self, folders: Sequence[Path], spec: TargetSpec, cache: Path | None, dtype: torch.dtype = torch.float32
    ):
        self.folders, self.spec, self.cache, self.dtype = list(folders), spec, cache, dtype

    def __len__(self) -> int:
        return len(self.folders)

    def __iter__(self) -> Iterator[CrystalGraph]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, n: int) -> CrystalGraph:
        folder = self.folders[n]
        if self.cache is None:
            return self._prepare(folder)
        path = self.cache / f"{folder.name}-{self._key(folder)}.pt"
        if path.exists():
            try:
                return CrystalGraph(**torch.load(path, weights_only=True))
            except (OSError, RuntimeError, EOFError, TypeError, ValueError):
                path.unlink(missing_ok=True)  # damaged: prepare it again
        graph = self._prepare(folder)
        with replacing(path) as temporary:
            torch.save(dict(graph.__dict__), temporary)
        return graph

    def _prepare(self, folder):
        return build_graph(read_snapshot(folder), self.spec, dtype=self.dtype)

    def _key(self, folder) -> str:
        """Changes whenever the folder's files, the orbitals, the dtype or the program change."""
        stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
        text = repr((str(folder.resolve()), stats, self.spec.shells, self.spec.spinful, str(self.dtype), __version__))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def graph_loader(
    dataset: GraphDataset, batch_size: int, *, shuffle: bool = False, seed: int = 0, num_workers: int = 0, sampler=None
) -> DataLoader:
    """Batches of graphs; never more than the running batches in memory."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle if sampler is None else None,
        sampler=sampler,
        collate_fn=batch_graphs,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def dataset_spec(folders: Sequence[Path]) -> TargetSpec:
    """Elements (in order of first appearance over all folders) and orbitals of a data set.

    Raises:
        HamfastError: two folders give one element different orbitals, or differ in spin.
    """
    shells: dict[int, tuple[int, ...]] = {}
    owner: dict[int, str] = {}
    spinful = None
    for folder in folders:
        snapshot = format_of(folder).read_structure(folder)
        if spinful is None:
            spinful = snapshot.spinful
        if snapshot.spinful != spinful:
            raise HamfastError(f"{folder}: spinful is {snapshot.spinful}, in {folders[0]} it is {spinful}")
        for z in snapshot.elements:
            if z not in snapshot.shells:
                raise HamfastError(f"{folder}: no orbital list for atomic number {z}")
            if shells.setdefault(z, snapshot.shells[z]) != snapshot.shells[z]:
                raise HamfastError(
                    f"{folder}: atomic number {z} has shells {list(snapshot.shells[z])}, in {owner[z]} {list(shells[z])}"
                )
            owner.setdefault(z, str(folder))
    return TargetSpec.from_mapping(shells, bool(spinful))


def read_split(root: Path, file: Path | None = None) -> dict[str, list[Path]]:
    """The folders of each part, from ``dataset_split.json``.

    Raises:
        HamfastError: no such file, an unknown label, a label in two parts, or an empty part.
    """
    path = file if file is not None else root / SPLIT_FILE
    if not path.exists():
        raise HamfastError(f"{path}: file not found; make one with `hamfast data split {root}`")
    content = read_json(path)
    folders = {p.name: p for p in find_structures(root)}
    split: dict[str, list[Path]] = {}
    seen: dict[str, str] = {}
    for part in PARTS:
        labels = content.get(part, [])
        if not labels:
            raise HamfastError(f"{path}: the part {part!r} is empty or missing; expected labels for {', '.join(PARTS)}")
        for label in labels:
            if label not in folders:
                raise HamfastError(f"{path}: {part}: no structure folder {label!r} in {root}")
            if label in seen:
                raise HamfastError(f"{path}: {label!r} is in {seen[label]} and in {part}")
            seen[label] = part
        split[part] = [folders[label] for label in labels]
    return split


def write_split(root: Path, fractions: Sequence[float], seed: int, *, overwrite: bool = False) -> dict[str, list[str]]:
    """Splits the structures at random and writes ``dataset_split.json``.

    Raises:
        HamfastError: fractions do not fit, a part would be empty, or the file exists and ``overwrite`` is not set.
    """
    path = root / SPLIT_FILE
    if path.exists() and not overwrite:
        raise HamfastError(f"{path}: exists already; use --overwrite to replace it")
    if len(fractions) != 3 or any(f <= 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise HamfastError(f"fractions: expected three positive numbers with sum 1, found {tuple(fractions)}")
    labels = [p.name for p in find_structures(root)]
    random.Random(seed).shuffle(labels)
    first = round(fractions[0] * len(labels))
    second = first + max(1, round(fractions[1] * len(labels)))
    split = dict(
        zip(PARTS, (sorted(labels[:first]), sorted(labels[first:second]), sorted(labels[second:])), strict=True)
    )
    for part, chosen in split.items():
        if not chosen:
            raise HamfastError(
                f"{root}: {len(labels)} structures with fractions {tuple(fractions)} leave the part {part!r} empty"
            )
    write_json(path, split)
    return split
