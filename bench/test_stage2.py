"""A training step of stage 2 on the bundled graphene set.

Beside it stands the same network from plain torch ops, on the same weights.
`dense products` is nothing but the matrix products of hamfast's linear layers, forward and
backward.
No kernel can be faster than that.
"""

from pathlib import Path

import pytest
import torch
from cases import NETWORKS
from plain_transformer import PlainBlock, choose_blocks, dense_products

from hamfast.data import GraphDataset, dataset_spec
from hamfast.models import CovariantConfig, CovariantNetwork
from hamfast.models import transformer as stage2

FOLDER = Path(__file__).parent.parent / "examples" / "graphene" / "dft" / "3x3_000"
CONFIG = stage2.TransformerConfig()


@pytest.mark.parametrize("implementation", ["hamfast", "plain torch", "dense products"])
def test_training_step(measure, implementation):
    """Forward and backward of stage 2 beside plain torch, on results that agree."""
    torch.manual_seed(0)
    spec = dataset_spec([FOLDER])
    graph = GraphDataset([FOLDER], spec, None)[0]
    first = CovariantNetwork(CovariantConfig(**NETWORKS["demo"]), spec)
    with torch.no_grad():
        baseline, nodes, features = first(graph)
    network = stage2.RefinementTransformer(CONFIG, spec, first.irreps_node, first.irreps_edge)
    torch.nn.init.normal_(network.output.weight, std=0.1)
    ours = list(network.blocks)
    plain = [PlainBlock(block) for block in ours]

    def run(blocks):
        choose_blocks(network, blocks)
        return network(graph, baseline, nodes, features)

    with torch.no_grad():
        torch.testing.assert_close(run(ours), run(plain), atol=1e-4, rtol=1e-4)
    if implementation == "dense products":
        return measure(implementation, "stage2", "training step", dense_products(network, lambda: run(ours)), rounds=8)
    blocks = ours if implementation == "hamfast" else plain

    def step():
        (baseline + run(blocks) - graph.target).square().sum().backward()

    measure(implementation, "stage2", "training step", step, rounds=8)
