"""Linear maps of channels, against einsum pair by pair."""

from dataclasses import replace

import pytest
import torch
from e3nn.o3 import Irreps
from kit import assert_close, cases

from hamfast.ops.irreps_linear import by_torch, irreps_linear, linear_tables, rows_of_species
from hamfast.ops.layout import convert_layout
from hamfast.plan.linear import LinearPlan
from hamfast.plan.plan import as_blocks, irreps_dim
from hamfast.records.choices import Layout, MatrixProduct

pytestmark = pytest.mark.usefixtures("double")

CPU = torch.device("cpu")


def plan_of(irreps_in, irreps_out, species=1, pairs=None):
    a, b = (as_blocks(Irreps(irreps)) for irreps in (irreps_in, irreps_out))
    every = ((i, o) for i, x in enumerate(a) for o, y in enumerate(b) if x[1:] == y[1:])
    return LinearPlan(a, b, tuple(pairs if pairs is not None else every), species)


PLANS = cases(
    {
        "one block of each": plan_of("5x0e+3x1o+2x2e", "4x0e+7x1o+33x2e"),
        "several blocks of an irrep": plan_of("5x0e+3x1o+2x1o+2x2e", "4x0e+2x0e+7x1o+1x1o"),
        "blocks without a pair": plan_of("2x0o+3x1o+1x4e", "2x1o+3x2e"),
        "pairs in another order": plan_of("2x1o+3x1o", "2x1o+4x1o", pairs=[(1, 1), (0, 1), (1, 0)]),
        "species": plan_of("5x0e+3x1o+2x1o", "4x0e+7x1o+1x1o", species=3),
        "high degree, no channels": plan_of("2x9e+0x0e", "3x9e+0x1o"),
        "nothing": plan_of("2x0e", "3x1o"),
    }
)


def make_case(plan, rows):
    x, weight = torch.randn(rows, irreps_dim(plan.irreps_in)), torch.randn(plan.weight_numel)
    # The last species has no row.
    return x, weight, torch.randint(0, max(1, plan.species - 1), (rows,))


def truth(x, weight, species, plan):
    """In the layout ``mul_ir``."""
    sizes = [mul * (2 * l + 1) for mul, l, _ in plan.irreps_in]
    blocks = [b.unflatten(1, (m, 2 * l + 1)) for b, (m, l, _) in zip(x.split(sizes, 1), plan.irreps_in, strict=True)]
    out = [torch.zeros(len(x), mul, 2 * l + 1) for mul, l, _ in plan.irreps_out]
    at = 0
    for i, o in plan.pairs:
        k, n = plan.irreps_in[i][0], plan.irreps_out[o][0]
        matrices = weight[at : at + k * plan.species * n].view(k, plan.species, n)
        at += matrices.numel()
        out[o] = out[o] + torch.einsum("rum,urn->rnm", blocks[i], matrices[:, species])
    return torch.cat([block.flatten(1) for block in out], 1)


def run(x, weight, species, plan, layout="mul_ir"):
    """From and to ``mul_ir``."""
    rows = rows_of_species(species, plan.species) if plan.species > 1 else None
    out = irreps_linear(convert_layout(x, plan.irreps_in, "mul_ir", layout), weight, plan, layout, rows)
    return convert_layout(out, plan.irreps_out, layout, "mul_ir")


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("rows", [0, 1, 40])
@pytest.mark.parametrize("plan", PLANS)
def test_value_and_derivatives(plan, rows, layout):
    x, weight, species = make_case(plan, rows)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    results = []
    for function in (lambda *a: run(*a, layout), truth):
        out = function(*leaves, species, plan) + 0 * x.sum()  # there are plans that depend on nothing
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True, allow_unused=True)
        first = [torch.zeros_like(t) if g is None else g for g, t in zip(first, leaves, strict=True)]
        second = sum(g.cos().sum() for g in first)
        found = torch.autograd.grad(second, leaves, allow_unused=True) if second.requires_grad else [None, None]
        second = [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)]
        results.append([out, *first, *second])
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_more_rows_than_fit_into_the_cache():
    """Rows go through several pieces, the last of them smaller."""
    plan = plan_of("64x1o+32x2e", "64x1o+16x2e", species=2)
    x, weight, _ = make_case(plan, 1501)
    species = torch.randint(0, 2, (1501,))
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    found, expected = run(*leaves, species, plan), truth(*leaves, species, plan)
    assert_close(found, expected)
    grad = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    plan = plan_of("16x0e+8x1o", "8x0e+8x1o")
    x, weight, species = make_case(plan, 20)
    x, weight = x.to(dtype), weight.to(dtype)
    expected = truth(x.double(), weight.double(), species, plan)
    found = run(x, weight, species, plan)
    assert found.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("plan", PLANS)
def test_what_gpus_run(plan, layout):
    x, weight, species = make_case(plan, 6)
    rows = rows_of_species(species, plan.species) if plan.species > 1 else (None, None)
    out = torch.randn(6, irreps_dim(plan.irreps_out))
    tasks, dims = linear_tables(plan, CPU)
    for product, operands in (
        (MatrixProduct.C, (x, weight)),
        (MatrixProduct.A, (out, weight)),
        (MatrixProduct.B, (x, out)),
    ):
        arguments = (*operands, *rows, tasks, product, Layout.numbers()[layout], dims)
        assert_close(by_torch(*arguments), torch.ops.hamfast.irreps_linear(*arguments))


@pytest.mark.parametrize("species", [1, 2])
def test_derivatives_of_every_kind(species):
    plan = plan_of("2x0e+1x1o", "2x0e+2x1o", species)
    x, weight, kinds = make_case(plan, 3)
    leaves = [x.requires_grad_(), weight.requires_grad_()]

    def function(x, weight):
        return run(x, weight, kinds, plan)

    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)
    batch = [torch.stack([t.detach(), 2 * t.detach()]) for t in leaves]
    expected = torch.stack([function(*(t[n] for t in batch)) for n in range(2)])
    assert_close(torch.func.vmap(function)(*batch), expected)


@pytest.mark.parametrize("species", [1, 2])
def test_opcheck_and_compile(species):
    plan = plan_of("2x0e+1x1o", "2x0e+2x1o", species)
    x, weight, kinds = make_case(plan, 3)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    out = truth(x, weight, kinds, plan).detach().requires_grad_()
    rows = rows_of_species(kinds, species) if species > 1 else (None, None)
    tasks, dims = linear_tables(plan, CPU)
    for product, operands in (
        (MatrixProduct.C, (x, weight)),
        (MatrixProduct.A, (out, weight)),
        (MatrixProduct.B, (x, out)),
    ):
        arguments = (*operands, *rows, tasks, product, Layout.MUL_IR, dims)
        torch.library.opcheck(torch.ops.hamfast.irreps_linear.default, arguments)
    compiled = torch.compile(lambda x, w: run(x, w, kinds, plan), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, weight), truth(x, weight, kinds, plan))


def test_rows_that_are_not_contiguous():
    plan = plan_of("5x0e+3x1o", "4x0e+7x1o")
    x, weight, species = make_case(plan, 4)
    expected = truth(x, weight, species, plan)
    assert_close(run(x.T.contiguous().T, weight, species, plan), expected)
    wide = torch.stack([weight, weight], 1)[:, 0]
    assert_close(run(x, wide, species, plan), expected)


def test_under_autocast_the_wider_dtype_is_taken():
    plan = plan_of("5x0e+3x1o", "4x0e+7x1o")
    x, weight, species = make_case(plan, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(x.bfloat16(), weight.float(), species, plan)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth(x, weight, species, plan), atol=0.1, rtol=0.1)


def test_wrong_arguments_get_a_sentence():
    plan = plan_of("5x0e+3x1o", "4x0e+7x1o")
    x, weight, species = make_case(plan, 4)
    with pytest.raises(ValueError, match=r"irreps_linear: x: expected .*14"):
        irreps_linear(x[:, :-1], weight, plan)
    with pytest.raises(ValueError, match=r"irreps_linear: weight: expected \[41\], found \[40\]"):
        irreps_linear(x, weight[:-1], plan)
    with pytest.raises(ValueError, match="irreps_linear: species: expected none for a plan of 1 species"):
        irreps_linear(x, weight, plan, species=rows_of_species(species, 1))
    with pytest.raises(ValueError, match="irreps_linear: species: expected rows by species for a plan of 2 species"):
        irreps_linear(x, torch.randn(82), replace(plan, species=2))
    with pytest.raises(ValueError, match="weight"):
        irreps_linear(x, weight.float(), plan)
