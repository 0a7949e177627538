"""Checkpoints: what they hold, and the model in one.

A checkpoint is self-contained and can be loaded on any machine and device.
"""

from __future__ import annotations

import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import e3nn
import numpy as np
import torch

from hamfast.data.training_range import TrainingRange
from hamfast.data.two_centre_overlap import TwoCentreOverlap
from hamfast.errors import HamfastError
from hamfast.models import Cascade
from hamfast.models.error_model import ErrorModel
from hamfast.targets import TargetSpec
from hamfast.trained import checkpoint_path
from hamfast.training.config import Config, parse_config
from hamfast.version import __version__

FORMAT = 1


@dataclass(frozen=True)
class LoadedModel:
    """A model for prediction, with what its checkpoint says about it."""

    model: Cascade
    config: Config
    pair_cutoffs: np.ndarray | None
    """``[species, species]`` angstrom: the longest pair of the training data; None if unknown."""
    versions: dict[str, str]
    """Of hamfast, torch, e3nn and Python, by which it was trained."""

    @property
    def spec(self) -> TargetSpec:
        """Elements, orbitals and spin that the model knows."""
        return self.model.spec


def describe(config: Config, model: Cascade, pair_cutoffs: np.ndarray | None) -> dict[str, Any]:
    """What a checkpoint carries beside weights: tensors, plain numbers and strings only.

    Args:
        config: of the run.
        model: of the run.
        pair_cutoffs: ``[species, species]`` angstrom, the longest pairs of the training set; None
            if they are unknown.
    """
    return {
        "format": FORMAT,
        "config": config.model_dump(),
        "shells": [[z, list(ls)] for z, ls in model.spec.shells],
        "spinful": model.spec.spinful,
        "pair_cutoffs": None if pair_cutoffs is None else pair_cutoffs.tolist(),
        # Of the normalisation. A model that started from a checkpoint keeps that checkpoint's.
        "r_max": model.r_max,
        "half_cell": model.half_cell,
        "overlap": None if model.overlap is None else model.overlap.state(),
        "training_range": None if model.training_range is None else model.training_range.state(),
        "error_model": None if model.error_model is None else model.error_model.state(),
        "units": {"energy": "eV", "length": "angstrom"},
        "orbital_order": "m = -l ... l",
        "versions": {
            "hamfast": __version__,
            "torch": str(torch.__version__),
            "e3nn": e3nn.__version__,
            "python": platform.python_version(),
        },
    }


def checkpoint_of(config: Config, model: Cascade, pair_cutoffs: np.ndarray | None) -> dict[str, Any]:
    """A checkpoint of a model for prediction, without the state of a training; see
    :func:`describe`."""
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    return {"hamfast": describe(config, model, pair_cutoffs), "state_dict": weights, "ema": None}


def build_model(config: Config, spec: TargetSpec, r_max: float) -> Cascade:
    """The model of a configuration, with fresh weights, made in its precision.

    Args:
        config: its sections ``stage1``, ``stage2`` and ``target`` are the model's.
        spec: the targets.
        r_max: angstrom, where the radial functions of the target normalisation end.

    Raises:
        HamfastError: the irreps of the configuration cannot make the targets, or the memory is too
            small.
    """
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(getattr(torch, config.precision))
        return Cascade(
            spec,
            config.stage1,
            config.stage2,
            target_shift=config.target.shift,
            target_scale=config.target.scale,
            target_environment=config.target.environment,
            hermitian=config.target.hermitian,
            r_max=r_max,
            freeze_stage1=config.training.freeze_stage1 and not config.training.joint,
        )
    except ValueError as error:
        raise HamfastError(f"configuration: {error}") from error
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise HamfastError(f"configuration: a model of this size could not be made ({reason})") from error
    finally:
        torch.set_default_dtype(default)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, on the CPU.

    Raises:
        HamfastError: the file is missing, damaged, or no checkpoint of this version of hamfast.
    """
    path = checkpoint_path(path)
    if path.is_dir():
        raise HamfastError(f"{path}: expected a checkpoint like model.ckpt, found a folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice about files that are none of its own
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a file that is no checkpoint raises depends on its bytes
        raise HamfastError(f"{path}: not a readable checkpoint, perhaps truncated ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("hamfast"), dict):
        raise HamfastError(f"{path}: not a checkpoint of hamfast")
    found = checkpoint["hamfast"].get("format")
    if found != FORMAT:
        raise HamfastError(f"{path}: checkpoint format {found}, this version of hamfast reads {FORMAT}")
    return checkpoint


def spec_of(about: dict[str, Any]) -> TargetSpec:
    """The targets that a checkpoint was made for; ``about`` is its entry ``hamfast``."""
    return TargetSpec(tuple((z, tuple(ls)) for z, ls in about["shells"]), about["spinful"])


def overlap_of(about: dict[str, Any], spec: TargetSpec) -> TwoCentreOverlap | None:
    """The fitted overlap of a checkpoint whose entry ``hamfast`` is ``about``; None without one."""
    state = about.get("overlap")
    return None if state is None else TwoCentreOverlap.from_state(spec, state)


def range_of(about: dict[str, Any]) -> TrainingRange | None:
    """What the training's structures had, by a checkpoint whose entry ``hamfast`` is ``about``;
    None if it does not say."""
    state = about.get("training_range")
    return None if state is None else TrainingRange.from_state(state)


def error_model_of(about: dict[str, Any], spec: TargetSpec) -> ErrorModel | None:
    """The calibrated errors of a checkpoint whose entry ``hamfast`` is ``about``; None without."""
    state = about.get("error_model")
    return None if state is None else ErrorModel.from_state(spec, state)


def load_model(path: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
    """Loads a model for prediction: averaged weights if the training kept them, evaluation mode.

    Args:
        path: ``best.ckpt``, ``last.ckpt`` or ``model.ckpt`` of a run, or the name of a model that
            comes with hamfast (:mod:`hamfast.trained`).
        device: where to put it.
        dtype: of weights, by default that of the training.

    Raises:
        HamfastError: see :func:`read_checkpoint`; the weights do not fit, or are not numbers.
    """
    checkpoint = read_checkpoint(Path(path))
    about = checkpoint["hamfast"]
    try:
        spec, pairs = spec_of(about), about["pair_cutoffs"]
        pair_cutoffs = None if pairs is None else np.array(pairs, dtype=float)
        r_max = float(about["r_max"] if pair_cutoffs is None else about.get("r_max", pair_cutoffs.max()))
        versions = about["versions"]
        weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
        weights.update(checkpoint["ema"]["weights"] if checkpoint.get("ema") else {})
        content = about["config"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HamfastError(f"{path}: not a complete checkpoint of hamfast ({type(error).__name__}: {error})") from error
    config = parse_config(content, str(path))
    check_finite(weights, path)
    model = build_model(config, spec, r_max)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise HamfastError(f"{path}: the weights do not fit the model of its own configuration: {reason}") from error
    model.half_cell = about.get("half_cell")
    model.overlap, model.training_range = overlap_of(about, spec), range_of(about)
    model.error_model = error_model_of(about, spec)
    model.to(device=device, dtype=dtype or getattr(torch, config.precision)).eval().requires_grad_(False)
    return LoadedModel(model, config, pair_cutoffs, versions)


def check_finite(weights: dict[str, torch.Tensor], where: Path | str) -> None:
    """Raises HamfastError if a weight is NaN or infinite."""
    for name, weight in weights.items():
        bad = int((~torch.isfinite(weight)).sum())
        if bad:
            raise HamfastError(
                f"{where}: the checkpoint's weights are not numbers: {bad} of {weight.numel()} values of {name} are NaN or "
                "infinite; the training that wrote it has diverged, or the file is damaged"
            )
