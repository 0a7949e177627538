"""How fast an epoch goes: structures and edges per second, and the share of waiting for data."""

from __future__ import annotations

import time
from typing import Any, Protocol

import lightning
from lightning.pytorch.callbacks import Callback

FIELDS = ("structures_per_s", "edges_per_s", "waiting_percent")


class Waiting(Protocol):
    """A loader; :class:`hamfast.data.dataset.GraphLoader`."""

    waited: float
    """Seconds that it was waited for so far."""


class Sizes(Protocol):
    """How large batches are; :class:`hamfast.training.sampler.EpochSampler`."""

    def size(self, batch: int) -> tuple[int, int]:
        """Structures and edges of a batch, over all processes."""


class Throughput(Callback):
    """Measures the training steps of each epoch, without the validation, and logs them.

    Structures and edges are those of all processes together; the waiting is that of this process.

    Args:
        loader: of the training set.
        sampler: of its batches.

    Attributes:
        values: ``structures_per_s``, ``edges_per_s`` and ``waiting_percent`` of the epoch so far.
    """

    def __init__(self, loader: Waiting, sampler: Sizes):
        self.loader, self.sampler = loader, sampler
        self.values = dict.fromkeys(FIELDS, 0.0)
        self.begun = self.waited = 0.0
        self.structures = self.edges = 0

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Begins where a run goes on within an epoch, whose start is not told."""
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Begins anew."""
        self.begun, self.waited = time.perf_counter(), self.loader.waited
        self.structures = self.edges = 0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a step."""
        structures, edges = self.sampler.size(batch_idx)
        self.structures, self.edges = self.structures + structures, self.edges + edges
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        waiting = 100 * (self.loader.waited - self.waited) / seconds
        self.values = dict(zip(FIELDS, (self.structures / seconds, self.edges / seconds, waiting), strict=True))

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Logs the epoch, and the learning rate at its end, to TensorBoard."""
        if trainer.is_global_zero and trainer.logger is not None:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            trainer.logger.log_metrics(self.values | {"learning_rate": rate}, step=trainer.global_step)


def short(value: float) -> str:
    """Three digits of a speed in at most 5 characters, as ``0.12``, ``12.3`` or ``4.56k``."""
    if 0 < value < 0.1:
        return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}"
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.0f}T"
