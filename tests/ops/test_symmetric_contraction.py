"""The symmetric contraction, against its formula with dense tensors in float64."""

import numpy as np
import pytest
import torch
from kit import assert_close, check_derivatives, permuted

from hamfast import ops, reference
from hamfast.ops.symmetric_contraction import make_tables
from hamfast.plan import contraction_plan
from hamfast.plan.generalized_cg import generalized_cg
from hamfast.plan.symmetric_contraction import MOST, contraction_tables, derivative_plan
from hamfast.records.ops import SYMMETRIC_CONTRACTION

pytestmark = pytest.mark.usefixtures("double")

NODES, SPECIES = 13, 3


def couplings(irreps_out, degree, irreps="0e+1o"):
    """The tensors of each irrep of the result, from the highest degree to the lowest."""
    return [[generalized_cg(irreps, ir, n) for n in range(degree, 0, -1)] for ir in irreps_out.split("+")]


def random_tensors(dim, degree, components=(1, 2)):
    """Without any symmetry: of every order of the factors, as the formula allows."""
    rng = np.random.default_rng(3)
    return [[rng.normal(size=(d, *(dim,) * n, 2)) for n in range(1, degree + 1)] for d in components]


BLOCKS = {
    "invariants of degree 3": (couplings("0e", 3), 4),
    "two irreps of degree 3": (couplings("0e+1o", 3), 4),
    "degree 2 and l up to 2": (couplings("0e+2e", 2, "0e+1o+2e"), 9),
    "degree 4": (random_tensors(2, 4), 2),
    "degree 1": (random_tensors(5, 1), 5),
    "five components": (random_tensors(3, 3, (5,)), 3),
    "nothing but zeros": ([[np.zeros((1, 3, 3, 2))]], 3),
}
every_case = pytest.mark.parametrize("case", list(BLOCKS))


def both(case, device="cpu"):
    """The op and its truth, as functions of x, weight and y; the plan."""
    blocks, dim = BLOCKS[case]
    plan = contraction_plan(blocks, dim)
    dense = [[torch.tensor(t, device=device) for t in tensors] for tensors in blocks]
    return (
        lambda x, w, y: ops.symmetric_contraction(x, w, y, plan),
        lambda x, w, y: reference.symmetric_contraction(x, w, y, dense),
        plan,
    )


def one_species_each(nodes=NODES, species=SPECIES):
    return torch.nn.functional.one_hot(torch.randint(species, (nodes,)), species).to(torch.get_default_dtype())


def leaves(plan, channels=5, device="cpu", nodes=NODES, y=None):
    y = torch.randn(nodes, SPECIES) if y is None else y
    made = torch.randn(nodes, channels, plan.dim_in), torch.randn(SPECIES, plan.paths, channels), y
    return tuple(t.to(device).requires_grad_() for t in made)


@pytest.mark.cuda_sources
@pytest.mark.interpreter(case=["degree 1", "nothing but zeros"])
@every_case
def test_value_and_derivatives(case, device):
    found, truth, plan = both(case, device)
    check_derivatives(found, truth, leaves(plan, 3, device))


@pytest.mark.cuda_sources
@pytest.mark.parametrize("channels", [1, 2, 8, 16, 17, 64, 131])
def test_any_number_of_channels_and_nodes(channels, device):
    """Less than a vector, whole vectors, and a rest; nodes that fill a pass, and that do not. y has
    one species for some nodes, mixtures for others, and nothing for one."""
    found, truth, plan = both("two irreps of degree 3", device)
    for nodes in (1, 2, 3, 4, 6, 150):
        y = one_species_each(nodes)
        y[::5] = torch.randn(len(y[::5]), SPECIES)
        y[-1] = 0
        x, w, y = leaves(plan, channels, device, nodes, y)
        y = y.detach()
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 3e-5)):
            given = [t.detach().to(dtype).requires_grad_() for t in (x, w)]
            out = found(*given, y.to(dtype))
            expected = truth(x, w, y)
            assert out.shape == (nodes, channels * plan.dim_out)
            grad = torch.randn_like(expected)
            first = torch.autograd.grad(out, given, grad.to(dtype).requires_grad_(), create_graph=True)
            first_true = torch.autograd.grad(expected, (x, w), grad.requires_grad_(), create_graph=True)
            along = [torch.randn_like(t) for t in (x, w)]
            second = torch.autograd.grad(first, given, [t.to(dtype) for t in along])
            second_true = torch.autograd.grad(first_true, (x, w), along)
            for a, b in zip((out, *first, *second), (expected, *first_true, *second_true), strict=True):
                assert_close(a.double(), b, atol=tolerance * max(1.0, b.abs().max().item()), rtol=0.0)


@pytest.mark.cuda_sources
def test_more_products_than_shared_memory_holds(device):
    """The CUDA kernels keep a block's numbers elsewhere then: 80 KB are exceeded by the second
    derivative alone, and by the first, too."""
    for dim in (13, 20):
        tensors = random_tensors(dim, 3, (1,))
        plan = contraction_plan(tensors, dim)
        x, w, y = leaves(plan, 33, device, 3)
        y = y.detach()
        out = ops.symmetric_contraction(x, w, y, plan)
        expected = reference.symmetric_contraction(x, w, y, [[torch.tensor(t, device=device) for t in tensors[0]]])
        assert_close(out, expected)
        grad, along = torch.randn_like(out), [torch.randn_like(t) for t in (x, w)]
        for value in (out, expected):
            first = torch.autograd.grad(value, (x, w), grad, create_graph=True)
            second = torch.autograd.grad(first, (x, w), along)
            if value is out:
                found = (*first, *second)
        for a, b in zip(found, (*first, *second), strict=True):
            assert_close(a, b)


@pytest.mark.cuda_sources
def test_one_wanted_at_a_time(device):
    """Each of the op's results alone, with and without a direction: kernels differ."""
    _, _, plan = both("two irreps of degree 3", device)
    x, w, y = (t.detach() for t in leaves(plan, 5, device))
    g, direction = torch.randn(NODES, 5 * plan.dim_out, device=device), torch.randn_like(x)
    tables = make_tables(plan, x.dtype, x.device)
    for along in (None, direction):

        def results(wanted, along=along):
            return torch.ops.hamfast.symmetric_contraction(x, y, w, g, along, *tables.tensors, wanted, tables.dims)

        every = results(0b1111)
        for wanted in range(1, 16):
            for slot, result in enumerate(results(wanted)):
                if wanted >> slot & 1:
                    assert_close(result, every[slot])
                else:
                    assert result.numel() == 0


@pytest.mark.cuda_sources
def test_sums_have_a_fixed_order(device):
    found, _, plan = both("two irreps of degree 3", device)
    x, w, y = leaves(plan, 37, device, 300, one_species_each(300))
    grad = torch.randn(300, 37 * plan.dim_out, device=device)
    first = torch.autograd.grad(found(x, w, y), (x, w), grad)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for a, b in zip(torch.autograd.grad(found(x, w, y), (x, w), grad), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.cuda_sources
@pytest.mark.interpreter
def test_nothing_to_contract(device):
    found, truth, plan = both("two irreps of degree 3", device)
    for nodes, channels in ((0, 4), (3, 0), (0, 0)):
        tensors = leaves(plan, channels, device, nodes)
        out = found(*tensors)
        assert out.shape == truth(*tensors).shape
        first = torch.autograd.grad(out.sum(), tensors, create_graph=True)
        assert [t.shape for t in first] == [t.shape for t in tensors]
        assert all((t == 0).all() for t in first)
        torch.autograd.grad(sum(t.sum() for t in first), tensors, allow_unused=True)


def test_third_derivative_and_beyond():
    for case in ("two irreps of degree 3", "degree 4"):
        found, truth, plan = both(case)
        tensors = leaves(plan, 2, nodes=3)
        for at in range(3):

            def fourth(function, at=at, tensors=tensors):
                value = function(*tensors).pow(3).sum()
                for _ in range(4):
                    (value,) = torch.autograd.grad(value.sum(), tensors[at], create_graph=True)
                return value

            expected = fourth(truth)
            assert_close(fourth(found), expected, atol=1e-11 * max(1.0, expected.abs().max().item()))


def test_forward_mode_and_func():
    found, truth, plan = both("two irreps of degree 3")
    given = tuple(t.detach() for t in leaves(plan, 2, nodes=3))
    tangents = tuple(torch.randn_like(t) for t in given)
    every = (0, 1, 2)

    def energy(function):
        return lambda *t: function(*t).pow(2).sum()

    def compare(a, b):
        for p, q in zip(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b), strict=True):
            assert_close(p, q, atol=1e-10)

    compare(torch.func.jvp(found, given, tangents), torch.func.jvp(truth, given, tangents))
    gradient = lambda f: torch.func.grad(energy(f), every)  # noqa: E731
    compare(gradient(found)(*given), gradient(truth)(*given))
    compare(
        torch.func.jvp(gradient(found), given, tangents),
        torch.func.jvp(gradient(truth), given, tangents),
    )
    compare(torch.func.hessian(energy(found), every)(*given), torch.func.hessian(energy(truth), every)(*given))
    compare(torch.func.jacrev(found, 1)(*given), torch.func.jacrev(truth, 1)(*given))
    twice = lambda f: lambda *t: torch.func.jvp(gradient(f), t, tangents)[1][0]  # noqa: E731
    compare(torch.func.vjp(twice(found), *given)[1](tangents[0]), torch.func.vjp(twice(truth), *given)[1](tangents[0]))
    for batched in ((0, None, 0), (0, 0, None), (None, None, 0), (None, 0, None)):
        stacked = [t if b is None else torch.stack([t, 2 * t, t - 1]) for t, b in zip(given, batched, strict=True)]
        compare(torch.vmap(found, batched)(*stacked), torch.vmap(truth, batched)(*stacked))
        compare(
            torch.vmap(gradient(found), batched)(*stacked),
            torch.vmap(gradient(truth), batched)(*stacked),
        )


def test_batched_gradients():
    found, truth, plan = both("two irreps of degree 3")
    tensors = leaves(plan, 2, nodes=3)
    for at in range(3):
        rows = []
        for function in (found, truth):
            (first,) = torch.autograd.grad(function(*tensors).pow(2).sum(), tensors[at], create_graph=True)
            grads = torch.eye(first.numel()).view(-1, *first.shape)
            rows.append(torch.autograd.grad(first, tensors[0], grads, is_grads_batched=True)[0])
        assert_close(*rows, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, device):
    found, truth, plan = both("two irreps of degree 3", device)
    exact = [t.detach().to(dtype).double().requires_grad_() for t in leaves(plan, 7, device)]
    given = [t.detach().to(dtype).requires_grad_() for t in exact]
    out, expected = found(*given), truth(*exact)
    grad = torch.randn_like(expected).to(dtype)
    first = torch.autograd.grad(out, given, grad)
    first_true = torch.autograd.grad(expected, exact, grad.double())
    assert out.dtype == dtype and all(t.dtype == dtype for t in first)
    for a, b in zip((out, *first), (expected, *first_true), strict=True):
        assert_close(a.double(), b, atol=4 * torch.finfo(dtype).eps * b.abs().max().item(), rtol=0.0)


def test_opcheck_compile_and_export():
    found, _, plan = both("two irreps of degree 3")
    tables = make_tables(plan, torch.float64, torch.device("cpu"))
    x, w, y = leaves(plan)
    g, direction = torch.randn(NODES, 5 * plan.dim_out).requires_grad_(), torch.randn_like(x).requires_grad_()
    for change in (lambda t: t, lambda t: permuted(t.detach()).requires_grad_()):
        rest = tables.tensors._asdict() | {"dims": tables.dims}
        given = {name: change(t) for name, t in {"x": x, "y": y, "w": w, "g": g}.items()}
        op = torch.ops.hamfast.symmetric_contraction.default
        for wanted in (8, 7):
            torch.library.opcheck(op, SYMMETRIC_CONTRACTION.by_name(**given, **rest, wanted=wanted))
        along = SYMMETRIC_CONTRACTION.by_name(**given, **rest, wanted=13, direction=change(direction))
        # Not the traced derivative: that is a third one, which says that it cannot be traced.
        torch.library.opcheck(op, along, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        torch.autograd.grad(compiled(x, w, y).pow(2).sum(), (x, w, y)),
        torch.autograd.grad(found(x, w, y).pow(2).sum(), (x, w, y)),
        strict=True,
    ):
        assert_close(a, b)

    class Layer(torch.nn.Module):
        def forward(self, x, w, y):
            return found(x, w, y)

    nodes = torch.export.Dim("nodes")
    given = tuple(t.detach() for t in (x, w, y))
    program = torch.export.export(Layer(), given, dynamic_shapes=({0: nodes}, None, {0: nodes}))
    fewer = given[0][:7], given[1], given[2][:7]
    assert_close(program.module()(*fewer), found(*fewer))


@every_case
def test_plan_has_each_product_once(case):
    """What the tables say, read as a reader of them would: the polynomials are the tensors'."""
    blocks, dim = BLOCKS[case]
    plan = contraction_plan(blocks, dim)
    assert len(set(zip(plan.components.tolist(), plan.monomials, strict=True))) <= len(plan.monomials)
    tables = contraction_tables(plan)
    assert plan.degree == (0 if case == "nothing but zeros" else max(t.ndim - 2 for ts in blocks for t in ts))
    assert sum(row[3] for row in tables.groups.tolist()) == len(plan.monomials)
    assert tables.buckets[0] == 0 and tables.buckets[MOST] == len(tables.groups)
    x = np.random.default_rng(1).normal(size=dim)
    weight = np.random.default_rng(2).normal(size=plan.paths)
    values = [1.0, *x]
    for parent, factor in tables.products.tolist():
        values.append(values[parent] * values[factor])
    coefficients = np.zeros(len(plan.monomials))
    for (path, term), value in zip(tables.by_path.tolist(), tables.by_path_value.tolist(), strict=True):
        coefficients[term] += value * weight[path]
    out = np.zeros(plan.dim_out)
    for prefix, component, first, count in tables.groups.tolist():
        for t in range(first, first + count):
            out[component] += values[prefix] * values[tables.factors[t]] * coefficients[t]
    dense = [[torch.tensor(t) for t in tensors] for tensors in blocks]
    given = torch.tensor(x).view(1, 1, -1), torch.tensor(weight).view(1, -1, 1), torch.ones(1, 1)
    assert_close(torch.tensor(out), reference.symmetric_contraction(*given, dense)[0])


def test_derivative_plan_is_the_derivative():
    _, truth, plan = both("two irreps of degree 3")
    x, w, y = (t.detach() for t in leaves(plan))
    direction = torch.randn_like(x)
    pair = torch.cat([x, direction], dim=2)
    expected = torch.func.jvp(lambda x: truth(x, w, y), (x,), (direction,))[1]
    assert_close(ops.symmetric_contraction(pair, w, y, derivative_plan(plan)), expected)


def test_noise_of_single_precision_is_no_term():
    """Tensors that were made in float32 have small numbers where exact ones have 0."""
    exact = [t for (tensors,) in [couplings("1o", 3, "0e+1o+2e")] for t in tensors]
    noisy = [(t + 1e-8 * np.random.default_rng(0).normal(size=t.shape)).astype(np.float32) for t in exact]
    found, expected = contraction_plan([noisy], 9), contraction_plan([exact], 9)
    assert found.monomials == expected.monomials
    assert len(found.values) == len(expected.values)


def test_errors_name_the_argument():
    _, _, plan = both("invariants of degree 3")
    x, w, y = (t.detach() for t in leaves(plan, 2))
    for match, arguments in {
        r"x: expected \[nodes, channels, 4\], found \[13, 2, 3\]": (x[..., :3], w, y),
        r"y: expected \[13, species\], found \[12, 3\]": (x, w, y[:12]),
        rf"weight: expected \[3, {plan.paths}, 2\], found \[3, {plan.paths - 1}, 2\]": (x, w[:, 1:], y),
        "y: expected torch.float64 as x, found torch.float32": (x, w, y.float()),
        "x: expected float32, float64, bfloat16 or float16, found torch.int64": (x.long(), w, y),
    }.items():
        with pytest.raises(ValueError, match=match):
            ops.symmetric_contraction(*arguments, plan)
    with pytest.raises(ValueError, match=r"block 0: expected tensors \[1, 4, ..., 4, paths\], found \[1, 4, 3, 2\]"):
        contraction_plan([[np.zeros((1, 4, 3, 2))]], 4)
    with pytest.raises(ValueError, match="block 1: expected a tensor at least, found none"):
        contraction_plan([[np.zeros((1, 4, 2))], []], 4)
