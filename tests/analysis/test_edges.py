"""Band edges and effective masses, against closed forms."""

import numpy as np
import pytest

from hamfast.analysis.bands import solve
from hamfast.analysis.edges import HBAR2_PER_MASS, edges, gap_words, mass_lines, with_masses
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.kpath import parse_kpath
from hamfast.data.blocks import BlockMatrix
from hamfast.data.snapshot import Snapshot

A = 3.0  # angstrom, length of the cell


def chain(v, w, electrons=2.0, copies=1):
    """Two s orbitals in a cell, hopping v within it and w between cells (Su, Schrieffer, Heeger),
    E = +- sqrt(v^2 + w^2 + 2 v w cos(k a)); ``copies`` of the chain do not touch."""
    pairs, blocks = [], []
    for n in range(copies):
        i, j = 2 * n, 2 * n + 1
        pairs += [(0, 0, 0, i, i), (0, 0, 0, j, j), (0, 0, 0, i, j), (0, 0, 0, j, i), (-1, 0, 0, i, j), (1, 0, 0, j, i)]
        blocks += [np.array([[x]]) for x in (0.0, 0.0, v, v, w, w)]
    overlap = [np.array([[float(pair[3] == pair[4] and not any(pair[:3]))]]) for pair in pairs]
    positions = np.array([[x, 10 * n, 0] for n in range(copies) for x in (0, 1.4)])
    numbers = np.array([6, 6] * copies)
    snapshot = Snapshot("chain", np.diag([A, 20 * copies, 20.0]), positions, numbers, {6: (0,)})
    snapshot.hamiltonian, snapshot.overlap = (
        BlockMatrix.from_blocks(pairs, blocks),
        BlockMatrix.from_blocks(pairs, overlap),
    )
    snapshot.occupation = electrons
    return snapshot


def bands_of(snapshot, points=41):
    problem = eigen_problem(snapshot)
    path = parse_kpath("G 0 0 0, X 1/2 0 0, G 1 0 0", snapshot.cell, points)
    return problem, solve(problem, path, snapshot.cell, mesh=(20, 1, 1))


@pytest.mark.parametrize("copies", [1, 2])
def test_masses_of_a_dimerised_chain(copies):
    v, w = -1.0, -0.6
    snapshot = chain(v, w, 2.0 * copies, copies)
    problem, band = bands_of(snapshot)
    found = with_masses(problem, band, snapshot.cell)
    expected = HBAR2_PER_MASS * abs(v - w) / (v * w * A**2)  # from the second derivative of E at X
    assert [edge.kind for edge in found] == ["valence", "conduction"]
    for edge, sign in zip(found, (-1, 1), strict=True):
        assert edge.name == "X" and edge.energy == pytest.approx(sign * abs(v - w), abs=1e-9)
        (mass,) = edge.masses  # both sides of the edge are one direction
        assert mass.towards == "G" and mass.parabolic
        np.testing.assert_allclose(mass.masses, [expected] * copies, rtol=1e-4)
    assert gap_words(band.gap, found) == "gap 0.800 eV on the path, direct at X"
    assert mass_lines(found[0])[0].startswith("effective mass of holes at X towards G: 0.564")


def test_bands_that_cross_have_no_mass():
    """A gap of 0.1 meV is not parabolic at the width of the differences; without a gap there is no
    edge."""
    snapshot = chain(-1.0, -0.9999)
    problem, band = bands_of(snapshot)
    for edge in with_masses(problem, band, snapshot.cell):
        assert not edge.masses[0].parabolic and "not parabolic" in mass_lines(edge)[0]
    snapshot = chain(-1.0, -0.5, electrons=1.0)
    assert edges(bands_of(snapshot)[1]) == []


def test_names_at_a_break_are_those_of_the_own_side():
    snapshot = chain(-1.0, -0.6)
    problem = eigen_problem(snapshot)
    path = parse_kpath("G 0 0 0, X 1/2 0 0 | Y 1/2 1/2 0, Z 0 1/2 0", snapshot.cell, 20)
    found = edges(solve(problem, path, snapshot.cell, mesh=(20, 1, 1)))
    assert {edge.name for edge in found} <= {"X", "Y"}
    path = parse_kpath("Y 1/2 1/2 0, Z 0 1/2 0 | X 0.45 0 0, A 0.55 0 0", snapshot.cell, 21)
    band = solve(problem, path, snapshot.cell, mesh=(20, 1, 1))
    middle = [edge.name for edge in edges(band)]
    assert set(middle) <= {"Y", "X-A"}
