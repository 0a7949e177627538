"""Ghost states of nearly dependent orbitals, against the levels of the exact Hamiltonian."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from hamfast.analysis.bands import band_structures
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.ghosts import ABOVE, leave_out_ghosts
from hamfast.analysis.metrics import ErrorSums
from hamfast.data import read_snapshot
from hamfast.errors import DataWarning

K = np.array([[0.0, 0.0, 0.0], [0.13, 0.27, 0.0], [1 / 3, 1 / 3, 0.0]])


def doubled(snapshot):
    """The crystal with a further s shell on each atom, which is nearly the first one.

    Each orbital |n> = sum_m T_nm |m> of the new list is one of the old list, but for a rest that is
    orthogonal to all and lies at 30 eV. So the levels of the crystal are among those of the new
    H and S, exactly.
    """
    small = 0.012
    shells = {z: (*ls, 0) for z, ls in snapshot.shells.items()}
    h, s = snapshot.hamiltonian, snapshot.overlap

    def widened(matrix, home):
        blocks = []
        for n, (a, b, c, i, j) in enumerate(matrix.pairs.tolist()):
            block = matrix.block(n)
            rows, columns = block.shape
            left = np.vstack([np.eye(rows), np.eye(rows)[0]])
            right = np.vstack([np.eye(columns), np.eye(columns)[0]])
            wide = left @ block @ right.T
            if (a, b, c) == (0, 0, 0) and i == j:
                wide[-1, -1] += home
            blocks.append(wide)
        return type(matrix).from_blocks(matrix.pairs, blocks)

    return replace(
        snapshot, shells=shells, hamiltonian=widened(h, 30 * small**2), overlap=widened(s, small**2), info={}
    )


@pytest.fixture
def crystal(fixtures):
    return doubled(read_snapshot(fixtures / "hBN_1x1_000"))


def noisy(snapshot, size):
    """A Hermitian H that errs by ``size`` eV."""
    h = snapshot.hamiltonian
    noise = np.random.default_rng(1).normal(size=h.entries.shape) * size
    return replace(h, entries=h.entries + replace(h, entries=noise).hermitian_part().entries)


def low(problem, exact):
    """Levels up to ``ABOVE`` over the highest occupied one, as many as in the exact crystal."""
    count = int(problem.occupation // 2)
    limit = exact[:, count - 1 : count] + ABOVE - 1
    return [levels[levels < edge] for levels, edge in zip(problem.bands(K), limit[:, 0], strict=True)]


def test_levels_without_ghosts(crystal, fixtures):
    """The error of H makes ghosts, and without them the levels are those of the crystal."""
    original = eigen_problem(read_snapshot(fixtures / "hBN_1x1_000"))
    exact = original.bands(K)
    ours = eigen_problem(crystal, noisy(crystal, 0.005))
    ours.occupation = original.occupation
    expected = low(original, exact)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the small overlap
        assert any(len(a) > len(b) for a, b in zip(low(ours, exact), expected, strict=True))
    with pytest.warns(DataWarning, match="are ghosts, states that errors of H make of nearly dependent orbitals"):
        leave_out_ghosts(ours, K, "test")
    for found, level in zip(low(ours, exact), expected, strict=True):
        np.testing.assert_allclose(found, level, atol=0.06)


def test_exact_levels_are_left_alone(crystal):
    """Nearly dependent orbitals without an error make no ghosts."""
    problem = eigen_problem(crystal)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        leave_out_ghosts(problem, K, "test")
    assert problem.projection is None


def test_bands_and_metrics(crystal):
    """Bands and evaluation leave ghosts out, and say so; ``keep_ghosts`` keeps them."""
    predicted = noisy(crystal, 0.005)
    with pytest.warns(DataWarning, match="ghosts"):
        found = band_structures(crystal, {"predicted": predicted}, "GKM", points=9)["predicted"]
    assert found.projection is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = band_structures(crystal, {"predicted": predicted}, "GKM", points=9, keep_ghosts=True)["predicted"]
    assert kept.projection is None
    sums = ErrorSums()
    sums.add(crystal, predicted)
    with pytest.warns(DataWarning, match="ghosts"):
        sums.add_eigenvalues(crystal, predicted)
    assert sums.summary()["structures_with_ghosts"] == 1
    assert sums.summary()["eigenvalue_MAE"] < 60


def test_a_matrix_that_is_all_wrong(crystal):
    """Where no small threshold helps, nothing is left out, and a warning says why."""
    problem = eigen_problem(crystal, noisy(crystal, 20.0))
    problem.occupation = crystal.occupation
    with pytest.warns(DataWarning, match="is too far from the true one"):
        leave_out_ghosts(problem, K, "test")
    assert problem.projection is None
