"""Structures and edges per second and the share of waiting, against a clock that the test turns."""

import os
import signal

import pytest
import torch
from runs import rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hamfast.data import GraphDataset
from hamfast.training import Run, throughput
from hamfast.training.config import parse_config
from hamfast.training.module import CascadeTraining


@pytest.fixture
def settings(settings):
    settings["training"]["stage2"] = settings["stage2"] = None
    settings["training"]["stage1"]["epochs"] = 2
    return settings


@pytest.fixture
def clock(monkeypatch):
    """A step takes 3 s, loading a structure 1 s."""
    clock = [1e6]
    for module in ("hamfast.training.throughput", "hamfast.data.dataset"):
        monkeypatch.setattr(f"{module}.time.perf_counter", lambda: clock[0])
    step, read = CascadeTraining.training_step, GraphDataset.__getitem__

    def slow_step(self, batch, batch_idx):
        clock[0] += 3.0
        return step(self, batch, batch_idx)

    def slow_read(self, n):
        clock[0] += 1.0
        return read(self, n)

    monkeypatch.setattr(CascadeTraining, "training_step", slow_step)
    monkeypatch.setattr(GraphDataset, "__getitem__", slow_read)


def test_an_epoch_by_a_clock(settings, clock):
    run = Run(parse_config(settings, "test"))
    edges = sum(graph.num_edges for graph in run.data.training)
    run.train()
    for row in rows(settings["output"]):
        assert float(row["structures_per_s"]) == pytest.approx(2 / 8, rel=1e-3)
        assert float(row["edges_per_s"]) == pytest.approx(edges / 8, rel=1e-3)
        assert float(row["waiting_percent"]) == pytest.approx(25.0, rel=1e-3)
    events = EventAccumulator(str(run.folder.path / "stage1" / "logs"))
    events.Reload()
    assert [event.value for event in events.Scalars("waiting_percent")] == pytest.approx([25.0, 25.0])
    for name in (*throughput.FIELDS, "learning_rate", "val_loss_meV"):
        assert len(events.Scalars(name)) == 2


def test_an_epoch_that_goes_on(settings, clock, monkeypatch):
    """What a run does after it was stopped within an epoch counts alone."""
    with monkeypatch.context() as patch:
        step = CascadeTraining.training_step

        def stop(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch, batch_idx)

        patch.setattr(CascadeTraining, "training_step", stop)
        assert Run(parse_config(settings, "test")).train() is None
    Run(parse_config(settings, "test")).train(resume=True)
    for structures, row in zip((1, 2), rows(settings["output"]), strict=True):
        assert float(row["structures_per_s"]) == pytest.approx(structures / (4 * structures), rel=1e-3)


@pytest.mark.parametrize(("fits", "threads", "expected"), [(True, 1, 0), (False, 1, 3), (False, 8, 0), (False, 5, 1)])
def test_processes_that_load(settings, monkeypatch, fits, threads, expected):
    """None where the data fit memory or the network takes all cores; never more than structures."""
    monkeypatch.setattr("hamfast.training.run_data.cores", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    run = Run(parse_config(settings, "test"))
    assert run.data.training.fits
    run.data.training.fits, run.data.training.folders = fits, run.data.training.folders * 2
    run.data.training.folders = run.data.training.folders[:3]
    assert run.data._workers(run.data.training) == min(3, expected)
    wanted = parse_config(settings | {"data": settings["data"] | {"num_workers": 2}}, "test")
    assert Run(wanted).data._workers(run.data.training) == 2
