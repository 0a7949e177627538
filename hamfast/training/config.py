"""The training configuration: every key with its default and meaning, read from a file and checked.

The keys of both stages stand in :mod:`hamfast.models.settings`. Neither torch nor e3nn is imported
here, so that ``hamfast config`` starts without them.
"""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from hamfast.errors import HamfastError
from hamfast.models.settings import ENVIRONMENT, FREEZE_STAGE1, CovariantConfig, TransformerConfig, check_heads
from hamfast.placeholder import DATA_FOLDER
from hamfast.setting_types import Real, Switch, Whole, shortened
from hamfast.training.config_file import read_mapping, yaml_text

MOST_EPOCHS = 1_000_000
"""Beyond this a number of epochs is a slip of the pen."""


def _path(value: str) -> str:
    """Refuses names that no file system takes, which would be tracebacks where they are used."""
    if not value.strip() or not value.isprintable():
        raise ValueError(f"expected the name of a file or folder, found {value!r}")
    if len(value) > 4000 or any(len(name.encode()) > 255 for name in value.split("/")):
        raise ValueError(f"expected the name of a file or folder, found {len(value)} characters")
    return value


PathName = Annotated[str, AfterValidator(_path)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(_Section):
    """The section ``data``."""

    root: PathName = Field(
        description="folder of the data set: <root>/dft/<label>/, <root>/<label>/ or <root>/structures.sqlite"
    )
    split: PathName | None = Field(
        None, description="JSON with train, validate, test; default <root>/dataset_split.json"
    )
    cache: PathName | None = Field(
        None, description="folder of prepared.sqlite, what was read of the data; default <root>/.hamfast_cache"
    )
    batch_size: Whole = Field(
        1, ge=1, le=1_000_000, description="most structures per optimiser step, over all processes together"
    )
    max_edges: Whole | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="most edges of a step, over all processes; a larger structure is a step of its own; null: any number",
    )
    max_edges_at_once: Whole | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="a process works off a batch with more edges in parts, one after the other: less memory, the same "
        "gradients; null: at once",
    )
    num_workers: Whole | None = Field(
        None,
        ge=0,
        le=1024,
        description="processes that load data; null: those that the machine can spare, none where the data fit memory",
    )

    @model_validator(mode="after")
    def _batches(self):
        if self.max_edges is not None and self.batch_size == 1:
            raise ValueError(
                f"expected a batch_size above 1 with max_edges = {self.max_edges}, found 1; both limit a batch, so it should "
                "be the most structures of one"
            )
        return self


class TargetConfig(_Section):
    """The section ``target``: what the network predicts."""

    shift: Literal["none", "constant", "radial", "environment"] = Field(
        "radial",
        description="subtract a fitted mean per species pair and irrep; radial: a function of distance; environment: "
        "and of the atoms' neighbours",
    )
    environment: Real = Field(
        ENVIRONMENT,
        gt=1,
        le=1000,
        description="angstrom, radius of the neighbours in shift: environment; at most half of the smallest cell",
    )
    scale: Literal["none", "constant", "radial"] = Field(
        "radial", description="divide by the remaining RMS per species pair and irrep; none is DeepH-E3"
    )
    hermitian: Switch = Field(True, description="average each predicted block with its reverse; false is DeepH-E3")


class SafetyConfig(_Section):
    """The section ``safety`` of a phase: what happens when the training diverges."""

    factor: Real = Field(
        2.0, gt=1, le=1e6, description="validation loss above factor x best counts as diverged; NaN always does"
    )
    patience: Whole = Field(
        10, ge=1, le=MOST_EPOCHS, description="after this many diverged epochs in a row the best weights come back"
    )
    decay: Real = Field(0.5, gt=0, lt=1, description="and the learning rate is multiplied by this")


class PhaseConfig(_Section):
    """The sections ``training.stage1`` and ``training.stage2``: how a phase is optimised."""

    epochs: Whole = Field(500, ge=1, le=MOST_EPOCHS, description="passes over the training set")
    learning_rate: Real = Field(2e-3, gt=0, le=1e6, description="peak learning rate (Adam)")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate, after the warm-up")
    warmup_steps: Whole = Field(100, ge=0, le=1_000_000_000, description="optimiser steps of linear warm-up")
    final_fraction: Real = Field(0.01, gt=0, le=1, description="cosine ends at learning_rate x this")
    loss: Literal["mse", "mae"] = Field("mse", description="over matrix elements; mse is DeepH-E3")
    average: Literal["structures", "elements"] = Field(
        "structures",
        description="what counts the same in the loss: each structure, or each matrix element, so that large cells count more",
    )
    onsite_weight: Real = Field(
        1.0, gt=0, le=1e6, description="of blocks of one atom in the loss; they are few, and their errors large"
    )
    clip: Real | None = Field(None, gt=0, le=1e30, description="largest norm of the gradient; null: no clipping")
    ema: Real | None = Field(0.99, gt=0, lt=1, description="decay of averaged weights, used to validate and predict")
    weight_decay: Real = Field(0.0, ge=0, le=1e6, description="decoupled weight decay")
    rotate: Real = Field(
        0.0,
        ge=0,
        le=1,
        description="rotation augmentation starts after this fraction of the epochs; 1: never, 0: always",
    )
    rotate_angle: Real = Field(
        0.0, ge=0, le=1, description="its largest Euler angle in units of pi (normal, truncated); 0: no augmentation"
    )
    patience: Whole | None = Field(
        None,
        ge=1,
        le=MOST_EPOCHS,
        description="epochs without a lower validation loss that end the phase; null: none do",
    )
    safety: SafetyConfig = Field(default_factory=SafetyConfig, description="what happens when training diverges")


class TrainingConfig(_Section):
    """The section ``training``."""

    stage1: PhaseConfig | None = Field(
        default_factory=PhaseConfig, description="the covariant network alone; null: there is none"
    )
    stage2: PhaseConfig | None = Field(
        default_factory=PhaseConfig, description="then the Transformer; null: stage 1 is the model"
    )
    joint: Switch = Field(False, description="train both together in the stage1 phase and skip the stage2 phase")
    stage2_rate: Real = Field(
        0.1,
        gt=0,
        le=1e6,
        description="where both stages train at once, stage 2's learning rate is learning_rate x this",
    )
    freeze_stage1: Switch = Field(FREEZE_STAGE1, description="in the stage2 phase keep stage 1's weights")
    recompute: Switch = Field(
        False, description="compute layers a second time for their gradients: less memory, more time"
    )
    share_structures: Switch = Field(
        False,
        description="all processes work on each structure together, each on some of its atoms, where one is too large for "
        "a process; each has structures of its own otherwise",
    )
    mixed_precision: Switch = Field(
        False, description="multiply matrices of the stages in bfloat16 while training; needs precision: float32"
    )
    save_minutes: Real | None = Field(
        30.0, gt=0, le=1e6, description="a checkpoint within an epoch where the last is older; null: epochs' ends alone"
    )
    init_from: PathName | None = Field(
        None, description="checkpoint to start from: its weights and target normalisation; null: fresh weights"
    )

    def of_phase(self, phase: str) -> PhaseConfig:
        """The settings of ``stage1``, ``stage2`` or ``joint``.

        Raises:
            ValueError: the configuration has no such phase.
        """
        settings = self.stage2 if section_of_phase(phase) == "stage2" else self.stage1
        if settings is None:
            raise ValueError(f"expected settings of the phase {phase}, found none")
        return settings


def section_of_phase(phase: str) -> str:
    """The section of ``training`` with the settings of a phase; joint training takes stage 1's."""
    return "stage2" if phase == "stage2" else "stage1"


class Config(_Section):
    """The whole configuration."""

    output: PathName = Field(description="folder of this run: checkpoints, logs, the configuration")
    seed: Whole = Field(0, ge=0, le=2**32 - 1, description="of weights, order of the data and augmentation")
    precision: Literal["float32", "float64"] = Field("float32", description="of the training")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="where to train")
    threads: Whole | None = Field(
        None, ge=1, le=1_000_000, description="CPU threads, at most those there are; null: torch's choice"
    )
    data: DataConfig = Field(description="the data set")
    target: TargetConfig = Field(default_factory=TargetConfig, description="what the network predicts")
    stage1: CovariantConfig | None = Field(
        default_factory=CovariantConfig, description="covariant network; null: target.shift alone is the model"
    )
    stage2: Annotated[TransformerConfig, AfterValidator(check_heads)] | None = Field(
        default_factory=TransformerConfig, description="graph Transformer; null: stage 1 alone"
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="optimisation")

    @model_validator(mode="after")
    def _stages(self):
        if self.training.mixed_precision and self.precision != "float32":
            raise ValueError(f"training.mixed_precision needs precision: float32, found {self.precision}")
        if self.stage1 is None:
            self._check_closed_form()
        elif self.training.stage1 is None:
            raise ValueError("stage1 has a model, but training.stage1 is null")
        if self.stage2 is None and (self.training.joint or self.training.stage2 is not None):
            raise ValueError("stage2 is null, so training.stage2 must be null and training.joint false")
        if self.stage2 is not None and self.training.stage2 is None and not self.training.joint:
            raise ValueError("stage2 has a model, but neither training.stage2 nor training.joint trains it")
        return self

    def _check_closed_form(self):
        if self.stage2 is not None or self.training.stage1 is not None:
            raise ValueError("stage1 is null, so stage2 and training.stage1 must be null, too")
        if self.target.shift == "none":
            raise ValueError("stage1 is null, so target.shift is the model and may not be none")


def load_config(path: Path) -> Config:
    """Reads a YAML or TOML file.

    Raises:
        HamfastError: unreadable, or a key is unknown, missing, given twice or has a wrong value;
            the message names each key.
    """
    return parse_config(read_mapping(Path(path)), str(path))


def parse_config(content: dict, where: str) -> Config:
    """The configuration of a mapping; see :func:`load_config`."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise HamfastError(f"{where}: " + "; ".join(_sentence(e) for e in error.errors())) from error


def _sentence(error) -> str:
    key = ".".join(map(str, error["loc"])) or "configuration"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument", "invalid_key"):
        return f"unknown key {shortened(key, quoted=False)}"
    if error["type"] == "missing":
        return f"missing key {key}"
    if error["type"] in ("model_type", "model_attributes_type", "dataclass_type"):
        return f"{key}: expected a section with keys, found {shortened(error['input'])}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower() + message[1:]}" + (
        f", found {shortened(error['input'])}"
        if not (isinstance(error["input"], dict | BaseModel) or dataclasses.is_dataclass(error["input"]))
        and "found" not in message
        else ""
    )


def config_template(
    root: str = DATA_FOLDER,
    output: str | None = None,
    suggestions: dict[str, dict] | None = None,
    note: str | None = None,
) -> str:
    """Every key with its default, commented, as YAML.

    Args:
        root: of the data set.
        output: folder of the run; default: ``runs/my_run``, or what the suggestions say.
        suggestions: section -> key -> value in place of a default, see
            :func:`hamfast.data.summary.suggest`. Its comment says so. Keys of the top level stand
            in the section ``""``.
        note: what to say about the suggestions at the top; None: nothing.
    """
    lines = ["# hamfast training configuration: every key, with its default."]
    if suggestions:
        lines.append("# [suggested]: a value that fits the data, or that won in docs/accuracy.md with such settings.")
    if note:
        lines += textwrap.wrap(note, 98, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    suggested = {name: dict(section) for name, section in (suggestions or {}).items()}
    suggested |= suggested.pop("", {})
    given = {"output": suggested.pop("output", "runs/my_run") if output is None else output, "data": {"root": root}}
    lines.append("")
    _template(Config, given, suggested, 0, lines)
    return "\n".join(lines) + "\n"


def _template(model, given, suggested, indent, lines):
    pad = "  " * indent
    for name, field in fields_of(model).items():
        section = section_of(field.annotation)
        if section is not None:
            lines += [f"{pad}# {field.description}", f"{pad}{name}:"]
            _template(section, given.get(name, {}), suggested.get(name, {}), indent + 1, lines)
        else:
            default = None if name in given else field.get_default(call_default_factory=True)
            value = (given | suggested).get(name, default)
            note = " [suggested]" if name in suggested else ""
            lines += [f"{pad}# {field.description}{note}", f"{pad}{name}: {yaml_text(value)}"]
        if indent == 0:
            lines.append("")


def fields_of(section: Any) -> dict[str, FieldInfo]:
    """The keys of a section, which is a pydantic model or a dataclass of annotated fields."""
    if issubclass(section, BaseModel):
        return section.model_fields
    hints = get_type_hints(section, include_extras=True)
    return {
        field.name: FieldInfo.from_annotated_attribute(hints[field.name], field.default)
        for field in dataclasses.fields(section)
    }


def section_of(annotation: Any) -> type | None:
    """The section that a key holds; None if it holds a value."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation) else None
    return next(filter(None, map(section_of, get_args(annotation))), None)


def write_config(config: Config, path: Path) -> None:
    """Writes every key with its value as YAML, whole or not at all.

    Raises:
        HamfastError: the file cannot be written.
    """
    import yaml

    from hamfast.data.h5 import replacing

    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")
