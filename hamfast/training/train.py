"""Training of a run: data, model, phases, resuming."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from torch import distributed

from hamfast import environment
from hamfast.data import GraphDataset, dataset_spec, graph_loader, read_split
from hamfast.data.h5 import write_json
from hamfast.data.tensor_file import save_tensors
from hamfast.errors import HamfastError
from hamfast.models import Cascade
from hamfast.targets import TargetSpec
from hamfast.training.callbacks import AtomicCheckpointIO, Checkpoints, Progress, SafetyNet
from hamfast.training.checkpoint import (
    LoadedModel,
    build_model,
    load_model,
    read_checkpoint,
    spec_of,
)
from hamfast.training.config import Config
from hamfast.training.folder import MODEL_FILE, RunFolder
from hamfast.training.history import History
from hamfast.training.initial import check_compatible, take_weights
from hamfast.training.module import CascadeTraining
from hamfast.training.sampler import EpochSampler

# Lightning's advice is for its own users; what ours must know, hamfast prints itself.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def process_count() -> tuple[int, int]:
    """Rank and number of processes, as torchrun (or a cluster's launcher) sets them."""
    return environment.whole("RANK"), environment.whole("WORLD_SIZE")


def pair_cutoffs(dataset: GraphDataset, spec: TargetSpec) -> np.ndarray:
    """``[species, species]`` angstrom: the longest pair of each kind in a data set; 0 where there
    is none."""
    n = spec.num_species
    longest = np.full((n, n), -np.inf)
    for graph in dataset:
        pair, length = graph.pair_species(n), graph.length.double()
        for p in pair.unique().tolist():
            longest[p // n, p % n] = max(longest[p // n, p % n], float(length[pair == p].max()))
    return np.maximum(longest + 1e-3, 0.0)


class Run:
    """A training run and its folder: ``config.yaml``, ``stage1/``, ``stage2/``, ``model.ckpt``."""

    def __init__(self, config: Config, console: Console | None = None):
        self.config = config
        self.rank, self.world = process_count()
        self.console = (console or Console()) if self.rank == 0 else None
        self.dtype = getattr(torch, config.precision)
        if config.data.batch_size % self.world:
            raise HamfastError(
                f"data.batch_size = {config.data.batch_size} is not a multiple of the {self.world} processes; "
                "it counts structures over all processes together"
            )
        if config.accelerator == "gpu" and not torch.cuda.is_available():
            raise HamfastError("accelerator: gpu was asked for, but torch sees no GPU; run `hamfast doctor`")
        root = Path(config.data.root)
        self.split = read_split(root, None if config.data.split is None else Path(config.data.split))
        self.spec = dataset_spec([folder for part in self.split.values() for folder in part])
        cache = root / ".hamfast_cache" if config.data.cache is None else Path(config.data.cache)
        _check_cache(cache)
        self.data = {part: GraphDataset(folders, self.spec, cache, self.dtype) for part, folders in self.split.items()}
        self.folder = RunFolder(config, self.phases())

    def phases(self) -> list[str]:
        if self.config.training.joint:
            return ["joint"]
        return ["stage1"] + (["stage2"] if self.config.training.stage2 is not None else [])

    def say(self, text: str) -> None:
        """A line on the console of the first process; never markup, since paths and labels are the
        user's."""
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    # --- training -------------------------------------------------------------------------------------------------

    def train(self, resume: bool = False, stop_after_epoch: int | None = None) -> Path | None:
        """Runs every phase that is not finished; returns the path of the final model, None if
        interrupted.

        Args:
            resume: go on with the run in the output folder; its optimiser, schedule, batches and
                numbers of epochs may differ.
            stop_after_epoch: ends the first unfinished phase early, as an interruption would.

        Raises:
            HamfastError: the folder is not that of such a run, or another process works in it; the
                data, the checkpoint or the disk fail; the training diverges at once. The run can
                then be resumed.
        """
        if self.rank == 0:
            self.folder.open(resume)
        default, threads = torch.get_default_dtype(), torch.get_num_threads()
        failed = True
        try:
            torch.set_num_threads(self._threads() or threads)
            torch.set_default_dtype(self.dtype)
            for word in self.folder.words:
                self.say(word)
            model, cutoffs = self._initial_model()
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
            torch.set_default_dtype(default)
            torch.set_num_threads(threads)
            if self.rank == 0:
                self.folder.close(failed)

    def _threads(self) -> int | None:
        wanted = self.config.threads
        if wanted is None:
            return None
        there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if wanted > there:
            self.say(f"threads: {wanted} asked for, this machine has {there}: {there} are used")
        return min(wanted, there)

    def _run_phases(self, model: Cascade, cutoffs: np.ndarray, stop_after_epoch: int | None) -> Path | None:
        phases = self.phases()
        if all(self.folder.is_finished(phase) for phase in phases):
            self.say("every phase has finished; with more epochs in the configuration it goes on")
        for phase in phases:
            if not self.folder.is_finished(phase) and not self._run_phase(phase, model, cutoffs, stop_after_epoch):
                return None
            self._load_best(model, phase)
        return self._final(phases[-1])

    def _initial_model(self) -> tuple[Cascade, np.ndarray]:
        """The model before the first step, and the longest pairs of the data.

        In a run that has begun the weights are those of its checkpoints.
        """
        lightning.seed_everything(self.config.seed, verbose=False)
        begun = next((path for path in map(self.folder.last, self.phases()) if path.exists()), None)
        if begun is not None:
            about = read_checkpoint(begun)["hamfast"]
            if spec_of(about) != self.spec:
                raise HamfastError(f"{begun}: made for other elements or orbitals than {self.config.data.root} has now")
            cutoffs = np.array(about["pair_cutoffs"])
            return build_model(self.config, self.spec, float(about.get("r_max", cutoffs.max()))), cutoffs
        source = self._source()
        cutoffs = pair_cutoffs(self.data["train"], self.spec)
        model = build_model(self.config, self.spec, float(cutoffs.max()) if source is None else source.model.r_max)
        model.normalization.fit(self.data["train"])
        if source is not None:
            self.say(f"init_from: {self.config.training.init_from}")
            for word in take_weights(model, source):
                self.say(f"  {word}")
        return model, cutoffs

    def _source(self) -> LoadedModel | None:
        """The model to start from."""
        name = self.config.training.init_from
        if name is None:
            return None
        where = f"training.init_from: {name}"
        try:
            source = load_model(name, dtype=self.dtype)
        except HamfastError as error:
            raise HamfastError(f"training.init_from: {error}") from error
        check_compatible(self.config, self.spec, source, where)
        return source

    def _announce(self, model: Cascade) -> None:
        if self.console is None:
            return
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
        counts = {part: len(folders) for part, folders in self.split.items()}
        self.say("structures: " + ", ".join(f"{n} {part}" for part, n in counts.items()))
        self.say("parameters: " + ", ".join(f"{name} {n:,}" for name, n in sizes.items() if n))
        self.say(f"precision:  {self.config.precision}")
        self.say(f"output:     {self.config.output}")
        if self.config.data.batch_size > counts["train"]:
            self.say(f"batch_size: {self.config.data.batch_size} is more than there are: one step per epoch")

    def _run_phase(self, phase, model, cutoffs, stop_after_epoch) -> bool:
        config, rank, world = self.config, self.rank, self.world
        train, validate = self.data["train"], self.data["validate"]
        sampler = EpochSampler(len(train), config.seed, rank, world, config.data.batch_size // world)
        valid_sampler = EpochSampler(len(validate), None, rank, world, 1)
        workers = min(config.data.num_workers, len(train))
        loader = graph_loader(train, sampler.batch_size, sampler=sampler, num_workers=workers)
        valid_loader = graph_loader(validate, 1, sampler=valid_sampler, num_workers=min(workers, len(validate)))
        module = CascadeTraining(model, config, phase, cutoffs, len(loader), sampler, valid_sampler)
        last = self.folder.last(phase)
        resume_from = last if last.exists() else None
        checkpoints = Checkpoints(last.parent, resumed=resume_from is not None)
        safety = SafetyNet(module.settings.safety, checkpoints, self.console)
        history = History(last.parent / "logs" / "metrics.csv")
        callbacks = [history, safety, checkpoints]
        if self.console is not None:
            callbacks.append(Progress(self.console, phase))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.`.*")
            trainer = lightning.Trainer(
                accelerator=config.accelerator,
                devices=1 if self.world == 1 else self._local_world(),
                num_nodes=max(1, self.world // self._local_world()),
                strategy="auto" if self.world == 1 else "ddp_find_unused_parameters_true",
                max_epochs=module.settings.epochs if stop_after_epoch is None else stop_after_epoch,
                logger=TensorBoardLogger(last.parent, name="", version="logs"),
                callbacks=callbacks,
                plugins=[AtomicCheckpointIO()],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=1,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
            if resume_from is not None:
                read_checkpoint(resume_from)  # a damaged file gets a sentence
            interrupted = False
            try:
                trainer.fit(module, loader, valid_loader, ckpt_path=resume_from, weights_only=True)
            except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into an exit
                interrupted = True
            except Exception as error:
                raise _in_a_sentence(error, phase, last) from error
        if interrupted or trainer.current_epoch < module.settings.epochs:
            self.say("interrupted; continue with --resume from the last complete epoch:")
            self.say(f"  {checkpoints.last_path}")
            return False
        if self.rank == 0:
            content = {
                "epochs": trainer.current_epoch,
                "best_epoch": checkpoints.best_epoch,
                "best_val_loss_meV": checkpoints.best,
            }
            write_json(self.folder.finished_file(phase), content)
        self._barrier()
        return True

    @staticmethod
    def _local_world() -> int:
        """Processes of this machine."""
        return environment.whole("LOCAL_WORLD_SIZE")

    def _load_best(self, model: Cascade, phase: str) -> None:
        best = load_model(self.folder.path / phase / "best.ckpt", dtype=self.dtype).model
        model.load_state_dict(best.state_dict())

    def _final(self, phase: str) -> Path:
        path = self.folder.path / MODEL_FILE
        if self.rank == 0:
            save_tensors(read_checkpoint(self.folder.path / phase / "best.ckpt"), path)
        self._barrier()
        return path

    @staticmethod
    def _barrier() -> None:
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()


def _check_cache(folder: Path) -> None:
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


def _in_a_sentence(error: Exception, phase: str, last: Path) -> Exception:
    """What the memory or a worker process has said, for the user; any other error as it is."""
    resume = f"{last} holds the last complete epoch: continue with --resume"
    lines = str(error).strip().splitlines() or [""]
    if lines[0].startswith("Caught ") and isinstance(error, HamfastError | OSError):
        # From a worker process it comes with the worker's traceback as its text, "type: sentence" last.
        return HamfastError(lines[-1].partition(": ")[2] or lines[-1])
    if isinstance(error, torch.OutOfMemoryError):
        return HamfastError(
            f"{phase}: the GPU's memory is too small for a step; lower data.batch_size or the widths; {resume}"
        )
    return error
