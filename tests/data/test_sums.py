"""Fits to sums that several processes make, against the fit by one process without parts."""

from dataclasses import replace

import pytest
import torch

from hamfast.data import build_graph, dataset_spec, parallel, read_snapshot
from hamfast.data.parallel import parts_of, summed
from hamfast.models import TargetNormalization, closed_form
from hamfast.models.least_squares import NormalEquations
from hamfast.sums import Sums


@pytest.fixture
def graphs(double, fixtures):
    """Thirteen structures of two elements with noise, in their positions and targets."""
    folder = fixtures / "hBN_1x1_000"
    spec = dataset_spec([folder])
    graph = build_graph(read_snapshot(folder), spec)
    found = []
    for seed in range(13):
        torch.manual_seed(seed)
        atoms = 0.1 * torch.randn(graph.num_atoms, 3)
        noise = 0.1 * torch.randn_like(graph.target) * (graph.target != 0)
        vector = graph.vector + atoms[graph.j] - atoms[graph.i]
        found.append(replace(graph, vector=vector, target=graph.target + noise))
    return spec, found


def normalization(spec):
    return TargetNormalization(spec, "environment", "radial", 8.5, environment=3.0)


@pytest.fixture
def few_functions(monkeypatch):
    """Small models."""
    monkeypatch.setattr(closed_form, "DENSITY_RADIAL", 2)
    monkeypatch.setattr(closed_form, "BOND_RADIAL", 3)


def nothing(done, total):
    """No report."""


def large(value):
    """The large sums of a fit."""
    return [value.gram, value.right] if isinstance(value, NormalEquations) else [value]


@pytest.mark.usefixtures("few_functions")
def test_sums_of_parts_are_those_of_all(graphs, monkeypatch):
    """By one process, or by several: to the last bit the same; without parts, up to rounding."""
    monkeypatch.setattr(parallel, "PART", 3)
    spec, graphs = graphs
    truth, found, told = normalization(spec), normalization(spec), []
    for expected, fit in zip(truth.fits(), found.fits(), strict=True):
        whole, by_processes = Sums(), []
        for number, graph in enumerate(graphs):
            expected.add(whole, number, graph)
        expected.solve(whole)
        for processes in (1, 3):
            monkeypatch.setattr(parallel, "cores", lambda n=processes: n)
            by_processes.append(summed(fit, graphs, len(graphs), lambda *numbers: told.append(numbers)))
        assert all(sums.keys() == whole.keys() for sums in by_processes)
        for key, value in whole.items():
            first, *others = (large(sums[key]) for sums in by_processes)
            for its, mine, *same in zip(large(value), first, *others, strict=True):
                assert all(torch.equal(mine, other) for other in same)
                torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12 * float(its.abs().max()))
        fit.solve(by_processes[1])
        found.load_state_dict(truth.state_dict())  # the next fit is of what the same shift leaves
    assert told == 6 * [(3, 13), (6, 13), (9, 13), (13, 13)]


@pytest.mark.usefixtures("few_functions")
def test_each_fourth_structure_is_held_out_whatever_the_parts(graphs, monkeypatch):
    monkeypatch.setattr(parallel, "PART", 3)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    spec, graphs = graphs
    fit = normalization(spec).fits()[1]
    sums = summed(fit, graphs, len(graphs), nothing)
    hoppings = int((graphs[0].pair_species(2) == 1).sum())  # from the first element to the second one
    assert {equations.count[1] for (kind, n, _), equations in sums.items() if (kind, n) == ("hopping", 1)} == {
        3 * hoppings
    }


@pytest.mark.usefixtures("few_functions")
def test_sums_that_are_large_have_fewer_processes(graphs, monkeypatch):
    spec, graphs = graphs
    monkeypatch.setattr(parallel, "PART", 3)
    monkeypatch.setattr(parallel, "cores", lambda: 4)
    used = []
    monkeypatch.setattr(parallel, "results", lambda work, processes, prefetch: used.append(processes) or iter(work))
    fit = normalization(spec).fits()[0]
    for room in (1, 4, 7, 8, 100):
        monkeypatch.setattr(parallel, "MOST_BYTES", room * fit.bytes())
        summed(fit, graphs, len(graphs), nothing)
    assert used == [2, 3, 4]


@pytest.mark.usefixtures("few_functions")
def test_bytes_are_those_of_the_sums(graphs):
    spec, graphs = graphs
    for fit in normalization(spec).fits():
        sums = summed(fit, graphs[:1], 1, nothing)
        assert fit.bytes() == sum(8 * tensor.numel() for value in sums.values() for tensor in large(value))


@pytest.mark.parametrize("count", [0, 1, 63, 64, 127, 128, 1000, 100_000])
def test_parts_are_all_structures_in_their_order(count):
    parts = parts_of(count)
    assert [n for part in parts for n in part] == list(range(count))
    assert len(parts) == 1 or all(64 <= len(part) < 128 for part in parts)
