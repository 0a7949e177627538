"""Checkpoints within an epoch: every so many minutes, and when a batch system ends the job."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from hamfast.training.callbacks import Checkpoints

SIGNALS = tuple(s for name in ("SIGTERM", "SIGUSR1") if (s := getattr(signal, name, None)) is not None)
"""With these batch systems say that the time is over, or soon will be."""


class SaveWithinEpochs(Callback):
    """Writes ``last.ckpt`` after a step where the last one is too old, or a signal has come.

    After a signal the training ends, as with Ctrl-C; a resumed run goes on after that step.

    Args:
        checkpoints: of the phase.
        minutes: between two checkpoints; None: only the ends of epochs have one.
        say: prints a line.
    """

    def __init__(self, checkpoints: Checkpoints, minutes: float | None, say: Callable[[str], None]):
        self.checkpoints, self.minutes, self.say = checkpoints, minutes, say
        self.received: signal.Signals | None = None
        self.saved = 0.0
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Listens to the signals, if this thread may."""
        self.saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where it must. The last step of an epoch is followed by the epoch's checkpoint."""
        if batch_idx + 1 >= trainer.num_training_batches:
            return
        due = self.minutes is not None and time.monotonic() - self.saved > 60 * self.minutes
        # All processes save, or none: their clocks and signals may differ.
        if not trainer.strategy.reduce_boolean_decision(due or self.received is not None, all=False):
            return
        trainer.save_checkpoint(self.checkpoints.last_path)
        self.saved = time.monotonic()
        self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Comes after the epoch's checkpoint."""
        self.saved = time.monotonic()
        self._end_if_asked(trainer)

    def _end_if_asked(self, trainer: lightning.Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        name = "a signal of another process" if self.received is None else self.received.name
        self.say(f"{name}: the training ends here")
        raise KeyboardInterrupt

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """Leaves the signals as they were."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
