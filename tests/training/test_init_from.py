"""Starting from a checkpoint: the same predictions at once, also with other elements around."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import cases, random_snapshot
from rich.console import Console
from runs import losses

from hamfast.analysis import predict
from hamfast.data import build_graph, read_snapshot, read_split
from hamfast.data.statistics import dataset_statistics
from hamfast.errors import HamfastError
from hamfast.models import TargetNormalization
from hamfast.targets import TargetSpec
from hamfast.training import Run, load_model
from hamfast.training.checkpoint import build_model, describe
from hamfast.training.config import load_config, parse_config
from hamfast.training.initial import check_compatible, take_weights

A, B, C, D = 6, 7, 5, 8
SHELLS = {A: (0, 0, 1, 2), B: (0, 1), C: (0, 1, 2), D: (0, 0, 1)}


def config(**changes):
    stage1 = {"irreps_mid": "4x0e+3x1o+2x2e+2x3o+2x4e", "num_basis": 8, "radial_hidden": 8, "embed_dim": 4}
    content = {
        "output": "o",
        "precision": "float64",
        "data": {"root": "r"},
        "stage1": stage1 | {"num_blocks": 2},
        "stage2": {"hidden": 8, "num_blocks": 1, "num_heads": 2, "num_basis": 4},
    }
    return parse_config(content | changes, "test")


def trained(path, spec, settings, cutoff=3.0):
    """A checkpoint with random numbers everywhere, in the normalisation too."""
    model = build_model(settings, spec, 4.0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype), alpha=0.3)
    cutoffs = np.full((spec.num_species, spec.num_species), cutoff)
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    torch.save({"hamfast": describe(settings, model, cutoffs), "state_dict": state}, path)
    return load_model(path)


def spec_of(order, spinful=False):
    return TargetSpec.from_mapping({z: SHELLS[z] for z in order}, spinful)


def matrices(model, snapshot):
    """The predicted blocks as matrices: they do not depend on how a model numbers elements and
    targets."""
    graph = build_graph(snapshot, model.spec)
    spec, out = model.spec, []
    output = model(graph)
    for irreps in (output.baseline, output.refined):
        for n, pair in enumerate(graph.pair_species(spec.num_species).tolist()):
            out.append(spec.to_blocks(irreps[n : n + 1], pair // spec.num_species, pair % spec.num_species).flatten())
    return torch.cat(out)


@pytest.mark.parametrize("spinful", [False, True], ids=["plain", "soc"])
@pytest.mark.parametrize(
    ("old", "new"),
    [((A, B), (A, B)), ((A, B), (B, A)), ((A, B), (C, B, D, A)), ((A,), (B, A)), ((A, B, C), (C, A))],
    ids=["same", "order", "more", "one-to-two", "fewer"],
)
def test_predictions_are_those_of_the_checkpoint(tmp_path, double, old, new, spinful):
    """For structures of the elements that both know."""
    settings = config()
    source = trained(tmp_path / "model.ckpt", spec_of(old, spinful), settings)
    spec = spec_of(new, spinful)
    check_compatible(settings, spec, source, "test")
    model = build_model(settings, spec, source.model.r_max)
    words = take_weights(model, source)
    common = [z for z in old if z in new]
    assert words[0].startswith("taken from the checkpoint: stage 1 and stage 2; elements: ")
    assert (len(words) == 2) == bool(set(new) - set(old))
    snapshot = random_snapshot({z: SHELLS[z] for z in common}, (common * 3)[:4], spinful)
    with torch.no_grad():
        found, expected = matrices(model.eval(), snapshot), matrices(source.model, snapshot)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_a_new_element_leaves_no_trace_of_others(tmp_path, double):
    """Rows of elements that are not in the checkpoint are what they were before."""
    settings = config()
    source = trained(tmp_path / "model.ckpt", spec_of((A, B)), settings)
    model = build_model(settings, spec_of((A, C)), source.model.r_max)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    take_weights(model, source)
    after = model.state_dict()
    embedding = "stage1.embedding.weight"
    assert torch.equal(after[embedding].view(2, -1)[1], before[embedding].view(2, -1)[1])
    # e3nn divides the product with a one-hot vector by the root of its length.
    torch.testing.assert_close(after[embedding].view(2, -1)[0], source.model.state_dict()[embedding].view(2, -1)[0])
    rows = after["stage2.pair_embedding.weight"]
    assert torch.equal(rows[0], source.model.state_dict()["stage2.pair_embedding.weight"][0])
    assert torch.equal(rows[1:], before["stage2.pair_embedding.weight"][1:])


def test_a_new_second_stage_starts_fresh(tmp_path, double):
    source = trained(tmp_path / "model.ckpt", spec_of((A,)), config(stage2=None, training={"stage2": None}))
    settings = config()
    check_compatible(settings, spec_of((A,)), source, "test")
    model = build_model(settings, spec_of((A,)), source.model.r_max)
    words = take_weights(model, source)
    assert words[1] == "fresh: stage 2, which the checkpoint does not have"
    snapshot = random_snapshot({A: SHELLS[A]}, [A, A])
    with torch.no_grad():
        graph = build_graph(snapshot, model.spec)
        torch.testing.assert_close(model(graph).baseline, source.model(graph).baseline, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    cases(
        {
            "stage1": ({"stage1": {"num_blocks": 1}}, (A, B), "stage1.irreps_mid: .* in the checkpoint.*stage1.num_blocks: 2 in the checkpoint, 1 in"),
            "normalisation": ({"target": {"scale": "none"}}, (A, B), "target.scale: radial in the checkpoint, none in the configuration"),
            "other-targets": ({}, (A, B, 42), r"the targets differ.*C \[0, 0, 1, 2\], N \[0, 1\] in the checkpoint, .*Mo \[3\] in the data"),
            "other-shells": ({}, (7, 6), r"N has shells \[0, 1\] in the checkpoint, \[0\] in the data"),
        }
    ),
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, double, changes, spec, message):
    source = trained(tmp_path / "model.ckpt", spec_of((A, B)), config())
    shells = SHELLS | {42: (3,)} | ({7: (0,)} if spec == (7, 6) else {})
    wanted = TargetSpec.from_mapping({z: shells[z] for z in spec}, False)
    with pytest.raises(HamfastError, match=message):
        check_compatible(config(**changes), wanted, source, "x")
    with pytest.raises(HamfastError, match="made without spin-orbit coupling, the data are with it"):
        check_compatible(config(), spec_of((A, B), True), source, "x")


def test_a_shift_by_environment_needs_the_same_elements(tmp_path, double):
    settings = config(target={"shift": "environment", "environment": 3.0})
    source = trained(tmp_path / "model.ckpt", spec_of((A, B)), settings)
    check_compatible(settings, spec_of((A, B)), source, "x")
    model = build_model(settings, spec_of((A, B)), source.model.r_max)
    take_weights(model, source)
    snapshot = random_snapshot({z: SHELLS[z] for z in (A, B)}, [A, B, A])
    with torch.no_grad():
        found, expected = matrices(model, snapshot), matrices(source.model, snapshot)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    message = r"target.shift environment is fitted for all elements together, C .*, N .* in the checkpoint"
    with pytest.raises(HamfastError, match=message):
        check_compatible(settings, spec_of((B, A)), source, "x")


def test_fine_tuning_a_run(settings, tmp_path, fixtures):
    """Graphene's model goes on with graphene and h-BN: the averaged weights and the normalisation
    come from the checkpoint."""
    first = Run(parse_config(settings, "test")).train()
    source = load_model(first)
    snapshot = read_snapshot(fixtures / "graphene_1x1_001")
    expected = predict(source, snapshot).refined.entries
    root = tmp_path / "other"
    for name in ("hBN_1x1_000", "graphene_1x1_000", "graphene_1x1_001"):
        shutil.copytree(fixtures / name, root / "dft" / name)
    split = {"train": ["hBN_1x1_000", "graphene_1x1_000"], "validate": ["graphene_1x1_001"]}
    (root / "dataset_split.json").write_text(json.dumps(split))
    settings["data"]["root"] = str(root)
    settings["output"] += "_tuned"
    settings["training"]["init_from"] = str(first)
    for phase in ("stage1", "stage2"):
        settings["training"][phase] |= {"learning_rate": 1e-12, "epochs": 2}
    console = Console(record=True, width=100)
    tuned = Run(parse_config(settings, "test"), console).train(stop_after_epoch=1)
    assert tuned is None
    assert "elements: C" in console.export_text(clear=False)
    assert "fresh: what belongs to" in console.export_text()
    first.unlink()  # a run that has begun does not need it
    tuned = load_model(Run(parse_config(settings, "test")).train(resume=True))
    assert {z for z, _ in tuned.model.spec.shells} == {5, 6, 7}
    found = predict(tuned, snapshot).refined.entries
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.fixture
def small_cells(settings, graphene, tmp_path):
    """Trained on 18 atoms of the bundled set, with a local stage 1; and settings to go on."""
    (tmp_path / "small.json").write_text(json.dumps({"train": ["3x3_000", "3x3_001"], "validate": ["3x3_020"]}))
    settings["data"] |= {"root": str(graphene), "split": str(tmp_path / "small.json")}
    settings |= {"stage2": None, "precision": "float64"}
    settings["stage1"] |= {"environment": 3.6, "num_blocks": 1, "node_products": 1}
    settings["training"] = {"stage1": settings["training"]["stage1"] | {"epochs": 2}, "stage2": None}
    first = Run(parse_config(settings, "test")).train()
    (tmp_path / "large.json").write_text(json.dumps({"train": ["4x4_000"], "validate": ["3x3_020"]}))
    settings["data"]["split"] = str(tmp_path / "large.json")
    settings["output"] += "_large"
    settings["training"]["init_from"] = str(first)
    settings["training"]["stage1"] |= {"epochs": 8, "learning_rate": 1e-2, "average": "elements"}
    return first, settings


def test_fine_tuning_on_larger_cells(small_cells, graphene, double, monkeypatch):
    """It begins at the error of the checkpoint, which becomes smaller; the normalisation stays."""
    first, settings = small_cells

    def refuse(*_):
        raise AssertionError("the checkpoint's normalisation covers the data")

    monkeypatch.setattr(TargetNormalization, "fit", refuse)
    source, large = load_model(first), read_snapshot(graphene / "dft" / "4x4_000")
    tuned = load_model(Run(parse_config(settings, "test")).train())
    expected = source.model.normalization.state_dict()
    for name, value in tuned.model.normalization.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0)
    before = (predict(source, large).refined.entries - large.hamiltonian.entries) * 1e3
    objective = losses(settings["output"])
    assert objective[0] == pytest.approx(np.mean(before**2), rel=1e-6)
    assert objective[-1] < 0.95 * objective[0]
    assert source.model.half_cell < tuned.model.half_cell == pytest.approx(large.half_cell)


def test_the_example_goes_on_with_the_demo(graphene, monkeypatch):
    """Its configuration fits the demo's checkpoint, and its split has the larger cell."""
    monkeypatch.chdir(graphene.parents[1])
    demo, larger = (load_config(graphene / name) for name in ("config.yaml", "larger_cells.yaml"))
    for section in ("target", "stage1", "stage2"):
        assert getattr(larger, section) == getattr(demo, section)
    assert larger.training.init_from == f"{demo.output}/model.ckpt"
    split = read_split(Path(larger.data.root), Path(larger.data.split))
    assert {f.name for f in split["train"]} > {f.name for f in read_split(graphene)["train"]}
    counts = dataset_statistics(split["train"], measured=split["train"]).counts
    edges = {f.name: count.pairs for f, count in counts.items()}
    assert larger.data.max_edges >= max(edges.values())
    assert larger.data.batch_size * edges["3x3_000"] <= larger.data.max_edges  # a step of small cells is full


def test_the_checkpoint_must_be_there(settings, tmp_path):
    settings["training"]["init_from"] = str(tmp_path / "nowhere.ckpt")
    with pytest.raises(HamfastError, match="training.init_from: .*nowhere.ckpt: checkpoint not found"):
        Run(parse_config(settings, "test")).train()
    assert not (tmp_path / "run").exists()
