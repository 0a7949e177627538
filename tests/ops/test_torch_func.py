"""Forward mode and torch.func through every op that is registered with torch.library, against the
references in plain torch.

Attention, edge_update and edge_einsum have their own in their files.
"""

import pytest
import torch
import torch.autograd.forward_ad as fw
from kit import assert_close, fully_connected

from hamfast import ops, reference
from hamfast.plan import edge_frame_plan, make_plan

pytestmark = pytest.mark.usefixtures("double")

EDGES, NODES = 6, 3


def product(name):
    plan = {
        # a path without weight: constant in the weights, whose direction may not take their place
        "channel": lambda: make_plan("4x0e+3x1o", "1x0e+1x1o", "4x0e+4x1o+3x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 0, 2, "uvu", False)]),
        "mix": lambda: make_plan("4x0e+3x1o", "1x0e+1x1o", "3x0e+2x1o", [(0, 0, 0, "uvw", True), (1, 1, 0, "uvw", True), (0, 1, 1, "uvw", True), (1, 0, 1, "uvw", True)]),
        "general": lambda: make_plan("4x0e+4x1o", "4x0e+4x1o", "4x0e+4x1o", [(0, 0, 0, "uuu", True), (0, 1, 1, "uuu", True)]),
    }[name]()  # fmt: skip
    senders, receivers = torch.randint(NODES, (2, EDGES))
    edges = ops.edge_index(senders, receivers, NODES)
    rows = (EDGES,) if name == "channel" else ()
    operands = torch.randn(NODES, plan.dim_in1), torch.randn(EDGES, plan.dim_in2), torch.randn(*rows, plan.weight_numel)
    return (
        lambda x, y, w: ops.tensor_product(x, y, w, plan, edges),
        lambda x, y, w: reference.tensor_product(x, y, w, plan, senders, receivers, NODES),
        operands,
    )


def radial():
    plan = make_plan("2x0e+3x1o", "1x1o", "2x1o+3x0e", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)])
    senders, receivers = torch.randint(NODES, (2, EDGES))
    edges = ops.edge_index(senders, receivers, NODES)
    operands = (torch.randn(NODES, plan.dim_in1), torch.randn(EDGES, 3), torch.randn(EDGES, 4))
    return (
        lambda x, y, h, m: ops.tensor_product(x, y, ops.RadialWeights(h, m), plan, edges),
        lambda x, y, h, m: reference.tensor_product(x, y, h @ m, plan, senders, receivers, NODES),
        (*operands, torch.randn(4, plan.weight_numel)),
    )


def edge_frame():
    """In the edges' vectors, too: one of length zero, one along the polar axis. Separate weights, a
    gathered source beside an own one."""
    from e3nn import o3

    irreps, harmonics = o3.Irreps("2x0e+3x1o+1x2e"), o3.Irreps("1x0e+1x1o+1x2e")
    plan = edge_frame_plan(make_plan(irreps, harmonics, irreps, fully_connected(irreps, harmonics, irreps)))
    senders, receivers = torch.randint(NODES, (2, EDGES))
    edges = ops.edge_index(senders, receivers, NODES)
    vectors = torch.randn(EDGES, 3)
    vectors[1], vectors[2] = 0.0, torch.tensor([0.0, 1.5, 0.0])
    columns = sum(ins.weight_shape[-1] for ins in plan.plan.instructions)

    def run(node, own, left, right, vectors):
        sources = ops.EdgeSources((node, own), ("sender", "edge"), edges)
        weights = ops.SeparateWeights(left, right)
        return ops.edge_tensor_product(sources, weights, plan, ops.edge_frames(vectors, 2))

    def truth(node, own, left, right, vectors):
        x, weight = torch.cat([node[senders], own], dim=1), reference.separate_weights(left, right, plan.plan)
        vectors = vectors.index_copy(0, torch.tensor([1]), torch.zeros(1, 3))  # torch's own derivatives are NaN there
        return reference.edge_tensor_product(x, weight, plan.plan, vectors)

    operands = (
        torch.randn(NODES, 2),
        torch.randn(EDGES, 14),
        torch.randn(plan.plan.weight_numel),
        torch.randn(columns),
    )
    return run, truth, (*operands, vectors)


def head():
    dense = torch.randn(7, 5) * (torch.rand(7, 5) < 0.5)
    matrix = ops.sparse_matrix(dense)
    return lambda x: ops.sparse_map(x, matrix), lambda x: x @ dense.T, (torch.randn(4, 5),)


CASES = {
    "channel": lambda: product("channel"),
    "mix": lambda: product("mix"),
    "general": lambda: product("general"),
    "radial": radial,
    "edge_frame": edge_frame,
    "sparse_map": head,
}


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]()


def assert_same(found, expected):
    found, expected = (torch.utils._pytree.tree_leaves(t) for t in (found, expected))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, atol=1e-10)


def energy(function):
    return lambda *operands: function(*operands).pow(3).sum()


def test_forward_mode(case):
    """All tangents at once and each alone; also where no gradient is wanted, when a tangent could
    be lost without a word."""
    run, truth, operands = case
    tangents = tuple(torch.randn_like(t) for t in operands)
    assert_same(torch.func.jvp(run, operands, tangents), torch.func.jvp(truth, operands, tangents))
    for n in range(len(operands)):

        def tangent_of(function, n=n):
            with fw.dual_level(), torch.no_grad():
                given = [fw.make_dual(t, tangents[n]) if i == n else t for i, t in enumerate(operands)]
                return fw.unpack_dual(function(*given)).tangent

        assert_same(tangent_of(run), tangent_of(truth))


def test_gradients_and_what_follows_them(case):
    run, truth, operands = case
    every = tuple(range(len(operands)))
    tangents = tuple(torch.randn_like(t) for t in operands)

    def found_by(function):
        gradient = torch.func.grad(energy(function), every)
        square = lambda *t: sum(g.square().sum() for g in gradient(*t))  # noqa: E731
        return (
            gradient(*operands),
            torch.func.jvp(gradient, operands, tangents)[1],  # forward over reverse
            torch.func.grad(square, every)(*operands),
            torch.func.jacrev(function, every[-1])(*operands),
        )

    assert_same(found_by(run), found_by(truth))


@pytest.mark.parametrize(
    "name", [name for name in CASES if name != "edge_frame"]
)  # frames look for edges of length zero
def test_jacobians_and_samples_by_vmap(name):
    run, truth, operands = CASES[name]()
    last = len(operands) - 1
    samples = torch.randn(2, *operands[0].shape)

    def found_by(function):
        per_sample = torch.func.grad(lambda x: energy(function)(x, *operands[1:]))
        return (
            torch.func.jacfwd(function, last)(*operands),
            torch.func.hessian(energy(function), last)(*operands),
            torch.vmap(per_sample)(samples),
        )

    assert_same(found_by(run), found_by(truth))


def test_forward_over_reverse_with_dual_numbers(case):
    run, truth, operands = case
    tangent = torch.randn_like(operands[-1])
    first = operands[0].clone().requires_grad_()

    def found_by(function):
        with fw.dual_level():
            given = [first, *operands[1:]]
            if len(given) == 1:
                given[0] = fw.make_dual(first, tangent)
            else:
                given[-1] = fw.make_dual(operands[-1], tangent)
            (gradient,) = torch.autograd.grad(energy(function)(*given), given[0], create_graph=True)
            return fw.unpack_dual(gradient)

    assert_same([*found_by(run)], [*found_by(truth)])


def attention(**more):
    def make():
        edges = ops.edge_index(*torch.randint(NODES, (2, EDGES)), NODES)
        names = ["query_receiver", "key_sender", "value_sender", "edge", "edge_key_weight"]
        shapes = [(NODES, 2, 4)] * 3 + [(EDGES, 3), (2, 4, 3)]
        if more.get("score") == "additive":
            names, shapes, more["vector"] = names[:3], shapes[:3], torch.randn(2, 4)

        def named(operands):
            return dict(zip(names, operands, strict=True)) | more

        return (
            lambda *t: ops.graph_attention(edges, **named(t)),
            lambda *t: reference.graph_attention(edges.senders, edges.receivers, NODES, **named(t))[0],
            tuple(torch.randn(shape) for shape in shapes),
        )

    return make


def update():
    edges = ops.edge_index(*torch.randint(NODES, (2, EDGES)), NODES)
    graph = edges.senders, edges.receivers
    operands = (torch.randn(EDGES, 4), torch.randn(NODES, 4), torch.randn(NODES, 4), torch.randn(4), torch.randn(4))
    return lambda *t: ops.edge_update(edges, *t), lambda *t: reference.edge_update(*graph, *t), operands


BATCHED = CASES | {
    "attention": attention(),
    "additive attention": attention(score="additive"),
    "attention without softmax": attention(weight="silu"),
    "edge_update": update,
}


@pytest.mark.parametrize("name", list(BATCHED))
def test_batched_gradients(name):
    """Many gradients of one result, and of its gradient (rows of a Hessian): by ``vmap`` and by
    ``is_grads_batched``."""
    run, truth, operands = BATCHED[name]()
    given = [t.clone().requires_grad_() for t in operands]
    every = torch.randn(2, *run(*operands).shape)
    one = torch.randn(2, *operands[0].shape)

    def found_by(function, batched, of_gradient=True):
        result = function(*given)
        found = [batched(result, every)]
        if of_gradient:
            (gradient,) = torch.autograd.grad(result.pow(3).sum(), given[:1], create_graph=True)
            found.append(batched(gradient, one))
        return found

    def by_vmap(output, gradients):
        return torch.vmap(lambda g: torch.autograd.grad(output, given, g, retain_graph=True, materialize_grads=True))(
            gradients
        )

    def at_once(output, gradients):
        return torch.autograd.grad(
            output, given, gradients, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )

    def in_turn(output, gradients):
        each = [torch.autograd.grad(output, given, g, retain_graph=True, materialize_grads=True) for g in gradients]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]

    expected = found_by(truth, in_turn)
    assert_same(found_by(run, by_vmap), expected)
    # An edge frame's second derivatives are more than the older batching of is_grads_batched can
    # follow.
    if name == "edge_frame":
        assert_same(found_by(run, at_once, of_gradient=False), expected[:1])
    else:
        assert_same(found_by(run, at_once), expected)


def test_forward_mode_within_forward_mode_is_refused():
    """There torch is silently wrong."""
    run, _, operands = product("channel")
    edges = ops.edge_index(*torch.randint(NODES, (2, EDGES)), NODES)
    x = torch.randn(EDGES, 1, 1, 4)
    for function in (
        lambda t: run(t, *operands[1:]).sum(),
        lambda t: ops.edge_einsum(edges, "edge", (1, 1, t.shape[1]), (t[:, None, None], "sender")).sum(),
        lambda t: ops.edge_update(edges, x[:, 0, 0], t[:, :4]).sum(),
    ):
        with pytest.raises(NotImplementedError, match="forward mode within forward mode.*197867"):
            torch.func.jacfwd(torch.func.jacfwd(function))(operands[0])


def test_what_is_kept_for_a_plan_is_made_outside():
    """A plan that is new to the process, met for the first time under a transformation, and used
    without one afterwards."""
    plan = make_plan("2x3o", "1x5e", "2x4o", [(0, 0, 0, "uvu", True)])
    x, y, w = torch.randn(2, plan.dim_in1), torch.randn(2, plan.dim_in2), torch.randn(2, plan.weight_numel)
    inside = torch.func.jvp(lambda x: ops.tensor_product(x, y, w, plan), (x,), (x,))[1]
    assert_close(ops.tensor_product(x, y, w, plan), inside)
    assert_close(inside, reference.tensor_product(x, y, w, plan))


@pytest.mark.parametrize("transformed", ["grad", "jvp"])
@pytest.mark.parametrize("op", ["product", "edge_update", "graph_attention"])
def test_compiled_derivatives_are_not_lost(op, transformed):
    """A graph has the op without its forward mode: compiled, the function breaks there and is
    right."""
    run, _, (x, *rest) = product("channel")
    edges = ops.edge_index(*torch.randint(NODES, (2, EDGES)), NODES)
    query = torch.randn(NODES, 2, 4)
    function = {
        "product": lambda x: run(x, *rest),
        "edge_update": lambda x: ops.edge_update(edges, sender=x),
        "graph_attention": lambda x: ops.graph_attention(
            edges, query_receiver=query, key_sender=query, value_sender=x[:, :8].reshape(-1, 2, 4)
        ),
    }[op]
    derivative = {
        "grad": lambda x: torch.func.grad(lambda x: function(x).pow(3).sum())(x),
        "jvp": lambda x: torch.func.jvp(function, (x,), (x,))[1],
    }[transformed]
    torch._dynamo.reset()
    assert_close(torch.compile(derivative, backend="aot_eager")(x), derivative(x))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="cannot be compiled"):
        torch.compile(derivative, backend="aot_eager", fullgraph=True)(x)
