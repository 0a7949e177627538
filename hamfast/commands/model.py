"""``hamfast model``: cards, calibration and small copies of trained models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hamfast.commands.output import Device, console, device_of, say, steps
from hamfast.errors import HamfastError

if TYPE_CHECKING:
    pass


model_app = typer.Typer(help="Look at trained models, and make small copies of them.", no_args_is_help=True)


@model_app.command("info")
def model_info(
    checkpoint: Annotated[Path, typer.Argument(help="model.ckpt of a run, or a model that comes with hamfast")],
) -> None:
    """Print a model's card: elements, orbitals, what it was trained on, errors, versions."""
    from hamfast.training.card import card

    for name, text in card(checkpoint):
        console.print(Text.assemble((name, "bold"), f": {text}"), soft_wrap=True)


@model_app.command("list")
def model_list() -> None:
    """Name the models that come with hamfast; `hamfast predict NAME FILE` takes them."""
    from hamfast.trained import names

    say("\n".join(names()) or "none")


@model_app.command("calibrate")
def model_calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="model.ckpt of a run")],
    root: Annotated[
        Path | None, typer.Option(help="its data set, training and validation; default: that of the run")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="file with the split; default: the run's, or that of --root")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="file to write; default: the checkpoint itself")] = None,
    device: Device = "auto",
) -> None:
    """Give a trained model calibrated uncertainties, for `predict --uncertainty`; nothing is
    trained."""
    from hamfast.analysis.calibration import calibrate_file

    if output is None and not checkpoint.is_file():
        raise HamfastError(f"{checkpoint}: expected the file of a checkpoint, or --output with the file to write")
    target = checkpoint if output is None else output
    with steps("calibrating") as start:
        errors = calibrate_file(checkpoint, target, root, split, device_of(device), start)
    for line in errors.lines():
        say(line)
    say(f"wrote {target}")


@model_app.command("pack")
def model_pack(
    checkpoint: Annotated[Path, typer.Argument(help="model.ckpt of a run")],
    target: Annotated[Path, typer.Argument(help="file to write")],
    about: Annotated[str | None, typer.Option(help="what the data are: code, functional, basis")] = None,
) -> None:
    """Copy a model without the state of its training, with the errors that evaluate found."""
    from hamfast.training.card import pack

    pack(checkpoint, target, about)
    say(f"wrote {target}, {target.stat().st_size / 2**20:.1f} MB")
