"""Graph attention beside PyG's TransformerConv: 2,000 nodes, 40 neighbours, 8 heads x 32, edge features 64."""

import pytest
import torch
from cases import random_graph
from test_products import MODES, step

from hamfast import ops

HEADS, WIDTH, FEATURES, NODES, DEGREE = 8, 32, 64, 2000, 40


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("implementation", ["hamfast", "pyg"])
def test_transformer_conv(measure, implementation, mode):
    geometric = pytest.importorskip("torch_geometric.nn")
    senders, receivers = random_graph(NODES, DEGREE)
    conv = geometric.TransformerConv(HEADS * WIDTH, WIDTH, heads=HEADS, edge_dim=FEATURES, root_weight=False)
    edges = ops.edge_index(senders, receivers, NODES)
    leaves = [
        torch.randn(NODES, HEADS * WIDTH, requires_grad=True),
        torch.randn(NODES * DEGREE, FEATURES, requires_grad=True),
    ]

    def pyg(x, e):
        return conv(x, torch.stack([senders, receivers]), e)

    def ours(x, e):
        shape = (-1, HEADS, WIDTH)
        edge = conv.lin_edge(e).view(shape)
        return ops.graph_attention(
            edges,
            query_target=conv.lin_query(x).view(shape),
            key_source=conv.lin_key(x).view(shape),
            key_edge=edge,
            value_source=conv.lin_value(x).view(shape),
            value_edge=edge,
        ).flatten(1)

    torch.testing.assert_close(ours(*leaves), pyg(*leaves), atol=1e-4, rtol=1e-4)
    function = ours if implementation == "hamfast" else pyg
    measure(implementation, "transformer_conv A", mode, step(function, leaves, mode), rounds=5)
