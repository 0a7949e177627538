"""``hamfast data``: look at, check, import, convert, prepare and split data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hamfast.commands.output import Folder, console, progress, say
from hamfast.errors import HamfastError

if TYPE_CHECKING:
    pass


data_app = typer.Typer(help="Look at, convert and split data sets.", no_args_is_help=True)


@data_app.command("info")
def data_info(root: Folder) -> None:
    """Elements, orbitals, pairs, distances, suggested irreps, cutoff and environment, size of a
    training step."""
    from hamfast.data.summary import summarize

    for name, text in summarize(root).items():
        console.print(Text.assemble((name, "bold"), f": {text}"), soft_wrap=True)


@data_app.command("check")
def data_check(
    root: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Look for what spoils a training: other orbitals or units, copies, levels that jump, H cut
    off. Exit status 1 if there is such."""
    import json

    from hamfast.data import find_structures
    from hamfast.data.check import NOTES, check_set

    with progress("checking", len(find_structures(root))) as advance:
        found = check_set(root, advance)
    together = found.together()
    if as_json:
        say(json.dumps({"structures": found.structures, "findings": [f._asdict() for f in together]}, indent=1))
    else:
        for kind, labels, text in together:
            names = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
            console.print(Text.assemble((kind, "yellow"), f": {names}: {text}"), soft_wrap=True)
        turned = f"; H turns with the structure in {found.turned} turned copies" if found.turned else ""
        say(f"{found.structures} structures, {len(together) or 'no'} findings{turned}")
    if any(kind not in NOTES for kind, _, _ in together):
        raise typer.Exit(1)


@data_app.command("import")
def data_import(
    source: Annotated[Path, typer.Argument(help="folder of a DFT calculation, or one with many below it")],
    target: Annotated[Path, typer.Argument(help="folder of the data set")],
    code: Annotated[
        str, typer.Option(help="openmx, siesta, abacus, cp2k, fhi-aims or pyscf; auto: recognised")
    ] = "auto",
    processes: Annotated[int | None, typer.Option(min=1, help="that read at once; default: as many as cores")] = None,
    packed: Annotated[
        bool, typer.Option("--packed", help="into one file, structures.sqlite: for very many structures")
    ] = False,
) -> None:
    """Read what DFT codes write: H, S and structures become a data set."""
    from hamfast.data.imports import REPORT, find_calculations, import_calculations

    with progress("importing", len(find_calculations(source, code))) as advance:
        done = import_calculations(source, target, code, processes, advance, packed)
    for label, words in done.warnings.items():
        for word in words:
            say(f"look at {label}: {word}")
    for label, why in done.skipped.items():
        say(f"skipped {label}: {why}")
    there = f", {len(done.there)} were there" if done.there else ""
    say(
        f"imported {len(done.written)} structures to {target}{there}, skipped {len(done.skipped)}; see {target / REPORT}"
    )
    if not (done.written or done.there):
        raise HamfastError(f"{source}: none of its {len(done.skipped)} calculations can be used")


@data_app.command("convert")
def data_convert(
    source: Folder,
    target: Annotated[Path, typer.Argument(help="new data set folder")],
    layout: Annotated[
        str, typer.Option("--to", help="deeph (new layout), deeph-legacy, or packed (one file)")
    ] = "deeph",
) -> None:
    """Convert a data set between the DeepH layouts and one file; the source's layout is
    detected."""
    from hamfast.data.convert import convert

    count, left = convert(source, target, layout)
    say(f"converted {count} structures to {target}")
    for path in left:
        say(f"left behind: {path}")


@data_app.command("prepare")
def data_prepare(config: Annotated[Path, typer.Argument(help="of a training: YAML or TOML")]) -> None:
    """Read a data set once and keep what trainings need, before they start: also without a GPU."""
    from hamfast.training import Run, load_config

    run = Run(load_config(config).model_copy(update={"accelerator": "cpu"}), console)
    path = run.prepare()
    counts = ", ".join(f"{subset} {len(folders)}" for subset, folders in run.data.split.items())
    say(f"prepared {counts}: {path} ({path.stat().st_size / 1e9:.3g} GB)")


@data_app.command("split")
def data_split(
    root: Folder,
    fractions: Annotated[tuple[float, float, float], typer.Option(help="train, validate, test")] = (0.6, 0.2, 0.2),
    seed: Annotated[int, typer.Option()] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an existing split")] = False,
) -> None:
    """Write dataset_split.json: a random split into train, validate and test."""
    from hamfast.data import write_split

    split = write_split(root, fractions, seed, overwrite=overwrite)
    say(", ".join(f"{subset} {len(labels)}" for subset, labels in split.items()))
