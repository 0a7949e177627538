"""The update of edges' features, against torch's own layers in float64."""

import pytest
import torch
from kit import assert_close, check_derivatives, permuted

from hamfast import ops, reference
from hamfast.records.ops import EDGE_UPDATE, EDGE_UPDATE_BACKWARD, EDGE_UPDATE_DOUBLE_BACKWARD, UPDATE_OPERANDS

pytestmark = pytest.mark.usefixtures("double")

EDGES, SENDERS, RECEIVERS = 23, 6, 5
ROWS = {"edge": EDGES, "sender": SENDERS, "receiver": RECEIVERS}
ALL = (*ROWS, "weight", "bias")


def graph(device="cpu"):
    index = torch.randint(SENDERS - 1, (EDGES,)), torch.randint(RECEIVERS - 1, (EDGES,))  # one node each has no edges
    return ops.edge_index(*index, SENDERS, RECEIVERS).to(device)


def leaves(names, width, device="cpu"):
    shape = lambda name: (ROWS[name], width) if name in ROWS else (width,)  # noqa: E731
    return tuple(torch.randn(shape(name), device=device).requires_grad_() for name in names)


def both(edges, names, **more):
    """The op and its truth, as functions of the tensors named."""
    return (
        lambda *t: ops.edge_update(edges, **dict(zip(names, t, strict=True)), **more),
        lambda *t: reference.edge_update(edges.senders, edges.receivers, **dict(zip(names, t, strict=True)), **more),
    )


@pytest.mark.cuda_sources
@pytest.mark.parametrize("activation", ["silu", "identity"])
@pytest.mark.parametrize(
    "names", [ALL, ALL[:3], ("edge",), ("edge", *ALL[3:]), ("sender", "receiver", *ALL[3:])], ids=str
)
def test_value_and_derivatives(names, activation, device):
    found, truth = both(graph(device), names, activation=activation)
    check_derivatives(found, truth, leaves(names, 7, device))


@pytest.mark.cuda_sources
@pytest.mark.interpreter
@pytest.mark.parametrize("width", [1, 2, 16, 31, 128, 300, 1100])
def test_any_width(width, device):
    """Less than a vector, whole vectors, more than a group of lanes holds. float32 and float64 hold
    different numbers of columns."""
    edges = graph(device)
    found, truth = both(edges, ALL, epsilon=1e-2)
    exact = leaves(ALL, width, device)
    directions = [torch.randn_like(t) for t in exact]

    def derivatives(function, leaves, grad):
        out = function(*leaves)
        first = torch.autograd.grad(out, leaves, grad, create_graph=True)
        along = [d.to(out.dtype) for d in directions]
        return [out, *first, *torch.autograd.grad(first, (*leaves, grad), along)]

    grad = torch.randn(EDGES, width, device=device).requires_grad_()
    expected = derivatives(truth, exact, grad)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 3e-5)):
        given = [t.detach().to(dtype).requires_grad_() for t in exact]
        made = derivatives(found, given, grad.detach().to(dtype).requires_grad_())
        for a, b in zip(made, expected, strict=True):
            assert_close(a.double(), b, atol=tolerance * max(1.0, b.abs().max().item()), rtol=0.0)


@pytest.mark.cuda_sources
@pytest.mark.interpreter
def test_no_edges_and_rows_of_one_value(device):
    edges = ops.edge_index(*torch.zeros(2, 0, dtype=torch.long), 3).to(device)
    x, weight, bias = torch.zeros(0, 4, device=device), *torch.ones(2, 4, device=device).requires_grad_()
    out = ops.edge_update(edges, x, weight=weight, bias=bias)
    assert out.shape == (0, 4)
    assert all((t == 0).all() for t in torch.autograd.grad(out.sum(), (weight, bias)))
    edges = graph(device)
    for value in (1e4, 0.0, -1e4):  # no variance: the norm is the bias
        x = torch.full((EDGES, 5), value, device=device)
        out = ops.edge_update(edges, x, weight=torch.ones(5, device=device), bias=torch.full((5,), 2.0, device=device))
        assert_close(out, torch.nn.functional.silu(torch.full_like(x, 2.0)))
    x = torch.tensor([-1e4, 1e4, 0.0], device=device).expand(EDGES, 3)  # the activation of any size
    assert_close(ops.edge_update(edges, x), torch.tensor([0.0, 1e4, 0.0], device=device).expand(EDGES, 3))


def test_nan_stays_in_its_edges(device):
    edges = graph(device)
    sender = torch.randn(SENDERS, 9, device=device)
    sender[2] = torch.nan
    out = ops.edge_update(edges, torch.randn(EDGES, 9, device=device), sender)
    assert torch.equal(out.isnan().any(1), edges.senders == 2)


@pytest.mark.cuda_sources
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_it_is_stored(dtype, device):
    """Also under autocast, with weights of float32."""
    edges = graph(device)
    found, truth = both(edges, ALL)
    exact = [t.detach().to(dtype).double().requires_grad_() for t in leaves(ALL, 24, device)]
    expected = truth(*exact)
    grad = torch.randn_like(expected).to(dtype)
    directions = [torch.randn_like(t).to(dtype) for t in exact]

    def derivatives(out, tensors, grad):
        first = torch.autograd.grad(out, tensors, grad, create_graph=True)
        second = torch.autograd.grad(first, tensors, [d.to(f.dtype) for f, d in zip(first, directions, strict=True)])
        return [out, *first, *second]

    expected = derivatives(expected, exact, grad.double())
    for autocast in (False, True):
        given = [t.detach().to(dtype).requires_grad_() for t in exact]
        if autocast:
            given[3:] = [t.detach().float().requires_grad_() for t in given[3:]]
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            out = found(*given)
        assert out.dtype == dtype
        for a, b in zip(derivatives(out, given, grad), expected, strict=True):
            assert_close(
                a.double(), b, atol=(3e-2 if dtype == torch.bfloat16 else 4e-3) * b.abs().max().item(), rtol=0.0
            )


def test_rows_of_nodes_are_what_is_kept():
    edges = graph()
    tensors = leaves(ALL, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.edge_update(edges, *tensors)
    own = {t.data_ptr() for t in (*tensors, *edges.by_sender, *edges.by_receiver)}
    assert {t.data_ptr() for t in kept} <= own


@pytest.mark.interpreter
def test_third_derivative_forward_mode_and_func():
    edges = graph()
    found, truth = both(edges, ALL)
    tensors = leaves(ALL, 4)
    for at in (0, 1, 3):  # of the edges, the senders, the weight

        def third(function, at=at):
            x = tensors[at]
            grad = function(*tensors).pow(3).sum()
            for _ in range(3):
                (grad,) = torch.autograd.grad(grad.sum(), x, create_graph=True)
            return grad

        assert_close(third(found), third(truth), atol=1e-9)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    plain = tuple(t.detach() for t in tensors)
    for a, b in zip(torch.func.jvp(found, plain, tangents), torch.func.jvp(truth, plain, tangents), strict=True):
        assert_close(a, b)
    assert_close(torch.func.jacrev(found, 4)(*plain), torch.func.jacrev(truth, 4)(*plain))
    out = found(*tensors)
    grads = torch.randn(3, *out.shape)
    for leaf in tensors[:2]:
        one = lambda g, leaf=leaf: torch.autograd.grad(out, leaf, g, retain_graph=True)[0]  # noqa: E731
        expected = torch.stack([one(g) for g in grads])
        assert_close(torch.vmap(one)(grads), expected)
        (batched,) = torch.autograd.grad(out, leaf, grads, is_grads_batched=True, retain_graph=True)
        assert_close(batched, expected)


def test_opcheck_and_compile():
    edges = graph()
    tensors = leaves(ALL, 6)
    rest = edges.graph._asdict() | {"epsilon": 1e-5, "silu": True}
    for chosen in (tensors, [permuted(t.detach()).requires_grad_() for t in tensors], tensors[:2]):
        given = dict(zip(UPDATE_OPERANDS.names, chosen, strict=False))
        rows = {name: torch.randn(EDGES, 6) for name in ("grad", "tangent_sum")}
        torch.library.opcheck(torch.ops.hamfast.edge_update.default, EDGE_UPDATE.by_name(**given, **rest))
        backward = EDGE_UPDATE_BACKWARD.by_name(grad=rows["grad"], **given, **rest)
        torch.library.opcheck(torch.ops.hamfast.edge_update_backward.default, backward)
        plain = {name: t.detach() for name, t in given.items()}
        tangent_norm = torch.randn(2, 6) if "weight" in given else None
        along = EDGE_UPDATE_DOUBLE_BACKWARD.by_name(**rows, tangent_norm=tangent_norm, **plain, **rest)
        torch.library.opcheck(torch.ops.hamfast.edge_update_double_backward.default, along)
    found, _ = both(edges, ALL)
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        torch.autograd.grad(compiled(*tensors).pow(2).sum(), tensors),
        torch.autograd.grad(found(*tensors).pow(2).sum(), tensors),
        strict=True,
    ):
        assert_close(a, b)


def test_errors_name_the_argument():
    edges = graph()
    edge, sender, _, weight, bias = (t.detach() for t in leaves(ALL, 4))
    for match, arguments in {
        "expected at least one of edge, sender and receiver, found none": {},
        r"edge: expected \[23, 4\], found \[6, 4\]": {"edge": sender},
        r"sender: expected \[6, 4\], found \[6, 3\]": {"edge": edge, "sender": sender[:, :3]},
        "expected weight and bias, or neither, found only weight": {"edge": edge, "weight": weight},
        r"bias: expected \[4\], found \[3\]": {"edge": edge, "weight": weight, "bias": bias[:3]},
        "sender: expected torch.float64 as edge, found torch.float32": {"edge": edge, "sender": sender.float()},
        "weight: expected torch.float64, found torch.float32": {
            "edge": edge,
            "weight": weight.float(),
            "bias": bias.float(),
        },
        "activation: expected silu or identity, found 'gelu'": {"edge": edge, "activation": "gelu"},
        "epsilon: expected 0 or more, found -1": {"edge": edge, "epsilon": -1},
    }.items():
        with pytest.raises(ValueError, match=f"edge_update: {match}"):
            ops.edge_update(edges, **arguments)
