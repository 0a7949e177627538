"""A run's folder: whose it is, what it holds, and what may change when the run goes on."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hamfast.errors import HamfastError
from hamfast.training.checkpoint import read_checkpoint
from hamfast.training.config import Config, load_config, section_of_phase, write_config
from hamfast.training.lock import LOCK_FILE, RunLock

CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.ckpt"

MAY_CHANGE = re.compile(
    r"output|accelerator|threads|data\.(batch_size|max_edges|max_edges_at_once|num_workers|cache)|"
    r"training\.(stage2_rate|recompute|share_structures|mixed_precision|save_minutes)|"
    r"training\.stage[12]\.(epochs|learning_rate|schedule|warmup_steps|final_fraction|clip|ema|weight_decay|"
    r"rotate|rotate_angle|patience|safety\.\w+)"
)
"""Keys that may change when a run is resumed.

They change the way to the weights, not what is learned, and from what.
"""


class RunFolder:
    """The output folder of a configuration.

    Args:
        config: of the run.
        phases: ``stage1`` and ``stage2``, ``stage1`` alone, ``joint``, or none.

    Attributes:
        words: what the user should hear about it once it is open.
    """

    def __init__(self, config: Config, phases: list[str]):
        self.config, self.phases, self.path = config, phases, Path(config.output)
        self.lock = RunLock(self.path)
        self.words: list[str] = []
        self.made: list[Path] = []

    def last(self, phase: str) -> Path:
        """The checkpoint from which a phase goes on."""
        return self.path / phase / "last.ckpt"

    def best(self, phase: str) -> Path:
        """The checkpoint of a phase's lowest validation loss."""
        return self.path / phase / "best.ckpt"

    def epochs(self, phase: str) -> int:
        """How many epochs the configuration wants of a phase."""
        return self.config.training.of_phase(phase).epochs

    def finished_file(self, phase: str) -> Path:
        """What a phase leaves when it has ended."""
        return self.path / phase / "finished.json"

    def is_finished(self, phase: str) -> bool:
        """Has the phase had as many epochs as the configuration wants, or lost its patience?"""
        patience = self.config.training.of_phase(phase).patience
        try:
            found = json.loads(self.finished_file(phase).read_text())
            return found["epochs"] >= self.epochs(phase) or (found["ended_by_patience"] or -1) == patience
        except (OSError, ValueError, KeyError, TypeError):
            return False

    # --- opening and closing
    # --------------------------------------------------------------------------------------

    def open(self, resume: bool) -> None:
        """Takes the folder for this process: a new one, or that of the run to be continued.

        Raises:
            HamfastError: another process has it; it holds a run, or nothing to resume, or a run
                that cannot go on with this configuration; it cannot be written.
        """
        if resume and not (self.path / CONFIG_FILE).is_file():
            raise HamfastError(f"{self.path}: nothing to resume, {CONFIG_FILE} is not there")
        try:
            if not resume:
                self._make()
            self.lock.acquire()
            if resume:
                self._continue()
            else:
                self._begin()
        except OSError as error:
            self.close(failed=True)
            reason = error.strerror or error
            raise HamfastError(f"{self.path}: expected a folder that can be written, found: {reason}") from error
        except BaseException:
            self.close(failed=True)
            raise
        if self.lock.taken_over:
            self.words.append(self.lock.taken_over)

    def close(self, failed: bool = False) -> None:
        """Gives the folder back. What a run has left that failed before it began goes again."""
        own = self.lock.content is not None
        if failed and own and self.made and not any((self.path / phase).exists() for phase in self.phases):
            (self.path / CONFIG_FILE).unlink(missing_ok=True)
        self.lock.release()
        if failed:
            for folder in reversed(self.made):
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()

    def _make(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise HamfastError(f"{self.path}: expected a folder for the run's `output`, found a file")
        folder, missing = self.path, []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        self.made = missing[::-1]
        self.path.mkdir(parents=True, exist_ok=True)

    def _begin(self) -> None:
        if any(p.name != LOCK_FILE for p in self.path.iterdir()):
            raise HamfastError(
                f"{self.path}: not empty, perhaps another run; choose another `output`, or continue it with --resume"
            )
        write_config(self.config, self.path / CONFIG_FILE)

    # --- going on
    # ---------------------------------------------------------------------------------------------

    def _continue(self) -> None:
        path = self.path / CONFIG_FILE
        before = load_config(path)
        changes = differences(before.model_dump(), self.config.model_dump())
        refused = {key: pair for key, pair in changes.items() if not MAY_CHANGE.fullmatch(key)}
        if refused:
            raise HamfastError(
                f"{self.path}: cannot resume, because this may not change within a run: {listed(refused)}; "
                "for a new run that starts from these weights there is training.init_from"
            )
        for phase in self.phases:
            self._check_epochs(phase, changes)
        if not changes or list(changes) == ["output"]:
            return
        if "stage1" in self.phases and self.finished_file("stage1").exists() and not self.is_finished("stage1"):
            self._set_aside("stage2")
        number = 1
        while (kept := self.path / f"config_{number}.yaml").exists():
            number += 1
        write_config(before, kept)
        write_config(self.config, path)
        self.words.append(f"changed (before: {kept.name}):")
        self.words += [f"  {key}: {_text(old)} -> {_text(new)}" for key, (old, new) in changes.items()]

    def _check_epochs(self, phase: str, changes: Mapping[str, tuple]) -> None:
        key = f"training.{section_of_phase(phase)}.epochs"
        if key not in changes or not self.last(phase).exists():
            return
        checkpoint = read_checkpoint(self.last(phase))
        done = checkpoint["epoch"] + 1 if checkpoint["global_step"] else 0
        done -= bool(checkpoint["within_epoch"]["batches"])
        if self.epochs(phase) < done:
            raise HamfastError(
                f"{self.path}: cannot resume with {key}: {self.epochs(phase)}, because {done} epochs are done already"
            )

    def _set_aside(self, phase: str) -> None:
        """Stage 2 was trained on a stage 1 that is about to change."""
        folder, number = self.path / phase, 1
        if not folder.exists():
            return
        while (kept := self.path / f"{phase}_{number}").exists():
            number += 1
        folder.rename(kept)
        self.words.append(f"stage 1 goes on, so stage 2 starts anew; what it was is in {kept.name}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value) of every key that differs.

    A section that is new or gone counts as one key.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found[f"{prefix}{key}"] = (old, new)
    return found


def listed(changes: Mapping[str, tuple[Any, Any]], where: str = "the run") -> str:
    """``stage1.num_blocks: 3 in the run, 4 in the configuration; ...``"""
    return "; ".join(
        f"{key}: {_text(old)} in {where}, {_text(new)} in the configuration" for key, (old, new) in changes.items()
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a section"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
