"""Every solver finds the levels of LAPACK; densities of states without levels are those of all."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from kit import chain, random_snapshot

from hamfast.analysis import direct, in_parallel, solvers
from hamfast.analysis.bands import densities_of_states, solve
from hamfast.analysis.direct import Pardiso, SuperLU, Unstable, has_pardiso
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.fermi import density_of_states
from hamfast.analysis.kpath import parse_kpath
from hamfast.analysis.kpm import density_by_moments
from hamfast.data import read_snapshot
from hamfast.errors import HamfastError

POINTS = [(0, 0, 0), (0.5, 0, 0), (0.21, 0.37, 0)]
needs_pardiso = pytest.mark.skipif(not has_pardiso(), reason="pypardiso is not installed")
DIRECT = [SuperLU, pytest.param(Pardiso, marks=needs_pardiso)]


def hermitian(size, is_complex, seed=0):
    generator = np.random.default_rng(seed)
    a = generator.normal(size=(size, size)) * (generator.random((size, size)) < 0.2)
    if is_complex:
        a = a + 1j * generator.normal(size=a.shape) * (generator.random(a.shape) < 0.2)
    return a + a.conj().T + 0.1 * np.eye(size)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("size", [1, 7, 80])
@pytest.mark.parametrize("kind", DIRECT)
def test_factors_solve_and_count(kind, size, is_complex):
    a = hermitian(size, is_complex)
    factor = kind(scipy.sparse.csc_matrix(a))
    assert factor.negative in (None, np.sum(np.linalg.eigvalsh(a) < 0))
    assert factor.negative is not None or kind is SuperLU  # which does not pivot
    for shape in [(size,), (size, 3)]:
        x = np.random.default_rng(1).normal(size=shape).astype(a.dtype)
        np.testing.assert_allclose(factor.solve(a @ x), x, atol=1e-9)


@pytest.mark.parametrize("kind", DIRECT)
def test_a_singular_matrix_has_no_factors(kind):
    a = hermitian(20, False)
    values, vectors = np.linalg.eigh(a)
    values[7] = 0
    singular = scipy.sparse.csc_matrix(vectors @ np.diag(values) @ vectors.T)
    with contextlib.suppress(Unstable):
        assert kind(singular).negative in (None, np.sum(values < 0), np.sum(values < 0) + 1)


@pytest.mark.parametrize("solver", ["dense", "arpack", pytest.param("pardiso", marks=needs_pardiso)])
def test_all_solvers_find_the_same_levels(solver, graphene):
    snapshot = read_snapshot(graphene / "dft" / "3x3_000")
    expected = [scipy.linalg.eigh(*matrices, eigvals_only=True) for matrices in dense(snapshot, POINTS)]
    problem = eigen_problem(snapshot, solver=solver)
    found = problem.levels(POINTS, 12, -1.7)
    for levels, exact in zip(found.energies, expected, strict=True):
        known = np.isfinite(levels)
        bands = np.flatnonzero(known) + found.first_band
        np.testing.assert_allclose(levels[known], exact[bands], atol=1e-9)
        below = np.searchsorted(exact, -1.7)
        assert set(range(below - 6, below + 6)) <= set(bands.tolist())
    assert solver == "dense" or found.energies.shape[1] < 30


def dense(snapshot, points):
    problem = eigen_problem(snapshot)
    return [(problem.hamiltonian.at(k).toarray(), problem.overlap.at(k).toarray()) for k in points]


@pytest.mark.parametrize("solver", ["arpack", pytest.param("pardiso", marks=needs_pardiso)])
def test_bands_by_an_iterative_solver(solver, fixtures):
    """With a Fermi level by counts of levels."""
    snapshot = replace(read_snapshot(fixtures / "hBN_1x1_000"), fermi_energy=None)
    path = parse_kpath("GK", snapshot.cell, 4)
    expected = solve(eigen_problem(snapshot), path, snapshot.cell, mesh=(3, 3, 1))
    found = solve(eigen_problem(snapshot, solver=solver), path, snapshot.cell, mesh=(3, 3, 1), num_bands=6)
    assert found.fermi_energy == pytest.approx(expected.fermi_energy, abs=1e-6)
    assert found.gap == pytest.approx(expected.gap, abs=1e-6)
    assert found.solver.name == solver and expected.solver.name == "dense"
    assert "26 orbitals" in expected.solver.reason


# --- the choice
# -------------------------------------------------------------------------------------------------


def test_the_choice_and_its_reason(monkeypatch):
    assert solvers.choose(100, False).name == "dense"
    assert solvers.choose(100, True) == ("arpack", "some levels were asked for")
    monkeypatch.setattr(solvers, "has_pardiso", lambda: True)
    assert solvers.choose(9999, False) == ("pardiso", "9999 orbitals are more than 2500, and pypardiso is installed")
    monkeypatch.setattr(solvers, "has_pardiso", lambda: False)
    choice = solvers.choose(9999, False)
    assert choice.name == "arpack"
    assert choice.reason.startswith("9999 orbitals are more than 2500; pypardiso, which is not installed")
    assert solvers.choose(9999, False, "dense").name == "dense"
    with pytest.raises(
        HamfastError, match="--solver: expected one of auto, dense, arpack, pardiso, slepc, found 'mumps'"
    ):
        solvers.choose(5, False, "mumps")


def test_nearly_all_levels_are_found_by_lapack():
    problem = eigen_problem(random_snapshot({6: (0, 1)}, [6, 6]), solver="arpack")
    assert problem.choice(7) == ("dense", "7 of 8 levels were asked for")
    assert problem.choice(5).name == "arpack"
    found, exact = (problem.levels([[0.1, 0.2, 0]], n, 0.0).energies[0] for n in (7, None))
    np.testing.assert_allclose(found, exact)


def test_a_solver_whose_package_is_not_there(monkeypatch, fixtures, hamfast):
    for name, module, words in (("pardiso", "pypardiso", "pip install pypardiso"), ("slepc", "petsc4py", "petsc4py")):
        monkeypatch.setitem(sys.modules, module, None)
        direct.pardiso_solver.cache_clear()
        status, _, errors = hamfast("bands", fixtures / "graphene_1x1_000", "--solver", name)
        assert status == 1
        assert errors.startswith(f"error: --solver {name}: expected") and words in errors


def test_the_command_says_what_it_takes(fixtures, tmp_path, hamfast):
    folder, out = fixtures / "graphene_1x1_000", tmp_path / "bands"
    _, output, _ = hamfast("bands", folder, "--points", "4", "--output", out)
    assert "solver: dense (26 orbitals are at most 2500)" in output
    status, output, errors = hamfast(
        "bands",
        folder,
        "--points",
        "4",
        "--output",
        out,
        "--solver",
        "arpack",
        "--num-bands",
        "6",
        "--dos",
        "--mesh",
        "1",
        "1",
        "1",
    )
    assert status == 0, errors
    assert "solver: arpack (as asked for)" in output
    assert "by random vectors, its standard error is" in output
    status, _, errors = hamfast("bands", folder, "--output", out, "--jobs", "0")
    assert status == 1 and "--jobs: expected 1 or more, found 0" in errors


# --- k-points in parallel
# -------------------------------------------------------------------------------------------------


def test_processes_find_the_same_levels(monkeypatch, fixtures):
    snapshot = read_snapshot(fixtures / "MoS2_1x1_000")
    expected = eigen_problem(snapshot, jobs=1).bands(POINTS)
    monkeypatch.setattr(in_parallel, "WORTH", 0)
    reports = []
    found = eigen_problem(snapshot, jobs=2).levels(POINTS, report=lambda: reports.append(os.getpid())).energies
    np.testing.assert_allclose(found, expected, atol=1e-11)
    assert reports == [os.getpid()] * 3


def test_an_error_of_a_process_is_one_sentence(monkeypatch):
    monkeypatch.setattr(in_parallel, "WORTH", 0)
    with pytest.raises(HamfastError, match=r"not positive definite, its smallest eigenvalue is -0\.2"):
        eigen_problem(chain(60, 0.6), jobs=2).bands([(0, 0, 0), (0.1, 0, 0)])


# --- the density of states
# -------------------------------------------------------------------------------------------------


def of_problem(problem):
    return lambda k: (problem.hamiltonian.at(k), problem.overlap.at(k))


def test_moments_give_the_density_of_all_levels(fixtures):
    """With the exact trace; also where the grid reaches beyond the spectrum."""
    problem = eigen_problem(read_snapshot(fixtures / "graphene_1x1_000"))
    points, grid, width = np.array(POINTS), np.linspace(-40, 20, 121), 0.25
    expected = density_of_states(problem.bands(points), grid, width, 2)
    found, error = density_by_moments(of_problem(problem), points, grid, width, 2, vectors=None)
    np.testing.assert_allclose(found, expected, atol=2e-2 * expected.max())
    assert found[0] == 0 and (error == 0).all()


def test_the_error_of_random_vectors_is_what_it_says(fixtures):
    problem = eigen_problem(read_snapshot(fixtures / "hBN_1x1_000"))
    points, grid, width = np.array(POINTS[:1]), np.linspace(-20, 5, 40), 1.5
    expected = density_of_states(problem.bands(points), grid, width, 2)
    found, error = density_by_moments(of_problem(problem), points, grid, width, 2, vectors=40)
    levels = expected > 0.1 * expected.max()
    away = (np.abs(found - expected) / error)[levels]
    assert 0.2 < np.sqrt(np.mean(away**2)) < 2.5
    assert error.mean() < 0.3 * expected.mean()


def test_density_of_states_of_a_large_structure(monkeypatch, fixtures):
    snapshot = read_snapshot(fixtures / "hBN_1x1_000")
    matrices, window = {"DFT": snapshot.hamiltonian}, (-4.0, 4.0)
    expected = densities_of_states(snapshot, matrices, window, mesh=(2, 2, 1), width=1.0)["DFT"]
    monkeypatch.setattr(solvers, "DENSE_LIMIT", 10)
    monkeypatch.setattr("hamfast.analysis.kpm.VECTORS", 8)
    found = densities_of_states(snapshot, matrices, window, mesh=(2, 2, 1), width=1.0)["DFT"]
    assert found.fermi_energy == pytest.approx(expected.fermi_energy, abs=1e-2)
    assert np.mean(np.abs(found.density - expected.density) < 4 * found.error + 0.02) > 0.9
    with pytest.raises(HamfastError, match="parts of a density of states"):
        densities_of_states(snapshot, matrices, window, mesh=(2, 2, 1), fermi={"DFT": 0.0}, shares_of="DFT")


# --- SLEPc
# -------------------------------------------------------------------------------------------------

DEBIAN = ("/usr/lib/petscdir/petsc*/*-{}/lib/python3", "/usr/lib/slepcdir/slepc*/*-{}/lib/python3")


def environment_of_slepc(build):
    """Variables under which this Python finds slepc4py; None without it.

    Debian's was compiled for numpy 1, which tools/setup_slepc.sh puts beside the virtual
    environment.
    """
    patterns = [pattern.format(build)[1:] for pattern in DEBIAN]
    folders = [str(path / "dist-packages") for pattern in patterns for path in sorted(Path("/").glob(pattern))]
    numpy = Path(sys.prefix) / "numpy1"
    if folders and numpy.is_dir():
        folders.insert(0, str(numpy))
    variables = os.environ | {"PYTHONPATH": ":".join(folders), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from slepc4py import SLEPc"]
    there = subprocess.run(command, env=variables, capture_output=True).returncode == 0
    return variables if there and shutil.which("mpiexec") else None


@pytest.mark.parametrize(("build", "processes"), [("complex", 1), ("complex", 2), ("real", 2)])
def test_slepc_finds_the_levels_of_lapack(build, processes, graphene, tmp_path):
    """A real build counts levels, too."""
    variables = environment_of_slepc(build)
    if variables is None:
        pytest.skip(f"slepc4py (a {build} build) or mpiexec is not installed")
    if os.geteuid() == 0:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    folder = graphene / "dft" / "3x3_000"
    command = [
        "mpiexec",
        "--oversubscribe",
        "-n",
        str(processes),
        sys.executable,
        "-m",
        "hamfast",
        "bands",
        str(folder),
    ]
    options = ["--solver", "slepc", "--points", "4", "--kpath", "GK", "--num-bands", "10", "--output", str(tmp_path)]
    ended = subprocess.run([*command, *options], env=variables, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("solver: slepc") == 1
    content = json.loads((tmp_path / "bands.json").read_text())
    found, fermi = np.array(content["DFT"]["energies"]), content["DFT"]["fermi_energy"]
    snapshot = read_snapshot(folder)
    assert found.shape == (len(content["kpoints_frac"]), 10)
    for levels, (h, s) in zip(found, dense(snapshot, np.array(content["kpoints_frac"])), strict=True):
        exact = scipy.linalg.eigh(h, s, eigvals_only=True)
        below = np.searchsorted(exact, fermi)
        np.testing.assert_allclose(levels, exact[below - 5 : below + 5], atol=1e-7)
        assert content["DFT"]["first_band"] == (below - 5 if build == "real" else None)
