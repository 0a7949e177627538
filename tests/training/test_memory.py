"""Batches worked off in parts, and layers that are computed twice: the gradients are those of the
whole batch, and less is kept for them."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from kit import random_snapshot
from runs import final_weights, history
from torch.autograd.graph import saved_tensors_hooks

from hamfast.data import build_graph
from hamfast.graph import batch_graphs, structures_of
from hamfast.models import Cascade
from hamfast.models.memory import TensorPeak
from hamfast.models.recomputed import RecomputedPieces
from hamfast.models.settings import CovariantConfig, TransformerConfig
from hamfast.targets import TargetSpec
from hamfast.training import Run
from hamfast.training.config import parse_config
from hamfast.training.module import CascadeTraining
from hamfast.training.sampler import EpochSampler

# Random crystals are none that a plausibility check would pass.
pytestmark = pytest.mark.filterwarnings("ignore::hamfast.errors.DataWarning")

SHELLS = {6: (0, 1), 8: (0, 0, 1)}
SPEC = TargetSpec.from_mapping(SHELLS, False)
MID = "4x0e+2x1o+2x2e+1x3o+1x4e"


def graphs():
    sets = ([6, 8], [6], [8, 6, 6], [6, 6], [8])
    return [build_graph(random_snapshot(SHELLS, numbers, seed=n, cutoff=3.0), SPEC) for n, numbers in enumerate(sets)]


def network(kind, environment=None, blocks=2, mid=MID):
    torch.manual_seed(0)
    local = {} if environment is None else {"environment": environment, "node_products": 1, "pair_blocks": 2}
    model = Cascade(
        SPEC,
        CovariantConfig(irreps_mid=mid, num_basis=8, radial_hidden=8, embed_dim=4, num_blocks=blocks, **local),
        TransformerConfig(
            kind=kind, irreps=mid, hidden=8, num_blocks=2, num_heads=2, num_basis=4, l_max=4, environment=environment
        ),
        target_shift="none",
        target_scale="none",
        hermitian=True,
        r_max=3.0,
        freeze_stage1=False,
    )
    for p in model.stage2.parameters():  # its output begins as zero
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_structures_of_a_batch_are_those_that_made_it():
    own = graphs()
    batch = batch_graphs(own)
    for first in range(len(own)):
        for last in range(first + 1, len(own) + 1):
            found, truth = structures_of(batch, first, last), batch_graphs(own[first:last])
            for field in fields(truth):
                a, b = getattr(found, field.name), getattr(truth, field.name)
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def module_of(model, recompute=False, most=None, loss="mse", average="structures", real=None):
    config = parse_config(
        {
            "output": "nowhere",
            "precision": "float64",
            "data": {"root": "nowhere", "max_edges_at_once": most},
            "training": {
                "recompute": recompute,
                "joint": True,
                "freeze_stage1": False,
                "stage1": {"loss": loss, "average": average, "onsite_weight": 2.0, "rotate_angle": 0.3},
            },
        },
        "test",
    )
    sampler = EpochSampler(5, None, 0, 1, 5, weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    sampler.real = lambda batch: 5 if real is None else real
    return CascadeTraining(model, config, "joint", None, 1, sampler, sampler)


def gradients(module, batch):
    module.training_step(batch, 0).backward()
    return {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}


def assert_same(found, truth):
    assert found.keys() == truth.keys() and len(truth) > 20
    for name, value in truth.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11 * float(value.abs().max() + 1))


@pytest.mark.parametrize("most", [1, 40, 100, 10_000])
@pytest.mark.parametrize("real", [5, 3], ids=["all", "two-repeats"])
@pytest.mark.parametrize(("loss", "average"), [("mse", "structures"), ("mae", "elements")])
def test_parts_have_the_gradients_of_the_batch(double, most, real, loss, average):
    """Also where some structures have no weight, and the sums that are logged are the same."""
    batch = batch_graphs(graphs())
    sizes = torch.bincount(batch.edge_graph).tolist()
    whole, parts = (module_of(network("frames", 2.0), False, n, loss, average, real) for n in (None, most))
    bounds = parts._parts(batch)
    assert [b for pair in bounds for b in pair][1:-1:2] == [a for a, _ in bounds][1:]
    for first, last in bounds:
        assert last == first + 1 or sum(sizes[first:last]) <= most
    assert (len(bounds) == 1) == (sum(sizes) <= most)
    assert_same(gradients(parts, batch), gradients(whole, batch))
    torch.testing.assert_close(parts.sums["train"], whole.sums["train"])


def kept_bytes(module, batch):
    """What autograd keeps of a step outside of what is computed twice."""
    found = [0]

    def pack(t):
        found[0] += t.numel() * t.element_size()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        loss = module._loss(batch, (0, batch.num_graphs), 0)
    loss.backward()
    return found[0]


@pytest.mark.parametrize("environment", [None, 2.0], ids=["published", "local"])
@pytest.mark.parametrize("kind", ["frames", "gradients", "plain"])
def test_layers_computed_twice_have_the_same_gradients(double, kind, environment):
    batch = batch_graphs(graphs())
    plain, twice = (module_of(network(kind, environment), recompute) for recompute in (False, True))
    assert_same(gradients(twice, batch), gradients(plain, batch))
    assert kept_bytes(twice, batch) < 0.5 * kept_bytes(plain, batch)


@pytest.mark.parametrize("environment", [None, 2.0], ids=["published", "local"])
@pytest.mark.parametrize("kind", ["frames", "gradients", "plain"])
def test_structures_in_pieces_have_the_same_gradients(double, kind, environment):
    """Also those of several structures in one graph, whose atoms are in any order."""
    batch = batch_graphs(graphs())
    for most in (1, 9):  # each atom is a piece, or some are
        plain, pieces = module_of(network(kind, environment)), module_of(network(kind, environment), True, most)
        assert len(RecomputedPieces(batch, most).pieces) > 2
        assert_same(gradients(pieces, batch), gradients(plain, batch))
        pieces._parts = plain._parts
        assert_same(gradients(pieces, batch), gradients(plain, batch))


@pytest.mark.parametrize("environment", [None, 2.0], ids=["published", "local"])
@pytest.mark.parametrize("kind", ["frames", "gradients", "plain"])
def test_structures_in_pieces_need_less_memory(double, kind, environment):
    """Of a crystal of many atoms, against layers that are computed twice as a whole."""
    graph = build_graph(random_snapshot(SHELLS, [6, 8] * 12, seed=1, cutoff=5.0), SPEC)
    peaks = []
    for most in (None, graph.num_edges // 8):
        module = module_of(network(kind, environment, mid="16x0e+8x1o+8x2e+4x3o+4x4e"), True, most)
        with TensorPeak() as peak:
            module._loss(graph, (0, 1), 0).backward()
        peaks.append(peak.bytes)
    assert peaks[1] < 0.65 * peaks[0]


def of_a_share(rank, world, file, cases, results):
    """One of several processes: the gradients of a batch that they share, added up over them."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    batch, found = batch_graphs(graphs()), []
    for kind, environment, recompute, most in cases:
        module = module_of(network(kind, environment), recompute, most)
        module.share(torch.distributed.group.WORLD)
        own = gradients(module, batch)
        for gradient in own.values():
            torch.distributed.all_reduce(gradient)
            gradient /= world  # as the processes of a training have them
        found.append((own, module.sums["train"], module.predict(batch).detach()))
    torch.save(found, f"{results}/{rank}")
    torch.distributed.destroy_process_group()


def test_structures_that_processes_share_have_the_same_gradients(double, tmp_path):
    """Some atoms to each process, whichever structure they are of; also in parts and pieces."""
    world = 3
    cases = [
        ("frames", None, True, 9),
        ("frames", 2.0, False, None),
        ("gradients", 2.0, True, None),
        ("plain", None, False, 20),
    ]
    arguments = (world, tmp_path / "meeting", cases, tmp_path)
    torch.multiprocessing.spawn(of_a_share, arguments, nprocs=world)
    batch = batch_graphs(graphs())
    for rank in range(world):
        for case, own in zip(cases, torch.load(tmp_path / str(rank)), strict=True):
            found, sums, predicted = own
            whole = module_of(network(*case[:2]))
            assert_same(found, gradients(whole, batch))
            torch.testing.assert_close(sums, whole.sums["train"])
            torch.testing.assert_close(predicted, whole.predict(batch).detach())


def relative(found, truth):
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("environment", [None, 2.0], ids=["published", "local"])
@pytest.mark.parametrize("kind", ["frames", "gradients", "plain"])
def test_mixed_precision_is_near_the_truth(double, kind, environment, recompute):
    """float64 is the truth: bfloat16 has 8 bits, float32 is there before and after the training."""
    batch = batch_graphs(graphs())
    module = module_of(network(kind, environment))
    truth, gradient = module.predict(batch).detach(), gradients(module, batch)
    torch.set_default_dtype(torch.float32)
    own = module_of(network(kind, environment), recompute)
    own.model.load_state_dict(module.model.state_dict())
    graph = batch.to(dtype=torch.float32)
    own.model.mixed_precision = True
    own.train()
    assert 1e-4 < relative(own.predict(graph).double(), truth) < 0.05
    found = gradients(own, graph)
    together = [torch.cat([g[name].flatten().double() for name in gradient]) for g in (found, gradient)]
    assert relative(*together) < 0.1
    assert all(value.dtype == torch.float32 for value in found.values())
    own.eval()  # as where it validates and predicts
    assert relative(own.predict(graph).double(), truth) < 1e-5


def test_what_is_in_ev_is_not_rounded(double):
    """The target and its normalisation, also where both are rotated."""
    torch.set_default_dtype(torch.float32)
    model = network("frames", 2.0)
    for stage in (model.stage1, model.stage2):
        for p in stage.parameters():
            torch.nn.init.zeros_(p)
    module = module_of(model)
    graph = module._augment(batch_graphs(graphs()).to(dtype=torch.float32), 0)
    plain = float(module._loss(graph, (0, 5), 0))
    model.mixed_precision = True
    assert float(module._loss(graph, (0, 5), 0)) == pytest.approx(plain, rel=1e-6)


def test_a_run_with_mixed_precision_learns(settings):
    """As one without: the validation, in float32, is as good."""
    settings["training"]["stage1"]["epochs"] = settings["training"]["stage2"]["epochs"] = 12
    Run(parse_config(settings | {"output": settings["output"] + "_whole"}, "test")).train()
    settings["training"]["mixed_precision"] = True
    Run(parse_config(settings, "test")).train()
    for phase in ("stage1", "stage2"):
        whole, mixed = (
            [float(row["val_mae_meV"]) for row in history(settings["output"] + end, phase)] for end in ("_whole", "")
        )
        assert mixed != whole
        assert mixed == pytest.approx(whole, rel=0.1)
    assert mixed[-1] < 0.9 * mixed[0]


def test_a_run_has_the_same_weights(settings):
    """In parts, and with layers computed twice; a run may change to both. With clipping, averages,
    and a second stage on a frozen first one."""
    settings |= {"precision": "float64"}
    settings["data"]["batch_size"] = 2
    settings["training"]["stage1"]["clip"] = 1.0
    whole = parse_config(settings | {"output": settings["output"] + "_whole"}, "test")
    Run(whole).train()
    Run(parse_config(settings, "test")).train(stop_after_epoch=2)
    settings["data"]["max_edges_at_once"], settings["training"]["recompute"] = 160, True
    assert Run(parse_config(settings, "test")).train(resume=True) is not None
    for phase in ("stage1", "stage2"):
        for name, value in final_weights(whole.output, phase).items():
            torch.testing.assert_close(final_weights(settings["output"], phase)[name], value, rtol=1e-7, atol=1e-9)
        assert len(history(settings["output"], phase)) == 4
    assert (Path(settings["output"]) / "model.ckpt").exists()
