"""Outer products summed by node, and their adjoint, against index_add of gathered rows."""

import pytest
import torch
from kit import assert_close

from hamfast.ops import edge_index
from hamfast.ops.edge_outer import by_torch, node_times_factor, outer_by_node
from hamfast.records.choices import OuterSlot

pytestmark = pytest.mark.usefixtures("double")

EDGES, NODES, BLOCKS = 11, 4, [(1, 5), (3, 17), (2, 33)]


def make_case(width=7, edges=EDGES, nodes=NODES, blocks=BLOCKS):
    """The last node has no edges."""
    index = torch.randint(max(nodes - 1, 1), (edges,))
    graph = edge_index(torch.zeros_like(index), index, 1, nodes)
    channels = [torch.randn(edges, d, n) for d, n in blocks]
    return index, graph.by_receiver[1:], torch.randn(edges, width), channels


def flat(blocks):
    return torch.cat([b.flatten() for b in blocks])


def outer_truth(factor, channels, index, nodes=NODES):
    made = []
    for block in channels:
        each = torch.einsum("eh,emc->emhc", factor, block)
        made.append(each.new_zeros(nodes, *each.shape[1:]).index_add(0, index, each))
    return made


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"width": 1},
        {"width": 33},
        {"width": 0},
        {"edges": 0},
        {"edges": 1, "nodes": 1},
        {"edges": 0, "nodes": 0},
        {"blocks": [(1, 0), (3, 2)]},
    ],
    ids=str,
)
def test_products_and_gradients(sizes):
    index, ends, factor, channels = make_case(**sizes)
    nodes, blocks = sizes.get("nodes", NODES), sizes.get("blocks", BLOCKS)
    leaves = [t.requires_grad_() for t in (factor, *channels)]
    found, expected = (
        outer_by_node(factor, flat(channels), ends, blocks),
        flat(outer_truth(factor, channels, index, nodes)),
    )
    assert_close(found, expected)
    grad = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        assert_close(a, b)
    # The adjoint: <outer, node> = <channels, node times factor>.
    back = node_times_factor(grad, factor, ends, blocks)
    assert_close((back * flat(channels)).sum(), (expected * grad).sum())
    single = outer_by_node(factor.detach().float(), flat(channels).detach().float(), ends, blocks)
    torch.testing.assert_close(single.double(), expected.detach(), atol=1e-4, rtol=1e-4)


def test_what_gpus_run():
    index, ends, factor, channels = make_case()
    node, shapes = flat(outer_truth(factor, channels, index)), [n for block in BLOCKS for n in block]
    given = {
        OuterSlot.NODE: (factor, flat(channels)),
        OuterSlot.FACTOR: (node, flat(channels)),
        OuterSlot.CHANNELS: (node, factor),
    }
    for slot, operands in given.items():
        rest = (*ends, slot, factor.shape[1], shapes)
        assert_close(by_torch(*operands, *rest), torch.ops.hamfast.edge_outer(*operands, *rest))


def test_rows_that_are_not_contiguous():
    index, ends, factor, channels = make_case()
    expected = flat(outer_truth(factor, channels, index))
    strided = torch.stack([flat(channels)] * 2, 1)[:, 1]
    assert_close(outer_by_node(factor.T.contiguous().T, strided, ends, BLOCKS), expected)


def test_derivatives_of_every_kind():
    blocks = [(1, 2), (3, 1)]
    _, ends, factor, channels = make_case(2, 3, 2, blocks)
    leaves = [factor.requires_grad_(), flat(channels).requires_grad_()]

    def function(factor, channels):
        return outer_by_node(factor, channels, ends, blocks)

    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)
    node = function(*leaves).detach().requires_grad_()
    adjoint = (lambda n, f: node_times_factor(n, f, ends, blocks), (node, leaves[0]))
    assert torch.autograd.gradcheck(*adjoint, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(*adjoint, check_fwd_over_rev=True)
    batch = [torch.stack([t.detach(), 2 * t.detach()]) for t in leaves]
    assert_close(torch.func.vmap(function)(*batch), torch.stack([function(*(t[n] for t in batch)) for n in range(2)]))


def test_opcheck_and_compile():
    _, ends, factor, channels = make_case()
    channels, shapes = flat(channels).requires_grad_(), [n for block in BLOCKS for n in block]
    node = outer_by_node(factor, channels, ends, BLOCKS).detach().requires_grad_()
    factor.requires_grad_()
    op = torch.ops.hamfast.edge_outer.default
    torch.library.opcheck(op, (factor, channels, *ends, OuterSlot.NODE, factor.shape[1], shapes))
    torch.library.opcheck(op, (node, channels, *ends, OuterSlot.FACTOR, factor.shape[1], shapes))
    torch.library.opcheck(op, (node, factor, *ends, OuterSlot.CHANNELS, factor.shape[1], shapes))
    compiled = torch.compile(lambda f, c: outer_by_node(f, c, ends, BLOCKS), fullgraph=True, backend="aot_eager")
    assert_close(compiled(factor, channels), outer_by_node(factor, channels, ends, BLOCKS))


def test_wrong_sizes_get_a_sentence():
    _, ends, factor, channels = make_case()
    with pytest.raises(RuntimeError, match="edge_outer: expected 77 and .* elements, found 70"):
        outer_by_node(factor[1:], flat(channels), ends, BLOCKS)
