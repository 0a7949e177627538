"""The data of a run: its subsets, their statistics, and the batches of a phase."""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hamfast.data import GraphDataset, graph_loader, read_split
from hamfast.data.dataset import GraphLoader, target_spec
from hamfast.data.formats import folder_of, read_snapshot
from hamfast.data.parallel import summed
from hamfast.data.prepared import NEWS, digest_of, once, prepare, range_of
from hamfast.data.shifts import keep_shifts
from hamfast.data.statistics import together
from hamfast.data.store import Store
from hamfast.data.summary import sample
from hamfast.data.training_range import TrainingRange
from hamfast.data.two_centre_overlap import TwoCentreOverlap
from hamfast.errors import HamfastError
from hamfast.machine import cores
from hamfast.models import TargetNormalization
from hamfast.sums import Fit
from hamfast.training.config import Config
from hamfast.training.processes import Processes
from hamfast.training.sampler import EpochSampler

MOST_OVERLAPS = 60
"""So many structures, from all over the training set, are enough for the fit of the overlap."""
MOST_WORKERS = 8
"""So many processes load data for one that trains, unless the configuration wants more."""
REPORT_SECONDS = 10.0
"""Between two lines about a pass over the data."""


class Batches(NamedTuple):
    """What one phase reads, with the samplers that know which structures a batch has."""

    training: GraphLoader
    training_sampler: EpochSampler
    validation: GraphLoader
    validation_sampler: EpochSampler


class RunData:
    """The data set of a configuration.

    Args:
        config: of the run; its section ``data`` names the data set.
        processes: among which the structures are dealt out. The first one prepares them, and the
            others wait for it.
        dtype: of vectors and targets.
        say: prints a line.

    Attributes:
        split: the structure folders of each subset.
        prepared: what is known of each structure, and the graphs of those that train or validate.
        statistics: of all subsets; pairs are measured in the training set alone.
        spec: the targets.
        subsets: the graphs of each subset.

    Raises:
        HamfastError: the batch size is not a multiple of the number of processes; there is no
            split; a structure cannot be read or does not fit the others; the folder of prepared
            graphs cannot be one.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes,
        dtype: torch.dtype,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.config, self.processes, self.say = config, processes, say
        root = Path(config.data.root)
        self.split = read_split(root, None if config.data.split is None else Path(config.data.split))
        folders = [folder for subset in self.split.values() for folder in subset]
        cache = folder_of(root) / ".hamfast_cache" if config.data.cache is None else Path(config.data.cache)
        check_cache(cache)
        self.prepared = prepare(
            folders,
            Store(cache),
            dtype,
            bare=self.split.get("test", ()),
            report=_Report(say, "preparing"),
            wait=not processes.is_first,
        )
        training = set(self.split["train"])
        found = {folder: about.statistics for folder, about in self.prepared.about.items()}
        self.statistics = together({f: one if f in training else one.unmeasured() for f, one in found.items()})
        self.spec = target_spec(self.statistics.shells)
        self.subsets = {
            name: GraphDataset(subset, self.spec, None if name == "test" else self.prepared, dtype)
            for name, subset in self.split.items()
        }
        for name in ("train", "validate"):
            counts = [found[folder].count for folder in self.split[name]]
            self.subsets[name].keep(sum(count.pairs for count in counts if count is not None))

    @property
    def training(self) -> GraphDataset:
        """The training set."""
        return self.subsets["train"]

    def half_cell(self) -> float:
        """Angstrom: the largest :func:`hamfast.data.cell_size.half_cell` of the training set."""
        return max(self.statistics.half_cells[folder] for folder in self.split["train"])

    def _once(self, name: str, folders: Sequence[Path], make: Callable[[], Any], *depends_on: Any) -> Any:
        """What ``make`` makes of structures, tensors and plain numbers, kept with them.

        It is made again where the structures or ``depends_on`` have changed.
        """
        states = [(str(folder.resolve()), self.prepared.states[folder]) for folder in folders]

        def written() -> bytes:
            image = io.BytesIO()
            torch.save(make(), image)
            return image.getvalue()

        key = f"{name} {digest_of(states, self.spec.shells, self.spec.spinful, *depends_on)}"
        found = once(self.prepared.store, key, written, wait=not self.processes.is_first)
        return torch.load(io.BytesIO(found), weights_only=True)

    def fit(self, normalization: TargetNormalization) -> None:
        """Fits the target normalisation of a model to the training set."""

        about = (self.config.target.model_dump(), float(normalization.basis.centers[-1]), self.config.precision)
        for fit in normalization.fits():

            def make(fit: Fit = fit) -> dict[str, torch.Tensor]:
                if fit.name == "scale":  # of what the shift leaves, which is kept for the training
                    self._keep_shifts(normalization, "train")
                    self.training.normalize(normalization)
                fit.solve(summed(fit, self.training, len(self.training), self._report(f"fit of the {fit.name}")))
                self.training.normalize(None)
                return normalization.state_dict()

            normalization.load_state_dict(self._once(f"fit of the {fit.name}", self.split["train"], make, *about))

    def normalize(self, normalization: TargetNormalization) -> None:
        """Gives the graphs that train or validate their units, whose shifts are computed once.

        Args:
            normalization: fitted, on the CPU.
        """
        for subset in ("train", "validate"):
            self._keep_shifts(normalization, subset)
            self.subsets[subset].normalize(normalization)

    def _keep_shifts(self, normalization: TargetNormalization, subset: str) -> None:
        report, wait = self._report(f"shifts, {subset}"), not self.processes.is_first
        keep_shifts(self.prepared, self.split[subset], self.spec, normalization, report=report, wait=wait)

    def _report(self, what: str) -> _Report:
        """Says how far something is, also to processes that wait for its result."""

        def news(text: str) -> None:
            self.say(text)
            with contextlib.suppress(sqlite3.Error):
                self.prepared.store.keep_result(NEWS, text.encode())

        return _Report(news, what)

    def overlap(self) -> TwoCentreOverlap | None:
        """The overlaps of the training set as a function of the structure, with its error on the
        validation set; None if no structure has an overlap."""
        fitted = sample(self.split["train"], MOST_OVERLAPS)
        measured = sample(self.split["validate"], MOST_OVERLAPS // 4)

        def make() -> dict[str, Any] | None:
            found = TwoCentreOverlap.fit(self.spec, map(read_snapshot, fitted))
            if found is None:
                return None
            found.measure(map(read_snapshot, measured))
            return found.state()

        state = self._once("overlap", [*fitted, *measured], make, len(fitted))
        return None if state is None else TwoCentreOverlap.from_state(self.spec, state)

    def training_range(self) -> TrainingRange:
        """What the structures of the training set have."""
        return range_of(self.prepared.about[folder] for folder in self.split["train"])

    def pair_cutoffs(self) -> np.ndarray:
        """``[species, species]`` angstrom: the longest pairs of the training set, and a margin."""
        return self.statistics.pair_cutoffs()

    def batches(self, average: str) -> Batches:
        """New loaders of the training and the validation set, for one phase.

        Args:
            average: of the phase: ``structures`` or ``elements``.
        """
        data, (rank, world) = self.config.data, self.processes.deal(self.config.training.share_structures)
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
        return Batches(
            graph_loader(training, batches=sampler, num_workers=self._workers(training)),
            sampler,
            graph_loader(validation, batches=validation_sampler, num_workers=self._workers(validation)),
            validation_sampler,
        )

    def _workers(self, subset: GraphDataset) -> int:
        """How many processes read a subset for this one."""
        wanted = self.config.data.num_workers
        if wanted is None:
            # Networks on a CPU take all cores, or as many threads as they are told.
            on_gpu = self.config.accelerator != "cpu" and torch.cuda.is_available()
            taken = 1 if on_gpu else torch.get_num_threads()
            spare = cores() // self.processes.local_world - taken
            wanted = 0 if subset.fits else max(0, min(MOST_WORKERS, spare))
        return min(wanted, len(subset))


class _Report:
    """Says from time to time how far a pass over the data is; a short one says nothing."""

    def __init__(self, say: Callable[[str], None], what: str):
        self.say, self.what, self.begun, self.said = say, what, time.monotonic(), time.monotonic()
        self.has_said = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.said > REPORT_SECONDS or (done == total and self.has_said):
            rate = done / max(now - self.begun, 1e-9)
            self.say(f"{self.what + ':':<11} {done:,} of {total:,} structures, {rate:.3g} per second")
            self.said, self.has_said = now, True


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
