"""Fermi level, k-meshes, density of states: what follows from all bands on a mesh."""

from __future__ import annotations

import warnings

import numpy as np

from hamfast.errors import DataWarning, HamfastError

KELVIN = 8.617333262e-5  # eV
ROUNDING = 0.01
"""Electrons: a number this close to a whole one is taken for it. A hundredth of an electron in a
conduction band would move the Fermi level of an insulator across the gap."""


def whole_electrons(electrons: float) -> float:
    """The number of electrons, rounded if it is within ``ROUNDING`` of a whole number.

    A warning (:class:`DataWarning`) says so.

    Raises:
        HamfastError: not a positive, finite number.
    """
    if not np.isfinite(electrons) or electrons <= 0:
        raise HamfastError(f"electrons per cell: expected a positive number, found {electrons}")
    nearest = float(round(electrons))
    if electrons == nearest or abs(electrons - nearest) > ROUNDING or nearest == 0:
        return float(electrons)
    warnings.warn(f"{electrons} electrons per cell are taken as {nearest:.0f}", DataWarning, stacklevel=2)
    return nearest


def occupied_bands(electrons: float, degeneracy: int) -> int | None:
    """How many bands the electrons of a cell fill at every k if the crystal is an insulator.

    A band holds ``degeneracy`` electrons. None if they fill no whole number of bands.
    """
    filled = electrons / degeneracy
    return round(filled) if abs(filled - round(filled)) < 1e-9 and round(filled) >= 1 else None


def band_edges(energies: np.ndarray, occupied: int) -> tuple[float, float]:
    """The highest occupied and the lowest unoccupied level, eV, of ``[kpoints, bands]``."""
    return float(np.nanmax(energies[:, occupied - 1])), float(np.nanmin(energies[:, occupied]))


def edges_known(energies: np.ndarray, occupied: int) -> bool:
    """Are both bands at the gap known at every k-point?"""
    return 0 < occupied < energies.shape[1] and bool(np.isfinite(energies[:, occupied - 1 : occupied + 1]).all())


def fermi_level(energies: np.ndarray, electrons: float, degeneracy: int, temperature: float = 300.0) -> float:
    """The Fermi level, eV.

    In an insulator it is the middle of the gap on these k-points. In a metal it is the energy at
    which the bands, occupied by the Fermi-Dirac function, hold the electrons; bisection finds it.

    Args:
        energies: ``[kpoints, bands]`` eV; NaN stands for bands that are not there.
        electrons: per cell.
        degeneracy: electrons that a band holds.
        temperature: kelvin.

    Raises:
        HamfastError: the electrons do not fit into the bands, or are no positive number.
    """
    electrons = whole_electrons(electrons)
    bands = int(np.isfinite(energies).sum(axis=1).min())
    if electrons > degeneracy * bands:
        raise HamfastError(f"{electrons:g} electrons do not fit into {bands} bands of {degeneracy}")
    occupied = occupied_bands(electrons, degeneracy)
    if occupied is not None and occupied < bands:
        valence, conduction = band_edges(energies, occupied)
        if conduction > valence:
            return (valence + conduction) / 2
    width = max(KELVIN * temperature, 1e-6)
    levels = np.where(np.isfinite(energies), energies, np.inf)
    low, high = np.nanmin(energies) - 10, np.nanmax(energies) + 10
    for _ in range(200):
        middle = (low + high) / 2
        filled = degeneracy * np.mean(np.sum(1 / (1 + np.exp(np.clip((levels - middle) / width, -60, 60))), axis=1))
        low, high = (middle, high) if filled < electrons else (low, middle)
    return float((low + high) / 2)


def monkhorst_pack(mesh) -> np.ndarray:
    """``[points, 3]``: Gamma-centred mesh in fractional coordinates.

    Raises:
        HamfastError: not three whole numbers from 1 on.
    """
    if len(mesh) != 3 or any(int(n) != n or n < 1 for n in mesh):
        raise HamfastError(f"mesh: expected three whole numbers from 1 on, found {tuple(mesh)}")
    axes = [np.arange(n) / n for n in mesh]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def default_mesh(cell: np.ndarray, spacing: float = 0.35) -> tuple[int, int, int]:
    """A mesh with about ``spacing`` 1/angstrom between points; 1 along vacuum-sized axes."""
    a, b, c = np.linalg.norm(2 * np.pi * np.linalg.inv(cell).T, axis=1)

    def points(length: float) -> int:
        return 1 if 2 * np.pi / length > 11 else max(1, int(np.ceil(length / spacing)))

    return points(a), points(b), points(c)


def density_of_states(
    energies: np.ndarray, grid: np.ndarray, width: float, degeneracy: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """``[points]`` states / eV / cell: a Gaussian on each level.

    Args:
        energies: ``[kpoints, bands]`` eV.
        grid: ``[points]`` eV.
        width: eV, the standard deviation.
        degeneracy: electrons that a band holds.
        weights: ``[kpoints, bands]``, of each level; None: all are 1.
    """
    known = np.isfinite(energies)
    x = (grid[:, None] - energies[known][None, :]) / width
    curves = np.exp(-0.5 * x**2) if weights is None else np.exp(-0.5 * x**2) * weights[known]
    return degeneracy * curves.sum(axis=1) / (width * np.sqrt(2 * np.pi) * energies.shape[0])
