"""``hamfast predict``, ``evaluate``, ``bands`` and ``export``: what a model and H are good for."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hamfast.commands.output import Device, Level, Window, console, device_of, pieces, progress, say
from hamfast.errors import DataWarning, HamfastError

if TYPE_CHECKING:
    from hamfast.analysis.prediction import Written


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
    memory: Annotated[
        str | None,
        typer.Option(help="as 8GB: larger structures go through the network in pieces; default: what is free"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Predict Hamiltonians; writes hamiltonian_pred.h5 in the input's layout, or into its
    structures.sqlite.

    A bare structure file gets a folder NAME_predicted with its overlap, too. Under torchrun all
    processes work on one structure together. What was stopped goes on where it was.
    """
    from hamfast.analysis.in_pieces import Limits
    from hamfast.data.formats import find_structures, names_apart
    from hamfast.data.packed import is_packed

    if precision not in ("float32", "float64"):
        raise HamfastError(f"--precision: expected float32 or float64, found {precision!r}")
    files = [path for path in structures if path.is_file() and not is_packed(path)]
    twice = [path for n, path in enumerate(files) if any(path.stem == other.stem for other in files[:n])]
    if twice and output is not None:
        raise HamfastError(
            f"{twice[0]}: two files of this name would share a folder in {output}; predict one after the other"
        )
    folders = [f for root in structures if root not in files for f in find_structures(root)]
    targets = folders if output is None else [output / name for name in names_apart(folders)]
    from hamfast.analysis.crystal import read_atoms, write_crystal
    from hamfast.analysis.expected_error import calibrated
    from hamfast.analysis.prediction import write_prediction
    from hamfast.data.deeph import OVERLAP
    from hamfast.models.memory import memory_in_bytes
    from hamfast.training import load_model
    from hamfast.training.processes import together

    loaded = load_model(checkpoint, device_of(device))
    wanted = level if uncertainty else None
    if wanted is not None:
        calibrated(loaded.model, str(checkpoint)).blocks.quantiles(wanted)
    bar = pieces(len(folders) + len(files))
    with bar as (report, done), together() as processes, warnings.catch_warnings():
        if not processes.is_first:
            warnings.simplefilter("ignore", DataWarning)
        limits = Limits(None if memory is None else memory_in_bytes(memory), processes, report)
        for folder, target in zip(folders, targets, strict=True):
            _tell_written(write_prediction(loaded, folder, target, precision, compress, wanted, limits))
            done()
        for path in files:
            parent = path.parent if output is None else output
            ending = "_predicted" if output is None else ""
            for snapshot in read_atoms(loaded, path):
                target = parent / f"{snapshot.label}{ending}"
                written = write_crystal(loaded, snapshot, target, precision, compress, wanted, limits)
                _tell_written(written)
                if written is not None:
                    say(f"wrote {written.hamiltonian.with_name(OVERLAP)}")
            done()


def _tell_written(written: Written | None) -> None:
    if written is None:  # another process has written it
        return
    say(f"wrote {written.hamiltonian}")
    if written.uncertainty is not None:
        say(f"wrote {written.uncertainty}")
    for line in written.lines:
        say(line)


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
    loaded = load_model(checkpoint, device_of(device))
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
    with progress("evaluating", len(folders)) as advance:
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


def bands(
    structure: Annotated[Path, typer.Argument(help="a structure folder with H and S, or structures.sqlite/LABEL")],
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
    mesh: Annotated[tuple[int, int, int] | None, typer.Option(help="k-mesh for the Fermi level and the DOS")] = None,
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
    solver: Annotated[
        str, typer.Option(help="dense, arpack, pardiso, slepc, or auto, which says what it takes and why")
    ] = "auto",
    jobs: Annotated[int | None, typer.Option(help="processes for k-points, of dense; default: the cores")] = None,
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

    from hamfast.analysis import slepc
    from hamfast.analysis.band_uncertainty import band_half_width, band_lines
    from hamfast.analysis.bands import (
        FIGURES,
        band_difference,
        band_structures,
        check_window,
        check_writable,
        default_folder,
        densities_of_states,
        dos_mesh,
        matrices_of,
        write_bands,
    )
    from hamfast.analysis.edges import edges, gap_words, mass_lines, with_masses
    from hamfast.analysis.eigen import eigen_problem
    from hamfast.analysis.plot import plot_bands
    from hamfast.analysis.populations import orbital_sets, populations
    from hamfast.analysis.uncertainty import Uncertainty
    from hamfast.data import read_snapshot
    from hamfast.machine import cores

    check_window(window)
    jobs = cores() if jobs is None else jobs
    if solver == "slepc" and slepc.rank():  # the first process writes and prints
        scratch = tempfile.TemporaryDirectory()  # goes with this function
        console.quiet, output = True, Path(scratch.name)
    snapshot = read_snapshot(structure)
    sets = None if fat is None else orbital_sets(snapshot, fat)
    matrices = matrices_of(snapshot, structure, prediction)
    folder = default_folder(structure) if output is None else output
    check_writable(folder, matrices)
    with progress("solving", len(matrices) * points) as advance:
        curves = band_structures(
            snapshot, matrices, kpath, points=points, mesh=mesh, fermi=fermi, num_bands=num_bands,
            projection=project_overlap, keep_ghosts=keep_ghosts, solver=solver, jobs=jobs, report=advance,
        )  # fmt: skip
    densities = shares = None
    last = list(curves)[-1]  # the predicted one, if there is one
    if sets is not None:
        curve = curves[last]
        problem = eigen_problem(snapshot, matrices[last], projection=curve.projection, solver=solver, jobs=jobs)
        shares = populations(problem, curve.path.kpoints, sets)
    if dos:
        mesh = mesh or dos_mesh(snapshot)
        levels = {name: curve.fermi_energy for name, curve in curves.items()}
        left_out = {name: curve.projection for name, curve in curves.items()}
        densities = densities_of_states(
            snapshot, matrices, window, mesh=mesh, fermi=levels, projection=left_out,
            shares_of=None if fat is None else last, by=fat or "shell", solver=solver, jobs=jobs,
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
            problem = eigen_problem(snapshot, matrices[name], projection=curve.projection, solver=solver, jobs=jobs)
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
        if masses and not found[name]:
            say(f"{name}: no effective masses: there is no gap on the path, or the occupied bands are not known")
        for edge in found[name] if masses else []:
            for line in mass_lines(edge):
                say(f"{name}: {line}")
    for choice in {curve.solver for curve in curves.values() if curve.solver is not None}:
        say(f"solver: {choice.name} ({choice.reason})")
    if dos and mesh is not None:
        say(f"DOS: {'x'.join(map(str, mesh))} mesh, Gaussians of 0.1 eV")
    for name, density in (densities or {}).items():
        if density.error is not None:
            share = np.median(density.error / np.maximum(density.density, 1e-12))
            say(f"DOS, {name}: by random vectors, its standard error is {share:.1%} (median over the window)")
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
