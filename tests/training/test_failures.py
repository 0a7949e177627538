"""What fails ends in one sentence, and the run can go on: divergence, full disks, damaged caches,
splits, folders."""

import json
import math
import os
import shutil
import sqlite3
from itertools import product
from pathlib import Path

import pytest
import torch
from kit import cases
from rich.console import Console
from runs import final_weights, history

from hamfast import cli
from hamfast.data import GraphDataset, read_split, write_split
from hamfast.data.store import Store
from hamfast.errors import HamfastError
from hamfast.training import Run, load_model
from hamfast.training.callbacks import Progress, duration, number
from hamfast.training.checkpoint import read_checkpoint
from hamfast.training.config import parse_config, write_config
from hamfast.training.module import CascadeTraining
from hamfast.training.throughput import Throughput


@pytest.fixture
def settings(settings):
    settings["stage2"] = None
    settings["training"]["stage2"] = None
    return settings


def poison(monkeypatch, epochs):
    """Gradients that are not numbers in these epochs."""
    original = CascadeTraining.training_step

    def step(self, batch, batch_idx):
        return original(self, batch, batch_idx) * (math.nan if self.current_epoch in epochs else 1)

    monkeypatch.setattr(CascadeTraining, "training_step", step)


def command(monkeypatch, capsys, *arguments):
    """Exit status and error of a command line as a user types it."""
    monkeypatch.setattr("sys.argv", ["hamfast", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr().err.strip()


# --- divergence
# -------------------------------------------------------------------------------------------------


def test_a_run_that_never_has_a_finite_loss(settings, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, range(100))
    write_config(parse_config(settings, "test"), tmp_path / "c.yaml")
    status, error = command(monkeypatch, capsys, "train", tmp_path / "c.yaml")
    assert status == 1
    assert "stage1: after epoch 1 the loss is not a number, at a learning rate of 0.005" in error
    assert "lower training.stage1.learning_rate, or set training.stage1.clip, and continue with --resume" in error
    assert len(error.splitlines()) == 1
    folder = Path(settings["output"]) / "stage1"
    assert not (folder / "finished.json").exists()
    assert all(torch.isfinite(w).all() for w in read_checkpoint(folder / "last.ckpt")["state_dict"].values())
    # With a lower rate it goes on from there.
    monkeypatch.undo()
    settings["training"]["stage1"]["learning_rate"] = 1e-3
    assert Run(parse_config(settings, "test")).train(resume=True) is not None
    assert [int(row["epoch"]) for row in history(settings["output"])] == [0, 1, 2, 3]


def test_a_learning_rate_that_blows_up_for_real(settings):
    settings["training"]["stage1"] |= {"learning_rate": 1e6, "warmup_steps": 0, "ema": None}
    try:
        Run(parse_config(settings, "test")).train()
    except HamfastError as error:
        assert "the loss is not a number" in str(error)
        assert not (Path(settings["output"]) / "stage1" / "finished.json").exists()
    last = read_checkpoint(Path(settings["output"]) / "stage1" / "last.ckpt")
    assert all(torch.isfinite(w).all() for w in last["state_dict"].values())


def test_numbers_that_are_lost_later_come_back(settings, monkeypatch):
    poison(monkeypatch, {2})
    console = Console(record=True, width=80)
    path = Run(parse_config(settings, "test"), console).train()
    assert "best weights back, rate x 0.5" in console.export_text()
    load_model(path)
    rows = history(settings["output"])
    assert [math.isfinite(float(row["val_loss_meV"])) for row in rows] == [True, True, False, True]
    checkpoint = read_checkpoint(path.parent / "stage1" / "last.ckpt")
    assert checkpoint["lr_factor"] == 0.5
    assert all(torch.isfinite(w).all() for w in checkpoint["state_dict"].values())


def test_a_run_resumed_after_the_safety_net_is_the_uninterrupted_one(settings, monkeypatch):
    poison(monkeypatch, {1})
    resumed = settings | {"output": settings["output"] + "_resumed"}
    Run(parse_config(settings, "test")).train()
    assert Run(parse_config(resumed, "test")).train(stop_after_epoch=2) is None
    Run(parse_config(resumed, "test")).train(resume=True)
    expected = final_weights(settings["output"])
    for name, value in final_weights(resumed["output"]).items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_numbers_are_not_loaded(settings, tmp_path, value):
    path = Run(parse_config(settings, "test")).train()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["ema"]["weights"]["stage1.output.weight"][3] = value
    torch.save(checkpoint, path)
    with pytest.raises(
        HamfastError, match="model.ckpt: the checkpoint's weights are not numbers: 1 of .*stage1.output.w"
    ):
        load_model(path)


# --- disks and folders
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt", "finished.json", "model.ckpt", "config.yaml"])
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on(settings, monkeypatch, name):
    whole = settings | {"output": settings["output"] + "_whole"}
    Run(parse_config(whole, "test")).train()
    replace, writes = os.replace, []

    def full(source, target):
        if Path(target).name == name:
            writes.append(target)
            if len(writes) == 2 or name not in ("last.ckpt", "best.ckpt"):
                raise OSError(28, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr("hamfast.data.h5.os.replace", full)
    with pytest.raises(HamfastError, match=rf"{name}: could not be written \(No space left on device\)"):
        Run(parse_config(settings, "test")).train()
    monkeypatch.undo()
    output = Path(settings["output"])
    assert not list(output.rglob(".*")) if output.exists() else name == "config.yaml"
    Run(parse_config(settings, "test")).train(resume=output.exists())
    expected = final_weights(whole["output"])
    for key, value in final_weights(output).items():
        torch.testing.assert_close(value, expected[key], atol=0, rtol=0)


def test_a_full_disk_while_the_history_is_written(settings, monkeypatch):
    original = Path.open

    def full(self, mode="r", *arguments, **named):
        if self.name == "metrics.csv" and "a" in mode:
            raise OSError(28, "No space left on device", str(self))
        return original(self, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(HamfastError, match=r"metrics.csv: could not be written \(No space left on device\)"):
        Run(parse_config(settings, "test")).train()
    monkeypatch.undo()
    assert Run(parse_config(settings, "test")).train(resume=True) is not None


@pytest.mark.parametrize(
    "output",
    cases(
        {
            "file": "file",
            "in-a-file": "file/run",
            "in-proc": "/proc/nothing/run",
            "device": "/dev/null",
        }
    ),
)
def test_an_output_that_is_no_folder(settings, tmp_path, output):
    (tmp_path / "file").write_text("mine")
    settings["output"] = str(tmp_path / output)
    with pytest.raises(HamfastError, match="expected a folder"):
        Run(parse_config(settings, "test")).train()
    with pytest.raises(HamfastError, match="nothing to resume"):
        Run(parse_config(settings, "test")).train(resume=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_names_with_brackets_are_shown_as_they_are(settings, tmp_path):
    settings["output"] = str(tmp_path / "a [relaxed]" / "b[/c]")
    console = Console(record=True, width=300)
    Run(parse_config(settings, "test"), console).train(stop_after_epoch=1)
    assert console.export_text().count(settings["output"]) == 2


@pytest.mark.parametrize(
    "error",
    cases(
        {
            "of-hamfast": HamfastError("s/info.json: not valid JSON"),
            "of-the-system": OSError(5, "Input/output error"),
        }
    ),
)
def test_an_error_in_a_worker_process_is_one_sentence(settings, monkeypatch, error):
    def fail(self, folder):
        raise error

    settings["data"]["num_workers"] = 1
    run = Run(parse_config(settings, "test"))
    made = run._initial_model()
    monkeypatch.setattr(run, "_initial_model", lambda: made)
    monkeypatch.setattr(GraphDataset, "_prepared", fail)
    with pytest.raises(HamfastError) as found:
        run.train()
    assert str(found.value).endswith(str(error))
    assert len(str(found.value).splitlines()) == 1


# --- the cache
# -------------------------------------------------------------------------------------------------


def test_a_cache_that_is_a_file(settings, tmp_path):
    (tmp_path / "text").write_text("hello")
    for name in ("text", "text/deeper"):
        settings["data"]["cache"] = str(tmp_path / name)
        with pytest.raises(HamfastError, match="expected a folder for prepared graphs, found that .*text is a file"):
            Run(parse_config(settings, "test"))


def test_a_full_cache_costs_time_only(settings, monkeypatch):
    """What cannot be kept is read each time, and fitted in each run."""
    config = parse_config(settings | {"output": settings["output"] + "_kept"}, "test")
    Run(config).train()
    settings["data"]["cache"] += "_full"

    def full(self, kind, prepared):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "keep", full)
    monkeypatch.setattr(Store, "keep_result", lambda self, name, content: full(self, name, content))
    with pytest.warns(UserWarning, match="cannot be kept, each epoch prepares them again .*disk is full") as told:
        Run(parse_config(settings, "test")).train()
    assert len([word for word in told if "cannot be kept" in str(word.message)]) == 1
    for name, value in final_weights(settings["output"]).items():
        assert torch.equal(value, final_weights(config.output)[name])


# --- splits
# -------------------------------------------------------------------------------------------------


def test_a_set_without_a_test_part_is_trained(settings):
    path = Path(settings["data"]["root"]) / "dataset_split.json"
    content = json.loads(path.read_text())
    del content["test"]
    path.write_text(json.dumps(content))
    settings["training"]["stage1"]["epochs"] = 1
    assert Run(parse_config(settings, "test")).train() is not None


@pytest.mark.parametrize(
    ("content", "message"),
    cases(
        {
            "list": ([["a"], ["b"]], r"expected a JSON object \{...\}, found list"),
            "no-validation-set": (
                {"train": ["a"]},
                "the subset 'validate' is empty or missing; .*because the best weights are chosen by it",
            ),
            "empty-training-set": ({"train": [], "validate": ["b"]}, "the subset 'train' is empty or missing"),
            "labels-as-text": (
                {"train": "ab", "validate": ["b"]},
                r"train: expected a list of labels like .*found 'ab'",
            ),
            "number-among-labels": (
                {"train": ["a", 3], "validate": ["b"]},
                r"train: expected a list of labels like .*found \['a', 3\]",
            ),
            "labels-as-mapping": ({"train": {"a": 1}, "validate": ["b"]}, "train: expected a list of labels"),
            "null": ({"train": None, "validate": ["b"]}, "train: expected a list of labels like .*, found None"),
            "label-twice": ({"train": ["a", "a"], "validate": ["b"]}, "'a' is twice in train"),
            "label-in-two-sets": ({"train": ["a"], "validate": ["a"]}, "'a' is in train and in validate"),
            "unknown-set": ({"train": ["a"], "val": ["b"]}, "expected the subsets train, validate, test, found 'val'"),
            "label-outside": ({"train": ["a"], "validate": ["../a"]}, "no structure folder '../a'"),
            "key-twice": ('{"train": ["a"], "train": ["b"]}', "the key 'train' is given twice"),
            "nested-too-deep": ("[" * 100_000, "not valid JSON"),
            "bytes": (b"\xff\xfe\x00", "expected text in UTF-8, found other bytes at position 0"),
            "folder": (None, "expected a file, found a folder"),
        }
    ),
)
def test_splits_that_are_none(tmp_path, fixtures, content, message):
    for label in "ab":
        shutil.copytree(fixtures / "graphene_1x1_000", tmp_path / "dft" / label)
    path = tmp_path / "dataset_split.json"
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(HamfastError, match=message):
        read_split(tmp_path)


def test_a_split_without_test(tmp_path, fixtures):
    for label in "abcd":
        os.symlink(fixtures / "graphene_1x1_000", tmp_path / label)
    split = write_split(tmp_path, (0.75, 0.25, 0), seed=0)
    assert {subset: len(labels) for subset, labels in split.items()} == {"train": 3, "validate": 1}
    assert list(read_split(tmp_path)) == ["train", "validate"]
    for fractions in ((0.75, 0.25, -0.1), (math.nan, 0.5, 0.5), (0.5, 0.5, math.nan), (1, 0, 0)):
        with pytest.raises(HamfastError, match="fractions: expected three positive numbers with sum 1"):
            write_split(tmp_path, fractions, seed=0, overwrite=True)


# --- the lines of a training
# ------------------------------------------------------------------------------------------


def test_lines_fit_80_columns():
    progress = Progress(Console(), "stage1", Throughput(None, None))
    above, below = progress.header()
    losses = [0.0, 3.25, 99999.999, 123456.7, 1e30, 1.5e300, math.nan, math.inf]
    for loss, epochs, seconds, speed in product(
        losses, [7, 1_000_000], [0.001, 12.3, 1e7], [0.0, 1e-9, 0.2, 12.34, 999.7, 5e9]
    ):
        metrics = dict.fromkeys(["train_loss_meV", "val_loss_meV", "val_mae_meV"], loss)
        metrics |= {"structures_per_s": speed, "edges_per_s": 1e3 * speed, "waiting_percent": min(100, speed)}
        line = progress.line(epochs - 1, epochs, metrics, seconds)
        assert len(above) < len(below) == len(line) <= 80
        columns = line.split()
        assert columns[:2] == ["stage1", f"{epochs - 1}/{epochs}"]
        assert float(columns[2]) == pytest.approx(loss, rel=5e-3, nan_ok=True)
        assert value(columns[5]) == pytest.approx(speed, rel=6e-3)
        assert value(columns[6]) == pytest.approx(1e3 * speed, rel=6e-3)
        assert float(columns[7].removesuffix("%")) == pytest.approx(min(100, speed), abs=0.5)


def value(text):
    return float(text.rstrip("kMGT")) * 1000 ** " kMGT".index(text[-1] if text[-1] in "kMGT" else " ")


def test_numbers_and_durations():
    assert number(12.3456, 9) == "   12.346"
    assert number(1234567.0, 9) == " 1.23e+06"
    assert duration(3661) == "01:01:01"
    assert duration(359_999) == "99:59:59"
    assert duration(30 * 86_400 + 7_200) == "30d 02h"
    assert len(duration(1e300)) <= 9


def test_everything_a_training_prints_fits_80_columns(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # short names: those are the user's
    settings |= {"output": "run", "threads": 9999}
    settings["data"]["batch_size"] = 1000
    settings["training"]["stage1"]["epochs"] = 1_000_000
    poison(monkeypatch, {1})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    console = Console(record=True, width=400)
    Run(parse_config(settings, "test"), console).train(stop_after_epoch=3)
    settings["training"]["stage1"]["learning_rate"] = 1e-3
    Run(parse_config(settings, "test"), console).train(resume=True, stop_after_epoch=4)
    text = console.export_text()
    for words in (
        "threads: 9999 asked for, this machine has 1",
        "batch_size: 1000 is more than there are",
        "rate x 0.5",
        "0.005 -> 0.001",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 80


def test_longest_pairs(settings):
    run = Run(parse_config(settings, "test"))
    _, cutoffs = run._initial_model()
    lengths = [float(graph.length.max()) for graph in run.data.training]
    assert cutoffs.tolist() == [[max(lengths) + 1e-3]]  # to the last digit: those of the graphs
