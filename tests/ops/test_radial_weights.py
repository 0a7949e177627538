"""Weights made inside the product are the weights of the layer written out."""

import sys

import pytest
import torch
from e3nn import o3
from kit import assert_close, check_derivatives, fully_connected

from hamfast import ops, reference
from hamfast.ops import radial_blocks
from hamfast.ops.layout import convert_layout
from hamfast.ops.multilinear import LAYOUTS, graph_tensors, make_tables
from hamfast.plan import make_plan

pytestmark = pytest.mark.usefixtures("double")


def make_case(bias, edges=7, k=3):
    instructions = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 1, 2, "uvu", True), (1, 0, 3, "uvu", False)]
    plan = make_plan("3x0e+2x1o", "1x0e+2x1o", "3x0e+3x1o+2x1e+2x1o", instructions)
    y, h = torch.randn(edges, plan.dim_in2), torch.randn(edges, k)
    matrix, b = torch.randn(k, plan.weight_numel), torch.randn(plan.weight_numel) if bias else None
    return plan, y, h, matrix, b


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("graph", ["rows", "gather", "gather+scatter"])
def test_against_the_reference(bias, graph, device):
    plan, y, h, matrix, b = make_case(bias)
    senders, receivers = torch.tensor([0, 3, 3, 1, 2, 0, 0]), torch.tensor([4, 0, 0, 1, 4, 2, 4])
    edges = None if graph == "rows" else ops.edge_index(senders.to(device), receivers.to(device), 4, 5)
    x = torch.randn(7 if graph == "rows" else 4, plan.dim_in1)
    args = [t.to(device).requires_grad_() for t in (x, y, h, matrix, b) if t is not None]
    scatter = graph == "gather+scatter"

    def op(x, y, h, matrix, b=None):
        return ops.tensor_product(x, y, ops.RadialWeights(h, matrix, b), plan, edges, scatter=scatter)

    def truth(x, y, h, matrix, b=None):
        weight = h @ matrix if b is None else h @ matrix + b
        index = (None, None) if edges is None else (edges.senders, edges.receivers if scatter else None)
        return reference.tensor_product(x, y, weight, plan, *index, 5)

    check_derivatives(op, truth, args)


def test_many_edges_go_in_blocks():
    plan, _, _, matrix, b = make_case(True)
    senders, receivers = torch.randint(40, (2, 3000))
    receivers[:700] = 3  # more than one block's edges at one node
    edges = ops.edge_index(senders, receivers, 40)
    x, y, h = torch.randn(40, plan.dim_in1), torch.randn(3000, plan.dim_in2), torch.randn(3000, 3)
    leaves = [t.requires_grad_() for t in (x, y, h, matrix, b)]
    made = ops.tensor_product(x, y, ops.RadialWeights(h, matrix, b), plan, edges)
    stored = reference.tensor_product(x, y, h @ matrix + b, plan, senders, receivers, 40)
    assert_close(made, stored, atol=1e-9)
    grad = torch.randn_like(made)
    for ours, theirs in zip(
        torch.autograd.grad(made, leaves, grad), torch.autograd.grad(stored, leaves, grad), strict=True
    ):
        assert_close(ours, theirs, atol=1e-9)


def wide_plan():
    """Channels for warps of 32, 16, 8, 2 and 1; weights that do not start where a vector may."""
    instructions = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 1, 2, "uvu", True), (1, 0, 3, "uvu", False)]
    return make_plan("58x0e+33x1o", "1x0e+1x1o", "58x0e+58x1o+33x1e+33x1o", instructions)


def on_blocks(plan, h, matrix, layout, graph, dtype, device, edges=11, start=0):
    """Product and gradients in x, y, h and the matrix by ``radial_in_blocks``, and by the reference
    in float64; in ``mul_ir``.

    ``start``: numbers that lie before the matrix.
    """
    senders, receivers = torch.randint(4, (2, edges), device=device)
    gather, scatter = "gather" in graph, "scatter" in graph
    prepared = ops.edge_index(senders, receivers, 4, 5)
    leaves = [torch.randn(4 if gather else edges, plan.dim_in1), torch.randn(edges, plan.dim_in2), h, matrix]
    leaves = [t.to(device, dtype).double().requires_grad_() for t in leaves]
    x, y, h, matrix = leaves
    index = (senders if gather else None, receivers if scatter else None)
    out = reference.tensor_product(x, y, h @ matrix, plan, *index, 5)
    g = torch.randn_like(out).to(dtype).double()
    expected = (out, *torch.autograd.grad(out, leaves, g))
    tables = make_tables(plan, "channel", dtype, x.device)
    rest = (*tables.tensors, *graph_tensors(prepared, gather, scatter), LAYOUTS[layout], LAYOUTS[layout], tables.dims)
    x, y, h, matrix, g = (t.detach().to(dtype) for t in (*leaves, g))
    x, g = (convert_layout(t, irreps, "mul_ir", layout) for t, irreps in ((x, plan.irreps_in1), (g, plan.irreps_out)))
    matrix = torch.cat([matrix.new_zeros(start), matrix.flatten()])[start:].view_as(matrix)
    found = radial_blocks.radial_in_blocks(x, y, h, matrix, None, *rest)[0]
    grad_x, *grads = radial_blocks.radial_in_blocks(x, y, h, matrix, g, *rest)[1:]
    found = convert_layout(found, plan.irreps_out, layout, "mul_ir")
    return (found, convert_layout(grad_x, plan.irreps_in1, layout, "mul_ir"), *grads), expected


@pytest.mark.cuda_sources(graph=["gather+scatter"], layout=["mul_ir"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("graph", ["rows", "gather", "scatter", "gather+scatter"])
def test_block_by_block_from_the_plain_op(graph, layout, monkeypatch, device):
    """What runs on CUDA in float64, with blocks that end inside of rows."""
    monkeypatch.setattr(radial_blocks, "LEAST_BLOCK", 3)
    plan, _, h, matrix, _ = make_case(False, edges=11)
    for ours, theirs in zip(*on_blocks(plan, h, matrix, layout, graph, torch.float64, device), strict=True):
        assert_close(ours, theirs)


@pytest.mark.cuda_sources(k=[40])
@pytest.mark.cuda_sources(graph=["rows"], precision=["high"])
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [(torch.float32, "highest", 2e-6), (torch.float32, "high", 1e-3), (torch.bfloat16, "highest", 1e-2)],
    ids=["float32", "tf32", "bfloat16"],
)
@pytest.mark.parametrize(("graph", "layout"), [("rows", "mul_ir"), ("gather+scatter", "ir_mul")])
@pytest.mark.parametrize("k", [5, 40])
def test_weights_made_in_the_kernel(k, graph, layout, dtype, precision, tolerance, monkeypatch, device):
    """What runs on CUDA in float32 and narrower (elsewhere, matrix products make the weights), rows
    longer than a tile of edges."""
    monkeypatch.setattr(radial_blocks, "LEAST_BLOCK", 33)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    plan = wide_plan()
    h, matrix = torch.randn(90, k), torch.randn(k, plan.weight_numel)
    try:
        pairs = list(zip(*on_blocks(plan, h, matrix, layout, graph, dtype, device, edges=90), strict=True))
    finally:
        torch.set_float32_matmul_precision(before)
    for ours, theirs in pairs:
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < tolerance, error


@pytest.mark.cuda_sources
@pytest.mark.parametrize("reason", ["too many numbers for a block's memory", "not where a vector may start"])
def test_weights_the_kernel_cannot_make_are_stored(reason, device):
    plan = wide_plan()
    k = 1600 if "many" in reason else 5
    h, matrix = torch.randn(20, k), torch.randn(k, plan.weight_numel)
    start = int("start" in reason)
    found, expected = on_blocks(plan, h, matrix, "mul_ir", "gather+scatter", torch.float32, device, 20, start)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).norm() < 2e-6 * theirs.norm()


# Products that mix channels: the layer's matrix meets nodes, at the end where edges are summed, or
# at the other.
MIXING = {
    "several channels of y": ("5x0e+3x1o", "2x0e+3x1o", "3x1e+5x0e+3x1o"),
    "heads": ("4x0e+2x1o", "0e+1o", "2x0e+3x1o+2x0e+3x1o+2x0e+3x1o"),
    "unequal heads": ("4x0e+2x1o", "0e+1o", "2x0e+3x1o+5x0e+1x1o"),
    "a block without a path": ("4x0e+2x1o+1x2e", "1o", "2x1o+3x0e+2x3e+1x5o"),
}
MADE_AT = {"receivers": (True, True), "receivers, x on edges": (False, True), "senders": (True, False)}


@pytest.fixture
def at_nodes(monkeypatch):
    """With the few edges of a test the weights would be stored."""
    monkeypatch.setattr(sys.modules["hamfast.ops.tensor_product"], "fewer_at_nodes", lambda *_: True)


def mixing_case(irreps, made_at, bias, layout="mul_ir", edges=7, k=3):
    """The op, the truth, and leaves. The last receiver and a sender have no edges."""
    plan = make_plan(*irreps, fully_connected(*(o3.Irreps(i) for i in irreps)))
    gather, scatter = MADE_AT[made_at]
    senders, receivers = torch.randint(3, (edges,)), torch.randint(4, (edges,))
    graph = ops.edge_index(senders, receivers, 4, 5)
    x = torch.randn(4 if gather else edges, plan.dim_in1)
    leaves = [x, torch.randn(edges, plan.dim_in2), torch.randn(edges, k), torch.randn(k, plan.weight_numel)]
    leaves += [torch.randn(plan.weight_numel)] * bias

    def op(x, y, h, matrix, b=None):
        x, weight = convert_layout(x, plan.irreps_in1, "mul_ir", layout), ops.RadialWeights(h, matrix, b)
        out = ops.tensor_product(x, y, weight, plan, graph, gather=gather, scatter=scatter, layout=layout)
        return convert_layout(out, plan.irreps_out, layout, "mul_ir")

    def truth(x, y, h, matrix, b=None):
        weight = h @ matrix if b is None else h @ matrix + b
        index = (senders if gather else None, receivers if scatter else None)
        return reference.tensor_product(x, y, weight, plan, *index, 5)

    return op, truth, leaves


@pytest.mark.usefixtures("at_nodes")
@pytest.mark.parametrize(("bias", "layout"), [(False, "mul_ir"), (True, "ir_mul")])
@pytest.mark.parametrize("made_at", MADE_AT)
@pytest.mark.parametrize("irreps", MIXING.values(), ids=MIXING)
def test_matrix_at_nodes(irreps, made_at, bias, layout):
    op, truth, leaves = mixing_case(irreps, made_at, bias, layout)
    check_derivatives(op, truth, [t.requires_grad_() for t in leaves])


@pytest.mark.usefixtures("at_nodes")
@pytest.mark.parametrize("made_at", MADE_AT)
def test_matrix_at_nodes_under_torch_func(made_at):
    op, truth, leaves = mixing_case(MIXING["heads"], made_at, False)
    directions = tuple(torch.randn_like(t) for t in leaves)
    for a, b in zip(*(torch.func.jvp(f, tuple(leaves), directions) for f in (op, truth)), strict=True):
        assert_close(a, b)
    for n in range(4):
        assert_close(torch.func.jacrev(op, n)(*leaves), torch.func.jacrev(truth, n)(*leaves))
    batch = torch.stack([leaves[2], 2 * leaves[2]])
    found = torch.func.vmap(lambda h: op(*leaves[:2], h, leaves[3]))(batch)
    assert_close(found, torch.stack([truth(*leaves[:2], h, leaves[3]) for h in batch]))


@pytest.mark.usefixtures("at_nodes")
@pytest.mark.parametrize("made_at", MADE_AT)
@pytest.mark.parametrize("edges", [0, 1])
def test_matrix_at_nodes_with_few_edges(edges, made_at):
    op, truth, leaves = mixing_case(MIXING["heads"], made_at, True, edges=edges)
    assert_close(op(*leaves), truth(*leaves))
    op, truth, leaves = mixing_case(MIXING["heads"], made_at, False, edges=edges, k=0)
    assert_close(op(*leaves), truth(*leaves))


@pytest.mark.parametrize("made_at", MADE_AT)
def test_matrix_at_nodes_compiles_once_for_all_sizes(made_at):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph

    plan = make_plan(*MIXING["heads"], fully_connected(*map(o3.Irreps, MIXING["heads"])))
    gather, scatter = MADE_AT[made_at]

    def function(x, y, h, matrix, graph):
        return ops.tensor_product(x, y, ops.RadialWeights(h, matrix), plan, graph, gather=gather, scatter=scatter)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for nodes, edges in ((6, 23), (8, 31), (9, 40)):
        index = torch.randint(nodes, (2, edges))
        graph = ops.edge_index(index[0], index[1], nodes)
        x, h = torch.randn(nodes if gather else edges, plan.dim_in1), torch.randn(edges, 3)
        operands = (x, torch.randn(edges, plan.dim_in2), h, torch.randn(3, plan.weight_numel), graph)
        assert_close(compiled(*operands), function(*operands))
    assert len(seen) == 1


def test_plans_it_cannot_do_store_the_weights():
    plan = make_plan("3x1o", "1x1o", "3x0e", [(0, 0, 0, "uvw", True)])
    x, y, h, matrix = torch.randn(5, 9), torch.randn(5, 3), torch.randn(5, 2), torch.randn(2, plan.weight_numel)
    found = ops.tensor_product(x, y, ops.RadialWeights(h, matrix), plan)
    assert_close(found, reference.tensor_product(x, y, h @ matrix, plan))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, m, b: (h[:3], m, b), "weight.hidden: expected"),
        (lambda h, m, b: (h, m[1:], b), "weight.matrix: expected"),
        (lambda h, m, b: (h, m, b[1:]), "weight.bias: expected"),
        (lambda h, m, b: (h.float(), m, b), "hidden: expected torch.float64 as x, found torch.float32"),
    ],
)
def test_wrong_weights_get_a_sentence(change, message):
    plan, y, h, matrix, b = make_case(True)
    with pytest.raises(ValueError, match=message):
        ops.tensor_product(torch.randn(7, plan.dim_in1), y, ops.RadialWeights(*change(h, matrix, b)), plan)
