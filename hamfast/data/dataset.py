"""Data sets of structure folders: prepared graphs, loading by several processes."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hamfast.data.formats import read_snapshot
from hamfast.data.graphs import build_graph
from hamfast.data.prepared import PreparedSet
from hamfast.data.statistics import dataset_statistics
from hamfast.errors import DataWarning
from hamfast.graph import CrystalGraph, batch_graphs
from hamfast.shells import ShellSpec
from hamfast.targets import TargetSpec

MOST_KEPT = 2**30
"""Bytes of graphs and their units that a process keeps. A data set that is larger is read from the
store batch by batch, and none of it is kept."""


class GraphDataset(Dataset):
    """Crystal graphs with targets of structure folders, read one at a time.

    Args:
        folders: one per structure.
        spec: elements and orbitals.
        prepared: that holds their graphs; what it does not have is read from the folders each time,
            and so is all without it.
        dtype: of vectors and targets.

    Attributes:
        fits: are all graphs kept in memory, with their units, once they were read? False unless
            :meth:`keep` has said so.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        spec: TargetSpec,
        prepared: PreparedSet | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.folders, self.spec, self.prepared, self.dtype = list(folders), spec, prepared, dtype
        self.normalization: Callable[[CrystalGraph], tuple[Tensor, Tensor] | None] | None = None
        self.fits = self.warned = False
        self.kept: dict[int, CrystalGraph] = {}

    def keep(self, edges: int) -> None:
        """Keeps graphs and units in memory from now on, if all of them fit.

        Args:
            edges: of all graphs together.
        """
        width = 3 * self.spec.dim * torch.empty(0, dtype=self.dtype).element_size()  # target, shift, scale
        self.fits = edges * width <= MOST_KEPT

    def normalize(self, normalization: Callable[[CrystalGraph], tuple[Tensor, Tensor] | None] | None) -> None:
        """Gives each graph its ``units`` from now on; None: no longer.

        Args:
            normalization: shift and scale ``[edges, target dim]`` (eV) of a graph on the CPU, or
                None.
        """
        self.normalization, self.kept = normalization, {}

    def __len__(self) -> int:
        return len(self.folders)

    def __iter__(self) -> Iterator[CrystalGraph]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, n: int) -> CrystalGraph:
        graph = self.kept.get(n)
        if graph is None:
            graph = self._with_units(self._prepared(self.folders[n]))
            if self.fits:
                self.kept[n] = graph
        return graph

    def _with_units(self, graph: CrystalGraph) -> CrystalGraph:
        if self.normalization is None:
            return graph
        with torch.no_grad():
            found = self.normalization(graph)
        if found is None:
            return graph
        return replace(graph, units=torch.stack([t.expand_as(graph.known_target()) for t in found], dim=1))

    def _prepared(self, folder: Path) -> CrystalGraph:
        try:
            graph = None if self.prepared is None else self.prepared.graph(folder, self.spec)
        except (ValueError, sqlite3.Error) as error:
            if not self.warned and self.prepared is not None:
                self.warned = True
                path = self.prepared.store.path
                text = f"{path}: damaged ({error}); {folder} is prepared again, and so are others without a word"
                warnings.warn(text, DataWarning, stacklevel=2)
            graph = None
        return self._prepare(folder) if graph is None else graph

    def _prepare(self, folder: Path) -> CrystalGraph:
        return build_graph(read_snapshot(folder), self.spec, dtype=self.dtype)


class GraphLoader(DataLoader):
    """A loader that knows how long it was waited for.

    Attributes:
        waited: seconds, over all batches so far. Without processes that load it is the time of the
            loading itself.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[CrystalGraph]:  # type: ignore[override]
        return self._timed(super().__iter__())  # which lets processes begin to load at once

    def _timed(self, batches: Iterator[CrystalGraph]) -> Iterator[CrystalGraph]:
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - begun
            if batch is None:
                return
            yield batch


def graph_loader(
    dataset: GraphDataset,
    batch_size: int = 1,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    batches=None,
) -> GraphLoader:
    """Batches of graphs, one graph for each batch; no others are held in memory.

    Args:
        dataset: of the graphs.
        batch_size: structures of a batch; only without ``batches``.
        shuffle: random order; only without ``batches``.
        seed: of that order.
        num_workers: processes that read; 0 reads in this one.
        batches: a sampler of batches, which are lists of structures' numbers.
    """
    return GraphLoader(
        dataset,
        batch_size=batch_size if batches is None else 1,
        shuffle=shuffle if batches is None else None,
        batch_sampler=batches,
        collate_fn=batch_graphs,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def dataset_spec(folders: Sequence[Path]) -> TargetSpec:
    """Elements and orbitals of a data set.

    Raises:
        HamfastError: as :func:`hamfast.data.statistics.dataset_statistics`.
    """
    return target_spec(dataset_statistics(folders).shells)


def target_spec(shells: ShellSpec) -> TargetSpec:
    """The targets of a data set with these orbitals."""
    return TargetSpec(shells.shells, shells.spinful)
