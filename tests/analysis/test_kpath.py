"""Paths through the Brillouin zone: against ASE's own, and by hand."""

import itertools

import numpy as np
import pytest
from ase.cell import Cell
from ase.lattice import all_variants
from kit import cases

from hamfast.analysis.bands import band_structures, periodic_axes
from hamfast.analysis.kpath import parse_kpath
from hamfast.data import read_snapshot
from hamfast.errors import HamfastError

BULK = [lattice for lattice in all_variants() if lattice.ndim == 3]


@pytest.mark.parametrize("lattice", BULK, ids=[lattice.variant for lattice in BULK])
def test_standard_paths_of_every_lattice(lattice):
    """ASE's path, with its breaks and names like X1, in its own spelling and in others."""
    cell = np.asarray(lattice.tocell()) * 4.0
    reference = Cell(cell).bandpath(npoints=0)
    path = reference.path
    own = parse_kpath(path, cell, 200, [True] * 3)
    pieces = [
        [reference.special_points[n] for n in _names(piece, reference.special_points)] for piece in path.split(",")
    ]
    assert len(own.pieces) == len(pieces)
    for piece, corners in zip(own.pieces, pieces, strict=True):
        points = own.kpoints[piece]
        at = 0
        for corner in corners:  # in this order on the way
            distance = np.abs(points[at:] - corner).max(axis=1)
            assert distance.min() < 1e-9
            at += int(np.argmin(distance))
        np.testing.assert_allclose(points[[0, -1]], [corners[0], corners[-1]], atol=1e-12)
    length = sum(
        np.linalg.norm((b - a) @ (2 * np.pi * np.linalg.inv(cell).T))
        for corners in pieces
        for a, b in itertools.pairwise(corners)
    )
    assert own.distance[-1] == pytest.approx(length)
    np.testing.assert_array_equal(parse_kpath(path.replace(",", "|"), cell, 200, [True] * 3).kpoints, own.kpoints)
    np.testing.assert_array_equal(parse_kpath(None, cell, 200, [True] * 3).kpoints, own.kpoints)


def _names(text, known):
    names, rest = [], text
    while rest:
        name = max((n for n in known if rest.startswith(n)), key=len)
        names.append(name)
        rest = rest[len(name) :]
    return names


@pytest.fixture(scope="module")
def cell(fixtures):
    return read_snapshot(fixtures / "graphene_1x1_000").cell


def test_a_path_by_name(cell):
    path = parse_kpath("GKMG", cell, 60)
    assert [name for _, name in path.ticks] == ["G", "K", "M", "G"]
    np.testing.assert_allclose(path.kpoints[0], 0)
    assert np.all(np.diff(path.distance) > 0)
    b = np.linalg.norm(2 * np.pi * np.linalg.inv(cell).T[0])
    assert path.ticks[1][0] == pytest.approx(b / np.sqrt(3), rel=1e-6)  # |GK| of a hexagonal lattice
    assert path.pieces == [slice(0, len(path.kpoints))]
    for spelling in ("G-K-M-G", "G K M G", "ΓKMΓ", "Gamma-K-M-Gamma"):
        np.testing.assert_array_equal(parse_kpath(spelling, cell, 60).kpoints, path.kpoints)


def test_a_path_of_own_points(cell):
    own = parse_kpath("A 0 0 0, B 1/2 0 0", cell, 10)
    np.testing.assert_allclose(own.kpoints[-1], [0.5, 0, 0])
    broken = parse_kpath("A 0 0 0, X1 .5 0 0 | C 0 0.5 0, D 0.25 1/4 0", cell, 20)
    assert [name for _, name in broken.ticks] == ["A", "X1|C", "D"]
    first, second = broken.pieces
    np.testing.assert_allclose(broken.kpoints[first][-1], [0.5, 0, 0])
    np.testing.assert_allclose(broken.kpoints[second][0], [0, 0.5, 0])
    assert broken.distance[first][-1] == broken.distance[second][0]


@pytest.mark.parametrize(
    "text, message",
    cases(
        {
            "unknown-name": ("GX", "this lattice has the special points .*found 'X'"),
            "unknown-number": ("GK1", "this lattice has the special points .*found '1'"),
            "two-coordinates": ("A 0 0 0, B 1/2 0", "expected 'NAME k1 k2 k3', found 'B 1/2 0'"),
            "division-by-zero": ("A 0 0 0, B 1/0 0 0", "expected 'NAME k1 k2 k3', found 'B 1/0 0 0'"),
            "nan": ("A 0 0 0, B nan 0 0", "expected 'NAME k1 k2 k3', found 'B nan 0 0'"),
            "infinite": ("A 0 0 0, B inf 0 0", "expected 'NAME k1 k2 k3'"),
            "one-point": ("G", "at least two points"),
            "piece-of-one-point": ("GK,M", "at least two points"),
            "empty": ("", "at least two points"),
            "points-the-same": ("A 0 0 0, B 0 0 0", "expected points that differ"),
        }
    ),
)
def test_what_is_no_path(cell, text, message):
    with pytest.raises(HamfastError, match=message):
        parse_kpath(text, cell, 10)


@pytest.mark.parametrize("points", [1, 0, -3])
def test_too_few_points(cell, points):
    with pytest.raises(HamfastError, match=f"expected 2 or more, found {points}"):
        parse_kpath("GKMG", cell, points)


@pytest.mark.parametrize("label", ["graphene_1x1_000", "hBN_1x1_000", "MoS2_1x1_000"])
def test_a_layers_lattice_is_that_of_its_plane(fixtures, label):
    """The vacuum is found by what the matrix couples, not by the length of an axis: bulk crystals
    have long axes, too."""
    snapshot = read_snapshot(fixtures / label)
    assert periodic_axes(snapshot.hamiltonian) == [True, True, False]
    assert [n for _, n in band_structures(snapshot, {"DFT": snapshot.hamiltonian}, None, points=6)["DFT"].path.ticks]


def test_path_of_seekpath():
    """Of silicon: its published path for face-centred cubic crystals. Of a layer: its plane."""
    pytest.importorskip("seekpath")
    cell = 5.43 / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])
    atoms = np.array([[0, 0, 0], [0.25, 0.25, 0.25]]), np.array([14, 14])
    path = parse_kpath("seekpath", cell, 60, [True] * 3, atoms)
    assert [name for _, name in path.ticks] == ["G", "X", "U|K", "G", "L", "W", "X"]
    corners = dict(zip([name for _, name in path.ticks], path.ticks, strict=True))
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    x = path.kpoints[np.argmin(np.abs(path.distance - path.ticks[1][0]))] @ reciprocal
    np.testing.assert_allclose(np.linalg.norm(x), 2 * np.pi / 5.43, rtol=1e-9)
    assert corners["L"][0] > corners["U|K"][0]
    layer = np.array([[2.46, 0, 0], [-1.23, 2.46 * np.sqrt(3) / 2, 0], [0, 0, 15.0]])
    atoms = np.array([[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]]), np.array([6, 6])
    path = parse_kpath("seekpath", layer, 60, [True, True, False], atoms)
    assert [name for _, name in path.ticks] == ["G", "M", "K", "G"]
    np.testing.assert_array_equal(path.kpoints[:, 2], 0)
    with pytest.raises(HamfastError, match="expected the atoms"):
        parse_kpath("seekpath", layer, 60)
