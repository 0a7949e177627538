"""A training step of stage 1 on the bundled graphene set.

Beside it stands the same network from e3nn's modules, on the same weights.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from cases import NETWORKS

from hamfast.data import GraphDataset, dataset_spec
from hamfast.models import CovariantConfig, CovariantNetwork
from hamfast.reference import E3nnNetwork

FOLDER = Path(__file__).parent.parent / "examples" / "graphene" / "dft" / "3x3_000"


@cache
def problem(size):
    """The structure, hamfast's network and the same from e3nn's modules."""
    spec = dataset_spec([FOLDER])
    graph = GraphDataset([FOLDER], spec, None)[0]
    network = CovariantNetwork(CovariantConfig(**NETWORKS[size]), spec)
    theirs = E3nnNetwork(network)
    for update in (*theirs.node_updates, *theirs.edge_updates):
        update.weight.requires_grad_()
    return graph, network, theirs


@pytest.mark.parametrize("implementation", ["hamfast", "e3nn"])
@pytest.mark.parametrize("size", list(NETWORKS))
def test_training_step(measure, size, implementation):
    """Forward and backward of stage 1 beside e3nn's modules, on results that agree."""
    graph, network, theirs = problem(size)
    with torch.no_grad():
        ours_out, theirs_out = network(graph)[0], theirs(graph)
    assert float((ours_out - theirs_out).norm() / theirs_out.norm()) < 1e-4

    def step():
        out = network(graph)[0] if implementation == "hamfast" else theirs(graph)
        (out - graph.target).square().sum().backward()

    measure(implementation, f"stage1 {size}", "training step", step, rounds=4)
