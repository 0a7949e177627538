"""Any split of a batch over processes gives the same gradient and the same logged values, also
where sets are uneven."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import cases
from runs import TORCHRUN, final_weights, finish, history, start

from hamfast.graph import batch_graphs
from hamfast.training import Run
from hamfast.training.config import parse_config
from hamfast.training.module import CascadeTraining
from hamfast.training.sampler import EpochSampler


def enlarge(settings, fixtures, train, validate):
    """So many structures in each subset; every second one is another crystal."""
    root = Path(settings["data"]["root"])
    labels = []
    for n in range(train + validate):
        labels.append(f"s{n}")
        os.symlink(fixtures / f"graphene_1x1_00{n % 2}", root / "dft" / labels[-1])
    (root / "dataset_split.json").write_text(json.dumps({"train": labels[:train], "validate": labels[train:]}))


@pytest.mark.parametrize(
    ("length", "world", "size"),
    cases(
        {
            "3-on-2": (3, 2, 1),
            "5-on-2-by-2": (5, 2, 2),
            "7-on-2-by-2": (7, 2, 2),
            "7-on-3-by-2": (7, 3, 2),
            "2-on-4": (2, 4, 1),
            "9-on-4-by-3": (9, 4, 3),
        }
    ),
)
def test_every_structure_counts_once(length, world, size):
    samplers = [EpochSampler(length, 5, rank, world, size) for rank in range(world)]
    alone = list(EpochSampler(length, 5, 0, 1, size * world))
    dealt = [list(s) for s in samplers]
    assert len({len(d) for d in dealt}) == 1  # all processes take part in every step
    steps = -(-len(dealt[0]) // size)
    for step in range(steps):
        counted, totals = [], set()
        for sampler, positions in zip(samplers, dealt, strict=True):
            own, total = sampler.real(step)
            counted += positions[step * size : step * size + own]
            totals.add(total)
        expected = alone[step * size * world : (step + 1) * size * world]
        assert sorted(counted) == sorted(expected)
        assert totals == {len(expected)}


@pytest.mark.parametrize(
    ("length", "world", "size"),
    cases(
        {
            "3-on-2": (3, 2, 1),
            "5-on-2-by-2": (5, 2, 2),
            "3-on-4": (3, 4, 1),
        }
    ),
)
@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_the_mean_of_the_gradients_is_that_of_one_process(settings, fixtures, double, length, world, size, loss):
    """What DistributedDataParallel does, by hand: the mean over processes of each one's
    gradient."""
    enlarge(settings, fixtures, length, 1)
    settings["precision"] = "float64"
    settings["training"]["stage1"] |= {"loss": loss, "rotate_angle": 0.3}
    run = Run(parse_config(settings, "test"))
    model, cutoffs = run._initial_model()
    config = run.config

    def gradient(rank, processes, batch_size, step):
        sampler = EpochSampler(length, 0, rank, processes, batch_size)
        module = CascadeTraining(model, config, "stage1", cutoffs, 1, sampler, sampler)
        positions = list(sampler)[step * batch_size : (step + 1) * batch_size]
        model.zero_grad()
        module.training_step(batch_graphs([run.data.training[n] for n in positions]), step).backward()
        return torch.cat([p.grad.flatten() for p in model.stage1.parameters() if p.grad is not None])

    for step in range(-(-length // (size * world))):
        expected = gradient(0, 1, size * world, step)
        found = sum(gradient(rank, world, size, step) for rank in range(world)) / world
        assert expected.norm() > 0
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_logged_losses_are_means_over_structures(settings, fixtures, double):
    """Against matrix elements, by hand; the weights hardly move."""
    enlarge(settings, fixtures, 3, 3)
    settings["precision"] = "float64"
    settings["data"]["batch_size"] = 2
    settings["training"]["stage1"] |= {"epochs": 1, "learning_rate": 1e-13, "ema": None}
    for loss in ("mse", "mae"):
        settings["training"]["stage1"]["loss"] = loss
        settings["output"] += loss
        run = Run(parse_config(settings, "test"))
        model, _ = run._initial_model()
        expected = {}
        for subset in ("train", "validate"):
            losses, absolute = [], []
            for graph in run.data.subsets[subset]:
                difference = model(graph, refine=False).refined.detach() - graph.target
                blocks = model.spec.to_blocks(difference, 0, 0)
                absolute.append(1e3 * float(blocks.abs().mean()))
                losses.append(1e3 * float(blocks.square().mean().sqrt()) if loss == "mse" else absolute[-1])
            expected[subset] = np.mean(losses), np.mean(absolute)
        run.train(stop_after_epoch=1)
        (row,) = history(settings["output"])
        found = {k: float(row[f"{n}_loss_meV"]) for k, n in (("train", "train"), ("validate", "val"))}
        assert found == pytest.approx({k: v[0] for k, v in expected.items()}, rel=1e-6)
        found = {k: float(row[f"{n}_mae_meV"]) for k, n in (("train", "train"), ("validate", "val"))}
        assert found == pytest.approx({k: v[1] for k, v in expected.items()}, rel=1e-6)


def test_two_processes_are_one_on_uneven_sets(settings, tmp_path, fixtures):
    """gloo on two CPU processes: 7 structures in batches of 4, the last with 2 and 1; 3 to
    validate; rotated at random."""
    enlarge(settings, fixtures, 7, 3)
    settings["data"]["batch_size"] = 4
    settings |= {"precision": "float64", "accelerator": "cpu", "threads": 1}
    settings["training"]["stage2"]["epochs"] = 2
    settings["training"]["stage1"] |= {"epochs": 3, "clip": 10.0}
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
