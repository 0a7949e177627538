"""Sparse levels: counted, checked, and refused where S is no overlap matrix. Against LAPACK and
closed forms."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from kit import cases, chain

from hamfast.analysis.direct import SuperLU
from hamfast.analysis.eigen import eigen_problem
from hamfast.errors import DataWarning, HamfastError


def closed_form(atoms, overlap, hopping=-1.0):
    k = 2 * np.pi * np.arange(atoms) / atoms
    return np.sort(2 * hopping * np.cos(k) / (1 + 2 * overlap * np.cos(k)))


@pytest.mark.parametrize(
    "num_bands",
    cases(
        {
            "dense": None,
            "sparse": 10,
        }
    ),
)
def test_an_indefinite_overlap_is_refused_by_both_solvers(num_bands):
    """1 + 2 s cos k is negative at k = pi for s = 0.6: its smallest value is -0.2."""
    problem = eigen_problem(chain(60, 0.6))
    with pytest.raises(
        HamfastError, match=r"not positive definite, its smallest eigenvalue is -0\.2: .*--project-overlap"
    ):
        problem.bands([(0, 0, 0)], num_bands, 0.0)


def test_degenerate_levels_are_all_found():
    """All levels of a ring but two are pairs; every count cuts some pair in two, and no band loses
    its number."""
    problem, exact = eigen_problem(chain(40, 0.1)), closed_form(40, 0.1)
    for count in range(2, 20):
        found = problem.levels([(0, 0, 0)], count, 0.3)
        below = int(np.sum(exact < 0.3))
        assert found.first_band == below - count // 2
        assert found.energies.shape[1] == count
        np.testing.assert_allclose(found.energies[0], exact[found.first_band :][: found.energies.shape[1]], atol=1e-9)


def test_both_sides_of_a_gap():
    """E_F next to the valence edge: the nearest levels are all valence bands."""
    problem = eigen_problem(chain(60, 0.0, dimer=0.6))
    everything = problem.bands([(0, 0, 0)])[0]
    edge = everything[29]
    assert everything[30] - edge > 2.0
    found = problem.levels([(0, 0, 0)], 12, edge + 0.01)
    np.testing.assert_allclose(found.energies[0], everything[24:36], atol=1e-9)


def test_columns_are_bands_over_a_path():
    """A metal: the number of levels below E_F differs from k to k, a column is one band all the
    same."""
    problem = eigen_problem(chain(9, 0.1))
    kpoints = [(x, 0, 0) for x in np.linspace(0, 0.5, 7)]
    everything = problem.bands(kpoints)
    found = problem.levels(kpoints, 4, 0.2)
    assert found.first_band is not None
    expected = everything[:, found.first_band : found.first_band + found.energies.shape[1]]
    known = np.isfinite(found.energies)
    assert known.sum() >= 4 * len(kpoints)
    np.testing.assert_allclose(found.energies[known], expected[known], atol=1e-9)


def test_an_energy_on_a_level_is_moved_and_said():
    problem = eigen_problem(chain(12, 0.0))  # levels 2 cos(2 pi n / 12): 0 is one of them
    with pytest.warns(DataWarning, match=r"0\.0000 eV lies on a level .* were searched around 0\.00001 eV"):
        found = problem.levels([(0, 0, 0)], 6, 0.0)
    np.testing.assert_allclose(found.energies[0], closed_form(12, 0.0)[found.first_band :][:6], atol=1e-9)


def test_levels_of_other_matrices_are_not_believed():
    """What ARPACK gives is put into H c = E S c; a solver that solves something else is found
    out."""
    from hamfast.analysis import shift_invert

    problem = eigen_problem(chain(30, 0.1))
    h, s = problem.hamiltonian.at((0, 0, 0)), problem.overlap.at((0, 0, 0))
    factor = shift_invert.ShiftedFactor(h + 0.1 * scipy.sparse.identity(30), s, 0.3, None)
    with pytest.raises(shift_invert.Unstable, match=r"does not solve H c = E S c, its residual is"):
        shift_invert._search(h, s, 0.3, 4, factor, "SA", None)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("level", range(0, 12, 2))
@pytest.mark.parametrize("off", [0.0, 1e-12, -1e-9, 1e-7])
def test_energies_on_every_level(count, level, off):
    """No level is lost, and none gets another band's number, wherever the energy lies."""
    exact = closed_form(12, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = eigen_problem(chain(12, 0.1)).levels([(0, 0, 0)], count, exact[level] + off)
    assert found.energies.shape[1] == count
    np.testing.assert_allclose(found.energies[0], exact[found.first_band :][:count], atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_inertia(seed, is_complex):
    """Sylvester: as many negative pivots as negative eigenvalues, or no claim at all."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(40, 40)) + (1j * rng.normal(size=(40, 40)) if is_complex else 0)
    dense = np.where(np.abs(rng.normal(size=(40, 40))) > 1.2, dense, 0)
    dense = dense + dense.conj().T + np.diag(3 * rng.normal(size=40))
    found = SuperLU(scipy.sparse.csc_matrix(dense)).negative
    assert found in (None, int(np.sum(scipy.linalg.eigvalsh(dense) < 0)))
    positive = dense @ dense.conj().T + 0.1 * np.eye(40)
    assert SuperLU(scipy.sparse.csc_matrix(positive)).negative == 0


@pytest.mark.parametrize(
    "num_bands",
    cases(
        {
            "dense": None,
            "sparse": 12,
        }
    ),
)
def test_projection_leaves_out_what_is_nearly_singular(num_bands):
    """On the ring S is diagonal in k: levels with 1 + 2 s cos k below the threshold are gone, the
    others are untouched."""
    atoms, overlap, threshold = 60, 0.4999, 0.05
    k = 2 * np.pi * np.arange(atoms) / atoms
    kept = 1 + 2 * overlap * np.cos(k) > threshold
    exact = np.sort((2 * -1.0 * np.cos(k) / (1 + 2 * overlap * np.cos(k)))[kept])
    problem = eigen_problem(chain(atoms, overlap), projection=threshold)
    found = problem.levels([(0, 0, 0)], num_bands, 0.5)
    energies = found.energies[0][np.isfinite(found.energies[0])]
    assert len(energies) >= (kept.sum() if num_bands is None else num_bands)
    np.testing.assert_allclose(energies, exact[found.first_band :][: len(energies)], atol=1e-8)


@pytest.mark.parametrize(
    "num_bands",
    cases(
        {
            "dense": None,
            "sparse": 6,
        }
    ),
)
def test_a_small_eigenvalue_of_s_is_said(num_bands):
    """1 - 2 s = 2e-5: an error of 1 meV may move a level by 50 eV."""
    problem = eigen_problem(chain(30, 0.49999))
    with pytest.warns(DataWarning, match=r"smallest eigenvalue of the overlap matrix is 2e-05: .* by 50 eV"):
        problem.levels([(0, 0, 0)], num_bands, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eigen_problem(chain(30, 0.3)).levels([(0, 0, 0)], num_bands, 0.05)


@pytest.mark.parametrize(
    "energy",
    cases(
        {
            "missing": None,
            "nan": np.nan,
            "infinite": np.inf,
        }
    ),
)
def test_the_energy_must_be_one(energy):
    with pytest.raises(HamfastError, match="expected a number of eV, found"):
        eigen_problem(chain(30, 0.1)).levels([(0, 0, 0)], 4, energy)
    with pytest.raises(HamfastError, match="k-point: expected three numbers"):
        eigen_problem(chain(30, 0.1)).bands([(0, np.nan, 0)])
