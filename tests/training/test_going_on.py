"""A run that goes on: its history, other settings, more epochs; and whose folder it is."""

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from kit import cases
from rich.console import Console
from runs import final_weights, history

from hamfast.errors import HamfastError
from hamfast.training import Run
from hamfast.training.checkpoint import read_checkpoint
from hamfast.training.config import load_config, parse_config
from hamfast.training.folder import RunFolder
from hamfast.training.history import FIELDS, start_at
from hamfast.training.lock import LOCK_FILE, RunLock, identity
from hamfast.training.module import CascadeTraining


def alone(settings):
    """Stage 1 without stage 2."""
    settings["stage2"] = None
    settings["training"]["stage2"] = None
    return settings


def rate(settings, step, total):
    """The documented schedule."""
    warm = min(1.0, (step + 1) / settings["warmup_steps"])
    return settings["learning_rate"] * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))


# --- history
# -------------------------------------------------------------------------------------------------


def test_rows_of_epochs_that_are_repeated_go(tmp_path):
    path = tmp_path / "metrics.csv"
    header = ",".join(FIELDS)
    row = ("{n},{n}," + ",".join(["1.5"] * (len(FIELDS) - 2))).format
    path.write_text("\n".join([header, row(n=0), row(n=1), row(n=2), row(n=3), "4,4,1."]))
    start_at(path, 3)
    assert path.read_text().splitlines() == [header, row(n=0), row(n=1), row(n=2)]
    path.write_text("\n".join([header, row(n=0), "1,1,1."]))  # cut off
    start_at(path, 2)
    assert path.read_text().splitlines() == [header, row(n=0)]
    start_at(tmp_path / "new" / "metrics.csv", 0)
    assert (tmp_path / "new" / "metrics.csv").read_text().splitlines() == [header]


# --- other settings
# -------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on(settings):
    """More epochs with a constant rate are what so many epochs from the start would have been."""
    settings = alone(settings)
    settings["training"]["stage1"]["schedule"] = "constant"
    whole = json.loads(json.dumps(settings)) | {"output": settings["output"] + "_whole"}
    whole["training"]["stage1"]["epochs"] = 7
    Run(parse_config(whole, "test")).train()
    Run(parse_config(settings, "test")).train()
    before = (Path(settings["output"]) / "config.yaml").read_text()
    settings["training"]["stage1"]["epochs"] = 7
    console = Console(record=True, width=200)
    path = Run(parse_config(settings, "test"), console).train(resume=True)
    assert path is not None
    assert "training.stage1.epochs: 4 -> 7" in console.export_text()
    expected = final_weights(whole["output"])
    for name, value in final_weights(settings["output"]).items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0)
    assert [int(row["epoch"]) for row in history(settings["output"])] == list(range(7))
    assert json.loads((path.parent / "stage1" / "finished.json").read_text())["epochs"] == 7
    assert load_config(path.parent / "config.yaml").training.stage1.epochs == 7
    assert (path.parent / "config_1.yaml").read_text() == before
    assert not (path.parent / LOCK_FILE).exists()


def test_other_rates_and_batches_take_effect(settings):
    settings = alone(settings)
    phase = settings["training"]["stage1"]
    Run(parse_config(settings, "test")).train(stop_after_epoch=2)
    phase |= {"learning_rate": 1e-3, "epochs": 8, "weight_decay": 0.1}
    settings["data"]["batch_size"] = 2  # one step per epoch instead of two
    Run(parse_config(settings, "test")).train(resume=True, stop_after_epoch=5)
    rows = history(settings["output"])
    assert [int(row["step"]) for row in rows] == [2, 4, 5, 6, 7]
    # A row has the rate of the next step; steps are counted as if all epochs had had this batch
    # size.
    for epoch in (2, 3, 4):
        assert float(rows[epoch]["learning_rate"]) == pytest.approx(rate(phase, epoch + 1, 8), rel=1e-9)
    checkpoint = read_checkpoint(Path(settings["output"]) / "stage1" / "last.ckpt")
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.1


def test_smaller_batches_see_every_structure(settings, monkeypatch):
    """From one step per epoch to two, from the first resumed epoch on."""
    settings = alone(settings)
    settings["data"]["batch_size"] = 2
    Run(parse_config(settings, "test")).train(stop_after_epoch=2)
    settings["data"]["batch_size"] = 1
    seen = []
    original = CascadeTraining.training_step

    def step(self, batch, batch_idx):
        seen.append((self.current_epoch, batch_idx, batch.labels[0]))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CascadeTraining, "training_step", step)
    Run(parse_config(settings, "test")).train(resume=True)
    labels = {"graphene_1x1_000a", "graphene_1x1_001a"}
    for epoch in (2, 3):
        assert [b for e, b, _ in seen if e == epoch] == [0, 1]
        assert {label for e, _, label in seen if e == epoch} == labels
    assert [int(row["step"]) for row in history(settings["output"])] == [1, 2, 4, 6]


def test_stage_2_starts_anew_when_stage_1_goes_on(settings):
    Run(parse_config(settings, "test")).train()
    old = final_weights(settings["output"], "stage2")
    settings["training"]["stage1"]["epochs"] = 6
    console = Console(record=True, width=200)
    path = Run(parse_config(settings, "test"), console).train(resume=True)
    assert "stage 2 starts anew" in console.export_text()
    assert [len(history(path.parent, phase)) for phase in ("stage1", "stage2")] == [6, 4]
    kept = torch.load(path.parent / "stage2_1" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[name], old[name]) for name in old)
    # The model is the new stage 1 below the new stage 2.
    best = torch.load(path.parent / "stage1" / "best.ckpt", weights_only=True)
    final = torch.load(path, weights_only=True)["state_dict"]
    name = "model.stage1.output.weight"
    assert torch.equal(final[name], best["ema"]["weights"][name.removeprefix("model.")])


@pytest.mark.parametrize(
    ("change", "message"),
    cases(
        {
            "stage1": ({"stage1": {"num_blocks": 3}}, "stage1.num_blocks: 2 in the run, 3 in the configuration"),
            "two-keys": (
                {"seed": 3, "precision": "float64"},
                "seed: 0 in the run, 3 .*; precision: float32 in the run, float64 in",
            ),
            "target": (
                {"target": {"hermitian": False}},
                "target.hermitian: true in the run, false in the configuration",
            ),
            "stage2": (
                {"stage2": None, "training": {"stage2": None}},
                "stage2: a section in the run, null in the configuration",
            ),
            "loss": (
                {"training": {"stage1": {"loss": "mae"}}},
                "training.stage1.loss: mse in the run, mae in the configuration",
            ),
            "split": ({"data": {"split": "x.json"}}, "data.split: null in the run, .*x.json in the configuration"),
            "fewer-epochs-than-done": (
                {"training": {"stage1": {"epochs": 1}}},
                "training.stage1.epochs: 1, because 2 epochs are done already",
            ),
        }
    ),
)
def test_what_may_not_change_is_named(settings, change, message):
    Run(parse_config(settings, "test")).train(stop_after_epoch=2)

    def merge(old, new):
        return old | {k: merge(old[k], v) if isinstance(v, dict) and k in old else v for k, v in new.items()}

    if "split" in change.get("data", {}):
        split = Path(settings["data"]["root"]) / "dataset_split.json"
        other = split.with_name("x.json")
        other.write_text(split.read_text())
        change = {"data": {"split": str(other)}}
    output = Path(settings["output"])
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    with pytest.raises(HamfastError, match=message):
        Run(parse_config(merge(settings, change), "test")).train(resume=True)
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before


# --- the lock
# -------------------------------------------------------------------------------------------------


def test_a_dead_owner_is_replaced_with_a_word(settings):
    Run(parse_config(settings, "test")).train(stop_after_epoch=1)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    lock = Path(settings["output"]) / LOCK_FILE
    mine = identity(os.getpid())
    for content in (
        {"host": socket.gethostname(), "pid": int(dead.stdout), "started": 1},
        mine | {"started": mine["started"] - 100},  # a number that was given to another process since
    ):
        lock.write_text(json.dumps(content))
        console = Console(record=True, width=200)
        assert Run(parse_config(settings, "test"), console).train(resume=True, stop_after_epoch=1) is None
        assert re.search(rf"process {content['pid']} on \S+ has ended.*taken over", console.export_text())
        assert not lock.exists()


def test_another_host_cannot_be_asked(tmp_path):
    (tmp_path / LOCK_FILE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1}))
    with pytest.raises(HamfastError, match=r"process 1 on elsewhere .* if it has ended, delete .*run.lock"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / LOCK_FILE).exists()


def test_a_zombie_has_ended(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert identity(process.pid) is None
    process.wait()


def test_one_of_many_takes_over(tmp_path):
    """Twenty processes find the lock of a dead one at once."""
    (tmp_path / LOCK_FILE).write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 5, "started": 1}))
    code = """
import os, sys, time
from pathlib import Path
from hamfast.errors import HamfastError
from hamfast.training.lock import RunLock
sys.stdin.readline()
try:
    RunLock(Path(sys.argv[1])).acquire()
    print("mine", flush=True)
    sys.stdin.readline()
except HamfastError as error:
    print(error, flush=True)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    many = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(20)]
    for process in many:
        process.stdin.write("\n")
        process.stdin.flush()
    lines = [process.stdout.readline() for process in many]
    for process in many:
        process.communicate("\n")
    assert sum(line == "mine\n" for line in lines) == 1
    assert sum("works in this folder" in line for line in lines) == 19


def test_two_new_runs_in_one_folder(settings):
    config = parse_config(settings, "test")
    first, second = RunFolder(config, ["stage1"]), RunFolder(config, ["stage1"])
    first.open(resume=False)
    with pytest.raises(HamfastError, match=f"process {os.getpid()} on .* works in this folder"):
        second.open(resume=False)
    assert (first.path / LOCK_FILE).exists()
    assert load_config(first.path / "config.yaml") == config
    first.close()
    with pytest.raises(HamfastError, match="not empty, perhaps another run"):
        second.open(resume=False)
    assert not (first.path / LOCK_FILE).exists()


@pytest.mark.parametrize(
    "error",
    cases(
        {
            "of-the-user": HamfastError("x"),
            "of-hamfast": RuntimeError("x"),
            "ctrl-c": KeyboardInterrupt(),
        }
    ),
)
def test_the_folder_is_given_back_after_an_error(settings, monkeypatch, error):
    def fail(self):
        assert (Path(settings["output"]) / LOCK_FILE).exists()
        raise error

    monkeypatch.setattr(Run, "_initial_model", fail)
    with pytest.raises(type(error)):
        Run(parse_config(settings, "test")).train()
    assert not Path(settings["output"]).exists()  # nothing began, so the next run may have the folder
    monkeypatch.undo()
    Run(parse_config(settings, "test")).train(stop_after_epoch=1)
    monkeypatch.setattr(Run, "_initial_model", fail)
    with pytest.raises(type(error)):
        Run(parse_config(settings, "test")).train(resume=True)
    assert {p.name for p in Path(settings["output"]).iterdir()} == {"config.yaml", "stage1"}


def test_settings_are_written_as_they_were_read(settings):
    Run(parse_config(settings, "test")).train(stop_after_epoch=1)
    content = yaml.safe_load((Path(settings["output"]) / "config.yaml").read_text())
    assert parse_config(content, "test") == parse_config(settings, "test")
