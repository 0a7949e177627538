"""Training of a run: its folder, its data, its model and its phases, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
import numpy as np
import torch
from rich.console import Console

from hamfast.data.cell_size import training_warning
from hamfast.data.tensor_file import save_tensors
from hamfast.data.training_range import TrainingRange
from hamfast.errors import HamfastError
from hamfast.machine import cores
from hamfast.models import Cascade
from hamfast.training.checkpoint import (
    LoadedModel,
    build_model,
    checkpoint_of,
    load_model,
    overlap_of,
    range_of,
    read_checkpoint,
    spec_of,
)
from hamfast.training.config import Config
from hamfast.training.folder import MODEL_FILE, RunFolder
from hamfast.training.initial import check_compatible, knows_pairs, take_weights
from hamfast.training.phase import Phase
from hamfast.training.processes import Processes
from hamfast.training.run_data import RunData


class Run:
    """A training run: what ``hamfast train`` does.

    Args:
        config: of the run.
        console: where the first process prints; by default the standard output.

    Attributes:
        data: the data set (:class:`RunData`).
        folder: ``config.yaml``, ``stage1/``, ``stage2/``, ``model.ckpt`` (:class:`RunFolder`).

    Raises:
        HamfastError: the data or the machine do not fit the configuration.
    """

    def __init__(self, config: Config, console: Console | None = None):
        self.config = config
        self.processes = Processes.from_environment()
        self.console = (console or Console()) if self.processes.is_first else None
        self.dtype = getattr(torch, config.precision)
        if config.data.batch_size % self.processes.deal(config.training.share_structures)[1]:
            raise HamfastError(
                f"data.batch_size = {config.data.batch_size} is not a multiple of the {self.processes.world} processes; "
                "it counts structures over all processes together (not with training.share_structures)"
            )
        if config.accelerator == "gpu" and not torch.cuda.is_available():
            raise HamfastError("accelerator: gpu was asked for, but torch sees no GPU; run `hamfast doctor`")
        self.data = RunData(config, self.processes, self.dtype, self.say)
        self.folder = RunFolder(config, self.phases())

    def phases(self) -> list[str]:
        """The names of the phases, in the order of training."""
        if self.config.training.joint:
            return ["joint"]
        sections = {"stage1": self.config.training.stage1, "stage2": self.config.training.stage2}
        return [name for name, section in sections.items() if section is not None]

    def say(self, text: str) -> None:
        """A line on the console of the first process.

        It is no markup, since paths and labels are the user's.
        """
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    # --- training
    # ---------------------------------------------------------------------------------------------

    def train(self, resume: bool = False, stop_after_epoch: int | None = None) -> Path | None:
        """Runs every phase that is not finished.

        Args:
            resume: go on with the run in the output folder; its optimiser, schedule, batches and
                numbers of epochs may differ.
            stop_after_epoch: ends the first unfinished phase early, as an interruption would.

        Returns:
            The path of the final model; None if the training was interrupted.

        Raises:
            HamfastError: the folder is not that of such a run, or another process works in it; the
                data, the checkpoint or the disk fail; the training diverges at once. The run can
                then be resumed.
        """
        if self.processes.is_first:
            self.folder.open(resume)
        failed = True
        try:
            with self._settings():
                for word in self.folder.words:
                    self.say(word)
                model, cutoffs = self._initial_model()
                model.half_cell = self.data.half_cell()
                self._announce(model)
                path = self._run_phases(model, cutoffs, stop_after_epoch)
            failed = False
            return path
        except OSError as error:
            begun = any(self.folder.last(phase).exists() for phase in self.phases())
            what = f"{error.filename or self.config.output}: {error.strerror or error}"
            raise HamfastError(
                what + ("; continue with --resume from the last complete epoch" if begun else "")
            ) from error
        finally:
            if self.processes.is_first:
                self.folder.close(failed)

    def prepare(self) -> Path:
        """Does what a training does before its first step, and keeps it for all that will follow.

        Returns:
            The path of the file that keeps it.

        Raises:
            HamfastError: the data do not fit the configuration.
        """
        with self._settings():
            self._initial_model()
        return self.data.prepared.store.path

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """torch's threads and default dtype are those of the configuration within the block."""
        default, threads = torch.get_default_dtype(), torch.get_num_threads()
        try:
            torch.set_num_threads(self._threads() or threads)
            torch.set_default_dtype(self.dtype)
            yield
        finally:
            torch.set_default_dtype(default)
            torch.set_num_threads(threads)

    def _threads(self) -> int | None:
        wanted = self.config.threads
        if wanted is None:
            return None
        there = cores()
        if wanted > there:
            self.say(f"threads: {wanted} asked for, this machine has {there}: {there} are used")
        return min(wanted, there)

    def _run_phases(self, model: Cascade, cutoffs: np.ndarray, stop_after_epoch: int | None) -> Path | None:
        names = self.phases()
        if names and all(self.folder.is_finished(name) for name in names):
            self.say("every phase has finished; with more epochs in the configuration it goes on")
        for name in names:
            if not self.folder.is_finished(name):
                phase = Phase(name, self.config, self.data, self.folder, self.processes, self.console, self.say)
                if not phase.train(model, cutoffs, stop_after_epoch):
                    return None
            best = load_model(self.folder.best(name), dtype=self.dtype).model
            model.load_state_dict(best.state_dict())
        return self._final(model, cutoffs)

    def _initial_model(self) -> tuple[Cascade, np.ndarray]:
        """The model before the first step, and the longest pairs of the data.

        In a run that has begun the weights are those of its checkpoints.
        """
        lightning.seed_everything(self.config.seed, verbose=False)
        spec = self.data.spec
        begun = next((path for path in map(self.folder.last, self.phases()) if path.exists()), None)
        if begun is not None:
            about = read_checkpoint(begun)["hamfast"]
            if spec_of(about) != spec:
                raise HamfastError(f"{begun}: made for other elements or orbitals than {self.config.data.root} has now")
            cutoffs = np.array(about["pair_cutoffs"])
            model = build_model(self.config, spec, float(about.get("r_max", cutoffs.max())))
            model.overlap, model.training_range = overlap_of(about, spec), range_of(about)
            return model, cutoffs
        source = self._source()
        cutoffs = self.data.pair_cutoffs()
        model = build_model(self.config, spec, float(cutoffs.max()) if source is None else source.model.r_max)
        if source is None or not knows_pairs(source, spec, cutoffs):
            self.data.fit(model.normalization)
        if source is not None:
            self.say(f"init_from: {self.config.training.init_from}")
            for word in take_weights(model, source):
                self.say(f"  {word}")
        model.overlap = self.data.overlap() or (None if source is None else source.model.overlap)
        model.training_range = TrainingRange.together(
            [self.data.training_range(), None if source is None else source.model.training_range]
        )
        if self.phases():
            self.data.normalize(model.normalization)
        return model, cutoffs

    def _source(self) -> LoadedModel | None:
        """The model to start from; None for fresh weights."""
        name = self.config.training.init_from
        if name is None:
            return None
        where = f"training.init_from: {name}"
        try:
            source = load_model(name, dtype=self.dtype)
        except HamfastError as error:
            raise HamfastError(f"training.init_from: {error}") from error
        check_compatible(self.config, self.data.spec, source, where)
        return source

    def _announce(self, model: Cascade) -> None:
        if self.console is None:
            return
        sizes = {name: sum(p.numel() for p in stage.parameters()) for name, stage in model.named_children()}
        counts = {subset: len(folders) for subset, folders in self.data.split.items()}
        self.say("structures: " + ", ".join(f"{n} {subset}" for subset, n in counts.items()))
        listed = ", ".join(f"{name} {n:,}" for name, n in sizes.items() if n)
        self.say(f"parameters: {listed or 'none; target.shift, fitted in closed form, is the model'}")
        self.say(f"precision:  {self.config.precision}")
        if model.overlap is not None and model.overlap.error is not None:
            mean, largest = model.overlap.error
            self.say(f"overlap:    fitted; |dS| of the validation set {mean:.0e}, at most {largest:.0e}")
        for line in training_warning(model.receptive_field, self.data.half_cell()):
            self.say(line)
        self.say(f"output:     {self.config.output}")
        if self.config.data.batch_size > counts["train"]:
            self.say(f"batch_size: {self.config.data.batch_size} is more than there are: one step per epoch")

    def _final(self, model: Cascade, cutoffs: np.ndarray) -> Path:
        """Makes the best weights of the last phase the model of the run; returns its path.

        Without a phase they are those of ``model``.
        """
        path, names = self.folder.path / MODEL_FILE, self.phases()
        if self.processes.is_first:
            best = read_checkpoint(self.folder.best(names[-1])) if names else checkpoint_of(self.config, model, cutoffs)
            save_tensors(best, path)
        self.processes.wait_for_all()
        return path
