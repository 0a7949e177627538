"""Band structure and density of states of a structure: DFT, predicted, or both in one figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hamfast.analysis.eigen import (
    DENSE_LIMIT,
    EigenProblem,
    default_mesh,
    density_of_states,
    eigen_problem,
    monkhorst_pack,
)
from hamfast.analysis.kpath import KPath, parse_kpath
from hamfast.data.blocks import BlockMatrix
from hamfast.data.h5 import replacing, write_json
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError


@dataclass
class BandStructure:
    """Energies along a path; zero of energy is as the Hamiltonian has it, ``fermi_energy`` is in the same scale."""

    path: KPath
    energies: np.ndarray
    """``[kpoints, bands]`` eV."""
    fermi_energy: float


@dataclass
class DensityOfStates:
    """Density of states on a grid of energies relative to the Fermi level."""

    grid: np.ndarray
    density: np.ndarray
    """states / eV / cell."""
    fermi_energy: float


def solve(
    problem: EigenProblem,
    path: KPath,
    cell: np.ndarray,
    *,
    mesh=None,
    fermi: float | None = None,
    num_bands: int | None = None,
) -> BandStructure:
    """Bands along a path. The Fermi level comes from the electrons on ``mesh`` unless given.

    Systems with more than ``DENSE_LIMIT`` orbitals are solved by shift-invert around the Fermi level, which must be given.
    """
    sparse = num_bands is not None or problem.size > DENSE_LIMIT
    if fermi is None:
        if problem.size > DENSE_LIMIT:
            raise HamfastError(
                f"{problem.size} orbitals are too many for all bands, so the Fermi level must be given: use --fermi"
            )
        fermi = problem.fermi_energy(monkhorst_pack(mesh or default_mesh(cell)))
    energies = problem.bands(path.kpoints, (num_bands or 60) if sparse else None, fermi)
    return BandStructure(path, energies, fermi)


def band_structures(
    snapshot: Snapshot,
    matrices: dict[str, BlockMatrix],
    kpath: str,
    *,
    points: int = 90,
    mesh=None,
    fermi: float | None = None,
    num_bands: int | None = None,
) -> dict[str, BandStructure]:
    """Bands of several Hamiltonians of one structure, each with its own Fermi level."""
    path = parse_kpath(kpath, snapshot.cell, points)
    return {
        name: solve(eigen_problem(snapshot, m), path, snapshot.cell, mesh=mesh, fermi=fermi, num_bands=num_bands)
        for name, m in matrices.items()
    }


def densities_of_states(
    snapshot: Snapshot, matrices: dict[str, BlockMatrix], window: tuple[float, float], *, mesh=None, width: float = 0.1
) -> dict[str, DensityOfStates]:
    """DOS of several Hamiltonians of one structure on the same k-mesh."""
    points = monkhorst_pack(mesh or default_mesh(snapshot.cell, 0.2))
    grid = np.linspace(*window, 400)
    result = {}
    for name, matrix in matrices.items():
        problem = eigen_problem(snapshot, matrix)
        energies = problem.bands(points)
        fermi = problem.fermi_energy_of(energies)
        density = density_of_states(energies - fermi, grid, width, problem.degeneracy)
        result[name] = DensityOfStates(grid, density, fermi)
    return result


def write_bands(bands: dict[str, BandStructure], folder: Path) -> list[Path]:
    """``bands.json`` with every curve, and ``band_<name>.h5`` each in DeepH's layout."""
    written = [folder / "bands.json"]
    content: dict[str, Any] = {"unit": "eV"}
    for name, band in bands.items():
        content["kpoints_frac"] = band.path.kpoints.tolist()
        content["distance_1_per_A"] = band.path.distance.tolist()
        content["ticks"] = [{"distance": d, "name": n} for d, n in band.path.ticks]
        content[name] = {"fermi_energy": band.fermi_energy, "energies": band.energies.tolist()}
        path = folder / f"band_{name}.h5"
        with replacing(path) as temporary, h5py.File(temporary, "w") as file:
            file["band_data"] = band.energies.T
            file["kpoints_frac_list"] = band.path.kpoints
            file["kpoints_distance"] = band.path.distance
            file["fermi_energy_eV"] = band.fermi_energy
        written.append(path)
    write_json(folder / "bands.json", content)
    return written


def band_difference(first: BandStructure, second: BandStructure, window: tuple[float, float]) -> float:
    """Mean |dE| (meV) of the levels of ``first`` in the window, both relative to their Fermi level."""
    a, b = first.energies - first.fermi_energy, second.energies - second.fermi_energy
    near = (a > window[0]) & (a < window[1])
    return float(np.abs(a - b)[near].mean() * 1e3) if a.shape == b.shape and near.any() else float("nan")
