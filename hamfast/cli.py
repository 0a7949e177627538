"""The command line: ``hamfast``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hamfast.errors import HamfastError
from hamfast.version import __version__

app = typer.Typer(
    help="Learn DFT Hamiltonians of crystals: read, train, predict, evaluate, plot bands.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Look at, convert and split data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console()

Folder = Annotated[Path, typer.Argument(help="a structure folder, or a data set of them")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto")]


@app.command()
def doctor() -> None:
    """Print what is installed, which backends are usable and why the others are not."""
    from hamfast import doctor as module

    for title, findings in (("packages", module.versions()), ("backends", module.backends())):
        table = Table(title=f"hamfast {__version__}: {title}", show_header=False, title_justify="left")
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[yellow]no[/]", finding.name, finding.text)
        console.print(table)


@app.command()
def config(
    output: Annotated[Path | None, typer.Argument(help="file to write; prints without it")] = None,
    root: Annotated[str, typer.Option(help="data set folder to fill in")] = "path/to/dataset",
    preset: Annotated[
        str | None, typer.Option(help="one of the ready configurations instead; 'list' names them")
    ] = None,
) -> None:
    """Write a commented configuration: every key with its default, or a ready one for a published database."""
    from hamfast.configs import preset_names, preset_text
    from hamfast.data.h5 import replacing
    from hamfast.data.summary import suggestions
    from hamfast.training import config_template

    if preset == "list":
        console.print("\n".join(preset_names()))
        return
    text = preset_text(preset, root) if preset else config_template(root, suggestions=suggestions(Path(root)))
    if output is None:
        print(text, end="")
        return
    if output.exists():
        raise HamfastError(f"{output}: exists already")
    with replacing(output) as temporary:
        temporary.write_text(text)
    console.print(f"wrote {output}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML or TOML; `hamfast config` writes one")],
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in the output folder")] = False,
    output: Annotated[Path | None, typer.Option(help="replaces `output` of the configuration")] = None,
) -> None:
    """Train a model: stage 1, then stage 2, or both jointly. Several GPUs: start it with torchrun."""
    from hamfast.training import Run, load_config

    settings = load_config(config)
    if output is not None:
        settings = settings.model_copy(update={"output": str(output)})
    path = Run(settings, console).train(resume=resume)
    if path is None:
        raise typer.Exit(130)
    console.print(f"model: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="model.ckpt of a run")],
    structures: Annotated[list[Path], typer.Argument(help="structure folders, or data sets of them")],
    output: Annotated[
        Path | None, typer.Option(help="folder for copies with predictions; default: beside the input")
    ] = None,
    device: Device = "auto",
) -> None:
    """Predict Hamiltonians; writes hamiltonian_pred.h5 in the input's layout."""
    from hamfast.analysis import predict as predict_one
    from hamfast.data import find_structures, format_of, read_snapshot
    from hamfast.training import load_model

    loaded = load_model(checkpoint, _device(device))
    for folder in [f for root in structures for f in find_structures(root)]:
        snapshot = read_snapshot(folder)
        matrix = predict_one(loaded, snapshot).refined
        layout = format_of(folder)
        target = folder if output is None else output / folder.name
        if output is not None:
            layout.write(snapshot, target)
        console.print(f"wrote {layout.write_prediction(snapshot, matrix, target)}", highlight=False)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="model.ckpt of a run")],
    structures: Annotated[
        list[Path] | None, typer.Argument(help="structure folders; default: the run's test set")
    ] = None,
    part: Annotated[str, typer.Option(help="train, validate or test")] = "test",
    output: Annotated[Path | None, typer.Option(help="JSON; default: evaluation.json beside the checkpoint")] = None,
    eigenvalues: Annotated[bool, typer.Option(help="compare band energies too")] = True,
    label_noise: Annotated[
        Path | None, typer.Option(help="JSON with the noise of the DFT data, a column of the table")
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare predictions with DFT: a table and JSON, stage 1 beside the cascade."""
    from hamfast.analysis.evaluate import evaluate as evaluate_all
    from hamfast.analysis.evaluate import evaluation_table
    from hamfast.data import find_structures, read_split
    from hamfast.data.h5 import read_json, write_json
    from hamfast.training import load_model

    loaded = load_model(checkpoint, _device(device))
    if structures:
        folders = [f for root in structures for f in find_structures(root)]
    else:
        data = loaded.config.data
        split = read_split(Path(data.root), None if data.split is None else Path(data.split))
        if part not in split:
            raise HamfastError(f"part: expected one of {', '.join(split)}, found {part!r}")
        folders = split[part]
    with console.status("evaluating") as status:
        result = evaluate_all(
            loaded, folders, eigenvalues=eigenvalues, report=lambda name: status.update(f"evaluating {name}")
        )
    noise = None if label_noise is None else read_json(label_noise)["meV"]
    console.print(evaluation_table(result, noise, "Structures" if structures else f"{part.capitalize()} set"))
    path = checkpoint.parent / "evaluation.json" if output is None else output
    write_json(path, result)
    console.print(f"wrote {path}", highlight=False)


@app.command()
def bands(
    structure: Annotated[Path, typer.Argument(help="a structure folder with H and S")],
    kpath: Annotated[str, typer.Option(help="GKMG, or 'G 0 0 0, K 1/3 1/3 0, M 1/2 0 0'")],
    prediction: Annotated[
        Path | None, typer.Option(help="folder with hamiltonian_pred.h5; default: the structure's own")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder for the results; default: <structure>/bands")] = None,
    points: Annotated[int, typer.Option(help="k-points along the path")] = 90,
    window: Annotated[tuple[float, float], typer.Option(help="eV around the Fermi level")] = (-4.0, 4.0),
    mesh: Annotated[tuple[int, int, int] | None, typer.Option(help="k-mesh for the Fermi level")] = None,
    fermi: Annotated[float | None, typer.Option(help="Fermi level in eV instead of counting electrons")] = None,
    num_bands: Annotated[
        int | None, typer.Option(help="only so many bands next to the Fermi level (sparse solver)")
    ] = None,
    dos: Annotated[bool, typer.Option("--dos", help="density of states beside the bands")] = False,
) -> None:
    """Band structure from H and S: predicted over DFT in one figure, E_F at 0, and the numbers as JSON and h5."""
    from hamfast.analysis.bands import band_difference, band_structures, densities_of_states, write_bands
    from hamfast.analysis.plot import plot_bands
    from hamfast.data import format_of, read_snapshot

    snapshot = read_snapshot(structure)
    matrices = {} if snapshot.hamiltonian is None else {"DFT": snapshot.hamiltonian}
    where = structure if prediction is None else prediction
    if prediction is not None or (where / format_of(where).PREDICTION).exists():
        predicted = read_snapshot(where, hamiltonian="prediction").hamiltonian
        if predicted is None:
            raise HamfastError(f"{where}: expected {format_of(where).PREDICTION}; make it with `hamfast predict`")
        matrices["predicted"] = predicted
    if not matrices:
        raise HamfastError(f"{structure}: neither a DFT nor a predicted Hamiltonian is there")
    folder = structure / "bands" if output is None else output
    curves = band_structures(snapshot, matrices, kpath, points=points, mesh=mesh, fermi=fermi, num_bands=num_bands)
    densities = densities_of_states(snapshot, matrices, window, mesh=mesh) if dos else None
    figure = plot_bands(curves, folder / "bands.png", window=window, title=snapshot.label, dos=densities)
    for name, curve in curves.items():
        console.print(f"{name}: E_F = {curve.fermi_energy:.4f} eV, {curve.energies.shape[1]} bands", highlight=False)
    if len(curves) == 2:
        mean = band_difference(curves["DFT"], curves["predicted"], window)
        console.print(f"mean |dE| within the window: {mean:.3f} meV (each relative to its own E_F)", highlight=False)
    for path in [figure, *write_bands(curves, folder)]:
        console.print(f"wrote {path}", highlight=False)


@data_app.command("info")
def data_info(root: Folder) -> None:
    """Elements, orbitals, pairs, distances, suggested irreps and cutoff, size of a training step."""
    from hamfast.data.summary import summarize

    for name, text in summarize(root).items():
        console.print(f"[bold]{name}[/]: {text}", highlight=False)


@data_app.command("convert")
def data_convert(
    source: Folder,
    target: Annotated[Path, typer.Argument(help="new data set folder")],
    layout: Annotated[str, typer.Option("--to", help="deeph (new layout) or deeph-legacy")] = "deeph",
) -> None:
    """Convert structure folders between the DeepH layouts; the source's layout is detected."""
    from hamfast.data import by_name, find_structures, read_snapshot

    writer = by_name(layout)
    folders = find_structures(source)
    for folder in folders:
        where = target / "dft" / folder.name if writer.NAME == "deeph" else target / folder.name
        if where.exists() and any(where.iterdir()):
            raise HamfastError(f"{where}: not empty; choose another target")
        writer.write(read_snapshot(folder), where)
    console.print(f"converted {len(folders)} structures to {target}", highlight=False)


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
    console.print(", ".join(f"{part} {len(labels)}" for part, labels in split.items()))


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise HamfastError("device: cuda was asked for, but torch sees no GPU; run `hamfast doctor`")
    return name


def main() -> None:
    """Entry point: errors of the user are one sentence and exit status 1."""
    try:
        app()
    except HamfastError as error:
        Console(stderr=True).print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
