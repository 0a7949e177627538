"""Checkpoints within an epoch, the signals of batch systems, and phases that end early: a run that
goes on has the weights of one that was never stopped."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from runs import final_weights, history

from hamfast.training import Run
from hamfast.training.checkpoint import read_checkpoint
from hamfast.training.config import parse_config
from hamfast.training.module import CascadeTraining


@pytest.fixture
def settings(settings, fixtures):
    """Four steps per epoch, stage 1 alone."""
    root = Path(settings["data"]["root"])
    split = json.loads((root / "dataset_split.json").read_text())
    for n in (0, 1):
        os.symlink(fixtures / f"graphene_1x1_00{n}", root / "dft" / f"graphene_1x1_00{n}c")
        split["train"].append(f"graphene_1x1_00{n}c")
    (root / "dataset_split.json").write_text(json.dumps(split))
    settings["training"]["stage2"] = settings["stage2"] = None
    settings["data"]["batch_size"] = 1
    return settings


def at_step(monkeypatch, step, do):
    """Calls ``do`` within the step with this number, counted over the run."""
    real = CascadeTraining.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            do()
        return real(self, batch, batch_idx)

    monkeypatch.setattr(CascadeTraining, "training_step", training_step)


@pytest.mark.parametrize(
    ("name", "step"), [("SIGTERM", 1), ("SIGUSR1", 6), ("SIGTERM", 7)], ids=["first", "second", "last-step-of-an-epoch"]
)
def test_a_signal_ends_after_the_step(settings, monkeypatch, name, step):
    whole = parse_config(settings | {"output": settings["output"] + "_whole"}, "test")
    Run(whole).train()
    config, console = parse_config(settings, "test"), Console(record=True, width=200)
    before = signal.getsignal(getattr(signal, name))
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), getattr(signal, name)))
        assert Run(config, console).train() is None
    assert signal.getsignal(getattr(signal, name)) is before
    assert f"{name}: the training ends here" in console.export_text()
    last = read_checkpoint(Path(config.output) / "stage1" / "last.ckpt")
    assert last["global_step"] == step + 1
    assert last["within_epoch"]["batches"] == (step + 1) % 4
    assert Run(config).train(resume=True) is not None
    for key, value in final_weights(whole.output).items():
        torch.testing.assert_close(final_weights(config.output)[key], value, rtol=0, atol=0)
    assert history(config.output) == history(whole.output)


def test_a_checkpoint_every_so_many_minutes(settings, monkeypatch):
    """A process that is killed goes on from the step at which it was written."""
    whole = parse_config(settings | {"output": settings["output"] + "_whole"}, "test")
    Run(whole).train()
    settings["training"]["save_minutes"] = 1e-9
    config = parse_config(settings, "test")

    def killed():
        raise MemoryError("as good as kill -9")

    with monkeypatch.context() as patch:
        at_step(patch, 6, killed)
        with pytest.raises(MemoryError):
            Run(config).train()
    assert read_checkpoint(Path(config.output) / "stage1" / "last.ckpt")["global_step"] == 6
    assert Run(config).train(resume=True) is not None
    for key, value in final_weights(whole.output).items():
        torch.testing.assert_close(final_weights(config.output)[key], value, rtol=0, atol=0)


def test_other_batches_begin_the_epoch_anew(settings, monkeypatch):
    config = parse_config(settings, "test")
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert Run(config).train() is None
    settings["data"]["batch_size"] = 2
    assert Run(parse_config(settings, "test")).train(resume=True) is not None
    assert [int(row["epoch"]) for row in history(config.output)] == [0, 1, 2, 3]
    # Four steps of the first epoch and two that are repeated; then two of each.
    assert [int(row["step"]) for row in history(config.output)] == [4, 8, 10, 12]


def test_patience(settings):
    """With a rate too small to learn anything, the first epochs are as good as any."""
    settings["training"]["stage1"] |= {"epochs": 30, "learning_rate": 1e-30, "patience": 3, "ema": None}
    config, console = parse_config(settings, "test"), Console(record=True, width=200)
    assert Run(config, console).train() is not None
    assert len(history(config.output)) == 4
    assert "stage1: no better for 3 epochs" in console.export_text()
    assert Run(config).train(resume=True) is not None and len(history(config.output)) == 4
    settings["training"]["stage1"]["patience"] = 5
    assert Run(parse_config(settings, "test")).train(resume=True) is not None
    assert len(history(config.output)) == 6
