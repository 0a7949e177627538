"""The training configuration: every key with its default and meaning, read from YAML or TOML and checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import yaml
from e3nn.o3 import Irreps
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hamfast.data.h5 import replacing
from hamfast.errors import HamfastError
from hamfast.models import CovariantConfig, TransformerConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    root: str = Field(description="folder of the data set: <root>/dft/<label>/ or <root>/<label>/, either DeepH layout")
    split: str | None = Field(None, description="JSON with train, validate, test; default <root>/dataset_split.json")
    cache: str | None = Field(None, description="folder of prepared graphs; default <root>/.hamfast_cache")
    batch_size: int = Field(1, ge=1, description="structures per optimiser step, over all processes together")
    num_workers: int = Field(0, ge=0, description="processes that load data")


class TargetConfig(_Section):
    shift: Literal["none", "constant", "radial"] = Field(
        "radial", description="subtract a fitted mean per species pair and irrep; radial: a function of distance"
    )
    scale: Literal["none", "constant", "radial"] = Field(
        "radial", description="divide by the remaining RMS per species pair and irrep; none is DeepH-E3"
    )
    hermitian: bool = Field(True, description="average each predicted block with its reverse; false is DeepH-E3")


class Stage1Config(_Section):
    irreps_mid: str = Field("64x0e+32x1o+16x2e+8x3o+8x4e", description="irreps of hidden features")
    l_max: int = Field(4, ge=0, le=8, description="highest l of the edge's spherical harmonics")
    num_blocks: int = Field(3, ge=1, description="rounds of node and edge updates")
    cutoff: float = Field(7.2, gt=0, description="angstrom, end of the radial basis (all pairs of H are kept)")
    num_basis: int = Field(128, ge=2, description="Gaussians of the radial basis")
    radial_hidden: int = Field(64, ge=1, description="width of the radial networks")
    edge_basis_stop: float = Field(6.0, gt=0, description="angstrom, range of the Gaussians that start edge features")
    embed_dim: int = Field(64, ge=2, description="scalar channels that nodes and edges start with")
    cutoff_envelope: float | None = Field(None, description="angstrom, messages fade to zero here; null: no envelope")

    @field_validator("irreps_mid")
    @classmethod
    def _irreps(cls, value):
        try:
            irreps = Irreps(value)
        except ValueError as error:
            raise ValueError(f"not irreps like 64x0e+32x1o: {value!r}") from error
        if irreps.dim == 0 or not any(ir.is_scalar() for _, ir in irreps):
            raise ValueError(f"needs scalar channels (0e) for the gates, found {value!r}")
        return value

    def build(self) -> CovariantConfig:
        return CovariantConfig(**self.model_dump())


class Stage2Config(_Section):
    hidden: int = Field(128, ge=1, description="width")
    num_blocks: int = Field(3, ge=1, description="Transformer blocks")
    num_heads: int = Field(4, ge=1, description="attention heads; divides hidden")
    l_max: int = Field(4, ge=0, le=11, description="highest l of the harmonics that enter as numbers")
    num_basis: int = Field(64, ge=2, description="Gaussians of the length")
    cutoff: float = Field(8.0, gt=0, description="angstrom, end of these Gaussians")
    ffn_factor: int = Field(2, ge=1, description="width of the feed-forward network in units of hidden")
    score_clip: float = Field(5.0, gt=0, description="attention scores are clipped to +- this")

    @model_validator(mode="after")
    def _heads(self):
        if self.hidden % self.num_heads:
            raise ValueError(f"hidden = {self.hidden} is not a multiple of num_heads = {self.num_heads}")
        return self

    def build(self) -> TransformerConfig:
        return TransformerConfig(**self.model_dump())


class SafetyConfig(_Section):
    factor: float = Field(
        2.0, gt=1, description="validation loss above factor x best counts as diverged; NaN always does"
    )
    patience: int = Field(10, ge=1, description="after this many diverged epochs in a row the best weights come back")
    decay: float = Field(0.5, gt=0, lt=1, description="and the learning rate is multiplied by this")


class PhaseConfig(_Section):
    epochs: int = Field(500, ge=1, description="passes over the training set")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate (Adam)")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate, after the warm-up")
    warmup_steps: int = Field(100, ge=0, description="optimiser steps of linear warm-up")
    final_fraction: float = Field(0.01, gt=0, le=1, description="cosine ends at learning_rate x this")
    loss: Literal["mse", "mae"] = Field("mse", description="over matrix elements; mse is DeepH-E3")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: no clipping")
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of averaged weights, used to validate and predict")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    rotate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="rotation augmentation starts after this fraction of the epochs; 1: never, 0: always",
    )
    rotate_angle: float = Field(
        0.0, ge=0, le=1, description="its largest Euler angle in units of pi (normal, truncated); 0: no augmentation"
    )
    safety: SafetyConfig = Field(default_factory=SafetyConfig, description="what happens when training diverges")


class TrainingConfig(_Section):
    stage1: PhaseConfig = Field(default_factory=PhaseConfig, description="the covariant network alone")
    stage2: PhaseConfig | None = Field(
        default_factory=PhaseConfig, description="then the Transformer; null: stage 1 is the model"
    )
    joint: bool = Field(False, description="train both together in the stage1 phase and skip the stage2 phase")
    stage2_rate: float = Field(
        0.1, gt=0, description="where both stages train at once, stage 2's learning rate is learning_rate x this"
    )
    freeze_stage1: bool = Field(True, description="in the stage2 phase keep stage 1's weights")


class Config(_Section):
    output: str = Field(description="folder of this run: checkpoints, logs, the configuration")
    seed: int = Field(0, ge=0, description="of weights, order of the data and augmentation")
    precision: Literal["float32", "float64"] = Field("float32", description="of the training")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="where to train")
    threads: int | None = Field(None, ge=1, description="CPU threads; null: torch's choice")
    data: DataConfig = Field(description="the data set")
    target: TargetConfig = Field(default_factory=TargetConfig, description="what the network predicts")
    stage1: Stage1Config = Field(default_factory=Stage1Config, description="covariant network")
    stage2: Stage2Config | None = Field(
        default_factory=Stage2Config, description="graph Transformer; null: stage 1 alone"
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="optimisation")

    @model_validator(mode="after")
    def _stages(self):
        if self.stage2 is None and (self.training.joint or self.training.stage2 is not None):
            raise ValueError("stage2 is null, so training.stage2 must be null and training.joint false")
        if self.stage2 is not None and self.training.stage2 is None and not self.training.joint:
            raise ValueError("stage2 has a model, but neither training.stage2 nor training.joint trains it")
        return self


def load_config(path: Path) -> Config:
    """Reads a YAML or TOML file.

    Raises:
        HamfastError: unreadable, or a key is unknown, missing or has a wrong value; the message names each key.
    """
    if not path.exists():
        raise HamfastError(f"{path}: file not found")
    try:
        content = tomllib.loads(path.read_text()) if path.suffix == ".toml" else yaml.safe_load(path.read_text())
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise HamfastError(
            f"{path}: not readable as {'TOML' if path.suffix == '.toml' else 'YAML'}: {error}"
        ) from error
    if not isinstance(content, dict):
        raise HamfastError(f"{path}: expected sections like data: and training:, found {type(content).__name__}")
    return parse_config(content, str(path))


def parse_config(content: dict, where: str) -> Config:
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise HamfastError(f"{where}: " + "; ".join(_sentence(e) for e in error.errors())) from error


def _sentence(error) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "configuration"
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}"
    if error["type"] == "missing":
        return f"missing key {key}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower() + message[1:]}" + (
        f", found {error['input']!r}"
        if not isinstance(error["input"], dict | BaseModel) and "found" not in message
        else ""
    )


def config_template(root: str = "path/to/dataset", output: str = "runs/my_run") -> str:
    """Every key with its default, commented, as YAML."""
    lines = ["# hamfast training configuration: every key, with its default.", ""]
    _template(Config, {"output": output, "data": {"root": root}}, 0, lines)
    return "\n".join(lines) + "\n"


def _template(model, required, indent, lines):
    pad = "  " * indent
    for name, field in model.model_fields.items():
        lines.append(f"{pad}# {field.description}")
        section = _section_of(field.annotation)
        if section is not None:
            lines.append(f"{pad}{name}:")
            _template(section, required.get(name, {}), indent + 1, lines)
        else:
            value = required[name] if name in required else field.get_default(call_default_factory=True)
            text = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
            lines.append(f"{pad}{name}: {text}")
        if indent == 0:
            lines.append("")


def _section_of(annotation):
    candidates = getattr(annotation, "__args__", (annotation,))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def write_config(config: Config, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
