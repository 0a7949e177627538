"""Where the band edges are on a path, and the effective masses there.

Along a unit vector t the inverse mass of band n at k is

    1 / m = 1 / hbar^2 d^2 E_n(k + x t) / dx^2

by central differences of fourth order. Masses of holes are positive where the valence band bends
downwards.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hamfast.analysis.bands import BandStructure
from hamfast.analysis.eigen import EigenProblem
from hamfast.analysis.kpath import KPath

HBAR2_PER_MASS = 7.6199642
"""eV angstrom^2: hbar^2 over the mass of an electron (CODATA 2018)."""
STEP = 0.01
"""1/angstrom between the points of the differences."""
DEGENERATE = 1e-3
"""eV: levels at the edge that are this close to it have masses, too."""
PARABOLIC = 0.1
"""Masses of differences of single and of double width may differ by this share."""
OFFSETS, WEIGHTS = np.arange(-2, 3), np.array([-1, 16, -30, 16, -1]) / 12


@dataclass
class Mass:
    """Effective masses along one direction."""

    towards: str
    """The corner of the path that the direction leads to."""
    masses: list[float]
    """In masses of an electron, of each level at the edge, the outermost first."""
    parabolic: bool
    """False: the bands do not have one curvature here, as where they cross; the masses mean
    little."""


@dataclass
class Edge:
    """An edge of the gap on a path."""

    kind: str
    """``valence`` or ``conduction``."""
    energy: float
    """eV, relative to the Fermi level."""
    kpoint: list[float]
    """In fractions of the reciprocal lattice vectors."""
    name: str
    """Of this corner of the path, or ``A-B`` between two of them."""
    masses: list[Mass] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def edges(band: BandStructure) -> list[Edge]:
    """The valence and the conduction edge; none if there is no gap, or it is not known."""
    if not band.gap or band.occupied is None:
        return []
    found = []
    for kind, column, pick in (("valence", band.occupied - 1, np.argmax), ("conduction", band.occupied, np.argmin)):
        at = int(pick(band.energies[:, column]))
        energy = float(band.energies[at, column] - band.fermi_energy)
        found.append(Edge(kind, energy, band.path.kpoints[at].tolist(), _name(band.path, at)))
    return found


def gap_words(gap: float, found: list[Edge]) -> str:
    """The gap in words, with the places of its edges."""
    if not found:
        return "no gap on the path"
    top, bottom = found
    direct = np.allclose(top.kpoint, bottom.kpoint, atol=1e-6)
    where = f"direct at {top.name}" if direct else f"indirect, from {top.name} to {bottom.name}"
    return f"gap {gap:.3f} eV on the path, {where}"


def mass_lines(edge: Edge) -> list[str]:
    """The effective masses of an edge in words, a line for each direction."""
    what = "holes" if edge.kind == "valence" else "electrons"
    return [
        f"effective mass of {what} at {edge.name} towards {mass.towards}: {', '.join(f'{m:.3g}' for m in mass.masses)} m_e"
        + (
            ""
            if mass.parabolic
            else " (the band is not parabolic here, or its extremum is between points: it means little)"
        )
        for mass in edge.masses
    ]


def with_masses(problem: EigenProblem, band: BandStructure, cell: np.ndarray) -> list[Edge]:
    """The edges, with the effective masses along the path on both sides.

    Args:
        problem: H(k) and S(k) that ``band`` is of.
        band: its bands along a path.
        cell: ``[3, 3]`` angstrom.

    Raises:
        HamfastError: as :meth:`hamfast.analysis.eigen.EigenProblem.levels`.
    """
    found = edges(band)
    for edge in found:
        assert band.occupied is not None and band.first_band is not None
        holes = edge.kind == "valence"
        same = np.flatnonzero(np.abs(band.path.kpoints - edge.kpoint).sum(axis=1) < 1e-9)
        at = int(same[0])
        outermost = band.occupied - 1 if holes else band.occupied
        away = np.abs(band.energies[at] - band.energies[at, outermost]) < DEGENERATE
        columns = [n for n in np.nonzero(away)[0] if (n <= outermost) == holes or n == outermost]
        columns = columns[::-1] if holes else columns
        for towards, direction, grid in _directions(band.path, same, cell):
            points = np.array(edge.kpoint) + np.outer(OFFSETS, STEP * direction @ cell.T / (2 * np.pi))
            sparse = band.energies.shape[1] < problem.size
            levels = problem.levels(points, band.energies.shape[1] if sparse else None, band.fermi_energy)
            if levels.first_band is None:
                continue
            energies = levels.energies[:, np.array(columns) + band.first_band - levels.first_band]
            curvature = WEIGHTS @ energies / STEP**2
            narrow = np.array([0, 1, -2, 1, 0]) @ energies / STEP**2
            sign = -1 if holes else 1
            slope = np.abs(energies[3] - energies[1]) / (2 * STEP)
            parabolic = bool(
                (np.abs(narrow - curvature) <= PARABOLIC * np.abs(curvature)).all()
                and (sign * curvature > 0).all()
                and (slope <= np.abs(curvature) * grid).all()  # the extremum is no further than a point
            )
            with np.errstate(divide="ignore"):
                edge.masses.append(Mass(towards, (sign * HBAR2_PER_MASS / curvature).tolist(), parabolic))
    return found


def _name(path: KPath, at: int) -> str:
    piece = next(p for p in path.pieces if p.start <= at < p.stop)
    inside = [
        (d, n) for d, n in path.ticks if path.distance[piece.start] - 1e-9 <= d <= path.distance[piece.stop - 1] + 1e-9
    ]
    # At a break, the name on this side.
    corners = [(d, name.split("|")[-1 if n == 0 else 0]) for n, (d, name) in enumerate(inside)]
    before = [corner for corner in corners if corner[0] <= path.distance[at] + 1e-9][-1]
    after = next(corner for corner in corners if corner[0] >= path.distance[at] - 1e-9)
    return before[1] if before == after else f"{before[1]}-{after[1]}"


def _directions(path: KPath, places: np.ndarray, cell: np.ndarray) -> list[tuple[str, np.ndarray, float]]:
    """To all sides of a point, wherever it is on the path: the corner ahead, a unit vector in
    1/angstrom, and the way to the next point; one of two parallel directions."""
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    found: list[tuple[str, np.ndarray, float]] = []
    for at, step in ((int(at), step) for at in places for step in (-1, 1)):
        piece = next(p for p in path.pieces if p.start <= at < p.stop)
        if not piece.start <= at + step < piece.stop:
            continue
        vector = (path.kpoints[at + step] - path.kpoints[at]) @ reciprocal
        length = float(np.linalg.norm(vector))
        if length < 1e-9 or any(abs(vector @ other) > 0.999 * length for _, other, _ in found):
            continue
        ahead = [(d, n) for d, n in path.ticks if step * (d - path.distance[at]) > 1e-9]
        name = min(ahead, key=lambda tick: abs(tick[0] - path.distance[at]))[1]
        found.append((name.split("|")[0 if step > 0 else -1], vector / length, length))
    return found
