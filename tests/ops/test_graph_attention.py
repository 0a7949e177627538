import math

import pytest
import torch
from kit import assert_close, check_derivatives, permuted

from hamfast import ops, reference

pytestmark = pytest.mark.usefixtures("double")

NAMES = [f"{operand}_{part}" for operand in ("query", "key", "value") for part in ("edge", "source", "target")]
PART_SETS = {
    "all": NAMES,
    "transformer_conv": ["query_target", "key_source", "key_edge", "value_source", "value_edge"],
    "edges_only": ["query_edge", "key_edge", "value_edge"],
}
# Node 2 receives nothing, edges 0 and 1 are the same pair, edge 5 is a self-loop.
SENDERS, RECEIVERS = torch.tensor([0, 0, 1, 3, 2, 1]), torch.tensor([1, 1, 0, 0, 3, 1])


def make_case(names, heads=2, width=3, value_width=4):
    edges = ops.edge_index(SENDERS, RECEIVERS, 4)
    rows = {"edge": 6, "source": 4, "target": 4}
    tensors = {}
    for name in names:
        operand, part = name.split("_")
        tensors[name] = torch.randn(rows[part], heads, value_width if operand == "value" else width)
    return edges, tensors


def truth(tensors, scale=None, clip=None):
    operands = [tuple(tensors.get(f"{o}_{p}") for p in ("edge", "source", "target")) for o in ("query", "key", "value")]
    return reference.graph_attention(SENDERS, RECEIVERS, 4, *operands, scale=scale, clip=clip)


@pytest.mark.parametrize("clip", [None, 0.8], ids=["no-clip", "clip"])
@pytest.mark.parametrize("names", list(PART_SETS.values()), ids=list(PART_SETS))
def test_value_and_derivatives(names, clip, device):
    edges, tensors = make_case(names)
    edges = edges.to(device)
    args = [t.to(device).requires_grad_() for t in tensors.values()]
    check_derivatives(
        lambda *a: ops.graph_attention(edges, **dict(zip(tensors, a, strict=True)), clip=clip),
        lambda *a: truth(dict(zip(tensors, a, strict=True)), clip=clip),
        args,
    )


def test_equals_pyg_transformer_conv():
    conv_module = pytest.importorskip("torch_geometric.nn")
    conv = conv_module.TransformerConv(5, 3, heads=2, edge_dim=4, root_weight=False)
    x, e = torch.randn(4, 5), torch.randn(6, 4)
    expected = conv(x, torch.stack([SENDERS, RECEIVERS]), e)
    edge = conv.lin_edge(e).view(-1, 2, 3)
    found = ops.graph_attention(
        ops.edge_index(SENDERS, RECEIVERS, 4),
        query_target=conv.lin_query(x).view(-1, 2, 3),
        key_source=conv.lin_key(x).view(-1, 2, 3),
        key_edge=edge,
        value_source=conv.lin_value(x).view(-1, 2, 3),
        value_edge=edge,
    )
    assert_close(found.flatten(1), expected, atol=1e-12)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_softmax_is_stable_for_any_score(shift):
    edges = ops.edge_index(SENDERS, RECEIVERS, 4)
    key = torch.randn(6, 1, 1) + shift
    tensors = {"query_edge": torch.ones(6, 1, 1), "key_edge": key, "value_edge": torch.randn(6, 1, 2)}
    out = ops.graph_attention(edges, **tensors, scale=1.0)
    assert torch.isfinite(out).all()
    without_shift = tensors | {"key_edge": key - shift}
    assert_close(out, truth(without_shift, scale=1.0), atol=1e-9)


def test_all_scores_zero_is_the_mean():
    edges, tensors = make_case(PART_SETS["edges_only"])
    tensors["query_edge"] = torch.zeros_like(tensors["query_edge"])
    out = ops.graph_attention(edges, **tensors)
    assert_close(out[0], tensors["value_edge"][[2, 3]].mean(0))
    assert_close(out[2], torch.zeros_like(out[2]))


def test_edge_order_changes_nothing():
    edges, tensors = make_case(PART_SETS["all"])
    order = torch.randperm(6)
    shuffled = {k: v[order] if k.endswith("edge") else v for k, v in tensors.items()}
    again = ops.graph_attention(ops.edge_index(SENDERS[order], RECEIVERS[order], 4), **shuffled)
    assert_close(again, ops.graph_attention(edges, **tensors))


def test_nan_stays_with_its_neighbours():
    edges, tensors = make_case(PART_SETS["edges_only"])
    tensors["value_edge"][4] = math.nan  # the edge into node 3
    out = ops.graph_attention(edges, **tensors)
    assert torch.isnan(out[3]).all()
    assert torch.isfinite(out[:3]).all()


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_opcheck(layout):
    edges, tensors = make_case(PART_SETS["transformer_conv"])
    parts = [tensors.get(name) for name in NAMES]
    parts = [
        None if p is None else (permuted(p) if layout == "permuted" else p).detach().requires_grad_() for p in parts
    ]
    index = (edges.senders, edges.receivers, edges.receiver_order, edges.receiver_ptr, 0.5, 5.0)
    torch.library.opcheck(torch.ops.hamfast.graph_attention.default, (*parts, *index))
    grad = torch.randn(4, 2, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.hamfast.graph_attention_backward.default, (grad, *parts, *index))
    directions = [torch.randn(6, 2, 3), torch.randn(6, 2, 3), torch.randn(6, 2, 4)]
    plain = [None if p is None else p.detach() for p in parts]
    torch.library.opcheck(
        torch.ops.hamfast.graph_attention_double_backward.default, (*directions, grad.detach(), *plain, *index)
    )


def test_compiles_in_one_graph():
    edges, tensors = make_case(PART_SETS["all"])
    compiled = torch.compile(lambda **t: ops.graph_attention(edges, **t, clip=5.0), fullgraph=True, backend="aot_eager")
    assert_close(compiled(**tensors), ops.graph_attention(edges, **tensors, clip=5.0))


def test_third_derivative_says_so():
    edges, tensors = make_case(PART_SETS["edges_only"])
    q = tensors["query_edge"].requires_grad_()
    out = ops.graph_attention(edges, **tensors)
    g1 = torch.autograd.grad(out.pow(2).sum(), q, create_graph=True)[0]
    g2 = torch.autograd.grad(g1.pow(2).sum(), q, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="first and second derivatives"):
        g2.sum().backward()


def test_errors_name_the_argument():
    edges, tensors = make_case(PART_SETS["all"])
    with pytest.raises(ValueError, match="value: expected at least one"):
        ops.graph_attention(edges, query_edge=tensors["query_edge"], key_edge=tensors["key_edge"])
    with pytest.raises(ValueError, match=r"key_source: expected \[4, 2, 3\], found \[3, 2, 3\]"):
        ops.graph_attention(edges, **(tensors | {"key_source": tensors["key_source"][:3]}))
    with pytest.raises(ValueError, match="query_edge: expected|expected torch.float"):
        ops.graph_attention(edges, **(tensors | {"query_source": tensors["query_source"].float()}))
