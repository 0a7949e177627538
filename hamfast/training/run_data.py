"""The data of a run: its subsets, their statistics, and the batches of a phase."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from hamfast.data import GraphDataset, graph_loader, read_split
from hamfast.data.dataset import target_spec
from hamfast.data.formats import read_snapshot, read_structure
from hamfast.data.statistics import dataset_statistics
from hamfast.data.summary import sample
from hamfast.data.training_range import TrainingRange
from hamfast.data.two_centre_overlap import TwoCentreOverlap
from hamfast.errors import HamfastError
from hamfast.training.config import Config
from hamfast.training.processes import Processes
from hamfast.training.sampler import EpochSampler

MOST_OVERLAPS = 60
"""So many structures, from all over the training set, are enough for the fit of the overlap."""
MOST_RANGED = 300
"""So many structures, from all over the training set, tell its range."""


class Batches(NamedTuple):
    """What one phase reads, with the samplers that know which structures a batch has."""

    training: DataLoader
    training_sampler: EpochSampler
    validation: DataLoader
    validation_sampler: EpochSampler


class RunData:
    """The data set of a configuration.

    Args:
        config: of the run; its section ``data`` names the data set.
        processes: among which the structures are dealt out.
        dtype: of vectors and targets.

    Attributes:
        split: the structure folders of each subset.
        statistics: of all subsets; pairs are measured in the training set alone.
        spec: the targets.
        subsets: the graphs of each subset.

    Raises:
        HamfastError: the batch size is not a multiple of the number of processes; there is no
            split; a structure cannot be read or does not fit the others; the folder of prepared
            graphs cannot be one.
    """

    def __init__(self, config: Config, processes: Processes, dtype: torch.dtype):
        self.config, self.processes = config, processes
        root = Path(config.data.root)
        self.split = read_split(root, None if config.data.split is None else Path(config.data.split))
        folders = [folder for subset in self.split.values() for folder in subset]
        # Lengths as the graphs have them, so that both agree to the last digit.
        self.statistics = dataset_statistics(
            folders,
            measured=self.split["train"],
            lengths=lambda vectors: torch.from_numpy(vectors).to(dtype).norm(dim=-1).double().numpy(),
        )
        self.spec = target_spec(self.statistics.shells)
        cache = root / ".hamfast_cache" if config.data.cache is None else Path(config.data.cache)
        check_cache(cache)
        self.subsets = {name: GraphDataset(subset, self.spec, cache, dtype) for name, subset in self.split.items()}

    @property
    def training(self) -> GraphDataset:
        """The training set."""
        return self.subsets["train"]

    def half_cell(self) -> float:
        """Angstrom: the largest :func:`hamfast.data.cell_size.half_cell` of the training set."""
        return max(self.statistics.half_cells[folder] for folder in self.split["train"])

    def overlap(self) -> TwoCentreOverlap | None:
        """The overlaps of the training set as a function of the structure, with its error on the
        validation set; None if no structure has an overlap."""
        chosen = sample(self.split["train"], MOST_OVERLAPS)
        found = TwoCentreOverlap.fit(self.spec, map(read_snapshot, chosen))
        if found is not None:
            found.measure(map(read_snapshot, sample(self.split["validate"], MOST_OVERLAPS // 4)))
        return found

    def training_range(self) -> TrainingRange:
        """What the structures of the training set have."""
        return TrainingRange.of(map(read_structure, sample(self.split["train"], MOST_RANGED)))

    def pair_cutoffs(self) -> np.ndarray:
        """``[species, species]`` angstrom: the longest pairs of the training set, and a margin."""
        return self.statistics.pair_cutoffs()

    def batches(self, average: str) -> Batches:
        """New loaders of the training and the validation set, for one phase.

        Args:
            average: of the phase: ``structures`` or ``elements``.
        """
        data, rank, world = self.config.data, self.processes.rank, self.processes.world
        training, validation = self.training, self.subsets["validate"]
        counts = [self.statistics.counts[folder] for folder in training.folders]
        sampler = EpochSampler(
            len(training),
            self.config.seed,
            rank,
            world,
            data.batch_size,
            edges=[count.pairs for count in counts],
            max_edges=data.max_edges,
            weights=[count.elements for count in counts] if average == "elements" else None,
        )
        validation_sampler = EpochSampler(len(validation), None, rank, world, world)
        workers = min(data.num_workers, len(training))
        return Batches(
            graph_loader(training, batches=sampler, num_workers=workers),
            sampler,
            graph_loader(validation, batches=validation_sampler, num_workers=min(workers, len(validation))),
            validation_sampler,
        )


def check_cache(folder: Path) -> None:
    """Raises HamfastError if the folder of prepared graphs is none, or cannot be written."""
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise HamfastError(
            f"{folder}: expected a folder for prepared graphs, found that {parent} is a file; set data.cache"
        )
    if not os.access(parent, os.W_OK):
        raise HamfastError(f"{folder}: cannot be written; set data.cache to a folder for prepared graphs")
