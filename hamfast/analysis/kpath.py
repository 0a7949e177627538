"""Paths through the Brillouin zone."""

from __future__ import annotations

import itertools
import re
import warnings
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
SEEKPATH = "seekpath"


def parse_kpath(
    text: str | None,
    cell: np.ndarray,
    points: int,
    periodic: Sequence[bool] | None = None,
    atoms: tuple[np.ndarray, np.ndarray] | None = None,
) -> KPath:
    """A path through named or own points.

    Args:
        text: names of the lattice's special points, as ``GKMG`` or ``G-X1-H``. A ``,`` or ``|``
            breaks the path, as in ``GXWKGLUWLK,UX``, which is ASE's way. Or own points, as
            ``G 0 0 0, K 1/3 1/3 0, M 0.5 0 0``; then only ``|`` breaks it. None takes ASE's path
            for the lattice, and ``seekpath`` that of the package of this name (Hinuma et al.,
            Comput. Mater. Sci. 128, 140, 2017), of a layer the part in its plane.
        cell: ``[3, 3]`` angstrom.
        points: about how many k-points, at least two for each segment.
        periodic: for each axis, is the crystal periodic along it? A layer's lattice is named after
            its plane. None takes axes for vacuum that are longer than 11 angstrom and 1.4 times the
            shortest one.
        atoms: ``[atoms, 3]`` fractions of the cell, and their numbers, for ``seekpath``.

    Raises:
        HamfastError: a name is unknown for this lattice, a coordinate is not a number, or the path
            has too few points.
    """
    if points < 2:
        raise HamfastError(f"points along the path: expected 2 or more, found {points}")
    if text == SEEKPATH:
        pieces = _seekpath(cell, periodic, atoms)
    else:
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


def _without_vacuum(cell) -> list[bool]:
    lengths = np.linalg.norm(cell, axis=1)
    return [bool(length < 11 or length < 1.4 * lengths.min()) for length in lengths]


def _seekpath(cell, periodic, atoms) -> list[list[Corner]]:
    """The path of seekpath in the crystal's own cell; of a layer the segments in its plane."""
    try:
        from seekpath import get_path_orig_cell
    except ImportError as error:
        raise HamfastError(
            f"--kpath seekpath: expected the package seekpath: pip install seekpath ({error})"
        ) from error
    if atoms is None:
        raise HamfastError("--kpath seekpath: expected the atoms of the crystal, found none")
    fractions, numbers = atoms
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that of a supercell the path is not the usual one, and those of spglib
            found = get_path_orig_cell((cell, fractions, numbers))
    except Exception as error:  # spglib and seekpath raise many types of errors on unusual cells
        raise HamfastError(f"--kpath seekpath: it has no path for this cell ({error})") from error
    axes = ~np.array(_without_vacuum(cell) if periodic is None else periodic)
    corners = {name: np.asarray(point, dtype=np.float64) for name, point in found["point_coords"].items()}
    pieces: list[list[Corner]] = []
    for first, second in found["path"]:
        a, b = corners[first], corners[second]
        if np.abs([a[axes], b[axes]]).max(initial=0.0) > 1e-9:
            continue
        if pieces and pieces[-1][-1][0] == _short(first):
            pieces[-1].append((_short(second), b))
        else:
            pieces.append([(_short(first), a), (_short(second), b)])
    if not pieces:
        raise HamfastError(
            "--kpath seekpath: no part of its path lies in the plane of the layer; use ASE's or give points"
        )
    return pieces


def _short(name: str) -> str:
    return "G" if name == "GAMMA" else name


def _named(text: str | None, cell, periodic) -> list[list[Corner]]:
    if periodic is None:
        periodic = _without_vacuum(cell)
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
