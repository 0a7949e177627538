"""The training configuration: every key with its default and meaning, read from YAML or TOML and
checked.

Neither torch nor e3nn is imported here: ``hamfast config`` starts without them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hamfast.errors import HamfastError
from hamfast.training.config_file import read_mapping, yaml_text

HIGHEST_L = 11
"""The D matrices and harmonics of higher irreps are not there."""

MOST_EPOCHS, WIDEST = 1_000_000, 65_536
"""Beyond these a number is a slip of the pen, and sizes overflow."""


def _path(value: str) -> str:
    """Names that no file system takes would otherwise be tracebacks wherever they are first
    used."""
    if not value.strip() or not value.isprintable():
        raise ValueError(f"expected the name of a file or folder, found {value!r}")
    if len(value) > 4000 or any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError(f"expected the name of a file or folder, found {len(value)} characters")
    return value


PathName = Annotated[str, AfterValidator(_path)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_mixed_types(cls, value: Any, info) -> Any:
        """Pydantic takes true for 1 and 1 for true; here that is a slip of the pen."""
        types = _types(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and types & {int, float} and bool not in types:
            raise ValueError(f"expected a number, found {str(value).lower()}")
        if bool in types and not isinstance(value, bool):
            raise ValueError(f"expected true or false, found {_short(value)}")
        return value


def _types(annotation) -> set:
    arguments = get_args(annotation)
    return set().union(*(_types(a) for a in arguments)) if arguments else {annotation}


class DataConfig(_Section):
    root: PathName = Field(
        description="folder of the data set: <root>/dft/<label>/ or <root>/<label>/, either DeepH layout"
    )
    split: PathName | None = Field(
        None, description="JSON with train, validate, test; default <root>/dataset_split.json"
    )
    cache: PathName | None = Field(None, description="folder of prepared graphs; default <root>/.hamfast_cache")
    batch_size: int = Field(
        1, ge=1, le=1_000_000, description="structures per optimiser step, over all processes together"
    )
    num_workers: int = Field(0, ge=0, le=1024, description="processes that load data")


class TargetConfig(_Section):
    shift: Literal["none", "constant", "radial"] = Field(
        "radial", description="subtract a fitted mean per species pair and irrep; radial: a function of distance"
    )
    scale: Literal["none", "constant", "radial"] = Field(
        "radial", description="divide by the remaining RMS per species pair and irrep; none is DeepH-E3"
    )
    hermitian: bool = Field(True, description="average each predicted block with its reverse; false is DeepH-E3")


def parse_irreps(text: str) -> list[tuple[int, int, int]]:
    """(multiplicity, l, parity) of each term of ``64x0e+32x1o``, as e3nn reads it.

    Raises:
        ValueError: it is written otherwise, or an l is too high.
    """
    found = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d{1,9})\s*x\s*)?(\d{1,9})\s*([eo])\s*", term, re.ASCII)
        if match is None:
            raise ValueError(f"not irreps like 64x0e+32x1o: {_short(text)}")
        mul, l, parity = match.groups()
        if int(l) > HIGHEST_L:
            raise ValueError(f"expected l up to {HIGHEST_L}, found {_short(text)}")
        found.append((int(mul or 1), int(l), 1 if parity == "e" else -1))
    return found


class Stage1Config(_Section):
    irreps_mid: str = Field("64x0e+32x1o+16x2e+8x3o+8x4e", description="irreps of hidden features")
    l_max: int = Field(4, ge=0, le=8, description="highest l of the edge's spherical harmonics")
    num_blocks: int = Field(3, ge=1, le=100, description="rounds of node and edge updates")
    cutoff: float = Field(7.2, gt=0, le=1000, description="angstrom, end of the radial basis (all pairs of H are kept)")
    num_basis: int = Field(128, ge=2, le=WIDEST, description="Gaussians of the radial basis")
    radial_hidden: int = Field(64, ge=1, le=WIDEST, description="width of the radial networks")
    edge_basis_stop: float = Field(
        6.0, gt=0, le=1000, description="angstrom, range of the Gaussians that start edge features"
    )
    embed_dim: int = Field(64, ge=2, le=WIDEST, description="scalar channels that nodes and edges start with")
    cutoff_envelope: float | None = Field(
        None, gt=0, le=1000, description="angstrom, messages fade to zero here; null: no envelope"
    )

    @field_validator("irreps_mid")
    @classmethod
    def _irreps(cls, value):
        irreps = parse_irreps(value)
        if not any(mul and (l, p) == (0, 1) for mul, l, p in irreps):
            raise ValueError(f"needs scalar channels (0e) for the gates, found {value!r}")
        if sum(mul * (2 * l + 1) for mul, l, _ in irreps) > WIDEST:
            raise ValueError(f"expected at most {WIDEST:,} components in all, found {value!r}")
        return value


class Stage2Config(_Section):
    hidden: int = Field(128, ge=1, le=WIDEST, description="width")
    num_blocks: int = Field(3, ge=1, le=100, description="Transformer blocks")
    num_heads: int = Field(4, ge=1, le=WIDEST, description="attention heads; divides hidden")
    l_max: int = Field(4, ge=0, le=HIGHEST_L, description="highest l of the harmonics that enter as numbers")
    num_basis: int = Field(64, ge=2, le=WIDEST, description="Gaussians of the length")
    cutoff: float = Field(8.0, gt=0, le=1000, description="angstrom, end of these Gaussians")
    ffn_factor: int = Field(2, ge=1, le=1024, description="width of the feed-forward network in units of hidden")
    score_clip: float = Field(5.0, gt=0, le=1e6, description="attention scores are clipped to +- this")

    @model_validator(mode="after")
    def _heads(self):
        if self.hidden % self.num_heads:
            raise ValueError(f"hidden = {self.hidden} is not a multiple of num_heads = {self.num_heads}")
        return self


class SafetyConfig(_Section):
    factor: float = Field(
        2.0, gt=1, le=1e6, description="validation loss above factor x best counts as diverged; NaN always does"
    )
    patience: int = Field(
        10, ge=1, le=MOST_EPOCHS, description="after this many diverged epochs in a row the best weights come back"
    )
    decay: float = Field(0.5, gt=0, lt=1, description="and the learning rate is multiplied by this")


class PhaseConfig(_Section):
    epochs: int = Field(500, ge=1, le=MOST_EPOCHS, description="passes over the training set")
    learning_rate: float = Field(2e-3, gt=0, le=1e6, description="peak learning rate (Adam)")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate, after the warm-up")
    warmup_steps: int = Field(100, ge=0, le=1_000_000_000, description="optimiser steps of linear warm-up")
    final_fraction: float = Field(0.01, gt=0, le=1, description="cosine ends at learning_rate x this")
    loss: Literal["mse", "mae"] = Field("mse", description="over matrix elements; mse is DeepH-E3")
    clip: float | None = Field(None, gt=0, le=1e30, description="largest norm of the gradient; null: no clipping")
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of averaged weights, used to validate and predict")
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="decoupled weight decay")
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
        0.1,
        gt=0,
        le=1e6,
        description="where both stages train at once, stage 2's learning rate is learning_rate x this",
    )
    freeze_stage1: bool = Field(True, description="in the stage2 phase keep stage 1's weights")
    init_from: PathName | None = Field(
        None, description="checkpoint to start from: its weights and target normalisation; null: fresh weights"
    )


class Config(_Section):
    output: PathName = Field(description="folder of this run: checkpoints, logs, the configuration")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of weights, order of the data and augmentation")
    precision: Literal["float32", "float64"] = Field("float32", description="of the training")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="where to train")
    threads: int | None = Field(
        None, ge=1, le=1_000_000, description="CPU threads, at most those there are; null: torch's choice"
    )
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
    key = ".".join(str(part) for part in error["loc"]) or "configuration"
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key {_short(key, quoted=False)}"
    if error["type"] == "missing":
        return f"missing key {key}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: expected a section with keys, found {_short(error['input'])}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower() + message[1:]}" + (
        f", found {_short(error['input'])}"
        if not isinstance(error["input"], dict | BaseModel) and "found" not in message
        else ""
    )


def _short(value, quoted: bool = True) -> str:
    """What was found, never a page of it."""
    try:
        text = (repr(value) if quoted else str(value)).replace("\n", " ")
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list in itself
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def config_template(
    root: str = "path/to/dataset", output: str | None = None, suggestions: dict[str, dict] | None = None
) -> str:
    """Every key with its default, commented, as YAML.

    Args:
        root: of the data set.
        output: folder of the run; default: ``runs/my_run``, or what the suggestions say.
        suggestions: section -> key -> value in place of a default, see
            :func:`hamfast.data.summary.suggest`. Its comment says that the value comes from the
            data. Keys of the top level stand in the section ``""``.
    """
    lines = ["# hamfast training configuration: every key, with its default."]
    if suggestions:
        lines.append("# Where a comment says [from the data], the value is what `hamfast data info` suggests.")
    suggested = {name: dict(section) for name, section in (suggestions or {}).items()}
    suggested |= suggested.pop("", {})
    given = {"output": suggested.pop("output", "runs/my_run") if output is None else output, "data": {"root": root}}
    lines.append("")
    _template(Config, given, suggested, 0, lines)
    return "\n".join(lines) + "\n"


def _template(model, given, suggested, indent, lines):
    pad = "  " * indent
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            lines += [f"{pad}# {field.description}", f"{pad}{name}:"]
            _template(section, given.get(name, {}), suggested.get(name, {}), indent + 1, lines)
        else:
            default = None if name in given else field.get_default(call_default_factory=True)
            value = (given | suggested).get(name, default)
            note = " [from the data]" if name in suggested else ""
            lines += [f"{pad}# {field.description}{note}", f"{pad}{name}: {yaml_text(value)}"]
        if indent == 0:
            lines.append("")


def _section_of(annotation):
    candidates = getattr(annotation, "__args__", (annotation,))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def write_config(config: Config, path: Path) -> None:
    import yaml

    from hamfast.data.h5 import replacing

    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")
