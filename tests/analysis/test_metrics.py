"""Metrics against sums written out by hand."""

import numpy as np
import pytest
from kit import random_snapshot

from hamfast.analysis.metrics import ErrorSums
from hamfast.data.blocks import BlockMatrix
from hamfast.errors import HamfastError


def perturbed(snapshot, seed=0, scale=1e-3):
    h = snapshot.hamiltonian
    rng = np.random.default_rng(seed)
    return BlockMatrix(h.pairs, h.shapes, h.boundaries, h.entries + scale * rng.normal(size=h.entries.shape))


@pytest.mark.parametrize("spinful", [False, True], ids=["plain", "soc"])
def test_every_mean_by_hand(spinful):
    snapshots = [random_snapshot({6: (0, 1), 8: (0, 0, 2)}, [6, 8, 8], spinful, seed=s) for s in (0, 1)]
    sums, everything = ErrorSums(), []
    for n, snapshot in enumerate(snapshots):
        predicted = perturbed(snapshot, n)
        sums.add(snapshot, predicted)
        everything.append(
            [np.abs(predicted.block(m) - snapshot.hamiltonian.block(m)) * 1e3 for m in range(len(predicted))]
        )
    found = sums.summary()
    maes = [np.mean(np.concatenate([b.ravel() for b in blocks])) for blocks in everything]
    assert found["MAE_all"] == pytest.approx(np.mean(maes))
    assert found["MAE_cha_s"] == pytest.approx(max(maes))
    onsite, by_pair = [], {}
    for snapshot, blocks in zip(snapshots, everything, strict=True):
        for (a, b, c, i, j), block in zip(snapshot.hamiltonian.pairs.tolist(), blocks, strict=True):
            if (a, b, c) == (0, 0, 0) and i == j:
                onsite.append(block.ravel())
            if snapshot.numbers[i] == 6 and snapshot.numbers[j] == 8:
                n1, n2 = snapshot.num_orbitals(i), snapshot.num_orbitals(j)
                for s in range(block.shape[0] // n1):
                    for t in range(block.shape[1] // n2):  # C p - O second s
                        piece = block[s * n1 + 1 : s * n1 + 4, t * n2 + 1 : t * n2 + 2]
                        by_pair.setdefault("Cp-O2s", []).append(piece.ravel())
    assert found["MAE_onsite"] == pytest.approx(np.mean(np.concatenate(onsite)))
    assert found["MAE_by_shell_pair"]["Cp-O2s"] == pytest.approx(np.mean(np.concatenate(by_pair["Cp-O2s"])))
    assert found["MAE_cha_b"] == max(found["MAE_by_shell_pair"].values())


@pytest.mark.parametrize("spinful", [False, True], ids=["plain", "soc"])
def test_a_constant_shift_is_removed(spinful):
    """H + mu S describes the same bands; only the raw error sees it."""
    from hamfast.analysis.metrics import reordered

    snapshot = random_snapshot({6: (0, 1)}, [6, 6], spinful)
    snapshot.fermi_energy = 0.0
    h = snapshot.hamiltonian
    overlap = reordered(snapshot.overlap, h.pairs, spins=2 if spinful else 1, shapes=h.shapes)
    shifted = BlockMatrix(h.pairs, h.shapes, h.boundaries, h.entries + 0.025 * overlap.entries)
    sums = ErrorSums()
    sums.add(snapshot, shifted)
    sums.add_eigenvalues(snapshot, shifted, window=50)
    found = sums.summary()
    assert found["mu_removed"] == pytest.approx(25.0)
    assert found["MAE_gauge_removed"] < 1e-9
    assert found["MAE_all"] > 0.1
    assert found["eigenvalue_MAE"] < 1e-6


def test_order_of_pairs_does_not_matter_but_the_set_does():
    snapshot = random_snapshot({6: (0, 1)}, [6, 6])
    predicted = perturbed(snapshot)
    order = np.random.default_rng(0).permutation(len(predicted))
    shuffled = BlockMatrix.from_blocks(predicted.pairs[order], [predicted.block(n) for n in order])
    first, second = ErrorSums(), ErrorSums()
    first.add(snapshot, predicted)
    second.add(snapshot, shuffled)
    assert first.summary()["MAE_all"] == pytest.approx(second.summary()["MAE_all"], rel=1e-12)
    with pytest.raises(HamfastError, match="other atom pairs"):
        ErrorSums().add(
            snapshot,
            BlockMatrix.from_blocks(predicted.pairs[:-1], [predicted.block(n) for n in range(len(predicted) - 1)]),
        )


@pytest.mark.parametrize("spinful", [False, True], ids=["plain", "soc"])
@pytest.mark.parametrize("seed", range(4))
def test_the_gauge_is_removed_in_the_norm_that_is_reported(spinful, seed):
    """Never more than without, and no other mu on a fine grid gives less."""
    from hamfast.analysis.metrics import remove_gauge, reordered

    snapshot = random_snapshot({6: (0, 1)}, [6, 6], spinful, seed=seed)
    h = snapshot.hamiltonian
    rng = np.random.default_rng(seed)
    difference = rng.standard_t(1.5, size=h.entries.shape) * (1 + (1j if spinful else 0)) + 0.3 * (h.entries != 0)
    mu, rest = remove_gauge(difference, h, snapshot)
    s = reordered(snapshot.overlap, h.pairs, spins=2 if spinful else 1, shapes=h.shapes).entries
    found = np.abs(rest).mean()
    np.testing.assert_allclose(rest, difference - mu * s)
    assert found <= np.abs(difference).mean()
    grid = np.linspace(mu - 2, mu + 2, 4001)
    assert found <= min(np.abs(difference - x * s).mean() for x in grid) * (1 + 1e-9)


def test_band_errors_are_means_over_structures_and_stand_beside():
    """A rigid shift of the conduction band of a dimerised chain: gap and edge off by it, on every
    k-point."""
    from kit import chain

    snapshot = chain(4, 0.0, dimer=0.5)
    wider = chain(4, 0.0, dimer=0.6).hamiltonian
    sums = ErrorSums()
    sums.add(snapshot, wider)
    sums.add_eigenvalues(snapshot, wider)
    found = sums.summary()
    # E = +- sqrt(t1^2 + t2^2 + 2 t1 t2 cos k): the gap is 2 |t1 - t2|, 2.0 and 2.4 eV, and
    # symmetric about 0.
    numbers = found["bands_by_structure"]["chain"]
    assert numbers["gap_DFT"] == pytest.approx(2000)
    assert numbers["gap_predicted"] == pytest.approx(2400)
    assert found["gap_error"] == pytest.approx(400)
    assert found["valence_edge_error"] + found["conduction_edge_error"] == pytest.approx(400)
    assert found["eigenvalue_shift"] <= 200
    assert found["eigenvalue_MAE"] > 0


def test_without_electrons_the_fermi_level_of_the_code_counts_them():
    from kit import chain

    snapshot = chain(4, 0.0, dimer=0.5)
    snapshot.occupation, snapshot.fermi_energy = None, 0.1
    sums = ErrorSums()
    sums.add_eigenvalues(snapshot, snapshot.hamiltonian)
    assert sums.bands["chain"].gap_DFT == pytest.approx(2000)
    snapshot.fermi_energy = None
    nothing = ErrorSums()
    nothing.add_eigenvalues(snapshot, snapshot.hamiltonian)
    assert not nothing.bands
