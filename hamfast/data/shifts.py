"""Shifts of the targets that take long, kept in ``prepared.sqlite`` beside the graphs.

They are computed once for each graph, before the first step, and again only if the shift or the
graph has changed.
"""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hamfast.data.graph_bytes import pack_shift
from hamfast.data.parallel import FEW, results
from hamfast.data.prepared import PATIENCE, PreparedSet, wait_until_none
from hamfast.data.sqlite_file import Some
from hamfast.errors import DataWarning
from hamfast.graph import CrystalGraph
from hamfast.machine import cores
from hamfast.targets import TargetSpec


class Normalization(Protocol):
    """Shift and scale of targets; :class:`hamfast.models.TargetNormalization` on the CPU."""

    @property
    def is_trivial(self) -> bool:
        """Is there neither?"""

    def shift(self, graph: CrystalGraph) -> Tensor:
        """``[edges, target dim]`` eV."""

    def scale(self, graph: CrystalGraph) -> Tensor:
        """``[edges, target dim]`` eV."""

    def name_of_shift(self) -> str | None:
        """Changes with the shift; None where it takes too little time to be kept."""


def keep_shifts(
    prepared: PreparedSet,
    folders: Sequence[Path],
    spec: TargetSpec,
    normalization: Normalization,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
    wait: bool = False,
) -> None:
    """Computes the shifts that the store does not have, by as many processes as there are cores.

    A store that cannot be written costs time, not the run: what is not there is computed whenever
    it is needed.

    Args:
        prepared: that has the graphs.
        folders: of the structures.
        spec: of the data set.
        normalization: that has the shift.
        report: called with the number of structures that are done, and of all that were to do.
        wait: another process computes them, and this one waits for it.
    """
    name, store = normalization.name_of_shift(), prepared.store
    if name is None:
        return

    def missing() -> list[Path]:
        there = store.shifted(name)
        return [folder for folder in folders if prepared.numbers.get(folder, -1) not in there | {-1}]

    # A file that is damaged is made anew by the next pass over the data.
    with contextlib.suppress(sqlite3.Error):
        if wait:
            wait_until_none(lambda: len(missing()), PATIENCE)
            return
        waiting = missing()
        if waiting:
            _compute(prepared, waiting, spec, normalization, name, report)


def _compute(prepared, folders, spec, normalization, name, report) -> None:
    store = prepared.store
    some: Some[tuple[int, bytes]] = Some(lambda made: store.keep_shifts(name, made))
    try:
        store.begin_shifts(name)
        processes = cores() if len(folders) >= FEW else 0
        shifts = results(_Shifts(prepared, folders, spec, normalization), processes)
        for done, (folder, content) in enumerate(zip(folders, shifts, strict=True), 1):
            if content is not None:
                some.add((prepared.numbers[folder], content), len(content))
            report(done, len(folders))
        some.write()
    except sqlite3.Error as error:
        text = f"{store.path}: shifts cannot be kept, each epoch computes them again ({error})"
        warnings.warn(text, DataWarning, stacklevel=2)


class _Shifts(Dataset):
    def __init__(self, prepared: PreparedSet, folders: list[Path], spec: TargetSpec, normalization: Normalization):
        self.prepared, self.folders, self.spec, self.normalization = prepared, folders, spec, normalization

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, n: int) -> bytes | None:
        """None where the graph is damaged; it is prepared again when it is read."""
        try:
            graph = self.prepared.graph(self.folders[n], self.spec)
        except (ValueError, sqlite3.Error):
            return None
        if graph is None:
            return None
        with torch.no_grad():
            return pack_shift(self.normalization.shift(graph).numpy())
