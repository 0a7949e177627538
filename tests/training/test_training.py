"""Runs on real data: resuming, interruption, processes, safety net, and what a bad configuration
says."""

import copy
import json
import re
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from kit import cases
from runs import final_weights, history, losses, start, wait_for_epoch

from hamfast.data import read_snapshot
from hamfast.data.tensor_file import save_tensors
from hamfast.errors import HamfastError
from hamfast.training import Run, config_template, load_config, load_model
from hamfast.training.checkpoint import read_checkpoint
from hamfast.training.config import parse_config
from hamfast.training.lock import LOCK_FILE


def test_both_stages_train_and_the_model_stands_alone(settings, tmp_path, fixtures):
    path = Run(parse_config(settings, "test")).train()
    assert path == Path(settings["output"]) / "model.ckpt"
    for phase in ("stage1", "stage2"):
        assert {"best.ckpt", "last.ckpt", "finished.json", "logs"} <= {p.name for p in (path.parent / phase).iterdir()}
        assert any((path.parent / phase / "logs").glob("events*"))  # TensorBoard
        assert len(losses(path.parent, phase)) == 4
    # The checkpoint needs nothing else: not the data, not the configuration file.
    moved = tmp_path / "elsewhere.ckpt"
    path.rename(moved)
    loaded = load_model(moved, dtype=torch.float64)
    about = read_checkpoint(moved)["hamfast"]
    assert about["units"] == {"energy": "eV", "length": "angstrom"}
    assert set(about["versions"]) == {"hamfast", "torch", "e3nn", "python"}
    assert about["shells"] == [[6, [0, 0, 1, 1, 2]]]
    from hamfast.analysis import predict

    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    prediction = predict(loaded, snapshot).refined
    assert prediction.entries.shape == snapshot.hamiltonian.entries.shape
    with pytest.raises(HamfastError, match="element [BN] is unknown to the model, which knows C"):
        predict(loaded, read_snapshot(fixtures / "hBN_1x1_000"))


def test_training_learns(settings):
    settings["training"]["stage1"]["epochs"] = 30
    settings["training"]["stage2"]["epochs"] = 1
    Run(parse_config(settings, "test")).train()
    found = losses(settings["output"])
    assert found[-1] < 0.3 * found[0]


def test_joint_training_moves_both_stages(settings):
    settings["training"] = {"stage1": settings["training"]["stage2"], "stage2": None, "joint": True}
    before = Run(parse_config(settings | {"output": settings["output"] + "0"}, "test"))
    model, _ = before._initial_model()
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    Run(parse_config(settings, "test")).train()
    after = final_weights(settings["output"], "joint")
    for name in ("stage1.output.weight", "stage2.output.weight", "stage1.embedding.weight"):
        assert not torch.equal(after[f"model.{name}"], initial[name])


def test_a_resumed_run_is_the_uninterrupted_one(settings):
    whole = parse_config(settings, "test")
    Run(whole).train()
    resumed = parse_config(settings | {"output": settings["output"] + "_resumed"}, "test")
    assert Run(resumed).train(stop_after_epoch=2) is None
    assert Run(resumed).train(resume=True) is not None
    for phase in ("stage1", "stage2"):
        expected = final_weights(whole.output, phase)
        for name, value in final_weights(resumed.output, phase).items():
            torch.testing.assert_close(value, expected[name], atol=0, rtol=0)


def test_an_output_folder_with_another_run_is_refused(settings):
    Run(parse_config(settings, "test")).train(stop_after_epoch=1)
    with pytest.raises(HamfastError, match="not empty, perhaps another run"):
        Run(parse_config(settings, "test")).train()
    changed = settings | {"seed": 7}
    with pytest.raises(HamfastError, match="cannot resume.*: seed: 0 in the run, 7 in the configuration;"):
        Run(parse_config(changed, "test")).train(resume=True)
    with pytest.raises(HamfastError, match="nothing to resume"):
        Run(parse_config(settings | {"output": settings["output"] + "_new"}, "test")).train(resume=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_an_interrupted_process_resumes_to_the_uninterrupted_weights(settings, tmp_path, how):
    settings["threads"] = 1
    process = start(settings, tmp_path, 100_000)
    wait_for_epoch(process, settings["output"], 3)
    # It owns the folder while it lives.
    lock = Path(settings["output"]) / LOCK_FILE
    assert json.loads(lock.read_text())["pid"] == process.pid
    for resume in (True, False):
        with pytest.raises(
            HamfastError, match=rf"process {process.pid} on {socket.gethostname()} works in this folder"
        ):
            Run(parse_config(settings, "test")).train(resume=resume)
    process.send_signal(how)
    output, _ = process.communicate(timeout=180)
    assert lock.exists() == (how == signal.SIGKILL)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted" in output
        assert "Traceback" not in output
    last = Path(settings["output"]) / "stage1" / "last.ckpt"
    epoch = read_checkpoint(last)["epoch"]
    assert epoch >= 1
    before = [row for row in history(settings["output"]) if int(row["epoch"]) <= epoch]
    assert [int(row["epoch"]) for row in before] == list(range(epoch + 1))
    assert not list(last.parent.glob(".*ckpt*")) or how == signal.SIGKILL
    config = parse_config(settings, "test")
    resumed = Run(config)
    assert resumed.train(resume=True, stop_after_epoch=epoch + 3) is None
    assert read_checkpoint(last)["epoch"] == epoch + 2
    # The history is whole: no epoch twice, none missing, those before the interruption untouched.
    rows = history(settings["output"])
    assert [int(row["epoch"]) for row in rows] == list(range(epoch + 3))
    assert rows[: epoch + 1] == before
    assert [int(row["step"]) for row in rows] == [2 * (n + 1) for n in range(epoch + 3)]  # two structures per epoch
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    whole = parse_config(settings | {"output": settings["output"] + "_whole"}, "test")
    Run(whole).train(stop_after_epoch=epoch + 3)
    expected = final_weights(whole.output)
    for name, value in final_weights(config.output).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save_tensors({"hamfast": {"format": 1}, "n": 1}, path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(HamfastError, match=r"last.ckpt: could not be written \(No space left on device\)"):
        save_tensors({"hamfast": {"format": 1}, "n": 2}, path)
    assert read_checkpoint(path)["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_damaged_and_foreign_checkpoints(tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(HamfastError, match="checkpoint not found"):
        load_model(path)
    torch.save({"hamfast": {"format": 1}}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(HamfastError, match="not a readable checkpoint, perhaps truncated"):
        load_model(path)
    torch.save({"hamfast": {"format": 1}, "state_dict": {}}, path)
    with pytest.raises(HamfastError, match="not a complete checkpoint of hamfast .*KeyError: 'shells'"):
        load_model(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(HamfastError, match="not a checkpoint of hamfast"):
        load_model(path)
    torch.save({"hamfast": {"format": 99}}, path)
    with pytest.raises(HamfastError, match="format 99, this version of hamfast reads 1"):
        load_model(path)


def test_impossible_irreps_get_a_sentence(settings):
    settings["stage1"] |= {"irreps_mid": "4x0e+2x1o", "l_max": 1}
    with pytest.raises(
        HamfastError, match="configuration: irreps_mid = 4x0e.2x1o with l_max = 1 cannot make the target irrep"
    ):
        Run(parse_config(settings, "test")).train()


def test_batch_size_must_fit_the_processes(settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HamfastError, match="batch_size = 1 is not a multiple of the 2 processes"):
        Run(parse_config(settings, "test"))


def test_the_safety_net_reloads_the_best_weights(settings):
    """A learning rate that blows up: after the first bad epochs the best weights come back at a
    lower rate."""
    settings["training"]["stage1"] |= {
        "epochs": 12, "learning_rate": 5.0, "warmup_steps": 6, "schedule": "constant", "ema": None,
        "safety": {"factor": 1.2, "patience": 2, "decay": 0.1},
    }  # fmt: skip
    config = parse_config(settings, "test")
    Run(config).train(stop_after_epoch=12)
    checkpoint = read_checkpoint(Path(config.output) / "stage1" / "last.ckpt")
    assert checkpoint["lr_factor"] <= 0.1


def test_template_is_complete_and_valid(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config_template("somewhere", "there"))
    config = load_config(path)
    assert config == parse_config({"output": "there", "data": {"root": "somewhere"}}, "defaults")
    comments = [line for line in path.read_text().splitlines() if line.strip().startswith("#")]
    keys = [line for line in path.read_text().splitlines() if re.match(r"\s*\w+:", line)]
    assert len(comments) >= len(keys)


def test_toml_works(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('output = "o"\n[data]\nroot = "r"\n[training.stage1]\nepochs = 3\n')
    assert load_config(path).training.stage1.epochs == 3


@pytest.mark.parametrize(
    ("change", "message"),
    cases(
        {
            "unknown-section": ({"stagee1": {}}, "unknown key stagee1"),
            "unknown-key": ({"stage1": {"lmax": 4}}, "unknown key stage1.lmax"),
            "missing-key": ({"data": {}}, "missing key data.root"),
            "bad-irreps": ({"stage1": {"irreps_mid": "64y0e"}}, "stage1.irreps_mid: not irreps like"),
            "no-scalars": ({"stage1": {"irreps_mid": "4x1o"}}, "stage1.irreps_mid: needs scalar channels"),
            "edges-of-one": (
                {"data": {"root": "r", "max_edges": 50}},
                "data: expected a batch_size above 1 with max_edges = 50, found 1; both limit a batch",
            ),
            "mixed-precision-of-double": (
                {"precision": "float64", "training": {"mixed_precision": True}},
                "training.mixed_precision needs precision: float32, found float64",
            ),
            "average": (
                {"training": {"stage1": {"average": "atoms"}}},
                "training.stage1.average: input should be 'structures' or 'elements', found 'atoms'",
            ),
            "no-epochs": ({"training": {"stage1": {"epochs": 0}}}, "training.stage1.epochs: .*, found 0"),
            "unknown-loss": (
                {"training": {"stage1": {"loss": "rmse"}}},
                "training.stage1.loss: input should be 'mse' or 'mae', found 'rmse'",
            ),
            "heads-do-not-divide": (
                {"stage2": {"hidden": 10, "num_heads": 4}},
                "hidden = 10 is not a multiple of num_heads = 4",
            ),
            "stage2-without-model": ({"stage2": None}, "stage2 is null, so training.stage2 must be null"),
        }
    ),
)
def test_a_wrong_configuration_names_the_key(change, message):
    with pytest.raises(HamfastError, match=message):
        parse_config({"output": "o", "data": {"root": "r"}} | change, "config.yaml")


def test_every_ready_configuration_is_valid():
    from hamfast.configs import preset_names, preset_text

    assert len(preset_names()) == 14
    for name in preset_names():
        parse_config(yaml.safe_load(preset_text(name, "somewhere")), name)


def test_what_was_prepared_is_not_read_again(settings, hamfast, tmp_path, monkeypatch):
    """`hamfast data prepare` reads all; a run, a second one and one that goes on read nothing."""
    settings["accelerator"] = "gpu"  # of the machine that trains
    settings["target"] = {"shift": "environment", "environment": 2.0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    status, text, _ = hamfast("data", "prepare", tmp_path / "config.yaml")
    assert status == 0 and "prepared train 2, validate 1, test 1: " in text and "prepared.sqlite" in text
    assert not Path(settings["output"]).exists()
    for module in ("prepared", "dataset"):
        for name in ("read_snapshot", "read_structure"):
            monkeypatch.setattr(
                f"hamfast.data.{module}.{name}", lambda folder: pytest.fail("was read again"), raising=False
            )
    monkeypatch.setattr("hamfast.training.run_data.read_snapshot", lambda folder: pytest.fail("was read again"))
    monkeypatch.setattr("hamfast.training.run_data.summed", lambda *_: pytest.fail("was fitted again"))
    monkeypatch.setattr("hamfast.data.shifts.pack_shift", lambda *_: pytest.fail("was shifted again"))
    config = parse_config(settings | {"accelerator": "cpu"}, "test")
    Run(config).train(stop_after_epoch=1)
    assert Run(config).train(resume=True) is not None
    other = settings | {"accelerator": "cpu", "output": settings["output"] + "_2", "seed": 1}
    assert Run(parse_config(other, "test")).train() is not None


def test_what_changes_the_fit_has_it_made_again(settings):
    """Other targets, another training set, changed files: each has its own shift and scale."""
    found = []

    def fitted():
        run = Run(parse_config(settings, "test"))
        model, _ = run._initial_model()
        expected = copy.deepcopy(model.normalization)
        expected.fit(run.data.training)
        for name, value in expected.state_dict().items():
            assert torch.equal(value, model.normalization.state_dict()[name])
        found.append(torch.cat([v.flatten() for v in expected.state_dict().values()]))

    fitted()
    settings["target"] = {"scale": "constant"}
    fitted()
    root = Path(settings["data"]["root"])
    split = json.loads((root / "dataset_split.json").read_text())
    (root / "dataset_split.json").write_text(json.dumps(split | {"train": split["train"][:1]}))
    fitted()
    settings["precision"] = "float64"
    fitted()
    assert len({tuple(f.tolist()) for f in found}) == 4
