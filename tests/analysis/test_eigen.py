"""Bands, Fermi level and DOS against the DFT code's own numbers and against dense algebra."""

import json

import numpy as np
import pytest
import scipy.linalg
from kit import cases, random_snapshot

from hamfast.analysis.bands import band_structures, densities_of_states, write_bands
from hamfast.analysis.bloch import BlochMatrix
from hamfast.analysis.eigen import eigen_problem
from hamfast.analysis.fermi import fermi_level, monkhorst_pack
from hamfast.data import read_snapshot
from hamfast.data.blocks import BlockMatrix
from hamfast.data.snapshot import difference
from hamfast.errors import DataWarning, HamfastError


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


@pytest.mark.parametrize("spinful", [False, True], ids=["plain", "soc"])
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


@pytest.mark.parametrize(
    "k",
    cases(
        {
            "complex-k": ((0.2, 0.1, 0.0),),
            "gamma": ((0.0, 0.0, 0.0),),
            "zone-corner": ((0.5, 0.5, 0.0),),
        }
    ),
)
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
    """An insulator's lies in the middle of its gap, a metal's where the bands hold the
    electrons."""
    energies = np.array([[-1.0, 1.0], [-1.5, 0.4]])
    assert fermi_level(energies, 2, 2, temperature=10) == pytest.approx((-1.0 + 0.4) / 2)
    assert fermi_level(np.array([[0.0]]), 1, 2) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(HamfastError, match="do not fit"):
        fermi_level(energies, 5, 2)
    for wrong in (0, -8, np.nan, np.inf):
        with pytest.raises(HamfastError, match="electrons per cell: expected a positive number"):
            fermi_level(energies, wrong, 2)


@pytest.mark.parametrize("rounded", [1.999, 2.0004, 2.009])
def test_rounding_of_the_electrons_does_not_move_the_fermi_level(rounded):
    """A hundredth of an electron too many would lie in the conduction band, electronvolts above."""
    energies = np.array([[-3.0, 3.0]])
    with pytest.warns(DataWarning, match=rf"{rounded} electrons per cell are taken as 2"):
        assert fermi_level(energies, rounded, 2) == pytest.approx(0.0)
    assert fermi_level(energies, 2.1, 2) > 2.5  # doped: that is in the conduction band


def test_bands_that_were_projected_out_hold_no_electrons():
    energies = np.array([[-1.0, 1.0, np.nan], [-1.5, 0.4, np.nan]])
    assert fermi_level(energies, 2, 2) == pytest.approx(-0.3)
    with pytest.raises(HamfastError, match="5 electrons do not fit into 2 bands of 2"):
        fermi_level(energies, 5, 2)


def test_dos_holds_all_electrons(fixtures):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    dos = densities_of_states(snapshot, {"DFT": snapshot.hamiltonian}, (-30.0, 0.0), mesh=(9, 9, 1))["DFT"]
    assert np.trapezoid(dos.density, dos.grid) == pytest.approx(snapshot.occupation, rel=0.02)


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


def test_another_structures_hamiltonian_is_refused(fixtures):
    """h-BN's H in graphene's place has the right number of atoms, but other orbital shapes or
    pairs."""
    graphene, mos2 = read_snapshot(fixtures / "graphene_1x1_000"), read_snapshot(fixtures / "MoS2_1x1_000")
    with pytest.raises(
        HamfastError, match="graphene_1x1_000: the Hamiltonian names atoms 0 to 2, but the structure has 2"
    ):
        eigen_problem(graphene, mos2.hamiltonian)
    with pytest.raises(HamfastError, match="MoS2_1x1_000: block .* of the Hamiltonian has shape"):
        eigen_problem(mos2, graphene.hamiltonian)
    why = difference(graphene, read_snapshot(fixtures / "graphene_1x1_001"), graphene.hamiltonian.pairs)
    assert "the vectors of pair" in why
    assert difference(graphene, read_snapshot(fixtures / "graphene_1x1_000"), graphene.hamiltonian.pairs) is None


def test_fermi_level_in_the_middle_of_the_gap_of_hbn(fixtures):
    """The gap from CP2K's own energies at K, where that of a 3x3x1 mesh is narrowest."""
    snapshot = read_snapshot(fixtures / "hBN_1x1_000")
    reference = json.loads((fixtures / "hBN_1x1_000" / "bands_cp2k.json").read_text())
    problem = eigen_problem(snapshot)
    energies = problem.bands(monkhorst_pack((3, 3, 1)))
    fermi = problem.fermi_energy_of(energies)
    assert fermi == pytest.approx((energies[:, 3].max() + energies[:, 4].min()) / 2)
    theirs = np.array(reference["energies_eV"])
    assert theirs[:, 3].max() < fermi < theirs[:, 4].min()


@pytest.mark.parametrize(
    "mesh",
    cases(
        {
            "zeros": ((0, 0, 0),),
            "negative": ((2, -1, 1),),
            "two-numbers": ((2, 2),),
        }
    ),
)
def test_a_mesh_is_three_numbers_from_one_on(mesh):
    with pytest.raises(HamfastError, match="mesh: expected three whole numbers from 1 on, found"):
        monkhorst_pack(mesh)


def test_sparse_memory_is_that_of_the_blocks(graphene):
    snapshot = read_snapshot(graphene / "dft" / "3x3_022")
    matrix = BlochMatrix(snapshot.hamiltonian, np.full(18, 13))
    assert np.shares_memory(matrix.entries, snapshot.hamiltonian.entries)
    elements = len(np.unique(snapshot.hamiltonian.pairs[:, 3:], axis=0)) * 13**2
    assert matrix.indices.nbytes == 4 * elements


@pytest.mark.parametrize("spins", [1, 2])
def test_bloch_matrix_is_the_sum_over_cells(spins):
    """Also where a pair has no reverse: the Hermitian part."""
    generator = np.random.default_rng(0)
    sizes = np.array([2, 3])
    pairs = [(0, 0, 0, 0, 0), (0, 0, 0, 1, 1), (1, 0, 0, 0, 0), (-1, 0, 0, 0, 0), (0, 2, 1, 1, 0), (0, -1, 0, 0, 1)]
    blocks = [generator.normal(size=(sizes[i], sizes[j])) for *_, i, j in pairs]
    matrix = BlochMatrix(BlockMatrix.from_blocks(pairs, blocks), sizes, spins)
    for k in (np.zeros(3), np.array([0.5, 0, 0.5]), np.array([0.1, 0.2, 0.3])):
        expected = np.zeros((5 * spins, 5 * spins), complex)
        starts = np.array([0, 2 * spins])
        for (*shift, i, j), block in zip(pairs, blocks, strict=True):
            for spin in range(spins):
                rows, columns = starts[[i, j]] + spin * sizes[[i, j]]
                part = np.exp(2j * np.pi * np.dot(shift, k)) * block
                expected[rows : rows + sizes[i], columns : columns + sizes[j]] += part
        expected = (expected + expected.conj().T) / 2
        np.testing.assert_allclose(matrix.at(k).toarray(), expected, atol=1e-14)
