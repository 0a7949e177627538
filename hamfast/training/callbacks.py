"""What happens around the epochs: checkpoints, the safety net, progress."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from hamfast.training.checkpoint import read_checkpoint
from hamfast.training.config import SafetyConfig


class Checkpoints(Callback):
    """``last.ckpt`` after every epoch, ``best.ckpt`` whenever the validation loss improves.

    ``last.ckpt`` of the state before the first epoch is written too, so an interrupted run always has one.
    """

    def __init__(self, folder: Path, resumed: bool):
        self.folder, self.resumed = folder, resumed
        self.best = math.inf
        self.best_epoch = -1

    @property
    def best_path(self) -> Path:
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        return self.folder / "last.ckpt"

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        # Saving waits for all processes, so whether to save must not depend on a file that one of them writes.
        if not self.resumed:
            trainer.save_checkpoint(self.last_path)

    # After the safety net has acted and Lightning has closed the epoch, so that a resumed run starts at the next one.
    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val_loss_meV"])
        if loss < self.best:
            self.best, self.best_epoch = loss, trainer.current_epoch
            trainer.save_checkpoint(self.best_path)
        trainer.save_checkpoint(self.last_path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


class SafetyNet(Callback):
    """Reloads the best weights at a lower learning rate when the validation loss diverges."""

    def __init__(self, settings: SafetyConfig, checkpoints: Checkpoints, console: Console | None):
        self.settings, self.checkpoints, self.console = settings, checkpoints, console
        self.bad = 0

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        loss, best = float(trainer.callback_metrics["val_loss_meV"]), self.checkpoints.best
        lost = not math.isfinite(loss)
        self.bad = self.bad + 1 if lost or loss > self.settings.factor * best else 0
        if not (self.bad >= self.settings.patience or lost) or not self.checkpoints.best_path.exists():
            return
        self.bad = 0
        self.reload(trainer, module)
        if self.console:
            self.console.print(
                f"validation loss {loss:.3f} meV, best {best:.3f}: best weights reloaded, learning rate x {self.settings.decay}"
            )

    def reload(self, trainer: lightning.Trainer, module: Any) -> None:
        checkpoint = read_checkpoint(self.checkpoints.best_path)
        module.load_state_dict(checkpoint["state_dict"])
        module.restore_average(checkpoint)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()  # its moments belong to the diverged path
        module.lr_factor *= self.settings.decay

    def state_dict(self) -> dict[str, Any]:
        return {"bad": self.bad}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bad = state_dict["bad"]


class Progress(Callback):
    """A line per epoch (at most one every few seconds): losses in meV, learning rate, time left."""

    def __init__(self, console: Console, phase: str, every: float = 8.0):
        self.console, self.phase, self.every = console, phase, every
        self.started = self.printed = 0.0
        self.first_epoch = 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.started = time.monotonic()
        self.first_epoch = trainer.current_epoch
        self.console.print(
            f"[bold]{self.phase}[/]  {'epoch':>11} {'train loss':>12} {'val loss':>10} {'val MAE':>9} (meV)  "
            f"{'learning rate':>13} {'s/epoch':>8} {'left':>8}",
            soft_wrap=True,
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        now, epoch, epochs = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or 1
        if now - self.printed < self.every and epoch != epochs:
            return
        self.printed = now
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        per_epoch = (now - self.started) / max(1, epoch - self.first_epoch)
        left = time.strftime("%H:%M:%S", time.gmtime(per_epoch * (epochs - epoch)))
        self.console.print(
            f"{self.phase}  {epoch:>5}/{epochs:<5} {metrics['train_loss_meV']:>12.3f} {metrics['val_loss_meV']:>10.3f} "
            f"{metrics['val_mae_meV']:>9.3f}        {trainer.optimizers[0].param_groups[0]['lr']:>13.2e} "
            f"{per_epoch:>8.2f} {left:>8}",
            highlight=False,
            soft_wrap=True,
        )
