"""Bands, Fermi level and DOS against the DFT code's own numbers and against dense algebra."""

import json

import numpy as np
import pytest
import scipy.linalg
from kit import random_snapshot

from hamfast.analysis.bands import band_structures, densities_of_states, write_bands
from hamfast.analysis.bloch import BlochMatrix
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.fermi import fermi_level, monkhorst_pack
from hamfast.analysis.kpath import parse_kpath
from hamfast.data import read_snapshot
from hamfast.errors import HamfastError


@pytest.mark.parametrize("label", ["graphene_1x1_000", "hBN_1x1_000", "MoS2_1x1_000"])
def test_stored_matrices_give_the_bands_of_the_dft_code(fixtures, label):
    """CP2K's own energies at four k-points; levels up to 3 eV above E_F, within 1 meV."""
    snapshot = read_snapshot(fixtures / label)
    reference = json.loads((fixtures / label / "bands_cp2k.json").read_text())
    found = eigen_problem(snapshot).bands(reference["k_fractional"])
    compared = 0
    for ours, theirs in zip(found, reference["energies_eV"], strict=True):
        theirs = np.array(theirs)
        low = theirs < snapshot.fermi_energy + 3.0
        assert np.abs(ours[: len(theirs)][low] - theirs[low]).max() < 1e-3
        compared += low.sum()
    assert compared > 15


def test_bundled_supercell_too(graphene):
    folder = graphene / "dft" / "3x3_022"
    snapshot = read_snapshot(folder)
    reference = json.loads((folder / "bands_cp2k.json").read_text())
    found = eigen_problem(snapshot).bands(reference["k_fractional"][:2])
    for ours, theirs in zip(found, reference["energies_eV"][:2], strict=True):
        low = np.array(theirs) < snapshot.fermi_energy + 3.0
        assert np.abs(ours[: len(theirs)] - theirs)[low].max() < 1e-3


@pytest.mark.parametrize("spinful", [False, True])
def test_bloch_sum_by_hand(spinful):
    snapshot = random_snapshot({6: (0, 1)}, [6, 6], spinful)
    k = (0.1, 0.37, 0.0)
    n = 8 if spinful else 4
    h, s = np.zeros((2 * n, 2 * n), complex), np.zeros((2 * n, 2 * n), complex)
    for m, (a, b, c, i, j) in enumerate(snapshot.hamiltonian.pairs.tolist()):
        phase = np.exp(2j * np.pi * np.dot(k, (a, b, c)))
        h[i * n : (i + 1) * n, j * n : (j + 1) * n] += phase * snapshot.hamiltonian.block(m)
        overlap = snapshot.overlap.block(m)
        s[i * n : (i + 1) * n, j * n : (j + 1) * n] += phase * (np.kron(np.eye(2), overlap) if spinful else overlap)
    problem = eigen_problem(snapshot)
    np.testing.assert_allclose(problem.hamiltonian.at(k).toarray(), h, atol=1e-12)
    np.testing.assert_allclose(problem.overlap.at(k).toarray(), s, atol=1e-12)
    np.testing.assert_allclose(problem.bands([k])[0], scipy.linalg.eigvalsh(h, s), atol=1e-10)


@pytest.mark.parametrize("k", [(0.2, 0.1, 0.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.0)])
@pytest.mark.parametrize("count", [1, 2, 21])
def test_shift_invert_finds_both_sides_and_counts_them(graphene, k, count):
    """Against LAPACK, at a complex k and at two real ones."""
    snapshot = read_snapshot(graphene / "dft" / "3x3_022")
    problem = eigen_problem(snapshot)
    everything = problem.bands([k])[0]
    some = problem.levels([k], num_bands=count, around=snapshot.fermi_energy)
    below = int(np.sum(everything < snapshot.fermi_energy))
    assert some.first_band == below - count // 2
    np.testing.assert_allclose(some.energies[0], everything[some.first_band :][:count], atol=1e-8)


def test_fermi_level_of_the_dft_code(fixtures):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    found = eigen_problem(snapshot).fermi_energy(monkhorst_pack((9, 9, 1)))
    assert found == pytest.approx(snapshot.fermi_energy, abs=0.02)


def test_fermi_level_of_two_levels():
    energies = np.array([[-1.0, 1.0]])
    assert fermi_level(energies, 2, 2, temperature=10) == pytest.approx(0.0, abs=0.99)
    assert fermi_level(np.array([[0.0]]), 1, 2) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(HamfastError, match="do not fit"):
        fermi_level(energies, 5, 2)


def test_dos_holds_all_electrons(fixtures):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    dos = densities_of_states(snapshot, {"DFT": snapshot.hamiltonian}, (-30.0, 0.0), mesh=(9, 9, 1))["DFT"]
    assert np.trapezoid(dos.density, dos.grid) == pytest.approx(snapshot.occupation, rel=0.02)


def test_kpath(fixtures):
    cell = read_snapshot(fixtures / "graphene_1x1_000").cell
    path = parse_kpath("GKMG", cell, 60)
    assert [name for _, name in path.ticks] == ["G", "K", "M", "G"]
    np.testing.assert_allclose(path.kpoints[0], 0)
    assert np.all(np.diff(path.distance) > 0)
    b = np.linalg.norm(2 * np.pi * np.linalg.inv(cell).T[0])
    assert path.ticks[1][0] == pytest.approx(b / np.sqrt(3), rel=1e-6)  # |GK| of a hexagonal lattice
    own = parse_kpath("A 0 0 0, B 1/2 0 0", cell, 10)
    np.testing.assert_allclose(own.kpoints[-1], [0.5, 0, 0])
    with pytest.raises(HamfastError, match="this lattice has the special points .*found 'X'"):
        parse_kpath("GX", cell, 10)
    with pytest.raises(HamfastError, match="expected 'NAME k1 k2 k3', found 'B 1/2 0'"):
        parse_kpath("A 0 0 0, B 1/2 0", cell, 10)
    with pytest.raises(HamfastError, match="at least two points"):
        parse_kpath("G", cell, 10)


def test_band_files(fixtures, tmp_path):
    import h5py

    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    bands = band_structures(snapshot, {"DFT": snapshot.hamiltonian}, "GKM", points=20)
    write_bands(bands, tmp_path)
    content = json.loads((tmp_path / "bands.json").read_text())
    np.testing.assert_allclose(content["DFT"]["energies"], bands["DFT"].energies)
    with h5py.File(tmp_path / "band_DFT.h5") as file:
        assert file["band_data"].shape == (26, len(bands["DFT"].path.kpoints))


def test_missing_matrices_and_electrons_get_a_sentence(fixtures):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    snapshot.occupation = None
    with pytest.raises(HamfastError, match="add the key occupation to info.json"):
        eigen_problem(snapshot).fermi_energy([(0, 0, 0)])
    snapshot.overlap = None
    with pytest.raises(HamfastError, match="there is no overlap matrix"):
        eigen_problem(snapshot)


def test_indefinite_overlap_gets_a_sentence():
    snapshot = random_snapshot({6: (0,)}, [6])
    snapshot.overlap.entries[:] = -1.0
    with pytest.raises(HamfastError, match="not positive definite"):
        eigen_problem(snapshot).bands([(0, 0, 0)])


def test_sparse_memory_is_that_of_the_blocks(graphene):
    snapshot = read_snapshot(graphene / "dft" / "3x3_022")
    matrix = BlochMatrix(snapshot.hamiltonian, np.full(18, 13))
    assert len(matrix.values) == len(snapshot.hamiltonian.entries)
