"""The command line, end to end on the 1x1 cells."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from hamfast.cli import app
from hamfast.errors import HamfastError

runner = CliRunner()


def run(*arguments):
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_way_from_data_to_bands(tmp_path, fixtures):
    root = tmp_path / "set"
    for folder in ("graphene_1x1_000", "graphene_1x1_001"):
        shutil.copytree(fixtures / folder, root / "dft" / folder)
    shutil.copytree(fixtures / "graphene_1x1_000", root / "dft" / "copy")
    assert "13 orbitals" in run("data", "info", root)
    run("data", "split", root, "--fractions", "0.34", "0.33", "0.33")
    config = yaml.safe_load(run("config", "--root", root))
    config |= {"output": str(tmp_path / "run")}
    config["stage1"] |= {"irreps_mid": "4x0e+2x1o+2x2e+1x3o+1x4e", "num_basis": 8, "embed_dim": 4, "num_blocks": 1}
    config["stage2"] |= {"hidden": 8, "num_blocks": 1}
    for phase in ("stage1", "stage2"):
        config["training"][phase]["epochs"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    output = run("train", tmp_path / "config.yaml")
    assert "meV" in output
    model = tmp_path / "run" / "model.ckpt"
    output = run("evaluate", model, "--no-eigenvalues")
    assert "stage 1" in output
    assert "cascade" in output
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(result["stages"]) == {"stage 1", "cascade"}
    assert result["stages"]["cascade"]["MAE_all"] > 0
    assert "equivariance_error" in result["stages"]["stage 1"]
    run("predict", model, root, "--output", tmp_path / "predicted")
    assert (tmp_path / "predicted" / "copy" / "hamiltonian_pred.h5").exists()
    run("predict", model, root / "dft" / "copy")
    assert (root / "dft" / "copy" / "hamiltonian_pred.h5").exists()
    output = run("bands", root / "dft" / "copy", "--kpath", "GKM", "--points", "12", "--dos", "--mesh", "3", "3", "1")
    assert "predicted: E_F" in output
    assert (root / "dft" / "copy" / "bands" / "bands.png").stat().st_size > 10_000
    run("data", "convert", root, tmp_path / "old", "--to", "deeph-legacy")
    assert (tmp_path / "old" / "copy" / "hamiltonians.h5").exists()
    run("predict", model, tmp_path / "old" / "copy")
    assert (tmp_path / "old" / "copy" / "hamiltonians_pred.h5").exists()


def test_doctor_says_why(capsys):
    output = run("doctor")
    assert "instruction set" in output
    assert "GPU tensors run on" in output


def test_presets():
    assert "monolayer_graphene" in run("config", "--preset", "list")
    assert "root: here" in run("config", "--preset", "bilayer_bi2te3", "--root", "here")
    with pytest.raises(HamfastError, match="preset: expected one of"):
        run("config", "--preset", "nothing")


def test_errors_are_one_sentence_and_exit_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hamfast", "data", "info", str(tmp_path / "nowhere")],
        capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {tmp_path / 'nowhere'}: folder not found"
