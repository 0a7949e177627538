"""Pairs of each row times its own weights, against einsum path by path."""

import pytest
import torch
from e3nn.o3 import Irreps
from kit import assert_close, cases, fully_connected

from hamfast.ops.row_matmul import by_torch, row_matmul, row_tables
from hamfast.plan import make_plan
from hamfast.plan.channel import mix_tables
from hamfast.records.choices import MatrixProduct

pytestmark = pytest.mark.usefixtures("double")

CPU = torch.device("cpu")


def plan_of(in1, in2, out, extra=()):
    a, b, c = Irreps(in1), Irreps(in2), Irreps(out)
    return make_plan(a, b, c, [*fully_connected(a, b, c), *extra])


PLANS = cases(
    {
        "harmonics": plan_of("5x0e+3x1o", "0e+1o", "17x0e+4x1o+1x1e"),
        "several channels on both sides": plan_of("5x0e+3x1o", "2x0e+3x1o", "3x0e+33x1o"),
        "one channel": plan_of("1x0e", "1x0e", "1x0e"),
        "beside paths that do not mix": plan_of("4x0e", "1x0e+1x1o", "4x1o+3x0e", [(0, 1, 0, "uvu", True)]),
    }
)


def make_case(plan, rows):
    """Pairs and weights; the sizes of pairs, and of results."""
    mixes = mix_tables(plan)[1]
    pairs = torch.randn(rows * sum((2 * mix.l + 1) * mix.pairs for mix in mixes))
    return pairs, torch.randn(rows, plan.weight_numel)


def truth(pairs, weight, plan):
    rows, made, at = weight.shape[0], [], 0
    for mix in mix_tables(plan)[1]:
        d = 2 * mix.l + 1
        block = pairs[at : at + rows * d * mix.pairs].view(rows, d, mix.pairs)
        at += block.numel()
        total, first = 0, 0
        for n in mix.instructions:
            ins = plan.instructions[n]
            n1, n2, n3 = ins.weight_shape
            w = weight[:, ins.weight_offset : ins.weight_offset + n1 * n2 * n3].view(rows, n1, n2, n3)
            part = block[:, :, first : first + n1 * n2].view(rows, d, n2, n1)
            total = total + torch.einsum("rmvu,ruvw->rmw", part, w)
            first += n1 * n2
        made.append(total.flatten())
    return torch.cat(made)


@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize("plan", PLANS)
def test_products_and_gradients(plan, rows):
    leaves = [t.requires_grad_() for t in make_case(plan, rows)]
    tables = row_tables(plan, CPU)
    found, expected = row_matmul(*leaves, tables), truth(*leaves, plan)
    assert_close(found, expected)
    grad = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        assert_close(a, b)
    single = row_matmul(*(t.detach().float() for t in leaves), tables)
    torch.testing.assert_close(single.double(), expected.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
def test_what_gpus_run(plan):
    pairs, weight = make_case(plan, 5)
    tasks, dims = row_tables(plan, CPU)
    out = truth(pairs, weight, plan)
    for product, operands in (
        (MatrixProduct.C, (pairs, weight)),
        (MatrixProduct.A, (out, weight)),
        (MatrixProduct.B, (pairs, out)),
    ):
        expected = torch.ops.hamfast.row_matmul(*operands, tasks, 5, product, list(dims))
        assert_close(by_torch(*operands, tasks, 5, product, list(dims)), expected)


def test_rows_that_are_not_contiguous():
    plan = plan_of("5x0e+3x1o", "0e+1o", "17x0e+4x1o")
    pairs, weight = make_case(plan, 4)
    wide = torch.randn(4, plan.weight_numel + 3)
    wide[:, 2:-1] = weight
    twice = torch.stack([pairs, pairs], 1)[:, 0]
    assert_close(row_matmul(twice, wide[:, 2:-1], row_tables(plan, CPU)), truth(pairs, weight, plan))
    assert_close(row_matmul(pairs, weight.T.contiguous().T, row_tables(plan, CPU)), truth(pairs, weight, plan))


def test_derivatives_of_every_kind():
    plan = plan_of("2x0e+1x1o", "0e+1o", "2x0e+2x1o")
    tables = row_tables(plan, CPU)
    leaves = [t.requires_grad_() for t in make_case(plan, 2)]

    def function(pairs, weight):
        return row_matmul(pairs, weight, tables)

    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)
    batch = [torch.stack([t.detach(), 2 * t.detach()]) for t in leaves]
    expected = torch.stack([function(*(t[n] for t in batch)) for n in range(2)])
    assert_close(torch.func.vmap(function)(*batch), expected)


def test_opcheck_and_compile():
    plan = plan_of("2x0e+1x1o", "0e+1o", "2x0e+2x1o")
    tables = row_tables(plan, CPU)
    pairs, weight = (t.requires_grad_() for t in make_case(plan, 3))
    for product in (MatrixProduct.C, MatrixProduct.A, MatrixProduct.B):
        out = truth(pairs, weight, plan).detach().requires_grad_()
        given = {MatrixProduct.C: (pairs, weight), MatrixProduct.A: (out, weight), MatrixProduct.B: (pairs, out)}[
            product
        ]
        torch.library.opcheck(
            torch.ops.hamfast.row_matmul.default, (*given, tables.tasks, 3, product, list(tables.dims))
        )
    compiled = torch.compile(lambda p, w: row_matmul(p, w, tables), fullgraph=True, backend="aot_eager")
    assert_close(compiled(pairs, weight), truth(pairs, weight, plan))


def test_wrong_sizes_get_a_sentence():
    plan = plan_of("2x0e+1x1o", "0e+1o", "2x0e+2x1o")
    pairs, weight = make_case(plan, 3)
    with pytest.raises(RuntimeError, match="row_matmul: expected 3 rows of .* elements, found"):
        row_matmul(pairs[1:], weight, row_tables(plan, CPU))
