"""The Fermi level by counts of levels, against all levels from LAPACK."""

from dataclasses import replace

import numpy as np
import pytest
from kit import random_snapshot

from hamfast.analysis import bands, solvers
from hamfast.analysis.counting import fermi_level_by_counting
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.fermi import fermi_level, monkhorst_pack
from hamfast.analysis.kpath import parse_kpath
from hamfast.data import read_snapshot
from hamfast.errors import HamfastError

MESH = monkhorst_pack((3, 2, 1))


@pytest.mark.parametrize("name", ["hBN_1x1_000", "graphene_1x1_000", "MoS2_1x1_000"])
def test_of_real_structures(fixtures, name):
    """Graphene has no gap on its whole zone, and one on this mesh."""
    problem = eigen_problem(read_snapshot(fixtures / name))
    expected = problem.fermi_energy(MESH, temperature=1.0)
    assert fermi_level_by_counting(problem, MESH) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spinful", [False, True])
@pytest.mark.parametrize("electrons", [5.0, 7.5, 8.0])
def test_of_metals(spinful, electrons):
    """Levels of random matrices overlap at every energy; complex ones have no symmetry of k."""
    snapshot = replace(random_snapshot({6: (0, 0, 1)}, [6, 6], spinful), occupation=electrons)
    problem = eigen_problem(snapshot)
    energies = np.sort(problem.bands(MESH).ravel())
    found = fermi_level_by_counting(problem, MESH)
    filled = electrons / problem.degeneracy * len(MESH)
    assert np.sum(energies < found - 1e-3) <= filled <= np.sum(energies < found + 1e-3)
    expected = fermi_level(problem.bands(MESH), electrons, problem.degeneracy, 1.0)
    gap = energies[int(np.ceil(filled))] - energies[int(np.ceil(filled)) - 1]
    assert abs(found - expected) < gap + 2e-3


def test_bands_of_many_orbitals_need_no_fermi_level(fixtures, monkeypatch):
    snapshot = replace(read_snapshot(fixtures / "hBN_1x1_000"), fermi_energy=None)
    problem, path = eigen_problem(snapshot), parse_kpath("GK", snapshot.cell, 5)
    expected = bands.solve(problem, path, snapshot.cell, mesh=(3, 3, 1))
    monkeypatch.setattr(solvers, "DENSE_LIMIT", 10)
    found = bands.solve(problem, path, snapshot.cell, mesh=(3, 3, 1), num_bands=6)
    assert found.fermi_energy == pytest.approx(expected.fermi_energy, abs=1e-6)
    assert "by counts of levels" in found.fermi_source
    assert found.gap == pytest.approx(expected.gap, abs=1e-6)


def test_electrons_that_do_not_fit(fixtures):
    problem = eigen_problem(replace(read_snapshot(fixtures / "hBN_1x1_000"), occupation=99.0))
    with pytest.raises(HamfastError, match="99 electrons do not fit into 26 bands of 2"):
        fermi_level_by_counting(problem, MESH)
