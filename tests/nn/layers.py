"""Every layer of hamfast.nn with inputs for it."""

import torch

from hamfast import nn, ops

NODES, IRREPS = 4, "2x0e+1x1o"


def graph():
    """Senders, then receivers, of five edges."""
    return torch.tensor([[0, 0, 1, 2, 2], [1, 1, 0, 0, 2]])


def prepared():
    """The same as an EdgeIndex."""
    return ops.edge_index(*graph(), NODES)


class OnFrames(torch.nn.Module):
    """Of fixed edges: how many of them have no length has to be known."""

    def __init__(self):
        super().__init__()
        self.layer = nn.EdgeTensorProduct(IRREPS, 2, "2x0e+1x1o+1x2e")
        self.frames = ops.edge_frames(torch.randn(5, 3), 2)

    def forward(self, x):
        """The layer on the frames."""
        return self.layer(x, self.frames)


class OnEdges(torch.nn.Module):
    """A layer that takes a graph, which is the same in every call."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.edges = layer, prepared()

    def forward(self, x, *rest):
        """The layer on the graph."""
        return self.layer(x, self.edges, *rest)


class Convolution(torch.nn.Module):
    """A tensor product that gathers and sums over the edges of a graph."""

    def __init__(self):
        super().__init__()
        self.layer, self.edges = nn.FullyConnectedTensorProduct(IRREPS, "1x0e+1x1o", IRREPS), prepared()

    def forward(self, x, y):
        """x: rows of nodes; y: rows of edges."""
        return self.layer(x, y, edges=self.edges)


LAYERS = {
    "TensorProduct": lambda: (
        nn.TensorProduct(IRREPS, "1x1o", "2x1o+1x0e", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)]),
        (torch.randn(NODES, 5), torch.randn(NODES, 3)),
    ),
    "FullyConnectedTensorProduct": lambda: (
        nn.FullyConnectedTensorProduct(IRREPS, "1x0e+1x1o", IRREPS),
        (torch.randn(NODES, 5), torch.randn(NODES, 4)),
    ),
    "FullyConnectedTensorProduct on a graph": lambda: (Convolution(), (torch.randn(NODES, 5), torch.randn(5, 4))),
    "EdgeTensorProduct": lambda: (OnFrames(), (torch.randn(5, 5),)),
    "Linear": lambda: (nn.Linear(IRREPS, IRREPS, biases=True), (torch.randn(NODES, 5),)),
    "SpeciesLinear": lambda: (nn.SpeciesLinear(IRREPS, 1, IRREPS), (torch.randn(NODES, 5), torch.zeros(NODES).long())),
    "Gate": lambda: (nn.Gate("2x0e", "1x0e", "1x1o"), (torch.randn(NODES, 6),)),
    "EquivariantLayerNorm": lambda: (
        nn.EquivariantLayerNorm(IRREPS),
        (torch.randn(NODES, 5), torch.tensor([0, 0, 1, 1]), 2),
    ),
    "GaussianBasis": lambda: (nn.GaussianBasis(0.0, 5.0, 4), (torch.rand(NODES),)),
    "RadialMLP": lambda: (nn.RadialMLP(4, 8, 3), (torch.randn(NODES, 4),)),
    "GraphTransformerConv": lambda: (
        OnEdges(nn.GraphTransformerConv(3, 4, heads=2, edge_dim=2)),
        (torch.randn(NODES, 3), torch.randn(5, 2)),
    ),
    "GATv2Conv": lambda: (
        OnEdges(nn.GATv2Conv(3, 4, heads=2, add_self_loops=False)),
        (torch.randn(NODES, 3),),
    ),
}
