"""Any split of a batch over processes gives the same gradient and the same logged values, also
where sets are uneven."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import cases, random_snapshot
from runs import TORCHRUN, final_weights, finish, history, start, wait_for_epoch

from hamfast.data import by_name
from hamfast.graph import batch_graphs
from hamfast.training import Run
from hamfast.training.config import parse_config
from hamfast.training.module import CascadeTraining
from hamfast.training.processes import Processes
from hamfast.training.sampler import EpochSampler

# Random crystals are none that a plausibility check would pass.
pytestmark = pytest.mark.filterwarnings("ignore::hamfast.errors.DataWarning")


def enlarge(settings, fixtures, train, validate):
    """So many structures in each subset; every second one is another crystal."""
    root = Path(settings["data"]["root"])
    labels = []
    for n in range(train + validate):
        labels.append(f"s{n}")
        os.symlink(fixtures / f"graphene_1x1_00{n % 2}", root / "dft" / labels[-1])
    (root / "dataset_split.json").write_text(json.dumps({"train": labels[:train], "validate": labels[train:]}))


def mixed(settings, atoms, validate=1):
    """Random crystals with so many atoms each; the last ones validate."""
    root = Path(settings["data"]["root"])
    labels = []
    for n, count in enumerate(atoms):
        labels.append(f"m{n}")
        snapshot = random_snapshot({6: (0, 1)}, [6] * count, seed=n, cutoff=3.0)
        by_name("deeph").write(snapshot, root / "dft" / labels[-1])
    for other in root.glob("dft/graphene*"):
        other.unlink()
    split = {"train": labels[:-validate], "validate": labels[-validate:]}
    (root / "dataset_split.json").write_text(json.dumps(split))


@pytest.mark.parametrize(
    ("length", "world", "size"),
    cases(
        {
            "3-on-2": (3, 2, 2),
            "5-on-2-by-2": (5, 2, 4),
            "7-on-2-by-2": (7, 2, 4),
            "7-on-3-by-2": (7, 3, 6),
            "2-on-4": (2, 4, 4),
            "9-on-4-by-3": (9, 4, 12),
        }
    ),
)
def test_every_structure_counts_once(length, world, size):
    """Batches are slices of one permutation, and the processes share them."""
    order = [n for (n,) in EpochSampler(length, 5, 0, 1, 1)]
    assert sorted(order) == list(range(length))
    samplers = [EpochSampler(length, 5, rank, world, size) for rank in range(world)]
    dealt = [list(sampler) for sampler in samplers]
    steps = -(-length // size)
    assert {len(d) for d in dealt} == {len(s) for s in samplers} == {steps}  # all take part in every step
    for step in range(steps):
        counted = []
        for sampler, batches in zip(samplers, dealt, strict=True):
            counted += batches[step][: sampler.real(step)]
            assert len(batches[step]) == max(1, sampler.real(step))
        expected = order[step * size : (step + 1) * size]
        assert sorted(counted) == sorted(expected)
        assert {sampler.total_weight(step) for sampler in samplers} == {len(expected)}


SIZES = {
    "mixed": [18] * 20 + [32] * 5 + [50] * 2,
    "all-different": [100 + 7 * n for n in range(40)],
    "larger-than-the-limit": [30, 500, 31, 32, 700, 33, 34],
    "awkward": [51, 49, 52, 48, 53, 47, 34, 33, 33] * 3,
    "one": [5],
}


@pytest.mark.parametrize("edges", cases(SIZES))
@pytest.mark.parametrize("limit", [101, 250])
def test_batches_stay_below_the_limit_of_edges(edges, limit):
    orders, counts = set(), set()
    for epoch in range(30):
        samplers = [EpochSampler(len(edges), 5, r, 3, 6, edges=edges, max_edges=limit) for r in range(3)]
        alone = EpochSampler(len(edges), 5, 0, 1, 6, edges=edges, max_edges=limit)
        for sampler in (alone, *samplers):
            sampler.set_epoch(epoch)
        batches = list(alone)
        counts |= {len(batches), len(alone)}
        orders.add(str(batches))
        assert sorted(n for batch in batches for n in batch) == list(range(len(edges)))
        for batch in batches:
            assert len(batch) == 1 or (sum(edges[n] for n in batch) <= limit and len(batch) <= 6)
        # Three processes share the same batches, and none has more than a third and a structure.
        for step, batch in enumerate(batches):
            hands = [list(s)[step][: s.real(step)] for s in samplers]
            assert sorted(n for hand in hands for n in hand) == sorted(batch)
            most = sum(edges[n] for n in batch) / 3 + max(edges[n] for n in batch)
            assert all(sum(edges[n] for n in hand) <= most for hand in hands)
    assert len(counts) == 1  # the schedule counts on it
    assert len(orders) == 30 or len(edges) < 20
    # Two batches that follow each other would not fit into one.
    (count,) = counts
    bound = sum(min(e, limit) for e in edges) / limit + len(edges) / 6
    assert bound / 2 <= count <= 2 * bound + 1


def test_batches_follow_from_seed_and_epoch():
    edges = SIZES["mixed"]
    first, other = (EpochSampler(len(edges), 5, 0, 1, 6, edges=edges, max_edges=150) for _ in range(2))
    for epoch in (0, 1, 2, 7):
        first.set_epoch(epoch)
    other.set_epoch(7)  # as a run that is resumed
    assert list(first) == list(other)
    unequal = EpochSampler(len(edges), 6, 0, 1, 6, edges=edges, max_edges=150)
    unequal.set_epoch(7)
    assert list(unequal) != list(first)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_has_the_batches_of_an_uninterrupted_one(settings, monkeypatch, workers):
    """Also where processes that read begin with an epoch before Lightning says which."""
    mixed(settings, [2, 1, 3, 1, 4, 2, 1, 3, 2])
    settings |= {"stage2": None}
    settings["training"]["stage2"] = None
    settings["data"] |= {"batch_size": 3, "max_edges": 17, "num_workers": workers}
    seen, original = {}, CascadeTraining.training_step

    def step(self, batch, batch_idx):
        seen.setdefault(Path(self.config.output).name, []).append((self.current_epoch, batch.labels))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CascadeTraining, "training_step", step)
    Run(parse_config(settings | {"output": settings["output"] + "/whole"}, "test")).train()
    resumed = parse_config(settings | {"output": settings["output"] + "/resumed"}, "test")
    Run(resumed).train(stop_after_epoch=2)
    Run(resumed).train(resume=True)
    assert seen["resumed"] == seen["whole"]
    assert len({labels for _, labels in seen["whole"]}) > len(seen["whole"]) // 2  # epochs differ


@pytest.mark.parametrize(
    ("atoms", "world", "size", "limit"),
    cases(
        {
            "5-on-2-by-2": ([2, 1, 3, 1, 4], 2, 4, None),
            "3-on-4": ([2, 3, 1], 4, 4, None),
            "edges-on-2": ([2, 1, 3, 1, 4], 2, 4, 17),
            "edges-on-3": ([2, 1, 3, 1, 4], 3, 6, 17),
        }
    ),
)
@pytest.mark.parametrize("loss", ["mse", "mae"])
@pytest.mark.parametrize("average", ["structures", "elements"])
def test_the_mean_of_the_gradients_is_that_of_one_process(
    settings, double, monkeypatch, atoms, world, size, limit, loss, average
):
    """What DistributedDataParallel does, by hand: the mean over processes of each one's gradient.
    It is that of the mean over structures, or over matrix elements, by plain arithmetic."""
    mixed(settings, [*atoms, 2])
    settings["precision"] = "float64"
    settings["data"] |= {"batch_size": size, "max_edges": limit}
    settings["training"]["stage1"] |= {"loss": loss, "average": average}
    run = Run(parse_config(settings, "test"))
    model, cutoffs = run._initial_model()
    parameters = list(model.stage1.trainable_parameters())
    module = CascadeTraining(model, run.config, "stage1", cutoffs, 1, *[run.data.batches(average).training_sampler] * 2)

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, materialize_grads=True)])

    def expected(numbers):
        values = []
        for graph in (run.data.training[n] for n in numbers):
            blocks = model.spec.to_blocks(model(graph, refine=False).refined - graph.target, 0, 0)
            values.append(1e6 * blocks.square().flatten() if loss == "mse" else 1e3 * blocks.abs().flatten())
        return torch.cat(values).mean() if average == "elements" else torch.stack([v.mean() for v in values]).mean()

    batches = list(run.data.batches(average).training_sampler)
    assert (len(batches) > -(-len(atoms) // size)) == (limit is not None)
    for step, numbers in enumerate(batches):
        found = []
        for rank in range(world):
            monkeypatch.setattr(run.data, "processes", Processes(rank, world, world))
            module.deals["train"] = run.data.batches(average).training_sampler
            own = list(module.deals["train"])[step]
            found.append(gradient(module.training_step(batch_graphs([run.data.training[n] for n in own]), step)))
        truth = gradient(expected(numbers))
        assert truth.norm() > 0
        tolerance = 1e-9 * float(truth.abs().max())
        torch.testing.assert_close(sum(found) / world, truth, rtol=1e-9, atol=tolerance)


def test_rotations_do_not_depend_on_the_processes(settings, fixtures, double):
    enlarge(settings, fixtures, 5, 1)
    settings["training"]["stage1"]["rotate_angle"] = 0.3
    run = Run(parse_config(settings, "test"))
    model, cutoffs = run._initial_model()
    rotated = {}
    for world in (1, 2, 3):
        for rank in range(world):
            sampler = EpochSampler(5, 0, rank, world, 6)
            module = CascadeTraining(model, run.config, "stage1", cutoffs, 1, sampler, sampler)
            (numbers,) = sampler
            graph = module._augment(batch_graphs([run.data.training[n] for n in numbers]), 0)
            for index, number in enumerate(numbers):
                own = graph.vector[graph.edge_graph == index]
                torch.testing.assert_close(own, rotated.setdefault(number, own), rtol=0, atol=0)
                assert not torch.equal(own, run.data.training[number].vector)


@pytest.mark.parametrize("average", ["structures", "elements"])
def test_logged_losses_are_means_over_structures(settings, double, average):
    """Against matrix elements, by hand; the weights hardly move."""
    mixed(settings, [1, 3, 2, 4, 1, 2], validate=3)
    settings["precision"] = "float64"
    settings["data"]["batch_size"] = 2
    settings["training"]["stage1"] |= {"epochs": 1, "learning_rate": 1e-13, "ema": None, "average": average}
    for loss in ("mse", "mae"):
        settings["training"]["stage1"]["loss"] = loss
        settings["output"] += loss
        run = Run(parse_config(settings, "test"))
        model, _ = run._initial_model()
        expected = {}
        for subset in ("train", "validate"):
            losses, absolute, sizes = [], [], []
            for graph in run.data.subsets[subset]:
                difference = model(graph, refine=False).refined.detach() - graph.target
                blocks = model.spec.to_blocks(difference, 0, 0)
                absolute.append(1e3 * float(blocks.abs().mean()))
                sizes.append(blocks.numel() if average == "elements" else 1)
                losses.append(1e3 * float(blocks.square().mean().sqrt()) if loss == "mse" else absolute[-1])
            expected[subset] = np.average(losses, weights=sizes), np.average(absolute, weights=sizes)
        run.train(stop_after_epoch=1)
        (row,) = history(settings["output"])
        found = {k: float(row[f"{n}_loss_meV"]) for k, n in (("train", "train"), ("validate", "val"))}
        assert found == pytest.approx({k: v[0] for k, v in expected.items()}, rel=1e-6)
        found = {k: float(row[f"{n}_mae_meV"]) for k, n in (("train", "train"), ("validate", "val"))}
        assert found == pytest.approx({k: v[1] for k, v in expected.items()}, rel=1e-6)


@pytest.mark.parametrize("average", ["structures", "elements"])
def test_two_processes_are_one_on_uneven_sets(settings, tmp_path, fixtures, average):
    """gloo on two CPU processes: 7 structures in batches of 4, the last with 2 and 1; 3 to
    validate; rotated at random. Or crystals of several sizes with a limit of edges."""
    if average == "structures":
        enlarge(settings, fixtures, 7, 3)
    else:
        mixed(settings, [2, 1, 3, 1, 4, 2, 3, 1], validate=3)
        settings["data"]["max_edges"] = 17
    settings["data"]["batch_size"] = 4
    settings |= {"precision": "float64", "accelerator": "cpu", "threads": 1}
    settings["training"]["stage2"]["epochs"] = 2
    settings["training"]["stage1"] |= {"epochs": 3, "clip": 10.0, "average": average}
    one = settings | {"output": settings["output"] + "_one"}
    Run(parse_config(one, "test")).train()
    status, output = finish(start(settings, tmp_path, 3, *TORCHRUN))
    assert status == 0, output
    for phase in ("stage1", "stage2"):
        expected, found = history(one["output"], phase), history(settings["output"], phase)
        assert len(found) == len(expected)
        for a, b in zip(expected, found, strict=True):
            assert {k: float(v) for k, v in b.items()} == pytest.approx({k: float(v) for k, v in a.items()}, rel=1e-8)
        weights = final_weights(one["output"], phase)
        for name, value in final_weights(settings["output"], phase).items():
            torch.testing.assert_close(value, weights[name], atol=1e-8, rtol=1e-7)


def test_a_run_goes_on_with_another_number_of_processes(settings, tmp_path):
    """One process, then two that are ended, then two that share each structure: the numbers of one
    that is not stopped."""
    mixed(settings, [2, 1, 3, 1, 4, 2, 3, 1], validate=3)
    settings["data"] |= {"batch_size": 4, "max_edges": 17, "max_edges_at_once": 9}
    settings |= {"precision": "float64", "accelerator": "cpu", "threads": 1, "stage2": None}
    settings["training"]["stage2"] = None
    settings["training"]["stage1"] |= {"epochs": 40, "clip": 10.0}
    one = settings | {"output": settings["output"] + "_one"}
    Run(parse_config(one, "test")).train()
    Run(parse_config(settings, "test")).train(stop_after_epoch=2)
    process = start(settings, tmp_path, 40, *TORCHRUN, resume=True)
    wait_for_epoch(process, settings["output"], 5)
    process.terminate()  # torchrun says so to its workers, which end after a step
    process.communicate()
    assert len(history(settings["output"])) < 40
    settings["training"]["share_structures"] = True
    status, output = finish(start(settings, tmp_path, 40, *TORCHRUN, resume=True))
    assert status == 0, output
    expected, found = history(one["output"]), history(settings["output"])
    for a, b in zip(expected, found, strict=True):
        assert {k: float(v) for k, v in b.items()} == pytest.approx({k: float(v) for k, v in a.items()}, rel=1e-8)
    for name, value in final_weights(one["output"]).items():
        torch.testing.assert_close(final_weights(settings["output"])[name], value, atol=1e-8, rtol=1e-7)
