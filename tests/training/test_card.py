"""Cards and small copies of checkpoints, and the models that come with hamfast."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import tiny_checkpoint

from hamfast.analysis.coverage import Coverage
from hamfast.analysis.prediction import predict
from hamfast.data import read_snapshot
from hamfast.errors import HamfastError
from hamfast.trained import checkpoint_path, names
from hamfast.training import Run, load_model
from hamfast.training.card import card, pack
from hamfast.training.config import parse_config


def test_a_run_packed(settings, tmp_path, fixtures):
    """The copy predicts the same, is smaller, and its card says what the run knew."""
    settings["stage2"] = None
    settings["training"]["stage2"] = None
    source = Run(parse_config(settings, "test")).train()
    found = {"MAE_all": 1.5, "MAE_onsite": 2.5, "eigenvalue_MAE": None, "gap_error": 7.0}
    (source.parent / "evaluation.json").write_text(json.dumps({"structures": ["a"], "stages": {"stage 1": found}}))
    target = tmp_path / "small.ckpt"
    pack(source, target, "PBE, CP2K")
    assert target.stat().st_size < 0.6 * source.stat().st_size
    snapshot = read_snapshot(fixtures / "graphene_1x1_000")
    before, after = (predict(load_model(path), snapshot).refined for path in (source, target))
    np.testing.assert_array_equal(before.entries, after.entries)
    text = dict(card(target))
    assert text["about"] == "PBE, CP2K" and text["elements and shells"] == "C [0, 0, 1, 1, 2]"
    assert text["errors, stage 1"] == "MAE of H 1.50, on-site 2.50, gap 7.00 meV, 1 structures"
    assert text["training: structures"] == "2, of 2 atoms" and text["training: bonds of C"].startswith("3, at ")
    assert str(tmp_path) not in repr(torch.load(target, weights_only=True)["hamfast"])  # nobody's folders
    with pytest.raises(HamfastError, match="small.ckpt: exists already"):
        pack(source, target, None)


def test_commands(hamfast, fixtures, tmp_path):
    path = tiny_checkpoint(tmp_path / "model.ckpt", [fixtures / "graphene_1x1_000"])
    status, output, _ = hamfast("model", "info", path)
    assert status == 0 and "receptive field: " in output and "overlap: none" in output
    status, output, _ = hamfast("model", "pack", path, tmp_path / "copy.ckpt", "--about", "a test")
    assert status == 0 and "about: a test" in hamfast("model", "info", tmp_path / "copy.ckpt")[1]
    status, _, error = hamfast("model", "info", tmp_path / "nothing")
    assert status == 1 and "nothing: checkpoint not found; the models that come with hamfast: graphene" in error


@pytest.mark.parametrize("name", names())
def test_shipped_models(hamfast, name, tmp_path, graphene):
    """Its card says all of what a user must know; it is right about a DFT calculation."""
    found = dict(card(checkpoint_path(Path(name))))
    assert {"about", "training: structures", "errors, stage 1"} <= found.keys()
    assert found["overlap"].startswith("fitted") and "held-out structures" in found["uncertainty"]
    assert checkpoint_path(Path(name)).stat().st_size < 5e6
    assert name in hamfast("model", "list")[1].split()


def test_the_graphene_model(graphene):
    """On bundled calculations of DFT that were not in its training."""
    loaded, coverage = load_model("graphene"), Coverage(0.9)
    for label, limit in (("3x3_022", 0.6), ("4x4_000", 1.2)):
        snapshot = read_snapshot(graphene / "dft" / label)
        prediction = predict(loaded, snapshot, 0.9)
        found = prediction.refined
        coverage.add(snapshot, prediction, None)
        difference = [
            np.abs(found.block(n) - snapshot.hamiltonian.block(snapshot.hamiltonian.index[tuple(pair)])).ravel()
            for n, pair in enumerate(found.pairs.tolist())
            if tuple(pair) in snapshot.hamiltonian.index
        ]
        assert 1e3 * np.concatenate(difference).mean() < limit
    held = coverage.summary()
    share = [held[kind]["coverage"] * held[kind]["count"] for kind in ("on-site", "near", "far")]
    # What is held of each size of cell: docs/uncertainty.md.
    assert 0.85 < sum(share) / sum(held[kind]["count"] for kind in ("on-site", "near", "far")) < 1
    assert held["near"]["rank_correlation"] > 0.5 and held["far"]["rank_correlation"] > 0.5
