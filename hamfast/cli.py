"""The command line: ``hamfast``."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hamfast import environment
from hamfast.errors import DataWarning, HamfastError
from hamfast.placeholder import DATA_FOLDER
from hamfast.version import __version__

if TYPE_CHECKING:
    from hamfast.analysis.prediction import Written

app = typer.Typer(
    help="Learn DFT Hamiltonians of crystals: read, train, predict, evaluate, plot bands.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at, convert and split data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
model_app = typer.Typer(help="Look at trained models, and make small copies of them.", no_args_is_help=True)
app.add_typer(model_app, name="model")
console = Console()

Folder = Annotated[Path, typer.Argument(help="a structure folder, or a data set of them")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto")]
Level = Annotated[float, typer.Option(help="share of blocks that an uncertainty is to hold")]
Window = Annotated[tuple[float, float], typer.Option(help="eV around the Fermi level")]


@app.callback()
def _common(context: typer.Context) -> None:
    """Shows each warning about data as one line on stderr."""
    shown = warnings.catch_warnings()
    shown.__enter__()
    warnings.simplefilter("default", DataWarning)
    usual = warnings.showwarning

    def show(message, category, *rest, **options):
        if issubclass(category, DataWarning):
            _tell("warning:", "yellow", str(message))
        else:
            usual(message, category, *rest, **options)

    warnings.showwarning = show
    context.call_on_close(lambda: shown.__exit__(None, None, None))


def _tell(label: str, style: str, text: str) -> None:
    """A line on stderr. ``text`` may hold brackets: paths and labels are no markup."""
    Console(stderr=True).print(Text.assemble((label, style), " ", text), soft_wrap=True)


def say(text: str) -> None:
    """A line on stdout, as it is: brackets are no markup, and long lines are not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(what: str, total: int):
    """Shows a bar with the time left while the block runs, if the output is a terminal.

    Yields the function that moves it on.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(what), total=total)
        yield lambda: progress.advance(task)


@contextmanager
def _steps(what: str):
    """As :func:`_progress`, where the number of steps is known later.

    Yields a function that takes it, and returns the function that moves the bar on.
    """
    with ExitStack() as stack:
        yield lambda total: stack.enter_context(_progress(what, total))


@app.command()
def doctor() -> None:
    """Print what is installed, which backends are usable and why the others are not."""
    from hamfast import doctor as module

    for title, findings in (("packages", module.versions()), ("backends", module.backends())):
        table = Table(title=f"hamfast {__version__}: {title}", show_header=False, title_justify="left")
        for finding in findings:
            table.add_row("[green]ok[/]" if finding.ok else "[yellow]no[/]", finding.name, escape(finding.text))
        console.print(table)


@app.command()
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


@app.command()
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
        with _steps("calibrating") as start:
            errors = calibrate_file(path, path, device=_device("auto"), start=start)
    except HamfastError as error:
        warnings.warn(f"no uncertainties were calibrated: {error}", DataWarning, stacklevel=1)
        return
    for line in errors.lines():
        say(line)


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="model.ckpt of a run, or a name of `hamfast model list`")],
    structures: Annotated[
        list[Path],
        typer.Argument(help="structure folders, data sets of them, or files that ASE reads (CIF, POSCAR, xyz)"),
    ],
    output: Annotated[
        Path | None, typer.Option(help="folder for copies with predictions; default: beside the input")
    ] = None,
    precision: Annotated[str, typer.Option(help="of the written numbers: float64 or float32")] = "float64",
    compress: Annotated[bool, typer.Option(help="compress the written file")] = True,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="how far the blocks may be from DFT, too: uncertainty_pred.h5")
    ] = False,
    level: Level = 0.9,
    device: Device = "auto",
) -> None:
    """Predict Hamiltonians; writes hamiltonian_pred.h5 in the input's layout.

    A bare structure file gets a folder NAME_predicted with its overlap, too.
    """
    from hamfast.data.formats import find_structures, names_apart

    if precision not in ("float32", "float64"):
        raise HamfastError(f"--precision: expected float32 or float64, found {precision!r}")
    files = [path for path in structures if path.is_file()]
    twice = [path for n, path in enumerate(files) if any(path.stem == other.stem for other in files[:n])]
    if twice and output is not None:
        raise HamfastError(
            f"{twice[0]}: two files of this name would share a folder in {output}; predict one after the other"
        )
    folders = [f for root in structures if root not in files for f in find_structures(root)]
    targets = folders if output is None else [output / name for name in names_apart(folders)]
    from hamfast.analysis.prediction import write_prediction
    from hamfast.analysis.uncertainty import calibrated
    from hamfast.training import load_model

    loaded = load_model(checkpoint, _device(device))
    wanted = level if uncertainty else None
    if wanted is not None:
        calibrated(loaded.model, str(checkpoint)).blocks.quantiles(wanted)
    with _progress("predicting", len(folders)) as advance:
        for folder, target in zip(folders, targets, strict=True):
            _tell_written(write_prediction(loaded, folder, target, precision, compress, wanted))
            advance()
    if files:
        from hamfast.analysis.crystal import read_atoms, write_crystal
        from hamfast.data.deeph import OVERLAP

        for path in files:
            parent = path.parent if output is None else output
            ending = "_predicted" if output is None else ""
            for snapshot in read_atoms(loaded, path):
                target = parent / f"{snapshot.label}{ending}"
                written = write_crystal(loaded, snapshot, target, precision, compress, wanted)
                _tell_written(written)
                say(f"wrote {written.hamiltonian.with_name(OVERLAP)}")


def _tell_written(written: Written) -> None:
    say(f"wrote {written.hamiltonian}")
    if written.uncertainty is not None:
        say(f"wrote {written.uncertainty}")
    for line in written.lines:
        say(line)


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
    level: Level = 0.9,
    device: Device = "auto",
) -> None:
    """Compare predictions with DFT: a table and JSON, stage 1 beside the cascade.

    Of a model with calibrated uncertainties, it says what they are worth.
    """
    from hamfast.analysis.evaluation import coverage_table, evaluation_table, read_label_noise
    from hamfast.analysis.evaluation import evaluate as evaluate_all
    from hamfast.analysis.report import bands_of, write_report
    from hamfast.data import find_structures, read_split
    from hamfast.data.h5 import write_json
    from hamfast.training import load_model
    from hamfast.training.folder import MODEL_FILE

    noise = None if label_noise is None else read_label_noise(label_noise)
    loaded = load_model(checkpoint, _device(device))
    if structures:
        folders = [f for root in structures for f in find_structures(root)]
    else:
        data = loaded.config.data
        split = read_split(Path(data.root), None if data.split is None else Path(data.split))
        if not split.get(part):
            raise HamfastError(
                f"part: expected one of {', '.join(p for p in split if split[p])}, found {part!r}; choose with --part, or name "
                "structure folders"
            )
        folders = split[part]
    with _progress("evaluating", len(folders)) as advance:
        result = evaluate_all(loaded, folders, eigenvalues=eigenvalues, level=level, report=advance)
    console.print(evaluation_table(result, noise, "Structures" if structures else f"{part.capitalize()} set"))
    if "uncertainty" in result:
        console.print(coverage_table(result["uncertainty"]))
    path = checkpoint.parent / "evaluation.json" if output is None else output
    write_json(path, result)
    say(f"wrote {path}")
    if output is None and checkpoint.name == MODEL_FILE and not structures:
        figure = bands_of(loaded, folders[0]) if eigenvalues else None
        say(f"wrote {write_report(checkpoint.parent, figure)}")


@app.command()
def bands(
    structure: Annotated[Path, typer.Argument(help="a structure folder with H and S")],
    kpath: Annotated[
        str | None,
        typer.Option(
            help="GKMG, 'GXWKGLUWLK,UX', 'G 0 0 0, K 1/3 1/3 0, M 1/2 0 0', or seekpath for the path of that package; "
            "default: ASE's for the lattice"
        ),
    ] = None,
    prediction: Annotated[
        Path | None, typer.Option(help="folder with hamiltonian_pred.h5; default: the structure's own")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="folder for the results; default: <structure>/bands")] = None,
    points: Annotated[int, typer.Option(help="k-points along the path")] = 90,
    window: Window = (-4.0, 4.0),
    mesh: Annotated[tuple[int, int, int] | None, typer.Option(help="k-mesh for the Fermi level")] = None,
    fermi: Annotated[float | None, typer.Option(help="Fermi level in eV instead of counting electrons")] = None,
    num_bands: Annotated[
        int | None, typer.Option(help="only so many bands, half of them below the Fermi level (sparse solver)")
    ] = None,
    project_overlap: Annotated[
        float | None, typer.Option(help="leave out directions in which S(k) is below this, where S is nearly singular")
    ] = None,
    keep_ghosts: Annotated[
        bool, typer.Option("--keep-ghosts", help="keep states that errors of H make of nearly dependent orbitals")
    ] = False,
    dos: Annotated[bool, typer.Option("--dos", help="density of states beside the bands")] = False,
    fat: Annotated[
        str | None,
        typer.Option(help="element, shell or spin: how much of each level lies there, as dots, and in the DOS"),
    ] = None,
    masses: Annotated[
        bool, typer.Option("--masses", help="effective masses at the band edges, along the path")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print Fermi levels, gaps, edges and errors as JSON")] = False,
) -> None:
    """Band structure from H and S: predicted over DFT in one figure (PNG and PDF), E_F at 0, and
    the numbers as JSON and h5."""
    import json

    import numpy as np

    from hamfast.analysis.band_uncertainty import band_half_width, band_lines
    from hamfast.analysis.bands import (
        FIGURES,
        band_difference,
        band_structures,
        check_window,
        check_writable,
        densities_of_states,
        matrices_of,
        write_bands,
    )
    from hamfast.analysis.edges import edges, gap_words, mass_lines, with_masses
    from hamfast.analysis.eigen import eigen_problem
    from hamfast.analysis.plot import plot_bands
    from hamfast.analysis.populations import orbital_sets, populations
    from hamfast.analysis.uncertainty import Uncertainty
    from hamfast.data import read_snapshot

    check_window(window)
    snapshot = read_snapshot(structure)
    matrices = matrices_of(snapshot, structure, prediction)
    folder = structure / "bands" if output is None else output
    check_writable(folder, matrices)
    with _progress("solving", len(matrices) * points) as advance:
        curves = band_structures(
            snapshot, matrices, kpath, points=points, mesh=mesh, fermi=fermi, num_bands=num_bands,
            projection=project_overlap, keep_ghosts=keep_ghosts, report=advance,
        )  # fmt: skip
    densities = shares = None
    last = list(curves)[-1]  # the predicted one, if there is one
    sets = None if fat is None else orbital_sets(snapshot, fat)
    if sets is not None:
        curve = curves[last]
        problem = eigen_problem(snapshot, matrices[last], projection=curve.projection)
        shares = populations(problem, curve.path.kpoints, sets)
    if dos:
        levels = {name: curve.fermi_energy for name, curve in curves.items()}
        left_out = {name: curve.projection for name, curve in curves.items()}
        densities = densities_of_states(
            snapshot, matrices, window, mesh=mesh, fermi=levels, projection=left_out,
            shares_of=None if fat is None else last, by=fat or "shell",
        )  # fmt: skip
    errors = band_difference(curves["DFT"], curves["predicted"], window) if len(curves) == 2 else None
    uncertainty = Uncertainty.read(structure if prediction is None else prediction) if "predicted" in curves else None
    half_width = None
    if uncertainty is not None:
        half_width = band_half_width(snapshot, matrices["predicted"], uncertainty, curves["predicted"])
    figures = [folder / name for name in FIGURES]
    figure = plot_bands(
        curves, window=window, title=snapshot.label, dos=densities, errors=errors, shares=shares, shares_of=last,
        half_width=half_width,
    )  # fmt: skip
    for path in figures:
        figure.write(path)
    found = {}
    for name, curve in curves.items():
        if masses:
            problem = eigen_problem(snapshot, matrices[name], projection=curve.projection)
            found[name] = with_masses(problem, curve, snapshot.cell)
        else:
            found[name] = edges(curve)
    dictionaries = {name: [edge.as_dict() for edge in own] for name, own in found.items()}
    of_levels = None if shares is None else {last: shares}
    numbers = write_bands(
        curves, folder, errors, snapshot.fermi_energy, of_levels, edges=dictionaries, half_width=half_width
    )
    written = [*figures, *numbers]
    if as_json:
        summary = {
            name: {
                "fermi_energy": c.fermi_energy,
                "fermi_source": c.fermi_source,
                "gap": c.gap,
                "edges": dictionaries[name],
            }
            for name, c in curves.items()
        }
        about = {
            "unit": "eV",
            "errors_meV": None if errors is None else errors.as_dict(),
            "files": list(map(str, written)),
        }
        say(json.dumps(about | summary, indent=1))
        return
    for name, curve in curves.items():
        say(f"{name}: E_F = {curve.fermi_energy:.4f} eV ({curve.fermi_source}), {curve.energies.shape[1]} bands")
        if curve.gap is not None:
            say(f"{name}: {gap_words(curve.gap, found[name])}")
        for edge in found[name] if masses else []:
            for line in mass_lines(edge):
                say(f"{name}: {line}")
    if snapshot.fermi_energy is not None:
        say(f"the DFT code's own E_F: {snapshot.fermi_energy:.4f} eV")
    if len(curves) == 2 and errors is None:
        say("DFT and prediction have no counted bands in common: nothing was compared")
    if errors is not None:
        few = any(curve.first_band != 0 or not np.isfinite(curve.energies).all() for curve in curves.values())
        what = "the levels that were computed of both" if few else "the occupied levels and those within the window"
        say(f"mean |dE| of {what}: {errors.levels_MAE:.3f} meV, after removing a shift of {errors.shift:.3f} meV")
        if errors.gap_error is not None:
            say(
                f"errors in meV: gap {errors.gap_error:+.1f}, valence edge {errors.valence_edge_error:+.1f}, conduction "
                f"edge {errors.conduction_edge_error:+.1f}"
            )
    if uncertainty is not None and half_width is not None:
        for line in band_lines(curves["predicted"], half_width, uncertainty.level, window):
            say(line)
    for path in written:
        say(f"wrote {path}")


@app.command()
def export(
    structure: Annotated[Path, typer.Argument(help="a structure folder with H and S")],
    target: Annotated[
        Path, typer.Argument(help="x.h5: one HDF5 file; x.TSHS, x.nc: by sisl; a name without ending: for ABACUS")
    ],
    dft: Annotated[bool, typer.Option("--dft", help="DFT's H, not the predicted one")] = False,
) -> None:
    """Write H and S for other programs: the predicted H if there is one."""
    from dataclasses import replace

    from hamfast.analysis.bands import matrices_of
    from hamfast.data import read_snapshot
    from hamfast.data.export import export as write

    snapshot = read_snapshot(structure)
    matrices = matrices_of(snapshot, structure)
    if dft and "DFT" not in matrices:
        raise HamfastError(f"{structure}: there is no Hamiltonian of DFT")
    name = "DFT" if dft or "predicted" not in matrices else "predicted"
    for path in write(replace(snapshot, hamiltonian=matrices[name]), target):
        say(f"wrote {path} ({name})")


@app.command("import-checkpoint")
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

    with _progress("checking", len(find_structures(root))) as advance:
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
    code: Annotated[str, typer.Option(help="openmx, siesta, abacus, cp2k or fhi-aims; auto: recognised")] = "auto",
    processes: Annotated[int | None, typer.Option(min=1, help="that read at once; default: as many as cores")] = None,
) -> None:
    """Read what DFT codes write: H, S and structures become a data set."""
    from hamfast.data.imports import REPORT, find_calculations, import_calculations

    with _progress("importing", len(find_calculations(source, code))) as advance:
        done = import_calculations(source, target, code, processes, advance)
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
    layout: Annotated[str, typer.Option("--to", help="deeph (new layout) or deeph-legacy")] = "deeph",
) -> None:
    """Convert structure folders between the DeepH layouts; the source's layout is detected."""
    from hamfast.data.convert import convert

    count, left = convert(source, target, layout)
    say(f"converted {count} structures to {target}")
    for path in left:
        say(f"left behind: {path}")


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
    with _steps("calibrating") as start:
        errors = calibrate_file(checkpoint, target, root, split, _device(device), start)
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


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise HamfastError("device: cuda was asked for, but torch sees no GPU; run `hamfast doctor`")
    try:
        torch.empty(1, device=name).fill_(0.0).item()
    except Exception as error:  # torch raises many types of errors
        reason = str(error).strip().splitlines()[0]
        raise HamfastError(f"device: expected cpu, cuda or auto, found {name!r} ({reason})") from error
    return name


def _fail(text: str) -> int:
    _tell("error:", "red", text)
    return 1


def _log_of(error: BaseException) -> str:
    """Writes the traceback to a file; where it is, in words."""
    text = f"hamfast {__version__}, Python {sys.version}\n{sys.argv}\n\n" + "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="hamfast-error-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return "no log could be written"
    return f"the full story is in {name}"


def run(command) -> int:
    """Runs a command; returns the exit status.

    An error of the user is one sentence on stderr. So is an error of hamfast, with the name of a
    file that holds the traceback.
    """
    try:
        command()
    except HamfastError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `hamfast ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        return _fail(
            f"the memory of this machine does not suffice ({str(error) or 'an allocation failed'}); {_log_of(error)}"
        )
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return _fail(f"{path}{error.strerror or error}; {_log_of(error)}")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        return _fail(
            f"unexpected {type(error).__name__}: {reason}; this is a fault of hamfast, please report it; {_log_of(error)}"
        )
    return 0


def main(arguments: list[str] | None = None) -> None:
    """The entry point.

    Args:
        arguments: in place of those of the command line.
    """
    for stream in (sys.stdout, sys.stderr):  # names that the terminal's encoding does not have are no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    status = run(lambda: app(arguments))
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    main()
