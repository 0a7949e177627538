"""The report of a run: all of it in one file, with the numbers of the run's own files."""

import json
import re

import pytest
from typer.testing import CliRunner

from hamfast.analysis.figure import StandaloneFigure
from hamfast.analysis.report import bands_of, write_report
from hamfast.cli import app
from hamfast.training import Run, load_model
from hamfast.training.config import parse_config


def test_report(settings):
    settings["stage2"] = settings["training"]["stage2"] = None
    settings["training"]["stage1"]["epochs"] = 2
    model = Run(parse_config(settings, "test")).train()
    text = write_report(model.parent).read_text()
    assert "elements and shells" in text and "C [0, 0, 1, 1, 2]" in text and "num_basis: 8" in text
    assert text.count("data:image/png;base64,") == 1 and "Errors of" not in text  # losses; nothing is evaluated yet
    done = CliRunner().invoke(app, ["evaluate", str(model)])
    assert done.exit_code == 0 and "report.html" in done.output
    text = (model.parent / "report.html").read_text()
    errors = json.loads((model.parent / "evaluation.json").read_text())["stages"]["stage 1"]
    for key in ("MAE_all", "MAE_onsite", "eigenvalue_MAE"):
        assert f">{errors[key]:.3f}<" in text
    assert text.count("data:image/png;base64,") == 3  # losses, distances, bands
    assert not re.search(r"(src|href)=.?(https?:|//|\.)", text)  # nothing is fetched


def test_bands_of_a_structure_without_overlap(settings, fixtures, tmp_path):
    settings["stage2"] = settings["training"]["stage2"] = None
    settings["training"]["stage1"]["epochs"] = 1
    loaded = load_model(Run(parse_config(settings, "test")).train())
    folder = fixtures / "graphene_1x1_000"
    assert isinstance(bands_of(loaded, folder), StandaloneFigure)
    for path in folder.iterdir():
        if path.name != "overlap.h5":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert bands_of(loaded, tmp_path) is None


@pytest.fixture
def settings(tmp_path, fixtures):
    """A tiny run; the test set is the training set."""
    root = tmp_path / "set" / "dft"
    root.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (root / name).symlink_to(fixtures / "graphene_1x1_000")
    (root.parent / "dataset_split.json").write_text(json.dumps({"train": ["a"], "validate": ["b"], "test": ["c"]}))
    stage1 = {"irreps_mid": "4x0e+2x1o+2x2e+1x3o+1x4e", "num_basis": 8, "embed_dim": 4, "num_blocks": 1}
    phase = {"epochs": 2, "learning_rate": 5e-3, "warmup_steps": 2}
    return {
        "output": str(tmp_path / "run"),
        "threads": 1,
        "data": {"root": str(root.parent), "cache": str(tmp_path / "cache")},
        "stage1": stage1,
        "training": {"stage1": phase, "stage2": None},
    }
