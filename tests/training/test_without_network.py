"""``stage1: null``: the shift of the targets, fitted in closed form, is the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import cases
from rich.console import Console

from hamfast.analysis import predict
from hamfast.data import build_graph, read_snapshot
from hamfast.errors import HamfastError
from hamfast.models import TargetNormalization
from hamfast.training import Run, load_model
from hamfast.training.config import parse_config


@pytest.fixture
def closed_form(settings):
    """A run without a network on two structures of two atoms."""
    target = {"shift": "environment", "environment": 3.0}
    nothing = {"stage1": None, "stage2": None, "training": {"stage1": None, "stage2": None}}
    return settings | {"precision": "float64", "target": target} | nothing


def test_the_model_is_the_fit(closed_form, double):
    """Against the shift, fitted apart; nothing is trained."""
    console = Console(record=True, width=200)
    run = Run(parse_config(closed_form, "test"), console)
    path = run.train()
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.yaml", "model.ckpt"]
    assert "parameters: none; target.shift, fitted in closed form, is the model" in console.export_text()
    loaded = load_model(path)
    assert loaded.model.receptive_field == 3.0
    spec, folder = loaded.spec, run.data.training.folders[1]
    shift = TargetNormalization(spec, "environment", "none", loaded.model.r_max, environment=3.0)
    shift.fit(run.data.training)
    expected, _ = shift.shift_and_scale(build_graph(read_snapshot(folder), spec))
    blocks = spec.to_blocks(expected, 0, 0)
    found = predict(loaded, read_snapshot(folder))
    assert found.refined is found.baseline
    np.testing.assert_allclose(found.refined.entries, blocks.flatten(), atol=1e-9)
    left = np.abs(found.refined.entries - read_snapshot(folder).hamiltonian.entries).mean()
    assert left < 1e-3  # eV; two structures are no test for 5,000 coefficients


def test_constants_are_the_means_of_the_training_set(closed_form, double):
    closed_form["target"] = {"shift": "constant", "scale": "none", "hermitian": False}
    run = Run(parse_config(closed_form, "test"))
    loaded = load_model(run.train())
    assert loaded.model.receptive_field == 0
    targets = [(graph.onsite, graph.target) for graph in run.data.training]
    scalar = torch.tensor([ir.dim == 1 for _, ir in loaded.spec.irreps for _ in range(ir.dim)])
    with torch.no_grad():
        for graph in run.data.training:
            found = loaded.model(graph).refined
            for own in (True, False):
                mean = torch.cat([target[onsite == own] for onsite, target in targets]).mean(0)
                expected = (mean * scalar).expand_as(found[graph.onsite == own])
                torch.testing.assert_close(found[graph.onsite == own], expected, atol=1e-4, rtol=1e-4)


def test_the_commands_take_it(closed_form, hamfast, tmp_path):
    path = Run(parse_config(closed_form, "test")).train()
    root = Path(closed_form["data"]["root"])
    structure = root / "dft" / "graphene_1x1_001b"
    status, output, _ = hamfast("evaluate", path)
    assert status == 0 and "closed form" in output
    (stage,) = json.loads((path.parent / "evaluation.json").read_text())["stages"].items()
    assert stage[0] == "closed form" and stage[1]["equivariance_error"] < 1e-9
    status, output, _ = hamfast("predict", path, structure, "--output", tmp_path / "out")
    assert status == 0
    mesh = ("--kpath", "GK", "--points", 4, "--mesh", 2, 2, 1)
    status, output, errors = hamfast(
        "bands", structure, *mesh, "--prediction", tmp_path / "out" / structure.name, "--output", tmp_path / "b"
    )
    assert status == 0, errors
    assert hamfast("data", "info", root)[0] == 0


def test_it_is_fitted_again_when_it_goes_on(closed_form):
    path = Run(parse_config(closed_form, "test")).train()
    before = load_model(path).model.state_dict()
    path.unlink()
    assert Run(parse_config(closed_form, "test")).train(resume=True) == path
    for name, value in load_model(path).model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_starts_from_it(settings, closed_form, fixtures):
    """With the checkpoint's shift and a network that knows nothing yet."""
    source = Run(parse_config(closed_form, "test")).train()
    settings |= {"precision": "float64", "target": closed_form["target"], "output": settings["output"] + "_network"}
    settings["training"]["init_from"] = str(source)
    console = Console(record=True, width=200)
    run = Run(parse_config(settings, "test"), console)
    model, _ = run._initial_model()
    text = console.export_text()
    assert "taken from the checkpoint: target normalisation; elements: C" in text
    assert "fresh: stage 1, which the checkpoint does not have" in text
    expected = load_model(source).model.normalization.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.normalization.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    cases(
        {
            "stage2": ({"stage2": {}}, "stage1 is null, so stage2 and training.stage1 must be null, too"),
            "phase": ({"training": {"stage2": None}}, "stage1 is null, so stage2 and training.stage1 must be null"),
            "second-phase": (
                {"training": {"stage1": None}},
                "stage2 is null, so training.stage2 must be null and training.joint false",
            ),
            "no-shift": ({"target": {"shift": "none"}}, "stage1 is null, so target.shift is the model and may not be"),
            "no-phase": ({"stage1": {}}, "stage1 has a model, but training.stage1 is null"),
        }
    ),
)
def test_settings_that_do_not_fit_are_named(closed_form, change, message):
    with pytest.raises(HamfastError, match=f"^test: configuration: {message}") as caught:
        parse_config(closed_form | change, "test")
    assert "\n" not in str(caught.value)
