"""The statistics of a data set against sums by hand, and how often they read a structure."""

import numpy as np
import pytest
from kit import random_snapshot

from hamfast.data import by_name, statistics
from hamfast.data.statistics import CUTOFF_MARGIN, dataset_statistics
from hamfast.errors import HamfastError

# Random crystals are none that a plausibility check would pass.
pytestmark = pytest.mark.filterwarnings("ignore::hamfast.errors.DataWarning")

SHELLS = {42: (0, 1, 2), 16: (0, 0, 3)}


@pytest.fixture
def snapshots():
    return [random_snapshot(SHELLS, numbers, seed=n) for n, numbers in enumerate(([42, 16], [16, 42, 16], [42, 42]))]


@pytest.fixture
def folders(tmp_path, snapshots):
    for n, snapshot in enumerate(snapshots):
        by_name(["deeph", "deeph-legacy"][n % 2]).write(snapshot, tmp_path / str(n))
    return [tmp_path / str(n) for n in range(len(snapshots))]


def longest(snapshots):
    found = {}
    for snapshot in snapshots:
        for a, b, c, i, j in snapshot.hamiltonian.pairs.tolist():
            vector = snapshot.positions[j] + np.array([a, b, c]) @ snapshot.cell - snapshot.positions[i]
            key = int(snapshot.numbers[i]), int(snapshot.numbers[j])
            found[key] = max(found.get(key, 0.0), float(np.linalg.norm(vector)))
    return found


@pytest.mark.parametrize("whole", [False, True], ids=["pairs-only", "whole-matrices"])
def test_sums_by_hand(snapshots, folders, whole):
    found = dataset_statistics(folders, **{"read_whole" if whole else "measured": folders[1:]})
    assert found.shells.shells == tuple(SHELLS.items()) and not found.shells.spinful
    assert found.layouts == {"deeph": 2, "deeph-legacy": 1}
    assert found.num_atoms == [2, 3, 2]
    assert found.longest_pairs == pytest.approx(longest(snapshots[1:]))
    assert found.longest_pair == pytest.approx(max(longest(snapshots[1:]).values()))
    assert {folder: tuple(count) for folder, count in found.counts.items()} == {
        folder: (len(s.hamiltonian), len(s.hamiltonian.entries))
        for folder, s in zip(folders[1:], snapshots[1:], strict=True)
    }
    assert [m.elements for m in found.matrices] == (
        [len(s.hamiltonian.entries) for s in snapshots[1:]] if whole else []
    )


def test_cutoffs_by_species(snapshots, folders):
    found = dataset_statistics(folders, measured=folders[2:])  # molybdenum alone
    expected = np.array([[longest(snapshots[2:])[42, 42] + CUTOFF_MARGIN, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(found.pair_cutoffs(), expected)


def test_nothing_is_measured_unless_asked_for(folders):
    found = dataset_statistics(folders)
    assert found.longest_pair is None and found.matrices == []


def test_every_structure_is_read_once(folders, monkeypatch):
    read = []
    for name in ("read_structure", "read_snapshot"):
        original = getattr(statistics, name)
        monkeypatch.setattr(
            statistics, name, lambda folder, original=original: (read.append(folder), original(folder))[1]
        )
    dataset_statistics(folders, measured=folders[:2], read_whole=folders[2:])
    assert read == folders


def test_orbitals_that_contradict_each_other(folders, tmp_path):
    by_name("deeph").write(random_snapshot({16: (0, 1)}, [16]), tmp_path / "other")
    with pytest.raises(HamfastError, match=r"atomic number 16 has shells \[0, 1\], in .* \[0, 0, 3\]"):
        dataset_statistics([*folders, tmp_path / "other"])


def test_spin_that_contradicts(folders, tmp_path):
    by_name("deeph").write(random_snapshot(SHELLS, [42], spinful=True), tmp_path / "other")
    with pytest.raises(HamfastError, match="spinful is True, in .* it is False"):
        dataset_statistics([*folders, tmp_path / "other"])
