"""GraphTransformerConv and GATv2Conv against PyG's layers, and accelerate() on models of PyG."""

import copy

import pytest
import torch
from kit import assert_close

import hamfast
from hamfast import nn, ops
from hamfast.nn.pair_graph import pair_graph

geometric = pytest.importorskip("torch_geometric.nn")
pytestmark = pytest.mark.usefixtures("double")

# Node 4 has no edges, edges 0 and 1 are the same pair, edge 3 is a self-loop.
PAIRS = torch.tensor([[0, 0, 1, 2, 3, 1, 2], [1, 1, 0, 2, 2, 3, 3]])
NODES, EDGES, IN, EDGE_DIM = 5, 7, 6, 3
TRANSFORMER = {
    "plain": {},
    "edges": {"edge_dim": EDGE_DIM},
    "heads": {"heads": 3, "edge_dim": EDGE_DIM},
    "mean_beta": {"heads": 2, "concat": False, "beta": True, "edge_dim": EDGE_DIM},
    "bare": {"heads": 2, "root_weight": False, "bias": False},
    "bipartite": {"in_channels": (IN, 4), "heads": 2},
}
GAT = {
    "plain": {},
    "edges": {"heads": 2, "edge_dim": EDGE_DIM},
    "fill_max": {"heads": 2, "edge_dim": EDGE_DIM, "fill_value": "max"},
    "fill_number": {"edge_dim": EDGE_DIM, "fill_value": 0.5},
    "no_loops": {"heads": 3, "concat": False, "add_self_loops": False, "negative_slope": 0.1},
    "shared_residual": {"heads": 2, "share_weights": True, "residual": True, "bias": False},
    "bipartite": {"in_channels": (IN, 4), "heads": 2, "add_self_loops": False},
}


def make(theirs, ours, options):
    """PyG's layer, hamfast's with the same state, and inputs for both."""
    options = {"in_channels": IN, "out_channels": 4} | options
    layer = theirs(**options)
    made = ours(**options)
    assert made.state_dict().keys() == layer.state_dict().keys()
    made.load_state_dict(layer.state_dict())
    x = torch.randn(NODES, IN, requires_grad=True)
    x = (
        (x, torch.randn(NODES - 1, 4, requires_grad=True))
        if "in_channels" in options and options["in_channels"] != IN
        else x
    )
    edge_attr = torch.randn(EDGES, EDGE_DIM, requires_grad=True) if "edge_dim" in options else None
    return layer, made, x, edge_attr


def check(layer, made, x, edge_attr):
    """Output, gradients, second derivatives and attention weights agree."""
    leaves = [*(x if isinstance(x, tuple) else (x,)), *([] if edge_attr is None else [edge_attr])]
    out, expected = made(x, PAIRS, edge_attr), layer(x, PAIRS, edge_attr)
    assert_close(out, expected, atol=1e-12)
    grad = torch.randn_like(expected)
    names = [n for n, _ in layer.named_parameters()]
    ours, theirs = dict(made.named_parameters()), dict(layer.named_parameters())
    found = torch.autograd.grad(out, [*leaves, *(ours[n] for n in names)], grad, create_graph=True, allow_unused=True)
    true = torch.autograd.grad(
        expected, [*leaves, *(theirs[n] for n in names)], grad, create_graph=True, allow_unused=True
    )
    for a, b in zip(found, true, strict=True):
        if b is not None:
            assert_close(a, b, atol=1e-11)
    # What a loss on forces needs.
    second = [torch.autograd.grad(first[0].pow(2).sum(), leaves) for first in (found, true)]
    for a, b in zip(*second, strict=True):
        assert_close(a, b, atol=1e-10)
    weighted = [m(x, PAIRS, edge_attr, return_attention_weights=True)[1] for m in (made, layer)]
    assert torch.equal(weighted[0][0], weighted[1][0])
    assert_close(weighted[0][1], weighted[1][1])


@pytest.mark.parametrize("options", TRANSFORMER.values(), ids=TRANSFORMER)
def test_transformer_conv_is_pygs(options):
    """GraphTransformerConv against TransformerConv."""
    check(*make(geometric.TransformerConv, nn.GraphTransformerConv, options))


@pytest.mark.parametrize("options", GAT.values(), ids=GAT)
def test_gatv2_conv_is_pygs(options):
    """GATv2Conv against that of PyG."""
    check(*make(geometric.GATv2Conv, nn.GATv2Conv, options))


def test_dropout_only_in_training():
    """Results vary in training and do not in evaluation."""
    layer = nn.GraphTransformerConv(IN, 4, heads=2, dropout=0.5)
    x = torch.randn(NODES, IN)
    assert not torch.equal(layer(x, PAIRS), layer(x, PAIRS))
    layer.eval()
    assert torch.equal(layer(x, PAIRS), layer(x, PAIRS))


def test_a_graph_is_sorted_once_and_again_after_a_change():
    """The prepared graph is remembered until its tensor changes."""
    pairs = PAIRS.clone()
    first = pair_graph(pairs, NODES, NODES)
    assert pair_graph(pairs, NODES, NODES) is first
    pairs[1, 0] = 2
    assert pair_graph(pairs, NODES, NODES).edges.receivers[0] == 2
    layer, x = nn.GraphTransformerConv(IN, 4), torch.randn(NODES, IN)
    prepared = ops.edge_index(PAIRS[0], PAIRS[1], NODES)
    assert_close(layer(x, prepared), layer(x, PAIRS))
    with pytest.raises(ValueError, match="expected 5 senders and 5 receivers, found 6 and 6"):
        layer(x, ops.edge_index(PAIRS[0], PAIRS[1], 6))
    with pytest.raises(ValueError, match=r"edge_index: expected \[2, edges\], found \[7\]"):
        layer(x, PAIRS[0])
    with pytest.raises(ValueError, match=r"edge_attr: expected \[edges, 3\], found None"):
        nn.GraphTransformerConv(IN, 4, edge_dim=3)(x, PAIRS)


class Network(torch.nn.Module):
    """As PyG's users write it; one layer has two names."""

    def __init__(self):
        super().__init__()
        self.first = geometric.TransformerConv(IN, 4, heads=2, edge_dim=EDGE_DIM)
        self.layers = torch.nn.ModuleList([geometric.GATv2Conv(8, 4, heads=2, edge_dim=EDGE_DIM) for _ in range(2)])
        self.again = self.layers[1]
        self.other = geometric.GATConv(8, 4)

    def forward(self, x, pairs, e):
        """All layers, one of them twice."""
        x = torch.relu(self.first(x, pairs, e))
        for layer in (*self.layers, self.again):
            x = x + torch.relu(layer(x, pairs, e))
        return self.other(x, pairs)


def test_accelerate_swaps_the_layers_and_says_so(monkeypatch):
    """Output, state and optimizer stay; the report names the new layers."""
    monkeypatch.setattr("hamfast.nn.adapters.pyg.FEW", {True: 0, False: 0})
    model = Network()
    x, e = torch.randn(NODES, IN), torch.randn(EDGES, EDGE_DIM)
    expected, state = model(x, PAIRS, e), copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = hamfast.accelerate(model)
    assert report.replaced == ["first", "layers.0", "layers.1"]
    assert model.again is model.layers[1] and isinstance(model.first, geometric.TransformerConv)
    assert "3 of 3 layers run on hamfast" in str(report) and "GATv2Conv: graph attention on hamfast" in str(report)
    assert_close(model(x, PAIRS, e), expected, atol=1e-12)
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    model(x, PAIRS, e).pow(2).sum().backward()
    optimizer.step()  # the parameters are the very same objects
    assert not torch.equal(model.first.lin_key.weight, state["first.lin_key.weight"])


def test_accelerate_leaves_alone_what_it_would_change():
    """Each layer that cannot be exchanged is reported with the reason."""

    class Mine(geometric.TransformerConv):
        pass

    model = torch.nn.ModuleDict(
        {
            "mine": Mine(IN, 4),
            "backwards": geometric.TransformerConv(IN, 4, flow="target_to_source"),
            "max": geometric.GATv2Conv(IN, 4, aggr="max"),
            "decomposed": geometric.GATv2Conv(IN, 4, decomposed_layers=2),
        }
    )
    report = str(hamfast.accelerate(model))
    for reason in ("subclass", "target_to_source", "neither a sum nor a mean", "decomposed"):
        assert reason in report
    assert "0 of 4 layers" in report
