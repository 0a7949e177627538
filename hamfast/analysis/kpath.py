"""Paths through the Brillouin zone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase.cell import Cell

from hamfast.errors import HamfastError


@dataclass
class KPath:
    """Points along straight segments."""

    kpoints: np.ndarray
    """``[points, 3]`` fractional."""
    distance: np.ndarray
    """``[points]`` 1/angstrom along the path."""
    ticks: list[tuple[float, str]]
    """Distance and name of each corner."""


def parse_kpath(text: str, cell: np.ndarray, points: int) -> KPath:
    """A path from ``GKMG`` (names of the lattice's special points) or ``G 0 0 0, K 1/3 1/3 0, M 0.5 0 0`` (own points).

    Raises:
        HamfastError: a name is unknown for this lattice, or a coordinate is not a number.
    """
    corners = _explicit(text) if any(ch.isdigit() for ch in text) or "," in text else _special(text, cell)
    if len(corners) < 2:
        raise HamfastError(f"kpath: expected at least two points, found {text!r}")
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    steps = [np.linalg.norm((b[1] - a[1]) @ reciprocal) for a, b in itertools.pairwise(corners)]
    kpoints, distance, ticks, walked = [], [], [(0.0, corners[0][0])], 0.0
    for (_, start), (name, stop), length in zip(corners[:-1], corners[1:], steps, strict=True):
        count = max(2, round(points * length / max(sum(steps), 1e-12)))
        for t in np.arange(count) / count:
            kpoints.append(start + t * (stop - start))
            distance.append(walked + t * length)
        walked += float(length)
        ticks.append((walked, name))
    kpoints.append(corners[-1][1])
    distance.append(walked)
    return KPath(np.array(kpoints), np.array(distance), ticks)


def _special(text, cell):
    # Lattices with a vacuum are classified by their periodic plane.
    lengths = np.linalg.norm(cell, axis=1)
    pbc = [length < 11 or length < 1.4 * lengths.min() for length in lengths]
    try:
        known = Cell(cell).bandpath(npoints=0, pbc=pbc if any(pbc) else [True] * 3).special_points
    except Exception as error:  # ASE raises many kinds on unusual cells
        raise HamfastError(
            f"kpath: the special points of this cell are not known ({error}); give coordinates"
        ) from error
    names = text.replace("-", "").replace(" ", "")
    for name in names:
        if name not in known:
            raise HamfastError(
                f"kpath: this lattice has the special points {', '.join(sorted(known))}; found {name!r}. "
                "Other points: --kpath 'A 0 0 0, B 0.5 0 0'"
            )
    return [(name, known[name]) for name in names]


def _explicit(text):
    corners = []
    for part in text.split(","):
        words = part.split()
        try:
            name, coordinates = words[0], [_number(w) for w in words[1:]]
            if len(coordinates) != 3:
                raise ValueError
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise HamfastError(f"kpath: expected 'NAME k1 k2 k3', found {part.strip()!r}") from error
        corners.append((name, np.array(coordinates)))
    return corners


def _number(word):
    top, _, bottom = word.partition("/")
    return float(top) / float(bottom) if bottom else float(top)
