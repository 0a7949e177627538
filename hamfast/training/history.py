"""``metrics.csv``: one row per epoch.

The whole history of a phase stands in one file, however often the phase is resumed.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from hamfast.data.h5 import replacing
from hamfast.errors import HamfastError
from hamfast.training import throughput

FIELDS = (
    "epoch",
    "step",
    "train_loss_meV",
    "train_mae_meV",
    "train_objective",
    "val_loss_meV",
    "val_mae_meV",
    "learning_rate",
    *throughput.FIELDS,
)


class History(Callback):
    """Writes a row at the end of each epoch.

    It is written before the epoch's checkpoint, so all epochs of a checkpoint are in the file.

    Args:
        path: of the file.
        speed: of each epoch.
    """

    def __init__(self, path: Path, speed: throughput.Throughput):
        self.path, self.speed = path, speed

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Leaves the rows of the epochs that are done."""
        if trainer.is_global_zero:
            start_at(self.path, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Writes the epoch's row.

        Raises:
            HamfastError: the file cannot be written.
        """
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {k: float(v) for k, v in trainer.callback_metrics.items() if k in FIELDS}
        row |= {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row |= {name: f"{value:.4g}" for name, value in self.speed.values.items()}
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, FIELDS).writerow(row)
        except OSError as error:
            raise HamfastError(f"{self.path}: could not be written ({error.strerror or error})") from error


def start_at(path: Path, epoch: int) -> None:
    """Keeps the rows of the epochs before ``epoch``.

    A run that is resumed there repeats the others. A row that was cut off when the process was
    killed belongs to an epoch that is repeated.
    """
    rows: dict[int, dict[str, str]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                number = row.get("epoch") or ""
                if number.isdecimal() and int(number) < epoch and None not in row.values():
                    rows[int(number)] = {name: row.get(name, "") for name in FIELDS}
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows[n] for n in sorted(rows))
