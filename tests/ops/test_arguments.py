"""Public ops called with what they cannot take: a TypeError or ValueError that names the argument,
and says what was found."""

import re

import numpy as np
import pytest
import torch
from e3nn import o3

from hamfast import nn, ops
from hamfast.plan import contraction_plan, edge_frame_plan, make_plan

N, E = 3, 4
EDGES = ops.edge_index(torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 0]), N)
PLAN = make_plan("2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvu", True)])
FRAME_PLAN = edge_frame_plan(make_plan("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uvw", True)]))
FRAMES = ops.edge_frames(torch.randn(E, 3), 1)
X, Y, W = torch.randn(N, 2), torch.randn(E, 1), torch.randn(2)
SPARSE = ops.sparse_matrix(torch.eye(2))

GOOD = {
    ops.edge_index: {"senders": EDGES.senders, "receivers": EDGES.receivers, "num_senders": N, "num_receivers": N},
    ops.reverse_edges: {"edges": ops.edge_index(torch.tensor([0, 1]), torch.tensor([1, 0]), 2)},
    ops.tensor_product: {"x": X, "y": Y, "weight": W, "plan": PLAN, "edges": EDGES},
    ops.edge_frames: {"vector": torch.randn(E, 3), "l_max": 1},
    ops.edge_tensor_product: {"x": torch.randn(E, 1), "weight": torch.randn(1), "plan": FRAME_PLAN, "frames": FRAMES},
    ops.edge_update: {"edges": EDGES, "edge": torch.randn(E, 2), "weight": torch.randn(2), "bias": torch.randn(2)},
    ops.graph_attention: {
        "edges": EDGES,
        "query_receiver": torch.randn(N, 1, 2),
        "key_sender": torch.randn(N, 1, 2),
        "value_sender": torch.randn(N, 1, 2),
        "bias": torch.randn(E),
    },
    ops.sparse_matrix: {"dense": torch.eye(2)},
    ops.sparse_map: {"x": torch.randn(3, 2), "matrix": SPARSE},
    ops.symmetric_contraction: {
        "x": torch.randn(N, 2, 3),
        "weight": torch.randn(2, 1, 2),
        "y": torch.randn(N, 2),
        "plan": contraction_plan([[np.ones((1, 3, 3, 1))]], 3),
    },
    ops.rotate_irreps: {"x": torch.randn(3, 4), "irreps": o3.Irreps("1x0e+1x1o"), "rotation": torch.eye(3)},
    ops.rotation_from_euler: {"angles": torch.zeros(3)},
}
OPTIONAL = {
    ("tensor_product", "edges"),
    ("edge_update", "edge"),
    ("graph_attention", "bias"),
    ("graph_attention", "value_sender"),
    ("edge_index", "num_receivers"),
}
BAD = {
    "numpy": lambda v: v.detach().numpy() if isinstance(v, torch.Tensor) else np.zeros(2),
    "tuple": lambda v: (v,),
    "nothing": lambda v: None,
    "text": lambda v: "text",
    "scalar": lambda v: torch.tensor(1.0),
}
CASES = [
    (op, name, kind)
    for op, arguments in GOOD.items()
    for name in arguments
    for kind in BAD
    if not (kind == "nothing" and (op.__name__, name) in OPTIONAL) and name != "irreps"  # as e3nn reads it
]


@pytest.mark.parametrize(("op", "name", "kind"), CASES, ids=[f"{op.__name__}-{n}-{k}" for op, n, k in CASES])
def test_one_argument_is_wrong(op, name, kind):
    arguments = GOOD[op] | {name: BAD[kind](GOOD[op][name])}
    with pytest.raises((TypeError, ValueError)) as raised:
        op(**arguments)
    message = str(raised.value)
    assert re.search("expected .*found", message), message
    assert name.split("_")[0] in message and "\n" not in message and "np." not in message, message


@pytest.mark.parametrize("op", list(GOOD), ids=lambda op: op.__name__)
def test_the_arguments_are_good_otherwise(op):
    op(**GOOD[op])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.graph_attention(EDGES), "graph_attention: expected at least one of query_edge, .*found none"),
        (lambda: ops.graph_attention(EDGES, outer=(Y,)), r"outer: expected \(Y, u, sender or edge\), found tuple"),
        (lambda: ops.graph_attention(EDGES, bias=torch.randn(E), score="given", dropout="1"), "dropout: expected a number"),
        (lambda: ops.graph_attention(EDGES, bias=torch.randn(E), score="given", seed=1), "seed: expected a tensor, found 1"),
        (lambda: ops.edge_update(EDGES), "edge_update: expected at least one of edge, sender and receiver, found none"),
        (lambda: ops.edge_einsum(EDGES, "edge", (1, 1, 1)), "expected one to three operands, found 0"),
        (lambda: ops.edge_einsum(EDGES, "edge", (1, 1, 1), X), r"operand 0: expected a pair of a tensor and edge, sender or receiver, found torch.Tensor"),
        (lambda: ops.edge_einsum(EDGES, "edge", 3, (X, "edge")), r"shape: expected \(heads, components, width\), found 3"),
        (lambda: ops.edge_einsum(None, "edge", (1, 1, 1), (X, "edge")), "edges: expected an EdgeIndex .*found None"),
        (lambda: ops.edge_einsum(EDGES, "edge", (1, 1, 1), (X.numpy(), "edge")), r"operand 0: expected a tensor, found numpy.ndarray \[3, 2\]"),
        (
            lambda: ops.edge_einsum(EDGES, "edge", [np.int64(1), np.int64(13), 1], (torch.randn(E, 1, 4, 1), "edge")),
            r"axis 2: expected 1 or 13, found 4",
        ),
        (lambda: ops.edge_index(EDGES.senders, EDGES.receivers, np.int64(2)), r"senders: expected indices in \[0, 2\), found 0 to 2"),
        (lambda: ops.edge_index(EDGES.senders, EDGES.receivers, -1), "num_senders: expected 0 or more, found -1"),
        (lambda: ops.edge_index(EDGES.senders, EDGES.receivers, True), "num_senders: expected an integer, found True"),
        (
            lambda: ops.edge_tensor_product(ops.EdgeSources((X,), ("edge",), None), W, FRAME_PLAN, FRAMES),
            "x.edges: expected an EdgeIndex .*found None",
        ),
        (
            lambda: ops.edge_tensor_product(ops.EdgeSources(X, ("edge",), EDGES), W, FRAME_PLAN, FRAMES),
            "x.tensors: expected a tuple, found torch.Tensor",
        ),
        (
            lambda: ops.tensor_product(X, Y, ops.RadialWeights(X.numpy(), W), PLAN, EDGES),
            "weight.hidden: expected a tensor, found numpy.ndarray",
        ),
        (lambda: nn.Linear("2x0e", "2x0e")(X.numpy()), "Linear: x: expected a tensor, found numpy.ndarray"),
        (lambda: nn.Linear("2x0e", "2x0e")(Y), r"Linear: x: expected \[..., 2\], found \[4, 1\]"),
        (lambda: nn.SpeciesLinear("2x0e", 0, "2x0e"), "SpeciesLinear: species: expected 1 or more, found 0"),
        (lambda: nn.SpeciesLinear("2x0e", 2, "2x0e")(X, None), "SpeciesLinear: species: expected a tensor, found None"),
        (lambda: nn.Gate("1x0e", "", "")(X), r"Gate: x: expected \[..., 1\], found \[3, 2\]"),
        (lambda: nn.EquivariantLayerNorm("2x0e")(X, torch.zeros(2).long(), 1), r"graph: expected \[3\] int64, found \[2\]"),
        (lambda: nn.EquivariantLayerNorm("2x0e")(X, torch.zeros(3).long(), None), "num_graphs: expected an integer, found None"),
        (lambda: nn.FullyConnectedTensorProduct("2x0e", "1x0e", "2x0e")(X, None), "tensor_product: y: expected a tensor, found None"),
        (lambda: nn.EdgeTensorProduct("2x0e", -1, "2x0e"), "l_max: expected 0 or more, found -1"),
        (lambda: nn.EdgeTensorProduct("2x0e", 1, "2x0e")(X, X), "frames: expected EdgeFrames .*found torch.Tensor"),
        (lambda: nn.GaussianBasis(0.0, 1.0, 1), "number: expected 2 or more, found 1"),
        (lambda: nn.RadialMLP(4, -1, 2), "hidden: expected 0 or more, found -1"),
        (lambda: nn.GraphTransformerConv(2, 2)(X.numpy(), None), "x: expected a tensor, found numpy.ndarray"),
        (lambda: nn.GraphTransformerConv(2, 2)((X, X, X), None), r"x: expected a tensor or \(senders, receivers\), found 3 parts"),
        (lambda: nn.GATv2Conv(2, 2)(Y, None), r"x: expected \[rows, 2\], found \[4, 1\]"),
        (lambda: nn.polynomial_envelope(torch.ones(2), 0), "cutoff: expected a positive length, found 0"),
    ],
)  # fmt: skip
def test_what_is_said(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
