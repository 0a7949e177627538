"""The measure of band errors by hand, the figure, and what a prediction may be compared with."""

import json
import shutil

import numpy as np
import pytest
from kit import cases, chain

from hamfast.analysis.band_errors import band_errors
from hamfast.analysis.bands import band_difference, band_structures, check_window, matrices_of, write_bands
from hamfast.analysis.plot import plot_bands
from hamfast.data import by_name, read_snapshot
from hamfast.errors import HamfastError


def test_a_gap_that_vanished_is_seen():
    """The DFT levels within the window are right; the conduction band that fell into the gap was
    outside of it."""
    reference = np.array([[-10.0, -1.0, 3.4], [-9.0, -1.2, 4.0]])
    predicted = reference.copy()
    predicted[0, 2] = -1.0
    errors = band_errors(reference, predicted, fermi=1.2, predicted_fermi=-1.0, window=(-2.3, 2.1), occupied=2)
    assert errors.gap_DFT == pytest.approx(4400)
    assert errors.gap_predicted == pytest.approx(0)
    assert errors.gap_error == pytest.approx(-4400)
    assert errors.conduction_edge_error == pytest.approx(-4400)
    assert errors.valence_edge_error == pytest.approx(0)
    # Four occupied levels without an error and the one that fell by 4.4 eV: it counts, as it is in
    # the prediction's window.
    assert errors.levels_MAE == pytest.approx(4400 / 5)
    assert errors.shift == pytest.approx(0)


def test_occupied_levels_far_below_count():
    reference = np.array([[-20.0, 0.0, 1.0]])
    predicted = np.array([[-19.0, 0.1, 1.1]])
    errors = band_errors(reference, predicted, fermi=0.5, predicted_fermi=0.6, window=(-1.0, 1.0), occupied=2)
    assert errors.shift == pytest.approx(100)
    assert errors.levels_MAE == pytest.approx(900 / 3)
    unknown = band_errors(reference, predicted, fermi=0.5, predicted_fermi=0.6, window=(-1.0, 1.0), occupied=None)
    assert unknown.levels_MAE == errors.levels_MAE
    assert unknown.gap_error is None


def test_a_constant_is_removed_and_told():
    rng = np.random.default_rng(0)
    reference = np.sort(rng.normal(size=(5, 8)), axis=1)
    errors = band_errors(reference, reference + 0.3, fermi=0, predicted_fermi=0.3, window=(-9, 9), occupied=4)
    assert errors.levels_MAE == pytest.approx(0, abs=1e-9)
    assert errors.shift == pytest.approx(300)
    assert errors.gap_error == pytest.approx(0, abs=1e-9)
    assert band_errors(reference, reference, fermi=99, predicted_fermi=99, window=(-1, 1), occupied=0) is None


def test_sparse_and_dense_bands_are_measured_alike():
    """Few bands next to E_F, of two Hamiltonians whose columns begin at different bands."""
    snapshot = chain(60, 0.05, dimer=0.4)
    other = chain(60, 0.05, dimer=0.3).hamiltonian
    both = {"DFT": snapshot.hamiltonian, "predicted": other}
    dense = band_structures(snapshot, both, "G 0 0 0, X 1/2 0 0", points=5)
    sparse = band_structures(snapshot, both, "G 0 0 0, X 1/2 0 0", points=5, num_bands=20)
    assert sparse["DFT"].gap == pytest.approx(dense["DFT"].gap)
    assert sparse["DFT"].fermi_energy == dense["DFT"].fermi_energy
    errors, exact = (band_difference(b["DFT"], b["predicted"], (-1.5, 1.5)) for b in (sparse, dense))
    assert errors.gap_error == pytest.approx(exact.gap_error)
    assert errors.gap_error == pytest.approx(1e3 * (dense["predicted"].gap - dense["DFT"].gap))


@pytest.mark.parametrize(
    "window",
    cases(
        {
            "nan": ((float("nan"), 1.0),),
            "wrong-order": ((1.0, -1.0),),
            "empty": ((0.0, 0.0),),
            "infinite": ((0.0, float("inf")),),
        }
    ),
)
def test_what_is_no_window(window):
    with pytest.raises(HamfastError, match="window: expected two numbers of eV, the lower one first"):
        check_window(window)


@pytest.mark.parametrize(
    "option, value",
    cases(
        {
            "no-bands": ("num_bands", 0),
            "negative-bands": ("num_bands", -3),
            "fermi-nan": ("fermi", np.nan),
            "negative-projection": ("projection", -1.0),
        }
    ),
)
def test_what_is_no_option(fixtures, option, value):
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    with pytest.raises(HamfastError, match="expected"):
        band_structures(snapshot, {"DFT": snapshot.hamiltonian}, "GKM", points=4, **{option: value})


def test_a_prediction_of_another_structure_is_refused(tmp_path, fixtures):
    for name in ("graphene_1x1_000", "graphene_1x1_001", "hBN_1x1_000", "MoS2_1x1_000"):
        shutil.copytree(fixtures / name, tmp_path / name)
        snapshot = read_snapshot(tmp_path / name)
        by_name("deeph").write_prediction(snapshot, snapshot.hamiltonian, tmp_path / name)
    own = tmp_path / "graphene_1x1_000"
    snapshot = read_snapshot(own)
    assert list(matrices_of(snapshot, own)) == ["DFT", "predicted"]
    assert list(matrices_of(snapshot, own, own)) == ["DFT", "predicted"]
    for other, why in (
        ("graphene_1x1_001", "the vectors of pair .* differ by"),
        ("hBN_1x1_000", "atom 0 is C and B"),
        ("MoS2_1x1_000", "2 atoms and 3"),
    ):
        with pytest.raises(HamfastError, match=f"found one of another structure: {why}"):
            matrices_of(snapshot, own, tmp_path / other)
    (own / "hamiltonian_pred.h5").unlink()
    with pytest.raises(HamfastError, match="expected hamiltonian_pred.h5; make it with"):
        matrices_of(snapshot, own, own)


def test_figure_draws_lines_within_pieces_and_points_where_levels_were_not_counted(tmp_path):
    snapshot = chain(12, 0.05, dimer=0.4)
    curves = band_structures(
        snapshot, {"DFT": snapshot.hamiltonian}, "A 0 0 0, B .5 0 0 | C .25 0 0, D .4 0 0", points=12
    )
    figure = plot_bands(curves, window=(-3, 3), title="a $[b]")
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert {len(line.get_xdata()) for line in lines} == {p.stop - p.start for p in curves["DFT"].path.pieces}
    curves["DFT"].first_band = None
    figure = plot_bands(curves, window=(-3, 3))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert {line.get_linestyle() for line in lines} == {"None"}
    for name, start in (("b.png", b"\x89PNG"), ("b.pdf", b"%PDF")):
        figure.write(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(HamfastError, match="b.txt: expected an ending of"):
        figure.write(tmp_path / "b.txt")


def test_unknown_bands_are_null_in_json(tmp_path):
    snapshot = chain(9, 0.1)
    curves = band_structures(
        snapshot, {"DFT": snapshot.hamiltonian}, "A 0 0 0, B .5 0 0", points=6, num_bands=4, fermi=0.2
    )
    write_bands(curves, tmp_path, None, -1.5)
    content = json.loads((tmp_path / "bands.json").read_text())
    assert content["fermi_energy_of_the_DFT_code"] == -1.5
    found = np.array(content["DFT"]["energies"], dtype=float)
    np.testing.assert_allclose(found, curves["DFT"].energies)
    assert np.isnan(found).any()


def test_a_gap_is_claimed_only_where_both_edges_are_known_everywhere():
    """Few bands of a metal: at some k the highest occupied band is not among them."""
    snapshot = chain(9, 0.1)
    snapshot.occupation = 8.0
    whole = band_structures(snapshot, {"DFT": snapshot.hamiltonian}, "A 0 0 0, B .5 0 0", points=7)["DFT"]
    few = band_structures(snapshot, {"DFT": snapshot.hamiltonian}, "A 0 0 0, B .5 0 0", points=7, num_bands=1)["DFT"]
    assert whole.gap is not None
    assert few.gap in (None, pytest.approx(whole.gap))
    assert np.isnan(few.energies).any()
