"""What PyG's attention layers take for a graph: sparse matrices, integers of any dtype, empty ones;
and what they refuse.
"""

import numpy as np
import pytest
import torch
from kit import assert_close, running_on

from hamfast import nn, ops

geometric = pytest.importorskip("torch_geometric.nn")
pytestmark = pytest.mark.usefixtures("double")

NODES, IN, EDGE_DIM = 5, 6, 3
# By receiver, then sender, as a sparse matrix has them; edge 4 is a self-loop, node 4 has none.
RECEIVERS, SENDERS = torch.tensor([0, 1, 1, 2, 2, 3, 3]), torch.tensor([1, 0, 3, 1, 2, 1, 2])
PAIRS = torch.stack([SENDERS, RECEIVERS])
EDGES = len(SENDERS)
LAYERS = {
    "transformer": (geometric.TransformerConv, nn.GraphTransformerConv, {}),
    "gat": (geometric.GATv2Conv, nn.GATv2Conv, {"add_self_loops": False}),
    "gat_loops": (geometric.GATv2Conv, nn.GATv2Conv, {}),
}


def make(name, **more):
    """PyG's layer, hamfast's with the same state, and features of nodes."""
    theirs, ours, options = LAYERS[name]
    layer = theirs(IN, 4, heads=2, **options, **more)
    made = ours(IN, 4, heads=2, **options, **more)
    made.load_state_dict(layer.state_dict())
    return layer, made, torch.randn(NODES, IN, requires_grad=True)


def adjacency(layout, values):
    """The graph as torch's sparse matrix with such values."""
    matrix = torch.sparse_coo_tensor(PAIRS.flip(0), values, (NODES, NODES, *values.shape[1:])).coalesce()
    if layout == "coo":
        return matrix
    starts = torch.tensor([0, 1, 3, 5, 7, 7])
    return torch.sparse_csr_tensor(starts, SENDERS.clone(), values, matrix.shape)


@pytest.mark.parametrize("features", [False, True], ids=["scalars", "rows"])
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_sparse_matrices(name, layout, features):
    """Torch's sparse matrices give PyG's output, gradient and weights."""
    if name == "gat_loops" and features:
        pytest.skip("PyG adds no self-loops to a matrix of rows")
    layer, made, x = make(name, **({"edge_dim": EDGE_DIM} if features else {}))
    values = torch.randn(EDGES, EDGE_DIM) if features else torch.randn(EDGES)
    matrix = adjacency(layout, values)
    out, expected = made(x, matrix), layer(x, matrix)
    assert_close(out, expected, atol=1e-12)
    grad = torch.randn_like(expected)
    assert_close(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(expected, x, grad)[0], atol=1e-11)
    found = made(x, matrix, return_attention_weights=True)[1]
    assert found[0].layout == matrix.layout
    if (
        name == "gat" and features
    ):  # PyG makes a matrix of a wrong size, and fails; the weights of the same edges as pairs
        true = layer(x, PAIRS, values, return_attention_weights=True)[1][1]
        assert_close(found[0].to_dense()[RECEIVERS, SENDERS], true)
    else:
        matrix, true = layer(x, matrix, return_attention_weights=True)[1]
        assert_close(found[0].to_dense(), matrix.to_dense())
    assert_close(found[1], true)


class SparseTensor:
    """The interface of torch_sparse's, which has to be compiled to be there."""

    def __init__(self, rows, columns, value):
        self.rows, self.columns, self.value = rows, columns, value

    def coo(self):
        """Rows, columns and values."""
        return self.rows, self.columns, self.value

    def size(self, _):
        """Both sizes are the same."""
        return NODES

    def set_value(self, value, layout):
        """The same matrix with other values."""
        assert layout == "coo"
        return SparseTensor(self.rows, self.columns, value)

    def set_diag(self):
        """The matrix with all self-loops, by rows."""
        rows, columns = (
            torch.cat([t[self.rows != self.columns], torch.arange(NODES)]) for t in (self.rows, self.columns)
        )
        order = torch.argsort(rows * NODES + columns)
        return SparseTensor(rows[order], columns[order], None)


@pytest.mark.parametrize("name", list(LAYERS))
def test_matrices_of_torch_sparse(name):
    """A matrix of torch_sparse gives what PyG gives for the pairs."""
    layer, made, x = make(name)
    out, weighted = made(x, SparseTensor(RECEIVERS, SENDERS, None), return_attention_weights=True)
    expected, (pairs, weights) = layer(x, PAIRS, return_attention_weights=True)
    assert_close(out, expected, atol=1e-12)
    dense = torch.zeros(NODES, NODES, 2)
    assert_close(
        dense.index_put((weighted.rows, weighted.columns), weighted.value),
        dense.index_put((pairs[1], pairs[0]), weights),
    )


def test_a_matrix_of_rectangles():
    """Senders and receivers may differ in number; a transposed matrix is refused."""
    layer = geometric.TransformerConv((IN, 4), 4)
    made = nn.GraphTransformerConv((IN, 4), 4)
    made.load_state_dict(layer.state_dict())
    x = torch.randn(NODES, IN), torch.randn(NODES - 1, 4)
    matrix = torch.sparse_coo_tensor(PAIRS.flip(0), torch.ones(EDGES), (NODES - 1, NODES)).coalesce()
    assert_close(made(x, matrix), layer(x, matrix), atol=1e-12)
    with pytest.raises(
        ValueError, match=r"edge_index: expected an adjacency \[4, 5\], receivers first, found \[5, 4\]"
    ):
        made(x, matrix.t().coalesce())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("name", list(LAYERS))
def test_integers_of_any_dtype(name, dtype):
    """Pairs of any integer dtype give what int64 gives."""
    layer, made, x = make(name)
    out, (pairs, weights) = made(x, PAIRS.to(dtype), return_attention_weights=True)
    expected, (true_pairs, true_weights) = layer(x, PAIRS, return_attention_weights=True)
    assert_close(out, expected, atol=1e-12)
    assert torch.equal(pairs.long(), true_pairs)
    assert_close(weights, true_weights)


@pytest.mark.parametrize(("nodes", "edges"), [(4, 0), (0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_empty_graphs_to_the_second_derivative(name, features, nodes, edges):
    """Without nodes or edges all derivatives are those of PyG."""
    layer, made, _ = make(name, **({"edge_dim": EDGE_DIM} if features else {}))
    x, pairs = torch.randn(nodes, IN, requires_grad=True), torch.zeros(2, edges, dtype=torch.int64)
    attr = torch.randn(edges, EDGE_DIM, requires_grad=True) if features else None
    results = []
    for m in (made, layer):
        out = m(x, pairs, attr)
        first = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)[0]
        results.append((out, first, torch.autograd.grad(first.pow(2).sum(), x, allow_unused=True)[0]))
    for a, b in zip(*results, strict=True):
        assert_close(torch.zeros_like(x) if a is None else a, torch.zeros_like(x) if b is None else b, atol=1e-10)


def test_features_without_a_use():
    """Features that a layer cannot use are refused by name."""
    x, e = torch.randn(NODES, IN), torch.randn(EDGES, EDGE_DIM)
    for name in LAYERS:
        layer, made, _ = make(name)
        with pytest.raises((AssertionError, RuntimeError)):
            layer(x, PAIRS, e)
        with pytest.raises(
            ValueError, match=r"edge_attr: expected None, as the layer was made without edge_dim, found .*\[7, 3\]"
        ):
            made(x, PAIRS, e)
    layer, made, _ = make("gat", edge_dim=EDGE_DIM)
    assert_close(made(x, PAIRS), layer(x, PAIRS))  # PyG's GATv2Conv does without
    with pytest.raises(ValueError, match=r"edge_attr: expected \[7, 3\], found \[6, 3\]"):
        made(x, PAIRS, e[1:])


def test_a_graph_is_as_its_tensor_is():
    """Also after writes that torch does not see."""
    layer, made, x = make("transformer")
    pairs = PAIRS.clone()
    made(x, pairs)
    pairs.numpy()[1, 0] = 4
    assert_close(made(x, pairs), layer(x, pairs), atol=1e-12)
    matrix = adjacency("csr", torch.ones(EDGES))
    made(x, matrix)
    matrix.col_indices().numpy()[0] = 4
    assert_close(made(x, matrix), layer(x, matrix), atol=1e-12)


def test_a_write_between_forward_and_backward():
    """The backward pass is that of the graph as it was."""
    layer, made, x = make("transformer")
    pairs, kept = PAIRS.clone(), PAIRS.clone()
    out = made(x, pairs)
    pairs.numpy()[:] = 0
    pairs.zero_()
    grad = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(layer(x, kept), x, grad)[0], atol=1e-11)


@pytest.mark.parametrize("prepared", [False, True])
def test_inference_first_then_training(prepared):
    """What inference mode remembered can be trained on."""
    layer, made, x = make("transformer")
    with torch.inference_mode():
        edges = ops.edge_index(*PAIRS.clone(), NODES) if prepared else PAIRS.clone()
        first = made(x, edges)
    out, expected = made(x, edges), layer(x, PAIRS)
    assert_close(first, expected.detach(), atol=1e-12)
    grad = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(expected, x, grad)[0], atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads: expected 1 or more, found 0"),
        ({"heads": 1.5}, "heads: expected an integer, found 1.5"),
        ({"out_channels": 0}, "out_channels: expected 1 or more, found 0"),
        ({"in_channels": -2}, "in_channels: expected 0 or more, found -2"),
        ({"edge_dim": -2}, "edge_dim: expected 0 or more, found -2"),
        ({"aggr": "max"}, "aggr: expected one of add, sum, mean, found 'max'"),
        ({"dropout": 2}, "dropout: expected a probability from 0 to 1, found 2"),
        ({"dropout": -0.1}, "dropout: expected a probability from 0 to 1, found -0.1"),
        ({"dropout": "no"}, "dropout: expected a number, found 'no'"),
        ({"heads": np.int64(0)}, "heads: expected 1 or more, found 0$"),
    ],
)
def test_arguments_that_no_layer_can_have(options, message):
    """Each argument is refused by name, with what was found."""
    for layer in (nn.GraphTransformerConv, nn.GATv2Conv):
        with pytest.raises((TypeError, ValueError), match=f"{layer.__name__}: {message}"):
            layer(**({"in_channels": IN, "out_channels": 4} | options))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_everything_dropped(backend):
    """torch's dropout takes 1, and so does PyG."""
    layer, made, x = make("transformer", dropout=1.0)
    with running_on(backend) as device:
        out = made.to(device)(x.to(device), PAIRS.to(device))
        first = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.pow(2).sum(), x)[0]
    expected = layer(x, PAIRS)
    true = torch.autograd.grad(expected.pow(2).sum(), x, create_graph=True)[0]
    assert_close(out.cpu(), expected, atol=1e-12)
    assert_close(first.cpu(), true, atol=1e-11)
    assert_close(second.cpu(), torch.autograd.grad(true.pow(2).sum(), x)[0], atol=1e-10)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (
            PAIRS.numpy(),
            r"edge_index: expected integers \[2, edges\], a sparse adjacency .*, found numpy.ndarray \[2, 7\]",
        ),
        (None, "edge_index: .*found None"),
        ([[0], [1]], "edge_index: .*found list"),
        (PAIRS.double(), "edge_index: expected integers, found torch.float64"),
        (PAIRS.T, r"edge_index: expected \[2, edges\], found \[7, 2\]"),
    ],
)
def test_what_is_no_graph(edges, message):
    """What is no graph is refused with what was expected."""
    with pytest.raises((TypeError, ValueError), match=message):
        nn.GraphTransformerConv(IN, 4)(torch.randn(NODES, IN), edges)
