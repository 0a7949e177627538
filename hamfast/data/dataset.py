"""Data sets of structure folders: prepared graphs, loading by several processes."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hamfast.data.ahead import Ahead
from hamfast.data.formats import read_snapshot
from hamfast.data.graphs import build_graph
from hamfast.data.parcel import Parcel
from hamfast.data.prepared import PreparedSet
from hamfast.data.shifts import Normalization
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
        self.normalization: Normalization | None = None
        self.name_of_shift: str | None = None
        self.fits = self.warned = False
        self.kept: dict[int, CrystalGraph] = {}

    def keep(self, edges: int) -> None:
        """Keeps graphs and units in memory from now on, if all of them fit.

        Args:
            edges: of all graphs together.
        """
        width = 3 * self.spec.dim * torch.empty(0, dtype=self.dtype).element_size()  # target, shift, scale
        self.fits = edges * width <= MOST_KEPT

    def normalize(self, normalization: Normalization | None) -> None:
        """Gives each graph its ``units`` from now on; None: no longer.

        Shifts that are in the store (:func:`hamfast.data.shifts.keep_shifts`) are read from there.
        """
        self.normalization, self.kept = normalization, {}
        self.name_of_shift = None if normalization is None else normalization.name_of_shift()

    def __len__(self) -> int:
        return len(self.folders)

    def __iter__(self) -> Iterator[CrystalGraph]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, n: int) -> CrystalGraph:
        graph = self.kept.get(n)
        if graph is None:
            graph = self._with_units([n], [self._prepared(self.folders[n])])
            if self.fits:
                self.kept[n] = graph
        return graph

    def __getitems__(self, numbers: Sequence[int]) -> list[CrystalGraph]:
        """The graphs of a batch. They are one graph already where they are not kept, as units of
        many small graphs are computed faster together."""
        if self.fits or not numbers:
            return [self[n] for n in numbers]
        return [self._with_units(numbers, [self._prepared(self.folders[n]) for n in numbers])]

    def _with_units(self, numbers: Sequence[int], graphs: list[CrystalGraph]) -> CrystalGraph:
        """The graphs of some structures as one, with units."""
        batch, normalization = batch_graphs(graphs), self.normalization
        if normalization is None or normalization.is_trivial:
            return batch
        with torch.no_grad():
            if self.name_of_shift is None:
                shift = normalization.shift(batch)
            else:
                shift = torch.cat([self._shift(n, graph) for n, graph in zip(numbers, graphs, strict=True)])
            scale = normalization.scale(batch)
        return replace(batch, units=torch.stack([t.expand_as(batch.known_target()) for t in (shift, scale)], dim=1))

    def _shift(self, n: int, graph: CrystalGraph) -> Tensor:
        """From the store, or computed where it has none of this graph."""
        assert self.normalization is not None
        known = None
        if self.prepared is not None and self.name_of_shift is not None:
            known = self.prepared.shift(self.folders[n], self.name_of_shift)
        fits = known is not None and known.shape == graph.known_target().shape
        return known if known is not None and fits else self.normalization.shift(graph)

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
    ahead: Ahead | None = None

    def __iter__(self) -> Iterator[CrystalGraph]:  # type: ignore[override]
        self.close()
        batches: Iterator[CrystalGraph] = super().__iter__()  # which lets processes begin to load at once
        if self.num_workers:
            self.ahead = batches = Ahead(batches, Parcel.graph)
        return self._timed(batches)

    def close(self) -> None:
        """Reads no further, where an epoch was not read to its end."""
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None

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
        collate_fn=_parcel if num_workers else batch_graphs,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def _parcel(graphs: list[CrystalGraph]) -> Parcel:
    return Parcel.of(batch_graphs(graphs))


def dataset_spec(folders: Sequence[Path]) -> TargetSpec:
    """Elements and orbitals of a data set.

    Raises:
        HamfastError: as :func:`hamfast.data.statistics.dataset_statistics`.
    """
    return target_spec(dataset_statistics(folders).shells)


def target_spec(shells: ShellSpec) -> TargetSpec:
    """The targets of a data set with these orbitals."""
    return TargetSpec(shells.shells, shells.spinful)
