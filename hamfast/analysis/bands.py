"""Band structure and density of states of a structure: DFT, predicted, or both in one figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hamfast.analysis.band_errors import BandErrors, band_errors
from hamfast.analysis.counting import fermi_level_by_counting
from hamfast.analysis.direct import factorized_by
from hamfast.analysis.eigen import EigenProblem, eigen_problem
from hamfast.analysis.fermi import (
    band_edges,
    default_mesh,
    density_of_states,
    edges_known,
    monkhorst_pack,
    occupied_bands,
    whole_electrons,
)
from hamfast.analysis.ghosts import leave_out_ghosts
from hamfast.analysis.kpath import KPath, parse_kpath
from hamfast.analysis.kpm import density_by_moments
from hamfast.analysis.populations import Populations, orbital_sets, populations
from hamfast.analysis.solvers import Choice
from hamfast.data import packed
from hamfast.data.blocks import BlockMatrix
from hamfast.data.formats import format_of, has_prediction, read_snapshot
from hamfast.data.h5 import write_h5, write_json
from hamfast.data.snapshot import Snapshot, check_pairs, difference
from hamfast.errors import HamfastError

FIGURES = ("bands.png", "bands.pdf")
DOS_WORK = 1e9
"""k-points times cubes of orbitals of a density of states."""
SPARSE_BANDS = 60
"""Bands around the Fermi level of systems too large for all of them."""


@dataclass
class BandStructure:
    """Energies along a path, with the zero of energy that the Hamiltonian has."""

    path: KPath
    energies: np.ndarray
    """``[kpoints, columns]`` eV; NaN where a band is not among those computed."""
    fermi_energy: float
    """eV, in the same scale as ``energies``."""
    fermi_source: str
    """Where the Fermi level is from, for the reader."""
    first_band: int | None = 0
    """The index, from 0, of the band in column 0. None if the levels could not be counted: then
    columns are no bands."""
    solver: Choice | None = None
    """What has found the levels, and why it was taken."""
    occupied: int | None = None
    """How many columns are occupied bands. None if that is not known, or if they are no whole
    number."""
    projection: float | None = None
    """Directions in which S(k) is below this were left out; None if none was."""

    @property
    def gap(self) -> float | None:
        """eV, on the points of the path; 0 if bands overlap.

        None if an edge is not known at every point.
        """
        if self.occupied is None or not edges_known(self.energies, self.occupied):
            return None
        valence, conduction = band_edges(self.energies, self.occupied)
        return max(0.0, conduction - valence)


@dataclass
class DensityOfStates:
    """Density of states on a grid of energies relative to the Fermi level."""

    grid: np.ndarray
    """``[points]`` eV."""
    density: np.ndarray
    """``[points]`` states / eV / cell."""
    fermi_energy: float
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    """``[points]`` of each set of orbitals, where they were asked for; together they are
    ``density``."""
    error: np.ndarray | None = None
    """``[points]``: the standard error of ``density``, where random vectors have made it."""


def matrices_of(snapshot: Snapshot, folder: Path, prediction: Path | None = None) -> dict[str, BlockMatrix]:
    """The Hamiltonians there are of a structure, ``DFT`` and ``predicted``.

    Args:
        snapshot: what was read from ``folder``.
        prediction: the folder of the predicted one; None: ``folder``, if it has one.

    Raises:
        HamfastError: there is none, or the prediction is of another structure.
    """
    matrices = {} if snapshot.hamiltonian is None else {"DFT": snapshot.hamiltonian}
    where = folder if prediction is None else prediction
    if prediction is not None or has_prediction(where):
        predicted = read_snapshot(where, hamiltonian="prediction")
        matrix = predicted.hamiltonian
        if matrix is None:
            raise HamfastError(f"{where}: expected {format_of(where).PREDICTION}; make it with `hamfast predict`")
        why = difference(snapshot, predicted, matrix.pairs)
        if why is not None:
            raise HamfastError(f"{where}: expected a prediction of {folder}, found one of another structure: {why}")
        if snapshot.overlap is not None:
            check_pairs(matrix, snapshot.overlap, str(where))
        matrices["predicted"] = matrix
    if not matrices:
        raise HamfastError(f"{folder}: neither a DFT nor a predicted Hamiltonian is there")
    return matrices


def solve(
    problem: EigenProblem,
    path: KPath,
    cell: np.ndarray,
    *,
    mesh=None,
    fermi: float | None = None,
    known_fermi: float | None = None,
    num_bands: int | None = None,
    report: Callable[[], None] | None = None,
) -> BandStructure:
    """Bands along a path.

    Args:
        problem: H(k) and S(k).
        path: its k-points.
        cell: ``[3, 3]`` angstrom.
        mesh: k-mesh on which electrons are counted for the Fermi level; by default about
            0.35 1/angstrom between points.
        fermi: eV, the Fermi level; then no electrons are counted.
        known_fermi: eV, the DFT code's Fermi level. It is taken where there are too many orbitals
            for all bands; without it levels are counted
            (:func:`hamfast.analysis.counting.fermi_level_by_counting`).
        num_bands: only so many bands, half of them below the Fermi level. Where not all are
            computed there are ``SPARSE_BANDS`` unless this says otherwise.
        report: called after every k-point.

    Raises:
        HamfastError: the Fermi level cannot be found, or the eigenproblem not be solved.
    """
    if num_bands is not None and num_bands < 1:
        raise HamfastError(f"number of bands: expected 1 or more, found {num_bands}")
    if fermi is not None:
        if not np.isfinite(fermi):
            raise HamfastError(f"Fermi level: expected a number of eV, found {fermi}")
        source = "as given"
    elif not problem.has_all_levels and known_fermi is not None:
        fermi, source = known_fermi, f"of the DFT code; of {problem.size} levels some were computed"
    else:
        mesh = mesh or default_mesh(cell)
        kpoints = monkhorst_pack(mesh)
        many = not problem.has_all_levels
        fermi = fermi_level_by_counting(problem, kpoints) if many else problem.fermi_energy(kpoints)
        source = f"{problem.electrons():g} electrons on a {'x'.join(map(str, mesh))} mesh"
        source += ", by counts of levels" if many else ""
    sparse = num_bands is not None or not problem.has_all_levels
    levels = problem.levels(path.kpoints, (num_bands or SPARSE_BANDS) if sparse else None, fermi, report)
    occupied = None
    if problem.occupation is not None and levels.first_band is not None:
        occupied = occupied_bands(whole_electrons(problem.occupation), problem.degeneracy)
        occupied = None if occupied is None else occupied - levels.first_band
    choice = problem.choice(num_bands)
    return BandStructure(
        path, levels.energies, float(fermi), source, levels.first_band, choice, occupied, problem.projection
    )


def band_structures(
    snapshot: Snapshot,
    matrices: dict[str, BlockMatrix],
    kpath: str | None,
    *,
    points: int = 90,
    mesh=None,
    fermi: float | None = None,
    num_bands: int | None = None,
    projection: float | None = None,
    keep_ghosts: bool = False,
    solver: str = "auto",
    jobs: int | None = None,
    report: Callable[[], None] | None = None,
) -> dict[str, BandStructure]:
    """Bands of several Hamiltonians of one structure, each with its own Fermi level.

    Args:
        snapshot: the structure, with its overlap.
        matrices: name -> Hamiltonian.
        kpath: see :func:`hamfast.analysis.kpath.parse_kpath`.
        points: k-points along the path.
        mesh, fermi, num_bands, report: see :func:`solve`.
        projection, solver, jobs: see :class:`hamfast.analysis.eigen.EigenProblem`.
        keep_ghosts: see :func:`hamfast.analysis.ghosts.leave_out_ghosts`, which is not called then.

    Raises:
        HamfastError: as these.
    """
    atoms = snapshot.positions @ np.linalg.inv(snapshot.cell), snapshot.numbers
    path = parse_kpath(kpath, snapshot.cell, points, periodic_axes(next(iter(matrices.values()))), atoms)
    found = {}
    for name, matrix in matrices.items():
        problem = eigen_problem(snapshot, matrix, projection=projection, solver=solver, jobs=jobs)
        if not keep_ghosts:
            leave_out_ghosts(problem, path.kpoints, f"{snapshot.label}, {name}")
        found[name] = solve(
            problem, path, snapshot.cell, mesh=mesh, fermi=fermi, known_fermi=snapshot.fermi_energy,
            num_bands=num_bands, report=report,
        )  # fmt: skip
    return found


def periodic_axes(matrix: BlockMatrix) -> list[bool]:
    """For each axis: do blocks with an element above 1 meV reach into other cells along it?

    The other axes are vacuum.
    """
    largest = np.maximum.reduceat(np.abs(matrix.entries), matrix.boundaries[:-1])
    return [bool(np.any((matrix.pairs[:, axis] != 0) & (largest > 1e-3))) for axis in range(3)]


def densities_of_states(
    snapshot: Snapshot,
    matrices: dict[str, BlockMatrix],
    window: tuple[float, float],
    *,
    mesh=None,
    fermi: dict[str, float] | None = None,
    width: float = 0.1,
    projection: dict[str, float | None] | None = None,
    shares_of: str | None = None,
    by: str = "shell",
    solver: str = "auto",
    jobs: int | None = None,
) -> dict[str, DensityOfStates]:
    """DOS of several Hamiltonians of one structure on the same k-mesh.

    Args:
        snapshot: the structure, with its overlap.
        matrices: name -> Hamiltonian.
        window: eV around the Fermi level.
        mesh: of k-points; by default :func:`dos_mesh`.
        fermi: name -> eV, the zero of the energies, as the bands beside have it. By default
            electrons are counted on ``mesh``.
        width: eV, the standard deviation of the Gaussian on each level.
        projection: name -> see :class:`hamfast.analysis.eigen.EigenProblem`, as the bands beside
            have it; None: nothing is left out.
        shares_of: the Hamiltonian that gets ``parts``, too.
        by: ``element``, ``shell`` or ``spin``, what these parts are of.
        solver, jobs: see :class:`hamfast.analysis.eigen.EigenProblem`. Where not all levels are
            computed, the density is that of :func:`hamfast.analysis.kpm.density_by_moments`.

    Raises:
        HamfastError: the window is none, or there are too many orbitals for parts, or for a part
            of S.
    """
    check_window(window)
    points = monkhorst_pack(mesh or dos_mesh(snapshot))
    grid = np.linspace(*window, 400)
    result = {}
    for name, matrix in matrices.items():
        left_out = None if projection is None else projection[name]
        problem = eigen_problem(snapshot, matrix, projection=left_out, solver=solver, jobs=jobs)
        if not problem.has_all_levels:
            if name == shares_of or left_out is not None:
                problem.check_all_levels("parts of a density of states, or one of a part of S")
            zero = fermi_level_by_counting(problem, points) if fermi is None else fermi[name]
            result[name] = _by_moments(problem, points, grid, width, zero)
            continue
        parts = populations(problem, points, orbital_sets(snapshot, by)) if name == shares_of else None
        energies = problem.bands(points) if parts is None else parts.energies
        zero = problem.fermi_energy_of(energies) if fermi is None else fermi[name]
        density = density_of_states(energies - zero, grid, width, problem.degeneracy)
        found = DensityOfStates(grid, density, zero)
        if parts is not None:
            found.parts = dict(zip(parts.names, parts.densities(grid, zero, width, problem.degeneracy), strict=True))
        result[name] = found
    return result


def _by_moments(
    problem: EigenProblem, points: np.ndarray, grid: np.ndarray, width: float, zero: float
) -> DensityOfStates:
    with factorized_by(problem.choice(1).direct):
        density, error = density_by_moments(
            lambda k: (problem.hamiltonian.at(k), problem.overlap.at(k)), points, grid + zero, width, problem.degeneracy
        )
    return DensityOfStates(grid, density, zero, error=error)


def dos_mesh(snapshot: Snapshot) -> tuple[int, int, int]:
    """A k-mesh for a density of states: as fine as some seconds allow.

    Points are 0.05 to 0.2 1/angstrom apart. Coarser ones show single levels as peaks.
    """
    for spacing in (0.05, 0.07, 0.1, 0.14):
        mesh = default_mesh(snapshot.cell, spacing)
        if math.prod(mesh) * snapshot.matrix_size**3 < DOS_WORK:
            return mesh
    return default_mesh(snapshot.cell, 0.2)


def check_window(window: tuple[float, float]) -> None:
    """Raises HamfastError unless the window is two numbers below 1e6 eV, the lower one first."""
    if not (np.all(np.abs(window) < 1e6) and window[0] < window[1]):
        raise HamfastError(f"window: expected two numbers of eV, the lower one first, found {tuple(window)}")


def write_bands(
    bands: dict[str, BandStructure],
    folder: Path,
    errors: BandErrors | None = None,
    dft_fermi: float | None = None,
    shares: dict[str, Populations] | None = None,
    edges: dict[str, list[dict[str, Any]]] | None = None,
    half_width: np.ndarray | None = None,
) -> list[Path]:
    """``bands.json`` with every curve, and ``band_<name>.h5`` each in DeepH's layout.

    Curves of an earlier call that are not among these are removed.

    Args:
        bands: ``DFT``, ``predicted`` or both.
        folder: where to write.
        errors: of the predicted bands, for the JSON.
        dft_fermi: eV, the Fermi level that the DFT code itself gave, for the JSON.
        shares: name -> shares of its levels, for the JSON.
        edges: name -> its band edges, for the JSON.
        half_width: ``[kpoints, columns]`` eV, the uncertainty of the predicted levels, for the
            JSON.

    Returns:
        What was written.
    """
    written = [folder / "bands.json"]
    content: dict[str, Any] = {"unit": "eV", "fermi_energy_of_the_DFT_code": dft_fermi}
    for name, band in bands.items():
        content["kpoints_frac"] = band.path.kpoints.tolist()
        content["distance_1_per_A"] = band.path.distance.tolist()
        content["ticks"] = [{"distance": d, "name": n} for d, n in band.path.ticks]
        energies = [[e if np.isfinite(e) else None for e in row] for row in band.energies.tolist()]
        content[name] = {
            "fermi_energy": band.fermi_energy,
            "fermi_source": band.fermi_source,
            "gap": band.gap,
            "first_band": band.first_band,
            "projection": band.projection,
            "edges": [] if edges is None else edges[name],
            "energies": energies,
        }
        if half_width is not None and name == "predicted":
            rows = half_width.round(6).tolist()
            content[name]["half_width"] = [[w if np.isfinite(w) else None for w in row] for row in rows]
        if shares is not None and name in shares:
            own = shares[name]
            content[name]["shares"] = {set_: own.shares[..., n].round(4).tolist() for n, set_ in enumerate(own.names)}
        path = folder / f"band_{name}.h5"
        arrays = {
            "band_data": band.energies.T,
            "kpoints_frac_list": band.path.kpoints,
            "kpoints_distance": band.path.distance,
            "fermi_energy_eV": band.fermi_energy,
        }
        write_h5(path, partial(_fill, arrays))
        written.append(path)
    for name in ("DFT", "predicted"):
        if name not in bands:
            (folder / f"band_{name}.h5").unlink(missing_ok=True)
    if errors is not None:
        content["errors_meV"] = errors.as_dict()
    write_json(folder / "bands.json", content)
    return written


def default_folder(structure: Path) -> Path:
    """Where results of a structure go: its sub-folder ``bands``, or ``bands/<label>`` beside the
    file that it is in."""
    inside = packed.is_this_layout(structure)
    return structure.parent.with_name("bands") / structure.name if inside else structure / "bands"


def check_writable(folder: Path, names: Iterable[str]) -> None:
    """Raises HamfastError if a result of these curves could not be written, before the first is."""
    for path in (
        *(folder / name for name in FIGURES),
        folder / "bands.json",
        *(folder / f"band_{n}.h5" for n in names),
    ):
        if path.is_dir():
            raise HamfastError(f"{path}: could not be written (it is a folder); what was there before is untouched")
    above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not above.is_dir():
        raise HamfastError(f"{folder}: could not be written ({above} is a file)")


def _fill(arrays: dict[str, Any], file: h5py.File) -> None:
    for name, array in arrays.items():
        file[name] = array


def band_difference(
    reference: BandStructure, predicted: BandStructure, window: tuple[float, float]
) -> BandErrors | None:
    """Errors of a predicted band structure on the same path.

    None if levels could not be counted, or none counts, see
    :func:`hamfast.analysis.band_errors.band_errors`.
    """
    if reference.first_band is None or predicted.first_band is None:
        return None
    # Columns of the two may begin at different bands.
    first = max(reference.first_band, predicted.first_band)
    stop = min(reference.first_band + reference.energies.shape[1], predicted.first_band + predicted.energies.shape[1])
    if stop <= first:
        return None
    occupied = None if reference.occupied is None else reference.first_band + reference.occupied - first
    return band_errors(
        reference.energies[:, first - reference.first_band : stop - reference.first_band],
        predicted.energies[:, first - predicted.first_band : stop - predicted.first_band],
        fermi=reference.fermi_energy,
        predicted_fermi=predicted.fermi_energy,
        window=window,
        occupied=occupied,
    )
