"""Sums over edges of products, against index_add of gathered rows."""

import itertools

import pytest
import torch
from kit import assert_close

from hamfast import ops
from hamfast.records.choices import RowOf
from hamfast.records.ops import EDGE_EINSUM

pytestmark = pytest.mark.usefixtures("double")

EDGES, SENDERS, RECEIVERS, HEADS, COMPONENTS, WIDTH = 9, 5, 4, 2, 3, 17
ROWS = {"edge": EDGES, "sender": SENDERS, "receiver": RECEIVERS}


def graph(device="cpu"):
    index = torch.randint(SENDERS, (EDGES,)), torch.randint(RECEIVERS - 1, (EDGES,))  # the last receiver has no edges
    return ops.edge_index(*index, SENDERS, RECEIVERS).to(device)


def truth(edges, out, shape, *operands):
    index = {"edge": torch.arange(EDGES), "sender": edges.senders.cpu(), "receiver": edges.receivers.cpu()}
    product = torch.ones(EDGES, HEADS, COMPONENTS, WIDTH)
    for tensor, place in operands:
        product = product * tensor.cpu()[index[place]]
    for axis in range(3):
        if shape[axis] == 1:
            product = product.sum(axis + 1, keepdim=True)
    return torch.zeros(ROWS[out], *product.shape[1:]).index_add(0, index[out], product)


OPERAND_SHAPES = [
    ((HEADS, COMPONENTS, WIDTH), (HEADS, 1, 1)),
    ((1, COMPONENTS, WIDTH), (HEADS, 1, WIDTH)),
    ((HEADS, 1, 1), (1, COMPONENTS, WIDTH), (1, COMPONENTS, 1)),
    ((HEADS, COMPONENTS, 1), (1, 1, WIDTH), (HEADS, 1, WIDTH)),
    ((HEADS, COMPONENTS, WIDTH),),
]


@pytest.mark.cuda_sources
@pytest.mark.parametrize("shapes", OPERAND_SHAPES, ids=str)
@pytest.mark.parametrize("out", list(ROWS))
def test_every_shape_and_place(out, shapes, device):
    edges = graph(device)
    for shape in itertools.product((1, HEADS), (1, COMPONENTS), (1, WIDTH)):
        for places in itertools.product(ROWS, repeat=2):
            chosen = (*places, "edge")
            operands = [(torch.randn(ROWS[p], *s).to(device), p) for s, p in zip(shapes, chosen, strict=False)]
            found = ops.edge_einsum(edges, out, shape, *operands)
            assert_close(found.cpu(), truth(edges, out, shape, *operands))


def test_derivatives_of_every_kind():
    edges = graph()
    operands = [
        torch.randn(SENDERS, HEADS, COMPONENTS, 3, requires_grad=True),
        torch.randn(EDGES, HEADS, 1, 1, requires_grad=True),
        torch.randn(EDGES, 1, COMPONENTS, 1, requires_grad=True),
    ]

    def function(a, b, c):
        return ops.edge_einsum(edges, "receiver", (HEADS, COMPONENTS, 3), (a, "sender"), (b, "edge"), (c, "edge"))

    assert torch.autograd.gradcheck(function, operands, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, operands, check_fwd_over_rev=True)
    jacobian = torch.func.jacrev(function, 1)(*(t.detach() for t in operands))
    assert_close(torch.einsum("abcdefgh,efgh->abcd", jacobian, operands[1].detach()), function(*operands).detach())


def test_opcheck_and_compile():
    edges = graph()
    a, b = torch.randn(SENDERS, HEADS, 1, 4, requires_grad=True), torch.randn(EDGES, HEADS, 1, 1, requires_grad=True)
    rows_of = [RowOf.RECEIVER, RowOf.SENDER, RowOf.EDGE]
    args = EDGE_EINSUM.by_name(a=a, b=b, rows_of=rows_of, shape=[HEADS, 1, 4], **edges.graph._asdict())
    torch.library.opcheck(torch.ops.hamfast.edge_einsum.default, args)

    def function(a, b):
        return ops.edge_einsum(edges, "receiver", (HEADS, 1, 4), (a, "sender"), (b, "edge"))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        torch.autograd.grad(compiled(a, b).pow(2).sum(), (a, b)),
        torch.autograd.grad(function(a, b).pow(2).sum(), (a, b)),
        strict=True,
    ):
        assert_close(found, expected)


def test_autocast_takes_half_operands():
    """They are computed in float32, and so is what is added up."""
    edges = graph()
    first = torch.randn(SENDERS, HEADS, 1, WIDTH).float()
    second = torch.randn(EDGES, 1, 1, WIDTH).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.edge_einsum(edges, "receiver", (HEADS, 1, WIDTH), (first, "sender"), (second, "edge"))
    assert found.dtype == torch.float32
    expected = torch.zeros(RECEIVERS, HEADS, 1, WIDTH).index_add(
        0, edges.receivers, first.double()[edges.senders] * second.double()
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_errors_name_the_operand():
    edges, a = graph(), torch.randn(SENDERS, HEADS, 1, 4)
    with pytest.raises(ValueError, match=r"operand 0: expected \[9, heads, components, width\], found \[5, 2, 1, 4\]"):
        ops.edge_einsum(edges, "receiver", (HEADS, 1, 4), (a, "edge"))
    with pytest.raises(ValueError, match=r"axis 3: expected 1 or 3, found 4"):
        ops.edge_einsum(edges, "receiver", (HEADS, 1, 3), (a, "sender"))
    with pytest.raises(ValueError, match="out: expected edge, sender or receiver, found 'node'"):
        ops.edge_einsum(edges, "node", (HEADS, 1, 4), (a, "sender"))
