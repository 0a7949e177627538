"""What a checkpoint is: its card, and a small copy for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from hamfast.data.h5 import read_json
from hamfast.data.tensor_file import save_tensors
from hamfast.errors import HamfastError
from hamfast.training.checkpoint import LoadedModel, checkpoint_of, load_model, read_checkpoint

METRICS = {
    "MAE_all": "MAE of H",
    "MAE_onsite": "on-site",
    "eigenvalue_MAE": "band energies",
    "gap_error": "gap",
}
"""What a card says of an evaluation, in meV."""


def card(path: Path) -> list[tuple[str, str]]:
    """Name and text of everything that a user of a checkpoint should know.

    Raises:
        HamfastError: as :func:`hamfast.training.load_model`.
    """
    about, loaded = read_checkpoint(path)["hamfast"], load_model(path)
    lines = [] if about.get("card") is None else [("about", about["card"])]
    lines += [
        (
            "elements and shells",
            ", ".join(f"{chemical_symbols[z]} {list(ls)}" for z, ls in loaded.spec.shells),
        ),
        ("spin-orbit coupling", "yes" if loaded.spec.spinful else "no"),
        ("network", _network(loaded)),
        ("receptive field", f"{loaded.model.receptive_field:.1f} angstrom"),
    ]
    if loaded.pair_cutoffs is not None:
        lines.append(("longest pair", f"{loaded.pair_cutoffs.max():.2f} angstrom"))
    seen = loaded.model.training_range
    lines += [] if seen is None else [(f"training: {name}", text) for name, text in seen.lines()]
    overlap = loaded.model.overlap
    text = "none: it predicts structures that come with an overlap"
    if overlap is not None:
        text = "fitted: it predicts bare structures"
        if overlap.error is not None:
            text += f"; |dS| of the validation set {overlap.error[0]:.0e}, at most {overlap.error[1]:.0e}"
    lines.append(("overlap", text))
    for stage, found in (about.get("evaluation") or {}).items():
        values = [f"{name} {found[key]:.2f}" for key, name in METRICS.items() if found.get(key) is not None]
        lines.append((f"errors, {stage}", f"{', '.join(values)} meV, {found['structures']} structures"))
    errors = loaded.model.error_model
    lines.append(
        (
            "uncertainty",
            "none: `hamfast model calibrate` adds it" if errors is None else errors.lines()[0].split(": ")[1],
        )
    )
    lines.append(("trained with", ", ".join(f"{name} {version}" for name, version in loaded.versions.items())))
    return lines


def evaluation_of(path: Path) -> dict[str, Any] | None:
    """The ``evaluation.json`` beside a checkpoint; None if there is none, or an older one, which is
    of other weights.

    Raises:
        HamfastError: it cannot be read.
    """
    evaluation = path.parent / "evaluation.json"
    if not evaluation.is_file() or evaluation.stat().st_mtime < path.stat().st_mtime:
        return None
    return read_json(evaluation)


def _network(loaded: LoadedModel) -> str:
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in loaded.model.named_children()}
    stages = [f"{name} {count:,}" for name, count in sizes.items() if count]
    kind = "" if loaded.config.stage2 is None else f"; stage 2 of kind {loaded.config.stage2.kind}"
    return f"parameters: {', '.join(stages) or 'none, a closed form'}{kind}"


def pack(source: Path, target: Path, text: str | None) -> None:
    """Writes a copy of a checkpoint without the state of its training, for others to predict with.

    An ``evaluation.json`` beside the source goes with it, for the card.

    Args:
        source: the checkpoint.
        target: a new file.
        text: what the data are: code, functional, basis; None keeps what the source says.

    Raises:
        HamfastError: the source cannot be read; the target is there, or cannot be written.
    """
    if target.exists():
        raise HamfastError(f"{target}: exists already")
    about, loaded = read_checkpoint(source)["hamfast"], load_model(source)
    data = loaded.config.data.model_copy(
        update={"root": Path(loaded.config.data.root).name, "split": None, "cache": None}
    )
    config = loaded.config.model_copy(update={"data": data, "output": target.stem})  # no one's own folders
    packed: dict[str, Any] = checkpoint_of(config, loaded.model, loaded.pair_cutoffs)
    packed["hamfast"]["versions"] = loaded.versions
    packed["hamfast"]["card"] = text or about.get("card")
    packed["hamfast"]["evaluation"] = about.get("evaluation")
    found = evaluation_of(source)
    if found is not None:
        count = len(found["structures"])
        packed["hamfast"]["evaluation"] = {
            stage: {"structures": count} | {key: errors.get(key) for key in METRICS}
            for stage, errors in found["stages"].items()
        }
    save_tensors(packed, target)
