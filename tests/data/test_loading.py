"""Batches that come from other processes, against those that this one makes."""

import threading
from dataclasses import fields

import pytest
import torch
from kit import random_snapshot

from hamfast.data import GraphDataset, by_name, dataset_spec, graph_loader
from hamfast.data.ahead import Ahead
from hamfast.data.parcel import Parcel
from hamfast.graph import batch_graphs

# Random crystals are none that a plausibility check would pass.
pytestmark = pytest.mark.filterwarnings("ignore::hamfast.errors.DataWarning")

SHELLS = {42: (0, 1, 2), 6: (0, 1)}


def same(one, other):
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (torch.equal(a, b) and a.dtype == b.dtype) if isinstance(a, torch.Tensor) else a == b, field.name


@pytest.fixture
def dataset(tmp_path):
    for n, numbers in enumerate([[42, 6], [6], [6, 6, 42], [42], [6, 42]]):
        by_name("deeph").write(random_snapshot(SHELLS, numbers, False, seed=n), tmp_path / f"s{n}")
    folders = sorted(tmp_path.iterdir())
    return GraphDataset(folders, dataset_spec(folders))


def test_a_parcel_holds_the_graph(dataset):
    graph = batch_graphs(list(dataset))
    graph.units = torch.randn(graph.num_edges, 2, dataset.spec.dim)
    for own in (graph, dataset[1]):
        same(Parcel.of(own).graph(), own)
    assert all(value.data_ptr() % 64 == 0 for value in Parcel.of(graph).tensors().values())


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_of_other_processes(dataset, workers):
    """Of two epochs, and of one that was not read to its end."""
    truth = list(graph_loader(dataset, 2))
    loader = graph_loader(dataset, 2, num_workers=workers)
    for stop in (3, 1, 3):
        for n, (found, expected) in enumerate(zip(loader, truth, strict=False), 1):
            same(found, expected)
            if n == stop:
                break
        assert n == stop
    assert loader.waited > 0
    loader.close()


def test_an_error_in_another_process_arrives(dataset, monkeypatch):
    monkeypatch.setattr(GraphDataset, "_prepare", lambda self, folder: int(folder.name))
    loader = graph_loader(dataset, 2, num_workers=1)
    with pytest.raises(ValueError, match="invalid literal"):
        next(iter(loader))


def test_items_come_in_their_order_and_the_error_after_them():
    def items():
        yield from range(5)
        raise OSError("gone")

    found, ahead = [], Ahead(items(), lambda n: n + 1)
    with pytest.raises(OSError, match="gone"):
        for n in ahead:
            found.append(n)
    assert found == [1, 2, 3, 4, 5] and list(ahead) == []


def test_one_item_waits_and_no_more_are_taken():
    taken, third = [], threading.Event()

    def items():
        for n in range(10):
            taken.append(n)
            if n == 2:
                third.set()
            yield n

    ahead = Ahead(items(), lambda n: n)
    assert next(ahead) == 0 and third.wait(60)
    ahead.close()
    assert taken == [0, 1, 2] and not ahead.thread.is_alive()
    assert list(ahead) == []
