"""Shares of levels, against closed forms and the exact sums that they obey."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
from kit import random_snapshot

from hamfast.analysis.bands import densities_of_states
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.populations import orbital_sets, populations
from hamfast.data.blocks import BlockMatrix
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

SHELLS = {6: (0, 0, 1), 83: (0, 1, 2)}
K = np.array([[0.1, 0.2, 0.0], [0.4, 0.0, 0.3], [0.0, 0.0, 0.0]])


def molecule(a, b, t, s):
    """Two s orbitals of different atoms, energies a and b, hopping t, overlap s."""
    pairs = [(0, 0, 0, 0, 0), (0, 0, 0, 1, 1), (0, 0, 0, 0, 1), (0, 0, 0, 1, 0)]
    h = [np.array([[x]]) for x in (a, b, t, t)]
    o = [np.array([[x]]) for x in (1.0, 1.0, s, s)]
    numbers = np.array([5, 7])
    snapshot = Snapshot("BN", 20 * np.eye(3), np.array([[0, 0, 0], [0, 0, 1.3]]), numbers, {5: (0,), 7: (0,)})
    snapshot.hamiltonian, snapshot.overlap = BlockMatrix.from_blocks(pairs, h), BlockMatrix.from_blocks(pairs, o)
    return snapshot


def test_two_orbitals():
    """Without overlap the shares are cos^2 and sin^2 of half the angle with tan = 2 t / (a - b)."""
    a, b, t = 1.0, -0.5, -0.7
    found = populations(eigen_problem(molecule(a, b, t, 0.0)), K[:1], orbital_sets(molecule(a, b, t, 0.0), "element"))
    angle = np.arctan2(2 * abs(t), a - b)
    assert found.names == ["B", "N"]
    np.testing.assert_allclose(found.shares[0, 1], [np.cos(angle / 2) ** 2, np.sin(angle / 2) ** 2], atol=1e-12)
    np.testing.assert_allclose(found.shares[0, 0], [np.sin(angle / 2) ** 2, np.cos(angle / 2) ** 2], atol=1e-12)


def test_spin():
    """The rows of each spin, and their shares of every level."""
    snapshot = random_snapshot(SHELLS, [83, 6], True)
    spin_up = orbital_sets(snapshot, "spin")["up"]
    bismuth, carbon = 1 + 3 + 5, 1 + 1 + 3  # orbitals; each atom has those of spin up first
    assert spin_up.tolist() == [*range(bismuth), *range(2 * bismuth, 2 * bismuth + carbon)]
    problem = eigen_problem(snapshot)
    h, s = problem.hamiltonian.at(K[0]).toarray(), problem.overlap.at(K[0]).toarray()
    energies, states = scipy.linalg.eigh(h, s)
    expected = [np.real(c[spin_up].conj() @ (s @ c)[spin_up]) for c in states.T]
    found = populations(problem, K[:1], orbital_sets(snapshot, "spin"))
    np.testing.assert_allclose(found.energies[0], energies, atol=1e-9)
    np.testing.assert_allclose(found.shares[0, :, 0], expected, atol=1e-9)
    with pytest.raises(HamfastError, match="expected a Hamiltonian with spin"):
        orbital_sets(random_snapshot(SHELLS, [6]), "spin")


def test_levels_of_one_energy_share_alike():
    """Of two molecules that do not touch each level is there twice; which is which is arbitrary."""
    one = molecule(1.0, -0.5, -0.7, 0.1)
    pairs = np.concatenate([one.hamiltonian.pairs, one.hamiltonian.pairs + np.array([0, 0, 0, 2, 2])])
    twice = [
        BlockMatrix.from_blocks(pairs, [m.block(n) for _ in range(2) for n in range(4)])
        for m in (one.hamiltonian, one.overlap)
    ]
    numbers, positions = np.array([5, 7, 5, 7]), np.concatenate([one.positions, one.positions + np.array([9.0, 0, 0])])
    two = replace(one, numbers=numbers, positions=positions, hamiltonian=twice[0], overlap=twice[1])
    each = {"first": np.array([0, 1]), "second": np.array([2, 3])}
    np.testing.assert_allclose(populations(eigen_problem(two), K[:1], each).shares, 0.5, atol=1e-12)


def test_equal_atoms_share_alike():
    """With any overlap."""
    snapshot = molecule(0.3, 0.3, -1.0, 0.4)
    found = populations(eigen_problem(snapshot), K, orbital_sets(snapshot, "element"))
    np.testing.assert_allclose(found.shares, 0.5, atol=1e-12)


@pytest.mark.parametrize(("numbers", "spinful"), [([6, 83, 6], False), ([83, 6], True)], ids=["plain", "soc"])
def test_sums(numbers, spinful):
    """Shares of a level add up to 1, those of a set over all levels to its orbitals, and the parts
    of the density of states to the whole; energies are those of the bands."""
    snapshot = replace(random_snapshot(SHELLS, numbers, spinful), occupation=8.0)
    problem = eigen_problem(snapshot)
    for by, names in (("element", {"C", "Bi"}), ("shell", {"C s", "C p", "Bi s", "Bi p", "Bi d"})):
        sets = orbital_sets(snapshot, by)
        found = populations(problem, K, sets)
        assert set(found.names) == names
        np.testing.assert_allclose(found.shares.sum(axis=2), 1.0, atol=1e-10)
        expected = np.broadcast_to([len(rows) for rows in sets.values()], (len(K), len(sets)))
        np.testing.assert_allclose(found.shares.sum(axis=1), expected, atol=1e-8)
        np.testing.assert_allclose(found.energies, problem.bands(K), atol=1e-9)
        dos = densities_of_states(
            snapshot, {"DFT": snapshot.hamiltonian}, (-5, 5), mesh=(2, 2, 1), shares_of="DFT", by=by
        )["DFT"]
        np.testing.assert_allclose(sum(dos.parts.values()), dos.density, atol=1e-9)
        assert list(dos.parts) == found.names


def test_errors_and_command(hamfast, tmp_path, fixtures):
    with pytest.raises(HamfastError, match="expected element, shell or spin, found 'atom'"):
        orbital_sets(random_snapshot(SHELLS, [6]), "atom")
    arguments = ("--kpath", "GK", "--points", 3, "--mesh", 1, 1, 1, "--output", tmp_path / "out")
    status, _, _ = hamfast("bands", fixtures / "hBN_1x1_000", *arguments, "--fat", "element", "--dos")
    assert status == 0
    content = json.loads((tmp_path / "out" / "bands.json").read_text())["DFT"]
    total = np.array(content["shares"]["B"]) + np.array(content["shares"]["N"])
    np.testing.assert_allclose(total, 1.0, atol=2e-4)
    status, _, error = hamfast("bands", fixtures / "hBN_1x1_000", *arguments, "--fat", "atom")
    assert status == 1 and "expected element, shell or spin, found 'atom'" in error
