import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import INTERPRETED, assert_close, check_derivatives, permuted

from hamfast import ops, reference
from hamfast.ops.attention_formula import dropout_factors
from hamfast.records.choices import Score, ScoreActivation, Weighting
from hamfast.records.ops import (
    ATTENTION_OPERANDS,
    GRAPH_ATTENTION,
    GRAPH_ATTENTION_BACKWARD,
    GRAPH_ATTENTION_DOUBLE_BACKWARD,
)

pytestmark = pytest.mark.usefixtures("double")

# Receiver 2 has no edges, edges 0 and 1 are the same pair, edges 3 and 5 are self-loops.
SENDERS, RECEIVERS = torch.tensor([0, 0, 1, 3, 2, 1, 2, 0]), torch.tensor([1, 1, 0, 3, 3, 1, 1, 3])
NODES, EDGES = 4, 8
ROWS = {"edge": EDGES, "sender": NODES, "receiver": NODES}
HEADS, WIDTH, VALUE, FEATURES, COMPONENTS = 2, 3, 4, 5, 3
ALL = ("edge", "sender", "receiver")


def parts(operand, width, *ends, components=()):
    return {f"{operand}_{end}": torch.randn(ROWS[end], HEADS, *components, width) for end in ends}


def transformer_conv():
    return (
        parts("query", WIDTH, "receiver")
        | parts("key", WIDTH, "sender")
        | parts("value", VALUE, "sender")
        | factored_edges()
    )


def factored_edges(components=()):
    return {
        "edge": torch.randn(EDGES, FEATURES),
        "edge_key_weight": torch.randn(HEADS, WIDTH, FEATURES),
        "edge_value_weight": torch.randn(HEADS, *components, VALUE, FEATURES),
    }


def everything():
    return parts("query", WIDTH, *ALL) | parts("key", WIDTH, *ALL) | parts("value", VALUE, *ALL)


def additive(activation="leaky_relu"):
    chosen = {"score": "additive", "vector": torch.randn(HEADS, WIDTH), "score_activation": activation}
    return (
        parts("query", WIDTH, "receiver")
        | parts("key", WIDTH, "sender")
        | parts("value", VALUE, "sender", "edge")
        | chosen
    )


def irreps_values():
    return parts("value", VALUE, "sender", "edge", components=(COMPONENTS,)) | {
        "score": "given",
        "bias": torch.randn(EDGES, HEADS),
    }


def filters():
    """As TorchMD-NET and SO3krates have them: no softmax, multiplicative filters."""
    return (
        parts("query", WIDTH, "receiver")
        | parts("key", WIDTH, "sender")
        | parts("value", VALUE, "sender", components=(COMPONENTS,))
        | {
            "key_filter": torch.randn(EDGES, HEADS, WIDTH),
            "value_filter": torch.randn(EDGES, HEADS, VALUE),
            "outer": (torch.randn(EDGES, COMPONENTS), torch.randn(NODES, HEADS, VALUE), "sender"),
            "bias": torch.randn(EDGES),
            "score_scale": torch.randn(EDGES, HEADS),
        }
    )


def only_outer():
    return (
        parts("query", WIDTH, "receiver")
        | parts("key", WIDTH, "sender")
        | {"outer": (torch.randn(EDGES, COMPONENTS), torch.randn(EDGES, HEADS, VALUE), "edge")}
    )


FORMS = {
    "transformer_conv": transformer_conv,
    "all_parts": everything,
    "all_parts_and_features": lambda: everything() | factored_edges(),
    "edges_only": lambda: parts("query", WIDTH, "edge") | parts("key", WIDTH, "edge") | parts("value", VALUE, "edge"),
    "features_are_the_key": lambda: (
        parts("query", WIDTH, "receiver")
        | parts("value", VALUE, "sender")
        | {k: v for k, v in factored_edges().items() if k != "edge_value_weight"}
    ),
    "additive": additive,
    "additive_smooth": lambda: additive("smooth_leaky_relu"),
    "additive_silu_features": lambda: additive("silu") | factored_edges(),
    "irreps_values": irreps_values,
    "irreps_values_features": lambda: (
        irreps_values() | {k: v for k, v in factored_edges((COMPONENTS,)).items() if k != "edge_key_weight"}
    ),
    "filters": filters,
    "filters_features": lambda: (
        parts("query", WIDTH, "receiver")
        | parts("value", VALUE, "sender")
        | factored_edges()
        | {"key_filter": torch.randn(EDGES, HEADS, WIDTH), "value_filter": torch.randn(EDGES, HEADS, VALUE)}
    ),
    "outer": only_outer,
}
OPTIONS = {
    "plain": dict,
    "clip": lambda: {"clip": 0.8},
    "bias_envelope": lambda: {"bias": torch.randn(EDGES, HEADS), "envelope": torch.rand(EDGES, HEADS) + 0.1},
    "scaled_gated": lambda: {
        "score_scale": torch.randn(EDGES),
        "gate": torch.randn(EDGES, HEADS),
        "epsilon": 0.3,
        "scale": 0.4,
        "clip": 0.6,
    },
    "dropout": lambda: {"dropout": 0.4, "seed": torch.tensor(1234567890123456789)},
    "identity": lambda: {"weight": "identity"},
    "silu": lambda: {"weight": "silu", "envelope": torch.randn(EDGES), "gate": torch.randn(EDGES)},
    "sigmoid": lambda: {"weight": "sigmoid", "envelope": torch.randn(EDGES)},
    "softplus": lambda: {"weight": "softplus", "clip": 0.9},
}
# Every form plain; the forms the kernels treat differently with every option.
CASES = [(form, "plain") for form in FORMS] + [
    (form, option) for form in ("transformer_conv", "all_parts", "additive") for option in OPTIONS if option != "plain"
]


def make(form, option="plain"):
    return FORMS[form]() | OPTIONS[option]()


def flatten(arguments):
    """Names and tensors that derivatives are taken of; the tensors of ``outer`` one by one."""
    found = {}
    for name, value in arguments.items():
        if isinstance(value, tuple):
            found |= {f"{name}_{n}": t for n, t in enumerate(value) if isinstance(t, torch.Tensor)}
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            found[name] = value
    return found


def with_tensors(arguments, tensors):
    made = dict(arguments)
    for name, tensor in tensors.items():
        if name.startswith("outer_"):
            entries = list(made["outer"])
            entries[int(name[-1])] = tensor
            made["outer"] = tuple(entries)
        else:
            made[name] = tensor
    return made


def truth(arguments):
    """All four results of the reference, on the CPU."""
    given_there = {k: v for k, v in arguments.items() if k not in ("dropout", "seed")}
    if "seed" in arguments:
        given_there["dropout_factors"] = dropout_factors(arguments["seed"], EDGES, HEADS, arguments["dropout"])
    return reference.graph_attention(SENDERS, RECEIVERS, NODES, **given_there)


def graph(device="cpu"):
    return ops.edge_index(SENDERS, RECEIVERS, NODES).to(device)


@pytest.mark.cuda_sources(form=["transformer_conv"], option=["scaled_gated"])
@pytest.mark.cuda_sources(form=["additive"], option=["silu"])
@pytest.mark.cuda_sources(form=["all_parts_and_features"])
@pytest.mark.interpreter(option=["plain", "bias_envelope", "dropout"])
@pytest.mark.interpreter(form=["additive"], option=["silu"])
@pytest.mark.parametrize(("form", "option"), CASES, ids=["-".join(case) for case in CASES])
def test_value_and_derivatives(form, option, device):
    arguments, edges = make(form, option), graph(device)
    tensors = flatten(arguments)
    leaves = [t.requires_grad_() for t in tensors.values()]

    def found(*values):
        moved = {n: v.to(device) for n, v in zip(tensors, values, strict=True)}
        if "seed" in arguments:
            moved["seed"] = arguments["seed"].to(device)
        return ops.graph_attention(edges, **with_tensors(arguments, moved)).cpu()

    def expected(*values):
        return truth(with_tensors(arguments, dict(zip(tensors, values, strict=True))))[0]

    check_derivatives(found, expected, leaves)


@pytest.mark.cuda_sources(form=["transformer_conv"], option=["scaled_gated"])
@pytest.mark.interpreter(form=["transformer_conv", "additive"])
@pytest.mark.parametrize("form", ["transformer_conv", "additive", "filters"])
@pytest.mark.parametrize("option", ["bias_envelope", "scaled_gated", "silu"])
def test_weights_logits_and_lse_are_differentiable_results(form, option, device):
    arguments, edges = make(form, option), graph(device)
    tensors = flatten(arguments)
    leaves = [t.requires_grad_() for t in tensors.values()]
    softmax = arguments.get("weight", "softmax") == "softmax"
    results = 4 if softmax else 3

    def joined(out, weights, logits, lse):
        lse = torch.where(torch.isinf(lse), torch.zeros_like(lse), lse)  # of receivers without edges
        return torch.cat([t.cpu().flatten() for t in (out, weights, logits, lse)[:results]])

    def found(*values):
        moved = {n: v.to(device) for n, v in zip(tensors, values, strict=True)}
        wanted = {"return_weights": True, "return_logits": True, "return_lse": True}
        return joined(*ops.graph_attention(edges, **with_tensors(arguments, moved), **wanted))

    def expected(*values):
        return joined(*truth(with_tensors(arguments, dict(zip(tensors, values, strict=True)))))

    check_derivatives(found, expected, leaves)


@pytest.mark.parametrize("form", ["transformer_conv", "all_parts", "additive", "filters", "outer"])
def test_forward_mode_and_functional_transforms(form):
    arguments, edges = make(form, "bias_envelope"), graph()
    tensors = flatten(arguments)
    primal = tuple(tensors.values())
    tangents = tuple(torch.randn_like(t) for t in primal)

    def function(*values):
        return ops.graph_attention(edges, **with_tensors(arguments, dict(zip(tensors, values, strict=True))))

    def expected(*values):
        return truth(with_tensors(arguments, dict(zip(tensors, values, strict=True))))[0]

    _, along = torch.func.jvp(function, primal, tangents)
    grad = torch.randn_like(along)
    gradients = torch.autograd.grad(expected(*(t.requires_grad_() for t in primal)), primal, grad)
    contracted = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    assert_close((along * grad).sum(), contracted, atol=1e-10)
    found = torch.func.grad(lambda *v: (function(*v) * grad).sum(), argnums=tuple(range(len(primal))))(*primal)
    for a, b in zip(found, gradients, strict=True):
        assert_close(a, b, atol=1e-10)
    batch = [torch.stack([t, 2 * t]) for t in primal]
    mapped = torch.func.vmap(function)(*batch)
    assert_close(mapped[1], function(*(2 * t for t in primal)), atol=1e-10)
    assert torch.autograd.gradcheck(function, primal, check_forward_ad=True, fast_mode=True)


@pytest.mark.interpreter
def test_third_derivative():
    arguments = make("transformer_conv")
    q, k = arguments["query_receiver"].requires_grad_(), arguments["key_sender"].requires_grad_()

    def third(function):
        (first,) = torch.autograd.grad(function().pow(2).sum(), q, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), k, create_graph=True)
        return torch.autograd.grad(second.pow(2).sum(), (q, k))

    edges = graph()
    for a, b in zip(
        third(lambda: ops.graph_attention(edges, **arguments)), third(lambda: truth(arguments)[0]), strict=True
    ):
        assert_close(a, b, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    nodes=st.integers(1, 6),
    edges=st.integers(0, 80),
    heads=st.sampled_from([1, 2, 3, 8, 16]),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_graph_and_width(seed, nodes, edges, heads, widths, dtype):
    generator = torch.Generator().manual_seed(seed)
    width, value, features = widths
    senders, receivers = torch.randint(nodes, (2, edges), generator=generator)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = {
        "query_receiver": random(nodes, heads, width),
        "key_sender": random(nodes, heads, width),
        "value_sender": random(nodes, heads, value),
        "edge": random(edges, features),
        "edge_key_weight": random(heads, width, features) / math.sqrt(features),
        "edge_value_weight": random(heads, value, features),
        "envelope": torch.rand(edges, generator=generator, dtype=torch.float64) + 0.2,
    }
    leaves = [t.requires_grad_() for t in arguments.values()]
    there = [t.detach().to(dtype).requires_grad_() for t in leaves]
    index = ops.edge_index(senders, receivers, nodes)
    out = ops.graph_attention(index, **dict(zip(arguments, there, strict=True)))
    expected = reference.graph_attention(senders, receivers, nodes, **arguments)[0]
    grad = random(*expected.shape)
    found = [out, *torch.autograd.grad(out, there, grad.to(dtype))]
    true = [expected, *torch.autograd.grad(expected, leaves, grad)]
    for a, b in zip(found, true, strict=True):
        if a.numel():
            error = (a.double() - b).abs().max() / (1 + b.abs().max())
            assert error < (1e-12 if dtype == torch.float64 else 1e-4)


@pytest.mark.cuda_sources(score=["dot"])
@pytest.mark.cuda_sources(score=["additive"], heads=[1, 3])
@pytest.mark.parametrize("address", ["aligned", "shifted"])
@pytest.mark.parametrize("heads", [1, 3, 40])
@pytest.mark.parametrize("score", ["dot", "additive"])
def test_rows_of_whole_vectors(score, heads, address, device):
    """Widths that kernels read as vectors, at addresses where they may and where they may not.

    One receiver has more edges than a warp has lanes.
    """
    width, value, features, nodes, edges = 8, 4, 12, 3, 60
    senders, receivers = torch.randint(nodes, (2, edges))
    receivers[:40] = 1
    shapes = {
        "query_receiver": (nodes, heads, width),
        "key_sender": (nodes, heads, width),
        "value_sender": (nodes, heads, value),
    }
    if score == "dot":
        shapes |= {
            "value_edge": (edges, heads, value),
            "edge": (edges, features),
            "edge_key_weight": (heads, width, features),
            "edge_value_weight": (heads, value, features),
        }
    else:
        shapes["vector"] = (heads, width)
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes.values()]
    index = ops.edge_index(senders, receivers, nodes).to(device)

    def placed(t):
        if address == "aligned":
            return t
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    def found(*values):
        given = dict(zip(shapes, (placed(t.to(device)) for t in values), strict=True))
        return ops.graph_attention(index, score=score, **given).cpu()

    def expected(*values):
        given = dict(zip(shapes, values, strict=True))
        return reference.graph_attention(senders, receivers, nodes, score=score, **given)[0]

    out, true = found(*leaves), expected(*leaves)
    assert_close(out, true, atol=1e-11)
    grad = torch.randn_like(true)
    first, first_true = (torch.autograd.grad(o, leaves, grad, create_graph=True) for o in (out, true))
    for a, b in zip(first, first_true, strict=True):
        assert_close(a, b, atol=1e-10)
    tangents = [torch.randn_like(t) for t in leaves]
    second, second_true = (torch.autograd.grad(f, leaves, tangents) for f in (first, first_true))
    for a, b in zip(second, second_true, strict=True):
        assert_close(a, b, atol=1e-9)


def test_many_edges_of_one_node_and_many_heads():
    edges, heads = 1000, 128
    senders, receivers = torch.randint(3, (edges,)), torch.zeros(edges, dtype=torch.int64)
    arguments = {
        "query_receiver": torch.randn(3, heads, 2),
        "key_sender": torch.randn(3, heads, 2),
        "value_sender": torch.randn(3, heads, 2),
        "bias": torch.randn(edges, heads),
    }
    out = ops.graph_attention(ops.edge_index(senders, receivers, 3), **arguments)
    assert_close(out, reference.graph_attention(senders, receivers, 3, **arguments)[0])
    assert (out[1:] == 0).all()


@pytest.mark.cuda_sources
@pytest.mark.interpreter
def test_no_edges_and_no_nodes():
    for nodes in (0, 3):
        edges = ops.edge_index(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), nodes)
        q = torch.randn(nodes, 2, 3, requires_grad=True)
        out, _, _, lse = ops.graph_attention(edges, query_receiver=q, key_sender=q, value_sender=q, return_lse=True)
        assert out.shape == (nodes, 2, 3) and (out == 0).all() and (lse == -math.inf).all()
        (gradient,) = torch.autograd.grad(out.sum(), q)
        assert (gradient == 0).all()


@pytest.mark.cuda_sources
@pytest.mark.interpreter
@pytest.mark.parametrize("score", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_is_stable_for_any_score(score, dtype):
    value = torch.randn(EDGES, HEADS, 2, dtype=dtype)
    bias = torch.full((EDGES, HEADS), score, dtype=dtype)
    out, weights, *_ = ops.graph_attention(graph(), value_edge=value, score="given", bias=bias, return_weights=True)
    for node in range(NODES):
        into = node == RECEIVERS
        if into.any():
            assert_close(out[node], value[into].mean(0), atol=1e-6)
            assert_close(weights[into].sum(0), torch.ones(HEADS, dtype=dtype), atol=1e-6)


@pytest.mark.cuda_sources
@pytest.mark.interpreter
def test_an_edge_without_envelope_is_no_edge():
    arguments = make("transformer_conv")
    envelope = torch.rand(EDGES)
    envelope[[0, 2]] = 0  # edge 2 is the only one into node 0
    bias = torch.zeros(EDGES)
    bias[0] = 1e4  # must not set the scale of the others
    tensors = {n: t.requires_grad_() for n, t in (arguments | {"envelope": envelope, "bias": bias}).items()}
    out = ops.graph_attention(graph(), **tensors)
    kept = torch.tensor([1, 3, 4, 5, 6, 7])
    shorter = {n: t[kept] if t.shape[0] == EDGES else t for n, t in tensors.items()}
    expected = reference.graph_attention(SENDERS[kept], RECEIVERS[kept], NODES, **shorter)[0]
    assert_close(out, expected)
    assert (out[0] == 0).all()
    for gradient in torch.autograd.grad(
        out.pow(2).sum(), [t for n, t in tensors.items() if n not in ("envelope", "bias")]
    ):
        assert torch.isfinite(gradient).all()


def test_order_of_edges_and_names_of_nodes_change_nothing():
    arguments = make("all_parts_and_features", "bias_envelope")
    expected = ops.graph_attention(graph(), **arguments)
    edge_order, names = torch.randperm(EDGES), torch.randperm(NODES)
    name_of = torch.argsort(names)  # node n is called name_of[n]
    shuffled = {}
    for name, tensor in arguments.items():
        if name.endswith("_edge") or name in ("edge", "bias", "envelope"):
            shuffled[name] = tensor[edge_order]
        else:
            shuffled[name] = tensor[names] if name.endswith(("sender", "receiver")) else tensor
    edges = ops.edge_index(name_of[SENDERS][edge_order], name_of[RECEIVERS][edge_order], NODES)
    assert_close(ops.graph_attention(edges, **shuffled), expected[names])


def test_a_sum_over_an_even_cutoff_is_smooth():
    """Value and slope of the result go to those without the edge when its envelope goes to 0."""
    arguments = make("transformer_conv")
    slope = []
    for size in (1e-3, 1e-6):
        envelope = torch.ones(EDGES)
        envelope[1] = size
        envelope.requires_grad_()
        out = ops.graph_attention(graph(), **arguments, envelope=envelope)
        slope.append(torch.autograd.grad(out.sum(), envelope)[0][1])
    assert abs(slope[0] - slope[1]) < 2e-2 * abs(slope[1]) and torch.isfinite(slope[1])


@pytest.mark.interpreter
def test_dropout_keeps_the_mean_and_depends_on_the_seed_alone():
    factors = dropout_factors(torch.tensor(7), 5000, 8, 0.3)
    assert abs(float((factors == 0).double().mean()) - 0.3) < 0.01
    assert abs(float(factors.mean()) - 1) < 0.02
    arguments, edges = make("transformer_conv"), graph()
    outs = [ops.graph_attention(edges, **arguments, dropout=0.5, seed=torch.tensor(s)) for s in (1, 1, 2)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert torch.equal(ops.graph_attention(edges, **arguments, dropout=0.5), ops.graph_attention(edges, **arguments))


@pytest.mark.parametrize("name", ["query_receiver", "key_sender", "value_sender", "edge"])
def test_nan_stays_with_its_neighbours(name):
    arguments, edges = make("transformer_conv"), graph()
    arguments[name][3] = math.nan
    reached = {
        "query_receiver": RECEIVERS == 3,
        "key_sender": SENDERS == 3,
        "value_sender": SENDERS == 3,
        "edge": torch.arange(EDGES) == 3,
    }[name]
    hit = torch.zeros(NODES, dtype=torch.bool)
    hit[RECEIVERS[reached]] = True
    out = ops.graph_attention(edges, **arguments)
    assert torch.isnan(out[hit]).all() and torch.isfinite(out[~hit]).all()


@pytest.mark.cuda_sources
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("form", list(FORMS))
def test_half_precision_is_stored_and_computed_in_float32(form, dtype, device):
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter knows no bfloat16")
    arguments, edges = make(form), graph(device)
    tensors = {n: t.to(dtype) for n, t in flatten(arguments).items()}
    exact = [t.double().requires_grad_() for t in tensors.values()]
    leaves = [t.to(device).requires_grad_() for t in tensors.values()]

    def found(*values):
        return ops.graph_attention(edges, **with_tensors(arguments, dict(zip(tensors, values, strict=True))))

    def expected(*values):
        return truth(with_tensors(arguments, dict(zip(tensors, values, strict=True))))[0]

    def close(a, b):
        a = torch.zeros_like(b) if a is None else a
        b = torch.zeros_like(a) if b is None else b
        assert a.dtype in (dtype, torch.float64)
        assert (a.double().cpu() - b).abs().max() < 16 * torch.finfo(dtype).eps * b.abs().max().clamp(min=1)

    out, out_exact = found(*leaves), expected(*exact)
    close(out, out_exact)
    grad = torch.randn_like(out_exact).to(dtype)
    first = torch.autograd.grad(out, leaves, grad.to(device), create_graph=True)
    first_exact = torch.autograd.grad(out_exact, exact, grad.double(), create_graph=True)
    tangents = [torch.randn_like(t).to(dtype) for t in first_exact]
    for a, b in zip(first, first_exact, strict=True):
        close(a, b)
    second = torch.autograd.grad(first, leaves, [d.to(device) for d in tangents], allow_unused=True)
    second_exact = torch.autograd.grad(first_exact, exact, [d.double() for d in tangents], allow_unused=True)
    for a, b in zip(second, second_exact, strict=True):
        if a is not None or b is not None:
            close(a, b)


@pytest.mark.cuda_sources
def test_half_precision_is_what_is_kept():
    """No float32 copy of a row waits for the backward pass."""
    arguments, edges = make("transformer_conv"), graph()
    half = {n: t.to(torch.bfloat16).requires_grad_() for n, t in arguments.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        ops.graph_attention(edges, **half)
    wide = {tuple(t.shape) for t in kept if t.dtype == torch.float32}
    assert wide.isdisjoint(tuple(arguments[n].shape) for n in ("query_receiver", "key_sender", "value_sender", "edge"))


@pytest.mark.cuda_sources
def test_under_autocast_rows_stay_half_if_all_are():
    arguments, edges = make("transformer_conv"), graph()
    weights = ("edge_key_weight", "edge_value_weight")
    mixed = {n: t.float() if n in weights else t.to(torch.bfloat16) for n, t in arguments.items()}
    with pytest.raises(ValueError, match="expected torch.bfloat16 as query_receiver, found torch.float32"):
        ops.graph_attention(edges, **mixed)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.graph_attention(edges, **mixed)
        assert out.dtype == torch.bfloat16
        assert ops.graph_attention(edges, **(mixed | {"edge": mixed["edge"].float()})).dtype == torch.float32
    expected = truth({n: t.double() for n, t in mixed.items()})[0]
    assert (out.double() - expected).abs().max() < 2e-2 * expected.abs().max()


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_opcheck(layout):
    arguments, edges = make("transformer_conv"), graph()
    change = permuted if layout == "permuted" else lambda t: t
    q, k, v = (change(arguments[n]).detach().requires_grad_() for n in ("query_receiver", "key_sender", "value_sender"))
    e, weight = (change(arguments[n]).detach().requires_grad_() for n in ("edge", "edge_key_weight"))
    with torch.no_grad():
        on_edge = torch.einsum("nhc,hcf->nhf", q, weight)
    operands = {"query_receiver": q, "key_sender": k, "value_sender": v, "query_on_edge": on_edge, "edge": e}
    operands |= {"bias": torch.randn(EDGES, HEADS), "envelope": torch.rand(EDGES, 1).expand(EDGES, HEADS)}
    settings = {"heads": HEADS, "score": Score.DOT, "activation": ScoreActivation.LEAKY_RELU, "slope": 0.2}
    settings |= {"weighting": Weighting.SOFTMAX, "scale": 0.5, "clip": 2.0, "epsilon": 0.0, "dropout": 0.0}
    rest = settings | edges.graph._asdict()
    namespace = torch.ops.hamfast
    forward = GRAPH_ATTENTION.by_name(edge_key_weight=weight, **operands, **rest, wanted=7)
    torch.library.opcheck(namespace.graph_attention.default, forward)
    results = GRAPH_ATTENTION.Results(*namespace.graph_attention(*forward))
    grads = {f"grad_{n}": change(torch.randn_like(getattr(results, n))) for n in ("out", "out_on_edge")}
    lse = results.lse.detach()
    wanted = sum(ATTENTION_OPERANDS.bit(name) for name in operands)
    leaves = operands | {"query_on_edge": on_edge.clone().requires_grad_()}
    of_leaves = {name: t.requires_grad_() for name, t in grads.items()}
    backward = GRAPH_ATTENTION_BACKWARD.by_name(**of_leaves, lse=lse, **leaves, **rest, wanted=wanted)
    torch.library.opcheck(namespace.graph_attention_backward.default, backward)
    plain = {name: t.detach() for name, t in (leaves | grads).items()}
    tangents = {f"tangent_{name}": change(torch.randn(t.shape)) for name, t in operands.items()}
    both = wanted | 3 << len(ATTENTION_OPERANDS)
    double = GRAPH_ATTENTION_DOUBLE_BACKWARD.by_name(**tangents, lse=lse, **plain, **rest, wanted=both)
    torch.library.opcheck(namespace.graph_attention_double_backward.default, double)


@pytest.mark.parametrize("form", ["transformer_conv", "filters", "additive"])
def test_compiles_in_one_graph(form):
    arguments, edges = make(form, "bias_envelope"), graph()
    tensors = flatten(arguments)
    leaves = [t.requires_grad_() for t in tensors.values()]

    def function(*values):
        return ops.graph_attention(edges, **with_tensors(arguments, dict(zip(tensors, values, strict=True))))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        torch.autograd.grad(compiled(*leaves).pow(2).sum(), leaves),
        torch.autograd.grad(function(*leaves).pow(2).sum(), leaves),
        strict=True,
    ):
        assert_close(a, b, atol=1e-10)


def test_exports():
    edges = graph()

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return ops.graph_attention(edges, query_receiver=q, key_sender=k, value_sender=v)

    values = tuple(torch.randn(NODES, HEADS, 3) for _ in range(3))
    exported = torch.export.export(Model(), values)
    assert_close(exported.module()(*values), Model()(*values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"key_sender": torch.zeros(3, 2, 3, dtype=torch.float64)},
            r"key_sender: expected \[4, 2, 3\], found \[3, 2, 3\]",
        ),
        (
            {"value_sender": torch.zeros(4, 2, dtype=torch.float64)},
            r"value_sender: expected \[4, heads, \(components,\) width\], found \[4, 2\]",
        ),
        ({"query_receiver": None}, "query: expected at least one of its parts, found none"),
        ({"bias": torch.zeros(7, dtype=torch.float64)}, r"bias: expected \[8\] or \[8, 2\], found \[7\]"),
        (
            {"edge_key_weight": torch.zeros(2, 3, 4, dtype=torch.float64)},
            "edge_key_weight: expected 5 features as edge, found 4",
        ),
        ({"edge": None}, "expected edge together with"),
        ({"score": "cosine"}, "score: expected one of dot, additive, given, found 'cosine'"),
        ({"vector": torch.zeros(2, 3, dtype=torch.float64)}, "vector: expected with score additive"),
        ({"clip": -1.0}, "clip: expected a positive number or None, found -1.0"),
        ({"dropout": 1.5}, r"dropout: expected a probability from 0 to 1, found 1.5"),
        (
            {"key_sender": torch.zeros(4, 2, 3, dtype=torch.float32)},
            "expected torch.float64 as query_receiver, found torch.float32",
        ),
        (
            {"outer": (torch.zeros(8, 3, dtype=torch.float64), torch.zeros(4, 2, 4, dtype=torch.float64), "node")},
            "outer: expected u per sender or edge, found 'node'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors_name_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        ops.graph_attention(graph(), **(make("transformer_conv") | change))


def test_indices_out_of_range_are_an_error():
    with pytest.raises(ValueError, match=r"receivers: expected indices in \[0, 3\), found 0 to 3"):
        ops.edge_index(SENDERS, RECEIVERS, 4, 3)
