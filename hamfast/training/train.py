"""Training of a run: data, model, phases, resuming."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning
import numpy as np
import torch
import torch.utils.data
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console
from torch import distributed

from hamfast.data import GraphDataset, dataset_spec, graph_loader, read_split
from hamfast.data.h5 import write_json
from hamfast.errors import HamfastError
from hamfast.models import Cascade
from hamfast.targets import TargetSpec
from hamfast.training.callbacks import Checkpoints, Progress, SafetyNet
from hamfast.training.checkpoint import AtomicCheckpointIO, build_model, load_model, read_checkpoint
from hamfast.training.config import Config, load_config, write_config
from hamfast.training.module import CascadeTraining

# Lightning's advice is for its own users; what ours must know, hamfast prints itself.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.ckpt"


class EpochSampler(torch.utils.data.Sampler[int]):
    """A permutation per epoch from the seed alone, dealt out to the processes like cards.

    Batch b of n processes with batch size s holds the same structures as batch b of one process with batch size n s.
    """

    def __init__(self, length: int, seed: int, rank: int, world: int):
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        # Every process takes part in every step: the last batch is filled up from the front.
        self.total = -(-length // world) * world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        order = [order[n % self.length] for n in range(self.total)]
        return iter(order[self.rank :: self.world])

    def __len__(self) -> int:
        return self.total // self.world


def process_count() -> tuple[int, int]:
    """Rank and number of processes, as torchrun (or a cluster's launcher) sets them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def pair_cutoffs(dataset: GraphDataset, spec: TargetSpec) -> np.ndarray:
    """``[species, species]`` angstrom: the longest pair of each kind in a data set."""
    n = spec.num_species
    longest = np.zeros((n, n))
    for graph in dataset:
        pair, length = graph.pair_species(n), graph.length.double()
        for p in pair.unique().tolist():
            longest[p // n, p % n] = max(longest[p // n, p % n], float(length[pair == p].max()))
    return longest + 1e-3


class Run:
    """A training run and its folder: ``config.yaml``, ``stage1/``, ``stage2/``, ``model.ckpt``."""

    def __init__(self, config: Config, console: Console | None = None):
        self.config = config
        self.folder = Path(config.output)
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
        if not _writable(cache):
            raise HamfastError(f"{cache}: cannot be written; set data.cache to a folder for prepared graphs")
        self.data = {part: GraphDataset(folders, self.spec, cache, self.dtype) for part, folders in self.split.items()}

    # --- the folder -----------------------------------------------------------------------------------------------

    def phases(self) -> list[str]:
        if self.config.training.joint:
            return ["joint"]
        return ["stage1"] + (["stage2"] if self.config.training.stage2 is not None else [])

    def start_folder(self, resume: bool) -> None:
        """Checks that the output folder is new, or holds this very run when resuming.

        Raises:
            HamfastError: the folder holds a run, or there is nothing to resume, or the run had another configuration.
        """
        path = self.folder / CONFIG_FILE
        if not resume:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise HamfastError(
                    f"{self.folder}: not empty, perhaps another run; choose another `output`, or continue it with --resume"
                )
            write_config(self.config, path)
        else:
            if not path.exists():
                raise HamfastError(f"{self.folder}: nothing to resume, {CONFIG_FILE} is not there")
            before = load_config(path)
            for key in ("data", "target", "stage1", "stage2", "training", "seed", "precision"):
                if getattr(before, key) != getattr(self.config, key):
                    raise HamfastError(
                        f"{self.folder}: cannot resume, `{key}` of the configuration differs from {path}"
                    )

    def _finished(self, phase: str) -> Path:
        return self.folder / phase / "finished.json"

    # --- training -------------------------------------------------------------------------------------------------

    def train(self, resume: bool = False, stop_after_epoch: int | None = None) -> Path | None:
        """Runs every phase that is not finished; returns the path of the final model, None if interrupted.

        ``stop_after_epoch`` ends the first unfinished phase early, as an interruption would.
        """
        if self.rank == 0:
            self.start_folder(resume)
        default, threads = torch.get_default_dtype(), torch.get_num_threads()
        torch.set_num_threads(self.config.threads or threads)
        torch.set_default_dtype(self.dtype)
        try:
            model, cutoffs = self._initial_model()
            self._announce(model)
            for phase in self.phases():
                if self._finished(phase).exists():
                    self._load_best(model, phase)
                    continue
                if not self._run_phase(phase, model, cutoffs, stop_after_epoch):
                    return None
                self._load_best(model, phase)
            return self._final(self.phases()[-1])
        finally:
            torch.set_default_dtype(default)
            torch.set_num_threads(threads)

    def _initial_model(self) -> tuple[Cascade, np.ndarray]:
        lightning.seed_everything(self.config.seed, verbose=False)
        cutoffs = pair_cutoffs(self.data["train"], self.spec)
        model = build_model(self.config, self.spec, cutoffs)
        model.normalization.fit(self.data["train"])
        return model, cutoffs

    def _announce(self, model: Cascade) -> None:
        if self.console is None:
            return
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
        parts = ", ".join(f"{name} {n:,}" for name, n in sizes.items() if n)
        counts = ", ".join(f"{len(folders)} {part}" for part, folders in self.split.items())
        self.console.print(
            f"structures: {counts}; parameters: {parts}; {self.config.precision}; output: {self.folder}",
            highlight=False,
            soft_wrap=True,
        )

    def _run_phase(self, phase, model, cutoffs, stop_after_epoch) -> bool:
        config = self.config
        batch = config.data.batch_size // self.world
        sampler = EpochSampler(len(self.data["train"]), config.seed, self.rank, self.world)
        loader = graph_loader(self.data["train"], batch, sampler=sampler, num_workers=config.data.num_workers)
        validate = graph_loader(
            self.data["validate"],
            1,
            sampler=range(self.rank, len(self.data["validate"]), self.world) if self._even_validation() else None,
            num_workers=config.data.num_workers,
        )
        module = CascadeTraining(model, config, phase, cutoffs, len(loader))
        folder = self.folder / phase
        resume_from = folder / "last.ckpt" if (folder / "last.ckpt").exists() else None
        checkpoints = Checkpoints(folder, resumed=resume_from is not None)
        callbacks = [SafetyNet(module.settings.safety, checkpoints, self.console), checkpoints]
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
                logger=[TensorBoardLogger(folder, name="", version="logs"), CSVLogger(folder, name="", version="logs")],
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
                trainer.fit(module, loader, validate, ckpt_path=resume_from, weights_only=True)
            except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into an exit
                interrupted = True
        if interrupted or trainer.current_epoch < module.settings.epochs:
            if self.console is not None:
                self.console.print(
                    f"interrupted; {checkpoints.last_path} holds the last complete epoch, continue with --resume"
                )
            return False
        if self.rank == 0:
            write_json(self._finished(phase), {"epochs": trainer.current_epoch, "best_epoch": checkpoints.best_epoch,
                                               "best_val_loss_meV": checkpoints.best})  # fmt: skip
        self._barrier()
        return True

    def _even_validation(self) -> bool:
        return self.world > 1 and len(self.data["validate"]) % self.world == 0

    @staticmethod
    def _local_world() -> int:
        """Processes of this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def _load_best(self, model: Cascade, phase: str) -> None:
        best = load_model(self.folder / phase / "best.ckpt", dtype=self.dtype).model
        model.load_state_dict(best.state_dict())

    def _final(self, phase: str) -> Path:
        path = self.folder / MODEL_FILE
        if self.rank == 0:
            AtomicCheckpointIO().save_checkpoint(read_checkpoint(self.folder / phase / "best.ckpt"), path)
        self._barrier()
        return path

    @staticmethod
    def _barrier() -> None:
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()


def _writable(folder: Path) -> bool:
    parent = folder
    while not parent.exists():
        parent = parent.parent
    return os.access(parent, os.W_OK)
