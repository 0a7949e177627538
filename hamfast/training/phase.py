"""One phase of a run: Lightning's trainer with hamfast's checkpoints, safety net and history."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from hamfast.data.h5 import write_json
from hamfast.errors import HamfastError
from hamfast.models import Cascade
from hamfast.models.sweeps import Whole
from hamfast.training.callbacks import AtomicCheckpointIO, Checkpoints, EarlyStop, Progress, SafetyNet
from hamfast.training.checkpoint import read_checkpoint
from hamfast.training.config import Config
from hamfast.training.folder import RunFolder
from hamfast.training.history import History
from hamfast.training.module import CascadeTraining
from hamfast.training.processes import Processes
from hamfast.training.run_data import RunData
from hamfast.training.saving import SaveWithinEpochs
from hamfast.training.throughput import Throughput

# Lightning's advice is for its own users; what ours must know, hamfast prints itself.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class Phase:
    """``stage1``, ``stage2`` or ``joint`` of a run.

    Args:
        name: of the phase.
        config: of the run.
        data: of the run.
        folder: of the run; the phase writes into its sub-folder ``name``.
        processes: that train together.
        console: for progress; None prints none.
        say: prints a line.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        data: RunData,
        folder: RunFolder,
        processes: Processes,
        console: Console | None,
        say: Callable[[str], None],
    ):
        self.name, self.config, self.data, self.folder = name, config, data, folder
        self.processes, self.console, self.say = processes, console, say

    def train(self, model: Cascade, pair_cutoffs: np.ndarray, stop_after_epoch: int | None = None) -> bool:
        """Trains the model in place, from the phase's last checkpoint if there is one.

        Args:
            model: its weights are those to start with.
            pair_cutoffs: ``[species, species]`` angstrom, for the checkpoints.
            stop_after_epoch: ends early, as an interruption would.

        Returns:
            Has the phase had all its epochs? False where it was interrupted.

        Raises:
            HamfastError: the training diverged at once; memory or a file failed.
        """
        last = self.folder.last(self.name)
        resume_from = last if last.exists() else None
        self._normalize(model, resume_from)
        batches = self.data.batches(self.config.training.of_phase(self.name).average)
        module = CascadeTraining(
            model,
            self.config,
            self.name,
            pair_cutoffs,
            len(batches.training),
            batches.training_sampler,
            batches.validation_sampler,
        )
        checkpoints = Checkpoints(last.parent, resumed=resume_from is not None)
        speed = Throughput(batches.training, batches.training_sampler)
        early = EarlyStop(module.settings.patience, checkpoints)
        interrupted = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.`.*")
            trainer = self._trainer(module, checkpoints, early, speed, stop_after_epoch)
            try:
                trainer.fit(module, batches.training, batches.validation, ckpt_path=resume_from, weights_only=True)
            except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into an exit
                interrupted = True
            except Exception as error:
                raise _in_a_sentence(error, self.name, last) from error
            finally:
                model.sweeps_over = Whole  # what follows is done by one process
                for loader in (batches.training, batches.validation):
                    loader.close()
        if interrupted or (trainer.current_epoch < module.settings.epochs and not early.stopped):
            self.say("interrupted; continue with --resume from the last checkpoint:")
            self.say(f"  {checkpoints.last_path}")
            return False
        if early.stopped:
            self.say(f"{self.name}: no better for {module.settings.patience} epochs; it ends")
        if self.processes.is_first:
            content = {
                "epochs": trainer.current_epoch,
                "ended_by_patience": module.settings.patience if early.stopped else None,
                "best_epoch": checkpoints.best_epoch,
                "best_val_loss_meV": checkpoints.best,
            }
            write_json(self.folder.finished_file(self.name), content)
        self.processes.wait_for_all()
        return True

    def _normalize(self, model: Cascade, resume_from: Path | None) -> None:
        """Has the graphs' shifts and scales made once: they do not change in a training.

        Raises:
            HamfastError: the checkpoint is damaged.
        """
        normalization = copy.deepcopy(model.normalization).cpu()
        if resume_from is not None:
            prefix = "model.normalization."
            state = read_checkpoint(resume_from)["state_dict"]
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            normalization.load_state_dict(own)
        self.data.normalize(normalization)

    def _trainer(
        self,
        module: CascadeTraining,
        checkpoints: Checkpoints,
        early: EarlyStop,
        speed: Throughput,
        stop_after_epoch: int | None,
    ) -> lightning.Trainer:
        safety = SafetyNet(module.settings.safety, checkpoints, self.console)
        history = History(checkpoints.folder / "logs" / "metrics.csv", speed)
        # In this order: a checkpoint's epochs are all in the history, and no checkpoint is written
        # of weights that the safety net takes back.
        callbacks = [speed, history, safety, early, checkpoints]
        if self.console is not None:
            callbacks.append(Progress(self.console, self.name, speed))
        # The last one: it may end the training.
        callbacks.append(SaveWithinEpochs(checkpoints, self.config.training.save_minutes, self.say))
        alone = self.processes.world == 1
        return lightning.Trainer(
            accelerator=self.config.accelerator,
            devices=1 if alone else self.processes.local_world,
            num_nodes=self.processes.machines,
            strategy="auto" if alone else "ddp_find_unused_parameters_true",
            max_epochs=module.settings.epochs if stop_after_epoch is None else stop_after_epoch,
            logger=TensorBoardLogger(checkpoints.folder, name="", version="logs"),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )


def _in_a_sentence(error: Exception, phase: str, last: Path) -> Exception:
    """What the memory or a worker process has said, for the user; any other error as it is."""
    resume = f"{last} holds the last complete epoch: continue with --resume"
    lines = str(error).strip().splitlines() or [""]
    if lines[0].startswith("Caught ") and isinstance(error, HamfastError | OSError):
        # The text of an error in a worker process is that process's traceback. "type: sentence" is
        # its last line.
        return HamfastError(lines[-1].partition(": ")[2] or lines[-1])
    if isinstance(error, torch.OutOfMemoryError):
        return HamfastError(
            f"{phase}: the GPU's memory is too small for a step; lower data.batch_size, data.max_edges or the widths; {resume}"
        )
    return error
