"""What happens around the epochs: checkpoints, the safety net, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from hamfast.data.tensor_file import save_tensors
from hamfast.errors import HamfastError
from hamfast.training.checkpoint import read_checkpoint
from hamfast.training.config import SafetyConfig, section_of_phase
from hamfast.training.throughput import Throughput, short


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written by :func:`hamfast.data.tensor_file.save_tensors`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        """Writes a checkpoint whole or not at all; ``storage_options`` have no meaning here."""
        save_tensors(checkpoint, Path(path))


class Checkpoints(Callback):
    """``last.ckpt`` after every epoch, ``best.ckpt`` whenever the validation loss improves.

    ``last.ckpt`` of the state before the first epoch is written too, so an interrupted run always
    has one.

    Args:
        folder: of the phase.
        resumed: the phase goes on from its ``last.ckpt``.

    Attributes:
        best: the lowest validation loss, meV.
        best_epoch: its epoch, from 0.
    """

    def __init__(self, folder: Path, resumed: bool):
        self.folder, self.resumed = folder, resumed
        self.best = math.inf
        self.best_epoch = -1

    @property
    def best_path(self) -> Path:
        """``best.ckpt``."""
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """``last.ckpt``."""
        return self.folder / "last.ckpt"

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Writes the state before the first epoch."""
        # Saving waits for all processes, so whether to save must not depend on a file that one of
        # them writes.
        if not self.resumed:
            trainer.save_checkpoint(self.last_path)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Writes ``last.ckpt``, and ``best.ckpt`` if the validation loss is the lowest yet.

        This comes after the safety net has acted and Lightning has closed the epoch, so that a
        resumed run starts at the next one.
        """
        loss = float(trainer.callback_metrics["val_loss_meV"])
        if loss < self.best:
            self.best, self.best_epoch = loss, trainer.current_epoch
            trainer.save_checkpoint(self.best_path)
        trainer.save_checkpoint(self.last_path)

    def state_dict(self) -> dict[str, Any]:
        """The best epoch, for the checkpoint."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best epoch from a checkpoint."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


class EarlyStop(Callback):
    """Ends a phase after so many epochs without a lower validation loss; see ``patience``.

    It comes before :class:`Checkpoints`, whose best epoch does not have this one yet.

    Args:
        patience: epochs; None never ends.
        checkpoints: of the phase.

    Attributes:
        stopped: has it ended the phase?
    """

    def __init__(self, patience: int | None, checkpoints: Checkpoints):
        self.patience, self.checkpoints, self.stopped = patience, checkpoints, False

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Looks at the epoch's validation loss."""
        if self.patience is None or float(trainer.callback_metrics["val_loss_meV"]) < self.checkpoints.best:
            return
        # Both count from 0, and this epoch is current_epoch.
        if trainer.current_epoch - self.checkpoints.best_epoch >= self.patience:
            self.stopped = trainer.should_stop = True


class SafetyNet(Callback):
    """Reloads the best weights at a lower learning rate when the validation loss diverges.

    Args:
        settings: when a loss counts as diverged, and what follows.
        checkpoints: of the phase.
        console: for a line when the best weights come back; None prints none.

    Raises:
        HamfastError: the loss or the weights are not numbers before there were any best weights.
            Nothing that is not a number reaches ``last.ckpt``: this comes before
            :class:`Checkpoints`.
    """

    def __init__(self, settings: SafetyConfig, checkpoints: Checkpoints, console: Console | None):
        self.settings, self.checkpoints, self.console = settings, checkpoints, console
        self.bad = 0

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Looks at the epoch's validation loss and at the weights, and acts if it must."""
        loss, best = float(trainer.callback_metrics["val_loss_meV"]), self.checkpoints.best
        lost = not math.isfinite(loss) or not all(bool(p.isfinite().all()) for p in module.parameters())
        self.bad = self.bad + 1 if lost or loss > self.settings.factor * best else 0
        if lost and not math.isfinite(best):
            raise HamfastError(self.sentence(trainer, module))
        if not lost and self.bad < self.settings.patience:
            return
        self.bad = 0
        self.reload(trainer, module)
        if self.console:
            self.console.print(
                f"validation loss {number(loss, 9).strip()} meV, best {number(best, 9).strip()}: "
                f"best weights back, rate x {self.settings.decay:g}",
                highlight=False,
            )

    def sentence(self, trainer: lightning.Trainer, module: Any) -> str:
        """What the user is told when there are no best weights to go back to."""
        key = f"training.{section_of_phase(module.phase)}"
        rate = module.settings.learning_rate * module.lr_factor
        return (
            f"{module.phase}: after epoch {trainer.current_epoch + 1} the loss is not a number, at a learning rate of {rate:.2g}; "
            f"{self.checkpoints.last_path} holds the last weights that are numbers: lower {key}.learning_rate"
            f"{'' if module.settings.clip else f', or set {key}.clip,'} and continue with --resume"
        )

    def reload(self, trainer: lightning.Trainer, module: Any) -> None:
        """Goes on from the best weights, with fresh moments and a lower rate."""
        checkpoint = read_checkpoint(self.checkpoints.best_path)
        module.load_state_dict(checkpoint["state_dict"])
        module.restore_average(checkpoint)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()  # its moments belong to the diverged path
        module.lr_factor *= self.settings.decay
        module.set_rates()

    def state_dict(self) -> dict[str, Any]:
        """How many epochs in a row have diverged, for the checkpoint."""
        return {"bad": self.bad}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes that number from a checkpoint."""
        self.bad = state_dict["bad"]


def number(value: float, width: int) -> str:
    """Three decimals where they fit into ``width`` characters, else as a power of ten."""
    text = f"{value:{width}.3f}"
    return text if len(text) <= width else f"{value:{width}.{max(0, width - 7)}e}"


def duration(seconds: float) -> str:
    """``HH:MM:SS``, with days where there are some; at most 9 characters."""
    minutes, s = divmod(round(min(seconds, 1e10)), 60)
    hours, m = divmod(minutes, 60)
    if hours < 100:
        return f"{hours:02}:{m:02}:{s:02}"
    days = hours // 24
    return f"{days}d {hours % 24:02}h" if days < 10_000 else f"{days}d"


class Progress(Callback):
    """Lines of at most 80 columns: losses in meV, structures and edges per second, the share of
    waiting for data, time left.

    Args:
        console: where they are printed.
        phase: its name.
        speed: of each epoch.
        every: seconds, the shortest time between two lines; the last epoch always has one.
    """

    def __init__(self, console: Console, phase: str, speed: Throughput, every: float = 8.0):
        self.console, self.phase, self.speed, self.every = console, phase, speed, every
        self.started = self.printed = 0.0
        self.first_epoch = 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Prints the header."""
        self.started = time.monotonic()
        self.first_epoch = trainer.current_epoch
        for line in self.header():
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Prints a line, unless the last one is too recent."""
        now, epoch, epochs = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or 1
        if now - self.printed < self.every and epoch != epochs and not trainer.should_stop:
            return
        self.printed = now
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()} | self.speed.values
        per_epoch = (now - self.started) / max(1, epoch - self.first_epoch)
        line = self.line(epoch, epochs, metrics, per_epoch)
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def header(self) -> tuple[str, str]:
        """The names of the columns, in two lines."""
        above = f"{self.phase:<6} {'':>15} {'training':>9} {'valid.':>9} {'valid.':>9} {'struct':>6} {'edges':>5} {'data':>4}"
        below = (
            f"{'':<6} {'epoch':>15} {'loss meV':>9} {'loss meV':>9} {'MAE meV':>9} {'per s':>6} {'per s':>5} {'wait':>4} "
            f"{'left':>9}"
        )
        return above, below

    def line(self, epoch: int, epochs: int, metrics: Mapping[str, float], per_epoch: float) -> str:
        """The line of an epoch.

        Args:
            epoch, epochs: how many are done, and how many there will be.
            metrics: ``train_loss_meV``, ``val_loss_meV`` and ``val_mae_meV``, and those of
                :class:`hamfast.training.throughput.Throughput`.
            per_epoch: seconds.
        """
        losses = " ".join(number(metrics[f"{name}_meV"], 9) for name in ("train_loss", "val_loss", "val_mae"))
        structures, edges = short(metrics["structures_per_s"]), short(metrics["edges_per_s"])
        waiting = f"{metrics['waiting_percent']:.0f}%"
        left = duration(per_epoch * (epochs - epoch))
        return f"{self.phase:<6} {f'{epoch}/{epochs}':>15} {losses} {structures:>6} {edges:>5} {waiting:>4} {left:>9}"
