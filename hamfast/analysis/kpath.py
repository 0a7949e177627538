"""Paths through the Brillouin zone."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ase.cell import Cell

from hamfast.errors import HamfastError


@dataclass
class KPath:
    """Points along straight segments."""

    kpoints: np.ndarray
    """``[points, 3]``, in fractions of the reciprocal lattice vectors."""
    distance: np.ndarray
    """``[points]`` 1/angstrom along the path; the two points of a break have the same."""
    ticks: list[tuple[float, str]]
    """Distance and name of each corner; ``K|U`` where the path is broken."""
    starts: list[int] = field(default_factory=lambda: [0])
    """The index of the point at which each unbroken piece begins."""

    @property
    def pieces(self) -> list[slice]:
        """The points of each unbroken piece: lines are drawn within them."""
        return [slice(a, b) for a, b in itertools.pairwise([*self.starts, len(self.kpoints)])]


Corner = tuple[str, np.ndarray]


def parse_kpath(text: str | None, cell: np.ndarray, points: int, periodic: Sequence[bool] | None = None) -> KPath:
    """A path through named or own points.

    Args:
        text: names of the lattice's special points, as ``GKMG`` or ``G-X1-H``. A ``,`` or ``|``
            breaks the path, as in ``GXWKGLUWLK,UX``, which is ASE's way. Or own points, as
            ``G 0 0 0, K 1/3 1/3 0, M 0.5 0 0``; then only ``|`` breaks it. None takes ASE's path
            for the lattice.
        cell: ``[3, 3]`` angstrom.
        points: about how many k-points, at least two for each segment.
        periodic: for each axis, is the crystal periodic along it? A layer's lattice is named after
            its plane. None takes axes for vacuum that are longer than 11 angstrom and 1.4 times the
            shortest one.

    Raises:
        HamfastError: a name is unknown for this lattice, a coordinate is not a number, or the path
            has too few points.
    """
    if points < 2:
        raise HamfastError(f"points along the path: expected 2 or more, found {points}")
    pieces = _named(text, cell, periodic) if text is None or not _has_coordinates(text) else _explicit(text)
    for piece in pieces:
        if len(piece) < 2:
            raise HamfastError(f"kpath: expected at least two points in each piece of a path, found {text!r}")
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    total = sum(_length(a, b, reciprocal) for piece in pieces for a, b in itertools.pairwise(piece))
    if total < 1e-9:
        raise HamfastError(f"kpath: expected points that differ, found {text!r}")
    kpoints: list[np.ndarray] = []
    distance: list[float] = []
    ticks: list[tuple[float, str]] = []
    starts: list[int] = []
    walked = 0.0
    for piece in pieces:
        name = piece[0][0]
        if ticks:
            ticks[-1] = (walked, f"{ticks[-1][1]}|{name}")
        else:
            ticks.append((walked, name))
        starts.append(len(kpoints))
        for first, second in itertools.pairwise(piece):
            length = _length(first, second, reciprocal)
            count = max(2, round(points * length / total))
            for t in np.arange(count) / count:
                kpoints.append(first[1] + t * (second[1] - first[1]))
                distance.append(walked + float(t) * length)
            walked += length
            ticks.append((walked, second[0]))
        kpoints.append(piece[-1][1])
        distance.append(walked)
    return KPath(np.array(kpoints), np.array(distance), ticks, starts)


def _length(first: Corner, second: Corner, reciprocal) -> float:
    return float(np.linalg.norm((second[1] - first[1]) @ reciprocal))


def _has_coordinates(text: str) -> bool:
    """Is a word after a name a number? ``X1`` is a name, ``1/3`` a number."""
    return any(_is_number(word) for piece in re.split("[,|]", text) for word in piece.split()[1:])


def _is_number(word: str) -> bool:
    try:
        _number(word)
    except (ValueError, ZeroDivisionError):
        return False
    return True


def _named(text: str | None, cell, periodic) -> list[list[Corner]]:
    if periodic is None:
        lengths = np.linalg.norm(cell, axis=1)
        periodic = [bool(length < 11 or length < 1.4 * lengths.min()) for length in lengths]
    try:
        path = Cell(cell).bandpath(npoints=0, pbc=list(periodic) if any(periodic) else [True] * 3)
    except Exception as error:  # ASE raises many types of errors on unusual cells
        raise HamfastError(
            f"kpath: the special points of this cell are not known ({error}); give coordinates"
        ) from error
    known = path.special_points
    # Longest names first, so that X1 is not X followed by a 1.
    pattern = re.compile("|".join(re.escape(name) for name in sorted(known, key=len, reverse=True)))
    pieces = []
    for section in re.split("[,|]", path.path if text is None else text):
        names = re.sub(r"[\s\-_]", "", section).replace("Gamma", "G").replace("Γ", "G")
        piece, at = [], 0
        while at < len(names):
            found = pattern.match(names, at)
            if found is None:
                wrong = re.match(r"\D\d*|\d+", names[at:])
                raise HamfastError(
                    f"kpath: this lattice has the special points {', '.join(sorted(known))}; "
                    f"found {wrong.group() if wrong else names[at:]!r}. Other points: --kpath 'A 0 0 0, B 0.5 0 0'"
                )
            piece.append((found.group(), np.asarray(known[found.group()], dtype=np.float64)))
            at = found.end()
        pieces.append(piece)
    return pieces


def _explicit(text: str) -> list[list[Corner]]:
    return [[_corner(corner) for corner in piece.split(",")] for piece in text.split("|")]


def _corner(text: str) -> Corner:
    words = text.split()
    try:
        name, coordinates = words[0], [_number(w) for w in words[1:]]
        if len(coordinates) != 3 or not np.all(np.isfinite(coordinates)):
            raise ValueError
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise HamfastError(f"kpath: expected 'NAME k1 k2 k3', found {text.strip()!r}") from error
    return name, np.array(coordinates)


def _number(word: str) -> float:
    top, slash, bottom = word.partition("/")
    return float(top) / float(bottom) if slash else float(top)
