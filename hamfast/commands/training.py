"""``hamfast config``, ``train`` and ``import-checkpoint``: how a model comes to be."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hamfast import environment
from hamfast.commands.output import console, device_of, say, steps
from hamfast.errors import DataWarning, HamfastError
from hamfast.placeholder import DATA_FOLDER

if TYPE_CHECKING:
    pass


def config(
    output: Annotated[Path | None, typer.Argument(help="file to write; prints without it")] = None,
    root: Annotated[str, typer.Option(help="data set folder to fill in")] = DATA_FOLDER,
    preset: Annotated[
        str | None, typer.Option(help="one of the ready configurations instead; 'list' names them")
    ] = None,
) -> None:
    """Write a commented configuration: every key with its default, or a ready one for a published
    database."""
    from hamfast.configs import preset_names, preset_text
    from hamfast.data.h5 import write_text
    from hamfast.data.summary import suggestions
    from hamfast.training import config_template

    if not root.strip() or len(root.splitlines()) != 1:
        raise HamfastError(f"--root: expected a folder, found {root!r}")
    if preset == "list":
        say("\n".join(preset_names()))
        return
    found = None
    if not preset and root != DATA_FOLDER:
        try:
            found = suggestions(Path(root))
        except HamfastError as error:
            warnings.warn(
                f"the defaults were written, since the data set cannot be read: {error}", DataWarning, stacklevel=1
            )
    if preset:
        text = preset_text(preset, root)
    elif found is None:
        text = config_template(root)
    else:
        text = config_template(
            root, suggestions=found.settings, note=f"Suggested environment: {found.environment} (docs/cell_size.md)."
        )
    if output is None:
        print(text, end="")
        return
    if output.exists():
        raise HamfastError(f"{output}: exists already")
    if output.suffix == ".toml":
        raise HamfastError(f"{output}: the configuration is written as YAML; expected a name like run.yaml")
    write_text(output, text)
    say(f"wrote {output}")


def train(
    config: Annotated[Path, typer.Argument(help="YAML or TOML; `hamfast config` writes one")],
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the output folder")] = False,
    output: Annotated[Path | None, typer.Option(help="replaces `output` of the configuration")] = None,
) -> None:
    """Train a model: stage 1, then stage 2, or both jointly, and calibrate its uncertainties.
    Several GPUs: start it with torchrun."""
    environment.check("hamfast")  # Lightning reads some of these where it is imported
    from hamfast.analysis.report import write_report
    from hamfast.training import Run, load_config
    from hamfast.training.processes import Processes

    settings = load_config(config)
    if output is not None:
        settings = settings.model_copy(update={"output": str(output)})
    path = Run(settings, console).train(resume=resume)
    if path is None:
        raise typer.Exit(130)
    if Processes.from_environment().is_first:
        _calibrate_run(path)
        say(f"report: {write_report(path.parent)}")
    say(f"model: {path}")


def _calibrate_run(path: Path) -> None:
    """Adds uncertainties to a run's model; a training without them is not lost."""
    from hamfast.analysis.calibration import calibrate_file

    try:
        with steps("calibrating") as start:
            errors = calibrate_file(path, path, device=device_of("auto"), start=start)
    except HamfastError as error:
        warnings.warn(f"no uncertainties were calibrated: {error}", DataWarning, stacklevel=1)
        return
    for line in errors.lines():
        say(line)


def import_checkpoint(
    program: Annotated[str, typer.Argument(help="that trained the model: deeph-e3")],
    folder: Annotated[Path, typer.Argument(help="of its training, with best_model.pkl and src")],
    output: Annotated[Path | None, typer.Option(help="checkpoint to write; default: model.ckpt in the folder")] = None,
) -> None:
    """Make a checkpoint of a model that DeepH-E3 has trained; nothing in its files is run."""
    if program != "deeph-e3":
        raise HamfastError(f"program: expected deeph-e3, found {program!r}")
    from hamfast.training.import_deeph_e3 import import_deeph_e3

    found = import_deeph_e3(folder, output)
    elements = ", ".join(f"{z} {list(ls)}" for z, ls in found.spec.shells)
    spin = "with" if found.spec.spinful else "without"
    epoch = "" if found.epoch is None else f" at epoch {found.epoch}"
    say(f"elements and shells: {elements}; {spin} spin-orbit coupling")
    say(f"weights in {found.config.precision}{epoch}, trained with e3nn {found.e3nn_version}")
    say(f"wrote {found.output}")
