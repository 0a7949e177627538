"""Data sets of structure folders: prepared graphs cached on disk, loading by several workers."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hamfast.data.formats import read_snapshot
from hamfast.data.graphs import build_graph
from hamfast.data.statistics import dataset_statistics
from hamfast.data.tensor_file import save_tensors
from hamfast.errors import DataWarning, HamfastError
from hamfast.graph import CrystalGraph, batch_graphs
from hamfast.shells import ShellSpec
from hamfast.targets import TargetSpec
from hamfast.version import __version__

MOST_UNITS = 2**30
"""Bytes that a data set keeps of the units of its graphs; those of others are made each time."""


class GraphDataset(Dataset):
    """Crystal graphs with targets of structure folders, read one at a time.

    Each graph is prepared once and kept in ``cache``. It is prepared anew whenever its files, the
    orbitals or the program have changed, or the cached file is damaged.

    Args:
        folders: one per structure.
        spec: elements and orbitals.
        cache: folder of prepared graphs, shared by any number of processes; None prepares them
            every time.
        dtype: of vectors and targets.
    """

    def __init__(
        self, folders: Sequence[Path], spec: TargetSpec, cache: Path | None, dtype: torch.dtype = torch.float32
    ):
        self.folders, self.spec, self.cache, self.dtype = list(folders), spec, cache, dtype
        self.warned = False
        self.normalization: Callable[[CrystalGraph], tuple[Tensor, Tensor] | None] | None = None
        self.units: dict[int, Tensor] = {}

    def normalize(self, normalization: Callable[[CrystalGraph], tuple[Tensor, Tensor] | None] | None) -> None:
        """Gives each graph its ``units`` from now on, made once per structure; None: no longer.

        Args:
            normalization: shift and scale ``[edges, target dim]`` (eV) of a graph on the CPU, or
                None.
        """
        self.normalization, self.units = normalization, {}

    def __len__(self) -> int:
        return len(self.folders)

    def __iter__(self) -> Iterator[CrystalGraph]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, n: int) -> CrystalGraph:
        graph = self._prepared(n)
        if self.normalization is None:
            return graph
        if n not in self.units:
            with torch.no_grad():
                found = self.normalization(graph)
            if found is None:
                return graph
            units = torch.stack([t.expand_as(graph.known_target()) for t in found], dim=1)
            if sum(map(_bytes, self.units.values())) + _bytes(units) > MOST_UNITS:
                return replace(graph, units=units)
            self.units[n] = units
        return replace(graph, units=self.units[n])

    def _prepared(self, n: int) -> CrystalGraph:
        folder = self.folders[n]
        if self.cache is None:
            return self._prepare(folder)
        path = self.cache / f"{folder.name}-{self._key(folder)}.pt"
        graph = self._cached(path)
        if graph is None:
            graph = self._prepare(folder)
            self._keep(graph, path)
        return graph

    def _cached(self, path: Path) -> CrystalGraph | None:
        """The graph in a file of the cache; None if there is none, or it is damaged."""
        try:
            if not path.exists():
                return None
            graph = CrystalGraph(**torch.load(path, weights_only=True))
            _check(graph, self.spec, self.dtype)
            return graph
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            warnings.warn(
                f"{path}: damaged ({type(error).__name__}); the structure is prepared again", DataWarning, stacklevel=1
            )
            return None

    def _keep(self, graph: CrystalGraph, path: Path) -> None:
        """Writes to the cache. A cache that cannot be written costs time, not the run."""
        try:
            save_tensors(dict(graph.__dict__), path)
        except HamfastError as error:
            if not self.warned:
                self.warned = True
                reason = " ".join(str(error).split())
                warnings.warn(
                    f"{path.parent}: prepared graphs cannot be kept, each epoch prepares them again ({reason[:200]})",
                    DataWarning,
                    stacklevel=1,
                )

    def _prepare(self, folder):
        return build_graph(read_snapshot(folder), self.spec, dtype=self.dtype)

    def _key(self, folder) -> str:
        """Changes whenever the folder's files, the orbitals, the dtype or the program change."""
        stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
        text = repr((str(folder.resolve()), stats, self.spec.shells, self.spec.spinful, str(self.dtype), __version__))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check(graph: CrystalGraph, spec: TargetSpec, dtype: torch.dtype) -> None:
    """Raises if a graph from the cache is not one that :func:`build_graph` makes."""
    atoms, edges = len(graph.species), len(graph.receivers)
    target = graph.known_target()
    expected: tuple[tuple[Any, tuple[int, ...], torch.dtype], ...] = (
        (graph.species, (atoms,), torch.int64),
        (graph.atom_graph, (atoms,), torch.int64),
        *(
            (index, (edges,), torch.int64)
            for index in (graph.receivers, graph.senders, graph.reverse, graph.edge_graph)
        ),
        (graph.shift, (edges, 3), torch.int64),
        (graph.vector, (edges, 3), dtype),
        (target, (edges, spec.dim), dtype),
    )
    if any(tuple(tensor.shape) != shape or tensor.dtype != wanted for tensor, shape, wanted in expected):
        raise ValueError("shapes or types of another graph")
    if not (graph.vector.isfinite().all() and target.isfinite().all()):
        raise ValueError("numbers that are not finite")


def graph_loader(
    dataset: GraphDataset,
    batch_size: int = 1,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    batches=None,
) -> DataLoader:
    """Batches of graphs, one graph for each batch; no others are held in memory.

    Args:
        dataset: of the graphs.
        batch_size: structures of a batch; only without ``batches``.
        shuffle: random order; only without ``batches``.
        seed: of that order.
        num_workers: processes that read; 0 reads in this one.
        batches: a sampler of batches, which are lists of structures' numbers.
    """
    return DataLoader(
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
