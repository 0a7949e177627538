"""Two of each layer in one graph of ``torch.compile``, against the same layers as they are."""

import pytest
import torch
from torch.testing import assert_close

from hamfast import nn, ops

A, B, HARMONICS = "8x0e+4x1o", "6x0e+4x1o", "1x0e+1x1o"
SPECIES = torch.tensor([0, 1, 1, 0, 1])
GRAPH = torch.tensor([0, 0, 1, 1, 1])


class Chain(torch.nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x, *others, **options):
        for layer in self.layers:
            x = layer(x, *others, **options)
        return x


class Beside(Chain):
    def forward(self, *given):
        return torch.cat([layer(*given) for layer in self.layers], dim=1)


def edges():
    senders, receivers = torch.tensor([[0, 1, 2, 3, 1], [1, 1, 0, 2, 2]])
    return ops.edge_index(senders, receivers, num_senders=5)


def rows(*columns):
    return [torch.randn(5, n, dtype=torch.float64, requires_grad=True) for n in columns]


def attention(layer, **options):
    return layer(20, 10, heads=2, edge_dim=4, **options)


CASES = {
    "Linear": lambda: (Chain(nn.Linear(A, B, biases=True), nn.Linear(B, A)), rows(20), {}),
    "SpeciesLinear": lambda: (Chain(nn.SpeciesLinear(A, 2, B), nn.SpeciesLinear(B, 2, A)), (*rows(20), SPECIES), {}),
    "Gate": lambda: (Chain(nn.Gate("12x0e", "4x0e", "4x1o"), nn.Gate("14x0e", "3x0e", "2x1o+1x0e")), rows(28), {}),
    "EquivariantLayerNorm": lambda: (
        Chain(nn.EquivariantLayerNorm(A), nn.EquivariantLayerNorm("20x0e")),
        (*rows(20), GRAPH, 2),
        {},
    ),
    "ScalarLayerNorm": lambda: (Chain(nn.ScalarLayerNorm(A), nn.ScalarLayerNorm("20x0e")), rows(20), {}),
    "SymmetricContraction": lambda: (
        Beside(*(nn.SymmetricContraction("4x0e+4x1o", "4x0e+4x1o", degree, num_elements=2) for degree in (2, 3))),
        (torch.randn(5, 4, 4, dtype=torch.float64, requires_grad=True), torch.eye(2, dtype=torch.float64)[SPECIES]),
        {},
    ),
    "products of rows": lambda: (
        Chain(nn.FullyConnectedTensorProduct(A, HARMONICS, B), nn.FullyConnectedTensorProduct(B, HARMONICS, A)),
        rows(20, 4),
        {},
    ),
    "products with scalars": lambda: (
        Chain(nn.FullyConnectedTensorProduct(A, "1x0e", B), nn.FullyConnectedTensorProduct(B, "1x0e", A)),
        rows(20, 1),
        {},
    ),
    "convolutions": lambda: (
        Chain(nn.FullyConnectedTensorProduct(A, HARMONICS, B), nn.FullyConnectedTensorProduct(B, HARMONICS, A)),
        rows(20, 4),
        {"edges": edges()},
    ),
    "GraphTransformerConv": lambda: (
        Chain(*(attention(nn.GraphTransformerConv) for _ in range(2))),
        (*rows(20), edges(), *rows(4)),
        {},
    ),
    "GATv2Conv": lambda: (
        Chain(*(attention(nn.GATv2Conv, add_self_loops=False) for _ in range(2))),
        (*rows(20), edges(), *rows(4)),
        {},
    ),
    "RadialMLP": lambda: (Chain(nn.RadialMLP(8, 6, 8), nn.RadialMLP(8, 5, 4)), rows(8), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_two_layers_in_one_graph(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, given, options = CASES[name]()
    model.double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for form in (model, compiled):
        model.zero_grad()
        out = form(*given, **options)
        wanted = (given[0], *(p for p in model.parameters() if p.requires_grad))
        results.append((out, *torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)))
    assert_close(*results, rtol=1e-10, atol=1e-12)
