"""Shifts that are kept in the store, against those that are computed."""

import sqlite3

import numpy as np
import pytest
import torch
from kit import random_snapshot

from hamfast.data import GraphDataset, build_graph, by_name, dataset_spec, read_snapshot, shifts
from hamfast.data.graph_bytes import pack_shift, unpack_shift
from hamfast.data.prepared import prepare
from hamfast.data.shifts import keep_shifts
from hamfast.data.store import MOST_SHIFTS, Store
from hamfast.models import TargetNormalization, closed_form

pytestmark = pytest.mark.filterwarnings("ignore::hamfast.errors.DataWarning")

SHELLS = {42: (0, 1, 2), 16: (0, 0, 1), 6: (0, 1)}
SETS = ([16, 42], [6], [42, 16, 6], [16])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Structures of several sets of elements; few functions make a small model."""
    monkeypatch.setattr(closed_form, "DENSITY_RADIAL", 2)
    monkeypatch.setattr(closed_form, "BOND_RADIAL", 2)
    for n, numbers in enumerate(SETS):
        by_name("deeph").write(random_snapshot(SHELLS, numbers, False, seed=n), tmp_path / "dft" / f"s{n}")
    return sorted((tmp_path / "dft").iterdir())


def random(folders, seed=0, shift="environment"):
    """A normalisation with random coefficients."""
    torch.manual_seed(seed)
    found = TargetNormalization(dataset_spec(folders), shift, "radial", 12.0, environment=3.0)
    for coefficients in found.state_dict().values():
        torch.nn.init.uniform_(coefficients, 0.1, 1.0)
    return found


def prepared_set(folders, tmp_path):
    return prepare(folders, Store(tmp_path), torch.float32)


def dataset(folders, found, normalization):
    data = GraphDataset(folders, dataset_spec(folders), found)
    data.normalize(normalization)
    return data


def true_units(folders, normalization):
    spec = dataset_spec(folders)
    graphs = [build_graph(read_snapshot(folder), spec, dtype=torch.float32) for folder in folders]
    with torch.no_grad():
        return [torch.stack(normalization.shift_and_scale(graph), 1) for graph in graphs]


def counted(monkeypatch):
    """The shapes of what is computed for the store."""
    made = []
    monkeypatch.setattr(shifts, "pack_shift", lambda shift: (made.append(shift.shape), pack_shift(shift))[1])
    return made


@pytest.mark.parametrize("processes", [1, 3])
def test_kept_shifts_are_the_computed_ones(folders, tmp_path, monkeypatch, processes):
    monkeypatch.setattr(shifts, "FEW", 1)
    monkeypatch.setattr(shifts, "cores", lambda: processes)
    found, normalization, told = prepared_set(folders, tmp_path), random(folders), []
    keep_shifts(found, folders, dataset_spec(folders), normalization, report=lambda *numbers: told.append(numbers))
    assert told == [(n + 1, 4) for n in range(4)]
    truth = true_units(folders, normalization)
    monkeypatch.setattr(normalization, "shift", lambda graph: pytest.fail("was computed"))
    data = dataset(folders, found, normalization)
    for graph, expected in zip(data, truth, strict=True):
        torch.testing.assert_close(graph.units, expected, rtol=1e-5, atol=1e-5)
    (batch,) = data.__getitems__([2, 0, 3])
    assert torch.equal(batch.units, torch.cat([data[n].units for n in (2, 0, 3)]))


@pytest.mark.parametrize("shift", ["none", "radial", "environment"])
def test_a_batch_has_the_units_of_its_structures(folders, tmp_path, shift):
    """Whether or not there are shifts in the store."""
    normalization = random(folders, shift=shift)
    data, truth = dataset(folders, prepared_set(folders, tmp_path), normalization), true_units(folders, normalization)
    (batch,) = data.__getitems__([3, 1, 2])
    torch.testing.assert_close(batch.units, torch.cat([truth[n] for n in (3, 1, 2)]), rtol=1e-5, atol=1e-5)
    assert batch.num_graphs == 3 and batch.labels == ("s3", "s1", "s2")
    data.fits = True
    assert [graph.labels for graph in data.__getitems__([3, 1])] == [("s3",), ("s1",)]


def test_only_what_has_changed_is_computed_again(folders, tmp_path, monkeypatch):
    made, spec, normalization = counted(monkeypatch), dataset_spec(folders), random(folders)
    for _ in range(2):
        keep_shifts(prepared_set(folders, tmp_path), folders, spec, normalization)
        assert len(made) == 4
    by_name("deeph").write(random_snapshot(SHELLS, SETS[1], False, seed=77), folders[1])
    found = prepared_set(folders, tmp_path)
    keep_shifts(found, folders, spec, normalization)
    assert len(made) == 5
    data, truth = dataset(folders, found, normalization), true_units(folders, normalization)
    torch.testing.assert_close(data[1].units, truth[1], rtol=1e-5, atol=1e-5)
    normalization.scale_coefficients += 1  # no shift
    keep_shifts(found, folders, spec, normalization)
    assert len(made) == 5
    for part in ("shift_coefficients", "onsite_shift", "closed_form.hopping_0e"):
        normalization.get_buffer(part)[:] += 1
        keep_shifts(found, folders, spec, normalization)
    assert len(made) == 5 + 3 * 4
    data, truth = dataset(folders, found, normalization), true_units(folders, normalization)
    for graph, expected in zip(data, truth, strict=True):
        torch.testing.assert_close(graph.units, expected, rtol=1e-5, atol=1e-5)


def test_the_oldest_shift_makes_room(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("hamfast.data.store.AT_ONCE", 3)
    found, spec = prepared_set(folders, tmp_path), dataset_spec(folders)
    several = [random(folders, seed) for seed in range(MOST_SHIFTS + 1)]
    for normalization in several:
        keep_shifts(found, folders, spec, normalization)
    there = [len(found.store.shifted(normalization.name_of_shift())) for normalization in several]
    assert there == [0] + MOST_SHIFTS * [4]
    graph = dataset(folders, found, several[0])[0]  # a run that goes on with it
    torch.testing.assert_close(graph.units, true_units(folders, several[0])[0], rtol=1e-5, atol=1e-5)


def test_shifts_go_with_their_graphs(folders, tmp_path):
    found, normalization = prepared_set(folders, tmp_path), random(folders)
    keep_shifts(found, folders, dataset_spec(folders), normalization)
    by_name("deeph").write(random_snapshot(SHELLS, SETS[0], False, seed=78), folders[0])
    prepared_set(folders, tmp_path)
    assert len(found.store.shifted(normalization.name_of_shift())) == 3


def test_a_damaged_shift_is_computed(folders, tmp_path):
    found, normalization = prepared_set(folders, tmp_path), random(folders)
    keep_shifts(found, folders, dataset_spec(folders), normalization)
    with found.store.writing() as file:
        file.execute("UPDATE shifts SET content = CAST(substr(content, 1, 200) || zeroblob(800) AS BLOB)")
    data = dataset(folders, found, normalization)
    for graph, expected in zip(data, true_units(folders, normalization), strict=True):
        torch.testing.assert_close(graph.units, expected, rtol=1e-5, atol=1e-5)


def test_a_store_that_is_full_costs_time_only(folders, tmp_path, monkeypatch):
    def full(self, name, shifts):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "keep_shifts", full)
    found, normalization = prepared_set(folders, tmp_path), random(folders)
    with pytest.warns(UserWarning, match="shifts cannot be kept, each epoch computes them again .*disk is full"):
        keep_shifts(found, folders, dataset_spec(folders), normalization)
    graph = dataset(folders, found, normalization)[2]
    torch.testing.assert_close(graph.units, true_units(folders, normalization)[2], rtol=1e-5, atol=1e-5)


def test_who_waits_computes_nothing(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(shifts, "PATIENCE", 0.0)
    made, found, normalization = counted(monkeypatch), prepared_set(folders, tmp_path), random(folders)
    keep_shifts(found, folders, dataset_spec(folders), normalization, wait=True)
    assert not made and not found.store.shifted(normalization.name_of_shift())


def test_a_short_shift_is_not_kept(folders, tmp_path):
    found, normalization = prepared_set(folders, tmp_path), random(folders, shift="radial")
    assert normalization.name_of_shift() is None
    keep_shifts(found, folders, dataset_spec(folders), normalization)
    with found.store.writing() as file:
        assert file.execute("SELECT count(*) FROM shifts").fetchone() == (0,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_of_a_shift(dtype):
    numbers = np.random.default_rng(0)
    shift = numbers.normal(size=(7, 20)).astype(dtype) * (np.arange(20) % 3 == 1)
    content = pack_shift(shift)
    found = unpack_shift(content)
    assert found.numpy().dtype == dtype and np.array_equal(found.numpy(), shift)
    assert len(content) < 7 * 7 * shift.itemsize + 150
    assert torch.equal(unpack_shift(pack_shift(0 * shift)), torch.zeros_like(found))
    for place in numbers.integers(len(content), size=100):
        changed = bytearray(content)
        changed[place] ^= int(numbers.integers(1, 256))
        with pytest.raises(ValueError, match="checksum"):
            unpack_shift(bytes(changed))


def test_units_are_of_a_graph_as_it_is(folders, tmp_path):
    """A store that has another graph under its number is no reason for a wrong shape."""
    found, normalization = prepared_set(folders, tmp_path), random(folders)
    name = normalization.name_of_shift()
    found.store.keep_shifts(name, [(found.numbers[folders[1]], pack_shift(np.zeros((1, 1), np.float32)))])
    graph = dataset(folders, found, normalization)[1]
    torch.testing.assert_close(graph.units, true_units(folders, normalization)[1], rtol=1e-5, atol=1e-5)
