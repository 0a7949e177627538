"""What PyG's users do with its attention layers holds for hamfast's, and for PyG's own after
accelerate(): lazy sizes, ``reset_parameters()``, ``aggr``, explainers, ``to_hetero``, TorchScript,
hooks, copies.
"""

import copy
import pickle

import pytest
import torch
from kit import assert_close

import hamfast
from hamfast import nn
from hamfast.nn import attention_call

geometric = pytest.importorskip("torch_geometric.nn")
pyg = pytest.importorskip("hamfast.nn.adapters.pyg")
pytestmark = pytest.mark.usefixtures("double")

# Node 4 has no edges; edge 3 is a self-loop.
PAIRS = torch.tensor([[0, 0, 1, 2, 3, 1, 2], [1, 1, 0, 2, 2, 3, 3]])
NODES, EDGES, IN, EDGE_DIM = 5, 7, 6, 3
LAYERS = {
    "transformer": (geometric.TransformerConv, nn.GraphTransformerConv),
    "gat": (geometric.GATv2Conv, nn.GATv2Conv),
}
both = pytest.mark.parametrize("name", list(LAYERS))


@pytest.fixture(autouse=True)
def for_any_edges(monkeypatch):
    """The graphs here are small: the op is to run on them, too."""
    monkeypatch.setattr(pyg, "FEW", {True: 0, False: 0})


@both
@pytest.mark.parametrize("gradients", [True, False])
def test_few_edges_run_on_pygs_code(name, gradients, calls, monkeypatch):
    """From so many numbers on the op runs; results are the same."""
    theirs = LAYERS[name][0](4, 3, heads=2).double()
    ours = accelerated(theirs)
    x = torch.randn(5, 4)
    pairs = torch.tensor([[0, 1, 2, 3, 4, 0, 1], [1, 2, 3, 4, 0, 2, 3]])
    for few, expected in ((7 * 6 + 1, 0), (7 * 6, 1)):
        monkeypatch.setattr(pyg, "FEW", {gradients: few, not gradients: 0})
        with torch.set_grad_enabled(gradients):
            assert_close(ours(x, pairs), theirs(x, pairs))
        assert len(calls) == expected
    calls.clear()
    monkeypatch.setattr(pyg, "FEW", {True: 10**9, False: 10**9})
    with torch.set_grad_enabled(gradients):
        ours(x, hamfast.ops.edge_index(pairs[0], pairs[1], 5))  # PyG does not know it
    assert len(calls) == 1


@pytest.fixture
def calls(monkeypatch):
    """One entry for each call of the op by a layer."""
    made = []
    run = attention_call.graph_attention
    monkeypatch.setattr(attention_call, "graph_attention", lambda *a, **k: (made.append(1), run(*a, **k))[1])
    return made


def accelerated(layer):
    """A copy of PyG's layer that runs on hamfast."""
    layer = copy.deepcopy(layer)
    assert hamfast.accelerate(layer).replaced == ["(the module itself)"]
    return layer


@both
@pytest.mark.parametrize("options", [{}, {"heads": 3, "edge_dim": EDGE_DIM}, {"bias": False}, {"in_channels": (IN, 4)}])
def test_parameters_are_drawn_as_pygs(name, options):
    """The same seed gives the same parameters, made and made anew."""
    theirs, ours = LAYERS[name]
    options = {"in_channels": IN, "out_channels": 4} | options
    drawn = []
    for layer in (theirs, ours):
        torch.manual_seed(3)
        made = layer(**options)
        first = [p.clone() for p in made.parameters()]
        made.reset_parameters()
        drawn.append([*first, *made.parameters()])
        assert not torch.equal(first[0], next(made.parameters()))
    for a, b in zip(*drawn, strict=True):
        assert_close(a, b, atol=1e-14)


@both
def test_parameters_of_an_accelerated_layer_are_drawn_as_pygs(name):
    layer = LAYERS[name][0](IN, 4, heads=2, edge_dim=EDGE_DIM)
    other = accelerated(layer)
    for made in (layer, other):
        torch.manual_seed(3)
        made.reset_parameters()
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@both
@pytest.mark.parametrize("in_channels", [-1, (-1, -1)])
def test_lazy_sizes(name, in_channels):
    """The first call tells the sizes; a state of another layer tells them, too."""
    theirs, ours = LAYERS[name]
    options = {"heads": 2, "edge_dim": -1} | ({"add_self_loops": False} if name == "gat" else {})
    x, e = torch.randn(NODES, IN), torch.randn(EDGES, EDGE_DIM)
    if in_channels != -1:
        x = (x, torch.randn(NODES, 4))
    layer, made, loaded = theirs(in_channels, 4, **options), ours(in_channels, 4, **options), None
    assert any(torch.nn.parameter.is_lazy(p) for p in made.parameters())
    expected = layer(x, PAIRS, e)
    loaded = ours(in_channels, 4, **options)
    loaded.load_state_dict(layer.state_dict())
    assert_close(loaded(x, PAIRS, e), expected)
    assert made(x, PAIRS, e).shape == expected.shape
    assert [p.shape for p in made.parameters()] == [p.shape for p in layer.parameters()]
    made.load_state_dict(layer.state_dict())
    assert_close(made(x, PAIRS, e), expected)


@both
def test_a_lazy_layer_of_pyg_runs_here_from_its_second_call_on(name, calls):
    layer = LAYERS[name][0](-1, 4, heads=2)
    assert "from the second call on" in str(hamfast.accelerate(layer))
    x = torch.randn(NODES, IN)
    first = layer(x, PAIRS)
    assert not calls
    assert_close(layer(x, PAIRS), first)
    assert calls


@both
@pytest.mark.parametrize("aggr", ["add", "sum", "mean"])
def test_sums_and_means(name, aggr, calls):
    theirs, ours = LAYERS[name]
    layer, made = theirs(IN, 4, heads=2, aggr=aggr), ours(IN, 4, heads=2, aggr=aggr)
    made.load_state_dict(layer.state_dict())
    x = torch.randn(NODES, IN, requires_grad=True)
    expected = layer(x, PAIRS)
    grad = torch.randn_like(expected)
    (true,) = torch.autograd.grad(expected, x, grad)
    for runs in (made, accelerated(layer)):
        out = runs(x, PAIRS)
        assert_close(out, expected)
        assert_close(torch.autograd.grad(out, x, grad)[0], true)
    assert len(calls) == 2


@both
def test_an_explained_layer_has_edge_masks(name, calls):
    """PyG's explainer gives the masks that it gives for PyG's layers."""
    explain = pytest.importorskip("torch_geometric.explain")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = LAYERS[name][0](IN, 4, heads=2)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    config = {"mode": "regression", "task_level": "node", "return_type": "raw"}
    model, masks = Model(), []
    x = torch.randn(NODES, IN)
    for _ in range(2):
        torch.manual_seed(1)
        explainer = explain.Explainer(
            model, explain.GNNExplainer(epochs=5), "model", config, edge_mask_type="object", node_mask_type="object"
        )
        masks.append(explainer(x, PAIRS).edge_mask)
        assert model.conv.explain is not True
        hamfast.accelerate(model)
    assert masks[0].count_nonzero() > 2
    assert_close(masks[1], masks[0])
    calls.clear()
    model(x, PAIRS)
    assert calls  # explained no more


@both
def test_to_hetero_after_accelerate(name, calls):
    """Results are those of PyG's layers, by type of node."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            options = {"add_self_loops": False} if name == "gat" else {}
            self.first, self.second = (LAYERS[name][0]((-1, -1), 4, heads=2, **options) for _ in range(2))

        def forward(self, x, edge_index):
            return self.second(self.first(x, edge_index).relu(), edge_index)

    metadata = (["a", "b"], [("a", "to", "b"), ("b", "to", "a"), ("a", "in", "a")])
    nodes = {"a": torch.randn(4, IN), "b": torch.randn(3, 2)}
    edges = {
        ("a", "to", "b"): torch.tensor([[0, 1, 3], [2, 0, 0]]),
        ("b", "to", "a"): torch.tensor([[0, 2], [1, 1]]),
        ("a", "in", "a"): torch.tensor([[0, 1, 2, 3], [1, 0, 3, 3]]),
    }
    model = Model()
    plain = geometric.to_hetero(model, metadata)
    hamfast.accelerate(model)
    fast = geometric.to_hetero(model, metadata)
    expected = plain(nodes, edges)
    fast(nodes, edges)  # tells the sizes
    fast.load_state_dict(plain.state_dict())
    calls.clear()
    found = fast(nodes, edges)
    assert len(calls) == 6 and set(found) == {"a", "b"}
    for kind in found:
        assert_close(found[kind], expected[kind])


@both
def test_hooks_see_what_they_see_in_pyg(name, calls):
    """Hooks on messages need PyG's code; hooks on modules do not."""
    layer = accelerated(LAYERS[name][0](IN, 4))
    x, seen = torch.randn(NODES, IN), []
    expected = layer(x, PAIRS)
    module_hook = layer.register_forward_hook(lambda *_: seen.append("module"))
    layer(x, PAIRS)
    assert seen == ["module"] and len(calls) == 2
    module_hook.remove()
    hook = layer.register_message_forward_hook(lambda module, inputs, out: seen.append(out.shape[0]))
    assert_close(layer(x, PAIRS), expected)
    assert seen[1] >= EDGES - 1 and len(calls) == 2
    hook.remove()
    layer(x, PAIRS)
    assert len(calls) == 3


@both
def test_copies_and_pickles_run_here(name, calls):
    layer = LAYERS[name][0](IN, 4, heads=2)
    text = str(layer)
    x = torch.randn(NODES, IN)
    expected = layer(x, PAIRS)
    layer = accelerated(layer)
    assert str(layer) == text
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        calls.clear()
        assert_close(other(x, PAIRS), expected)
        assert calls


@both
def test_features_as_pyg_takes_them(name):
    """One number an edge may be a vector; what PyG refuses is refused."""
    layer = LAYERS[name][0](IN, 4, heads=2, edge_dim=1)
    x, e = torch.randn(NODES, IN), torch.randn(EDGES)
    if name == "gat":
        assert_close(accelerated(layer)(x, PAIRS, e), layer(x, PAIRS, e))
        assert_close(accelerated(layer)(x, PAIRS), layer(x, PAIRS))
    else:
        with pytest.raises(ValueError, match=r"TransformerConv: edge_attr: expected \[edges, 1\], found None"):
            accelerated(layer)(x, PAIRS)
    with pytest.raises((AssertionError, RuntimeError)):
        accelerated(LAYERS[name][0](IN, 4))(x, PAIRS, torch.randn(EDGES, EDGE_DIM))


class Scriptable(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv(x, edge_index)


def test_torchscript_after_accelerate():
    """TorchScript has PyG's code.

    That of GATv2Conv of PyG 2.8 cannot be read by it, with hamfast or without.
    """
    layer = accelerated(geometric.TransformerConv(IN, 4, heads=2))
    x = torch.randn(NODES, IN)
    assert_close(torch.jit.script(Scriptable(layer))(x, PAIRS), layer(x, PAIRS))


@both
def test_graphs_as_pyg_takes_them_after_accelerate(name, calls):
    """``adj_t`` of torch, int32 pairs, and PyG's own EdgeIndex."""
    layer = LAYERS[name][0](IN, 4, heads=2)
    x = torch.randn(NODES, IN)
    matrix = torch.sparse_coo_tensor(PAIRS.flip(0), torch.ones(EDGES), (NODES, NODES)).coalesce()
    made = accelerated(layer)
    noted = pytest.importorskip("torch_geometric").EdgeIndex(PAIRS, sparse_size=(NODES, NODES))
    for edges in (matrix, matrix.to_sparse_csr(), PAIRS.to(torch.int32), noted):
        expected = layer(x, edges if edges.dtype != torch.int32 else PAIRS)
        assert_close(made(x, edges), expected)
    assert len(calls) == 4
