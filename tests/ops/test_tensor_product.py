import sys

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit import assert_close, check_derivatives, fully_connected, permuted
from torch._dynamo.testing import CompileCounterWithBackend

from hamfast import ops, reference
from hamfast.ops.layout import convert_layout
from hamfast.ops.multilinear import make_tables
from hamfast.plan import make_plan
from hamfast.plan.cost import rows_like
from hamfast.records.choices import Layout, Slot
from hamfast.records.ops import TENSOR_PRODUCT

pytestmark = pytest.mark.usefixtures("double")
TENSOR_PRODUCT_MODULE = sys.modules["hamfast.ops.tensor_product"]  # the package shows the function

# mode: irreps_in1, irreps_in2, irreps_out; l and parity such that one path exists
SHAPES = {
    "uvw": ("3x1o", "2x1e", "4x2o"),
    "uvu": ("3x1o", "2x2e", "3x1o"),
    "uvv": ("3x1o", "2x2e", "2x3o"),
    "uuw": ("3x1o", "3x1o", "4x1e"),
    "uuu": ("3x2e", "3x1o", "3x2o"),
    "uvuv": ("3x1o", "2x1o", "6x0e"),
    "uvu<v": ("4x1o", "4x1o", "6x1e"),
    "u<vw": ("4x1o", "4x1o", "5x2e"),
}
CASES = [(mode, weight) for mode in SHAPES for weight in ("shared", "per-sample")]
CASES += [(mode, "none") for mode in ("uvu", "uvv", "uuu", "uvuv", "uvu<v")]


def make_case(mode, weights, rows=5):
    in1, in2, out = SHAPES[mode]
    # A second path, so that offsets are not zero.
    plan = make_plan(
        f"2x0e+{in1}",
        f"{in2}+1x0e",
        f"{out}+2x0e",
        [(1, 0, 0, mode, weights != "none"), (0, 1, 1, "uvu", weights != "none")],
    )
    x, y = torch.randn(rows, plan.dim_in1), torch.randn(rows, plan.dim_in2)
    shape = {"shared": (plan.weight_numel,), "per-sample": (rows, plan.weight_numel)}.get(weights)
    return plan, x, y, None if shape is None else torch.randn(shape)


@pytest.mark.parametrize("lowering", [None, "einsum", "general"])
@pytest.mark.parametrize(("mode", "weights"), CASES)
def test_modes_and_derivatives(mode, weights, lowering, device):
    plan, x, y, w = make_case(mode, weights)
    args = [t.to(device).requires_grad_() for t in (x, y, w) if t is not None]

    def op(x, y, w=None):
        return ops.tensor_product(x, y, w, plan, lowering=lowering)

    check_derivatives(op, lambda x, y, w=None: reference.tensor_product(x, y, w, plan), args)


@pytest.mark.parametrize(("mode", "weights"), CASES)
def test_equals_e3nn(mode, weights):
    plan, x, y, w = make_case(mode, weights)
    to_irreps = [o3.Irreps([(n, (l, p)) for n, l, p in b]) for b in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)]
    instructions = [(i.i_in1, i.i_in2, i.i_out, i.mode, i.has_weight, 1.0) for i in plan.instructions]
    theirs = o3.TensorProduct(*to_irreps, instructions, internal_weights=False, shared_weights=weights != "per-sample")
    expected = theirs(x, y) if w is None else theirs(x, y, w)
    assert_close(ops.tensor_product(x, y, w, plan), expected)


@pytest.mark.interpreter
@pytest.mark.parametrize("mode", ["uvu", "uuu"])
@pytest.mark.parametrize("weights", ["shared", "per-sample"])
def test_paths_with_and_without_weights_together(mode, weights, device):
    """Linear in the weights no more: paths without weights must not show up in derivatives along
    them."""
    plan = make_plan("3x0e+3x1o", "3x1o", "3x1o+3x0e", [(0, 0, 0, mode, True), (1, 0, 1, mode, False)])
    x, y = torch.randn(4, plan.dim_in1), torch.randn(4, plan.dim_in2)
    w = torch.randn(plan.weight_numel if weights == "shared" else (4, plan.weight_numel))
    args = [t.to(device).requires_grad_() for t in (x, y, w)]
    check_derivatives(lambda *a: ops.tensor_product(*a, plan), lambda *a: reference.tensor_product(*a, plan), args)

    def third(f):
        first = torch.autograd.grad(f(*args).pow(2).sum(), args, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), args, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in second), args)

    for ours, theirs in zip(
        third(lambda *a: ops.tensor_product(*a, plan)),
        third(lambda *a: reference.tensor_product(*a, plan)),
        strict=True,
    ):
        assert_close(ours, theirs, atol=1e-7, rtol=1e-8)


@pytest.mark.parametrize("lowering", ["mix", "einsum", "general"])
@pytest.mark.parametrize("weights", ["shared", "per-sample"])
def test_all_degrees_fully_connected(weights, lowering):
    """Scalars, single channels and single outputs have formulas of their own."""
    irreps = [
        o3.Irreps(i) for i in ("3x0e+4x1o+2x2e", "2x0e+1x1o+3x2e+1x7o", "3x0e+1x0e+2x1o+1x2e+2x2e+1x1e+1x6e+1x8o")
    ]
    instructions = fully_connected(*irreps)
    plan = make_plan(*irreps, instructions)
    theirs = o3.TensorProduct(*irreps, instructions, internal_weights=False, shared_weights=weights == "shared")
    x, y = torch.randn(4, plan.dim_in1), torch.randn(4, plan.dim_in2)
    w = torch.randn(plan.weight_numel if weights == "shared" else (4, plan.weight_numel))
    check_derivatives(
        lambda *a: ops.tensor_product(*a, plan, lowering=lowering), theirs, [t.requires_grad_() for t in (x, y, w)]
    )
    ir_mul = convert_layout(x, plan.irreps_in1, "mul_ir", "ir_mul")
    found = ops.tensor_product(ir_mul, y, w, plan, lowering=lowering, layout="ir_mul")
    assert_close(convert_layout(found, plan.irreps_out, "ir_mul", "mul_ir"), theirs(x, y, w))


def test_few_and_many_rows_choose_for_themselves(monkeypatch):
    """The number of rows, and whether derivatives can be asked for, decide at run time."""
    asked = []
    choose = TENSOR_PRODUCT_MODULE.choose_lowering
    monkeypatch.setattr(TENSOR_PRODUCT_MODULE, "rows_like", rows_like)
    monkeypatch.setattr(TENSOR_PRODUCT_MODULE, "choose_lowering", lambda *a, **kw: asked.append(kw) or choose(*a, **kw))
    plan, x, y, w = make_case("uvw", "shared", rows=33)
    ops.tensor_product(x, y, w, plan)
    ops.tensor_product(x, y, w.requires_grad_(), plan)
    assert asked == [{"rows": 32, "derivatives": False}, {"rows": 32, "derivatives": True}]


def test_uuw_without_weight_sums_channels():
    plan = make_plan("3x1o", "3x1o", "1x0e", [(0, 0, 0, "uuw", False)])
    x, y = torch.randn(4, 9), torch.randn(4, 9)
    theirs = o3.TensorProduct("3x1o", "3x1o", "1x0e", [(0, 0, 0, "uuw", False)])
    assert_close(ops.tensor_product(x, y, None, plan), theirs(x, y))


@pytest.mark.cuda_sources(weights=["per-sample"], gather=[True], scatter=[True])
@pytest.mark.parametrize("weights", ["shared", "per-sample"])
@pytest.mark.parametrize("lowering", ["mix", "einsum"])
@pytest.mark.parametrize(("gather", "scatter"), [(True, True), (True, False), (False, True)])
def test_over_a_graph(weights, gather, scatter, lowering, device):
    plan, _, _, _ = make_case("uvw", weights)
    senders = torch.tensor([0, 3, 3, 1, 2, 0, 0])
    receivers = torch.tensor(
        [4, 0, 0, 1, 4, 2, 4]
    )  # node 3 receives nothing, edge 3 is a self-loop, 1 and 2 a multi-edge
    edges = ops.edge_index(senders.to(device), receivers.to(device), 4, 5)
    x = torch.randn(4 if gather else 7, plan.dim_in1)
    y = torch.randn(7, plan.dim_in2)
    w = torch.randn(plan.weight_numel if weights == "shared" else (7, plan.weight_numel))
    args = [t.to(device).requires_grad_() for t in (x, y, w)]

    def op(x, y, w):
        return ops.tensor_product(x, y, w, plan, edges, gather=gather, scatter=scatter, lowering=lowering)

    def truth(x, y, w):
        return reference.tensor_product(
            x, y, w, plan, edges.senders if gather else None, edges.receivers if scatter else None, 5
        )

    check_derivatives(op, truth, args)


@pytest.mark.cuda_sources
@pytest.mark.interpreter
def test_third_derivative():
    plan, x, y, w = make_case("uvw", "shared", rows=2)

    def nested(f):
        def value(x):
            g1 = torch.autograd.grad(f(x, y, w).pow(3).sum(), x, create_graph=True)[0]
            g2 = torch.autograd.grad(g1.pow(2).sum(), x, create_graph=True)[0]
            return torch.autograd.grad(g2.sum(), x)[0]

        return value(x.clone().requires_grad_())

    ours = nested(lambda x, y, w: ops.tensor_product(x, y, w, plan))
    assert_close(ours, nested(lambda x, y, w: reference.tensor_product(x, y, w, plan)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("memory", ["contiguous", "permuted"])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kernel", ["general", "channel"])
def test_opcheck(memory, graph, kernel):
    plan, x, y, w = make_case("uvu", "per-sample", rows=4)
    edges = ops.edge_index(torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 0]), 4)
    tables = make_tables(plan, kernel, x.dtype, x.device)
    operands = [permuted(t) if memory == "permuted" else t for t in (x, y, w, torch.randn(4, plan.dim_out))]
    operands = [t.detach().requires_grad_() for t in operands]
    named = dict(zip("xywg", operands, strict=True))
    tangents = {f"tangent_{name}": torch.randn_like(t).requires_grad_() for name, t in named.items()}
    rest = tables.tensors._asdict() | (edges.graph._asdict() if graph else {})
    rest |= {"edges": 4, "shared_weights": False, "x_layout": Layout.MUL_IR, "g_layout": Layout.MUL_IR}
    rest["dims"] = tables.dims
    product = {"x": operands[0], "y": operands[1], "w": operands[2], "wanted": 1 << Slot.G}
    gradients = named | {"wanted": 1 << Slot.X | 1 << Slot.Y | 1 << Slot.W}
    derivative = named | tangents | {"wanted": 15}
    for call in (product, gradients, derivative):
        torch.library.opcheck(torch.ops.hamfast.tensor_product.default, TENSOR_PRODUCT.by_name(**call, **rest))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph_with_dynamic_rows(backend):
    plan, _, _, w = make_case("uvw", "shared")

    def product(x, y, w):
        return ops.tensor_product(x, y, w, plan)

    compiled = torch.compile(product, fullgraph=True, dynamic=True, backend=backend)
    for rows in (5, 7):
        x, y = torch.randn(rows, plan.dim_in1, requires_grad=True), torch.randn(rows, plan.dim_in2)
        out, expected = compiled(x, y, w), ops.tensor_product(x, y, w, plan)
        assert_close(out, expected)
        assert_close(torch.autograd.grad(out.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize("mode", SHAPES)
def test_products_by_paths_compile_once_for_all_row_counts(mode):
    """Coefficients of paths are constants of the graph, and no symbols of floats."""
    torch._dynamo.reset()  # the function below is the same code for all cases
    plan, counts = make_case(mode, "shared")[0], []
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, y, w: ops.tensor_product(x, y, w, plan, lowering="einsum"),
        fullgraph=True,
        dynamic=True,
        backend=backend,
    )
    for rows in (31, 43, 67):
        _, x, y, w = make_case(mode, "shared", rows)
        x.requires_grad_()
        out, expected = compiled(x, y, w), ops.tensor_product(x, y, w, plan)
        assert_close(out, expected)
        assert_close(torch.autograd.grad(out.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])
        counts.append(backend.frame_count)
    assert counts[0] == counts[-1] > 0


@pytest.mark.cuda_sources
@pytest.mark.interpreter
def test_zero_stride_gradient_and_empty_rows():
    plan, x, y, w = make_case("uvw", "shared")
    x.requires_grad_()
    grad = torch.autograd.grad(ops.tensor_product(x, y, w, plan).sum(), x)[0]
    assert_close(grad, torch.autograd.grad(reference.tensor_product(x, y, w, plan).sum(), x)[0])
    empty = torch.zeros(0, plan.dim_in1, requires_grad=True)
    weight = w.clone().requires_grad_()
    out = ops.tensor_product(empty, torch.zeros(0, plan.dim_in2), weight, plan)
    assert out.shape == (0, plan.dim_out)
    assert_close(torch.autograd.grad(out.sum(), weight)[0], torch.zeros_like(w))


TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    mode=st.sampled_from([*SHAPES, "mixed"]),
    edges=st.integers(0, 9),
    graph=st.sampled_from([None, (True, True), (True, False), (False, True)]),
    weights=st.sampled_from(["shared", "per-sample"]),
    layout=st.sampled_from(["mul_ir", "ir_mul"]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
# Once read past the last block of coupled pairs.
@example(784, "uvw", 1, (True, True), "shared", "mul_ir", torch.float64)
def test_random_irreps_modes_graphs_dtypes(seed, mode, edges, graph, weights, layout, dtype):
    """Value and all gradients, against the reference in float64 on the same rounded operands."""
    generator = torch.Generator().manual_seed(seed)
    plan = random_plan(generator, mode)
    nodes = 4
    index = ops.edge_index(*torch.randint(nodes, (2, edges), generator=generator), nodes) if graph else None
    gather, scatter = graph or (False, False)
    shape = (plan.weight_numel,) if weights == "shared" else (edges, plan.weight_numel)
    operands = [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)
        for s in ((nodes if gather else edges, plan.dim_in1), (edges, plan.dim_in2), shape)
    ]
    leaves = [t.requires_grad_() for t in operands]
    exact = [t.detach().double().requires_grad_() for t in operands]
    x = convert_layout(leaves[0], plan.irreps_in1, "mul_ir", layout)
    found = ops.tensor_product(x, *leaves[1:], plan, index, gather=gather, scatter=scatter, layout=layout)
    found = convert_layout(found, plan.irreps_out, layout, "mul_ir")
    truth = reference.tensor_product(
        *exact, plan, index.senders if gather else None, index.receivers if scatter else None, nodes
    )
    grad = torch.randn(truth.shape, generator=generator, dtype=torch.float64).to(dtype)
    pairs = [(found, truth)]
    if found.requires_grad:
        pairs += zip(
            torch.autograd.grad(found, leaves, grad, allow_unused=True),
            torch.autograd.grad(truth, exact, grad.double(), allow_unused=True),
            strict=True,
        )
    for ours, theirs in pairs:
        if theirs is not None and ours is not None and theirs.numel():
            assert ours.dtype == dtype
            scale = max(float(theirs.abs().max()), 1.0)
            assert float((ours.double() - theirs).abs().max()) <= TOLERANCE[dtype] * scale


def random_plan(generator, mode):
    """One to four random paths with multiplicities 0 to 5, weighted or not where that is allowed;
    ``mixed``: of several modes."""

    def pick(options):
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    blocks, paths = ([], [], []), []
    for n in range(pick([1, 2, 3, 4])):
        chosen = pick(list(SHAPES)) if mode == "mixed" else mode
        l1, l2 = pick([0, 1, 2, 3]), pick([0, 1, 2])
        l3 = pick(list(range(abs(l1 - l2), l1 + l2 + 1)))
        p1, p2 = pick([1, -1]), pick([1, -1])
        n1, n2, n3 = pick([0, 1, 2, 3, 5]), pick([1, 2, 3]), pick([0, 1, 4])
        if chosen in ("uuw", "uuu", "uvu<v", "u<vw"):
            n2 = n1
        pairs = n1 * (n1 - 1) // 2
        n3 = {"uvu": n1, "uvv": n2, "uuu": n1, "uvuv": n1 * n2, "uvu<v": pairs}.get(chosen, n3)
        weighted = chosen in ("uvw", "u<vw", "uuw") or pick([True, False])
        for block, entry in zip(blocks, ((n1, (l1, p1)), (n2, (l2, p2)), (n3, (l3, p1 * p2))), strict=True):
            block.append(entry)
        paths.append((n, n, n, chosen, weighted))
    return make_plan(*(o3.Irreps(block) for block in blocks), paths)


@pytest.mark.interpreter
@pytest.mark.parametrize("mode", ["uvu", "uvw"])
@pytest.mark.parametrize("muls", [(1, 3, 8), (24, 128, 3), (8, 1, 24)])
def test_unequal_multiplicities_and_high_l(mode, muls):
    """1, 3, 8, 24, 128 channels; l up to 6 on both sides, 12 and 9 in the result."""
    a, b, c = muls
    in1, in2 = f"{a}x6e+{b}x0e+{c}x3o", "1x6e+2x2e+1x3o"
    # l: 6 x 6 -> 6 and 12, 0 x 2 -> 2, 3 x 3 -> 0, 6 x 3 -> 9
    outs = [(0, 0, 6, 1, a), (0, 0, 12, 1, a), (1, 1, 2, 1, b), (2, 2, 0, 1, c), (0, 2, 9, -1, a)]
    if mode == "uvw" and max(muls) == 128:
        outs = outs[2:]
    out = o3.Irreps([(mul if mode == "uvu" else 5, (l, p)) for _, _, l, p, mul in outs])
    plan = make_plan(in1, in2, out, [(i, j, k, mode, True) for k, (i, j, *_) in enumerate(outs)])
    rows = 3
    w = torch.randn(rows, plan.weight_numel) if mode == "uvu" else torch.randn(plan.weight_numel)
    leaves = [t.requires_grad_() for t in (torch.randn(rows, plan.dim_in1), torch.randn(rows, plan.dim_in2), w)]
    found, truth = ops.tensor_product(*leaves, plan), reference.tensor_product(*leaves, plan)
    assert_close(found, truth, atol=1e-11)
    grad = torch.randn_like(truth)
    for x, y in zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(truth, leaves, grad), strict=True):
        assert_close(x, y, atol=1e-10)


def test_offsets_beyond_two_to_the_31():
    """Elements 2^31 and on, of memory that is mapped but never touched elsewhere."""
    plan = make_plan("2x0e", "2x0e", "2x0e", [(0, 0, 0, "uuu", False)])
    rows = 2**30 + 3
    x = torch.from_numpy(np.zeros((rows, 2), dtype=np.float32))
    x[rows - 1] = torch.tensor([2.0, 3.0])
    edges = ops.EdgeIndex(torch.tensor([rows - 1]), torch.tensor([0]), rows, 1, *(torch.tensor([0, 1]),) * 4)
    ones = torch.ones(1, 2, dtype=torch.float32)
    out = ops.tensor_product(x, ones, None, plan, edges, scatter=False, lowering="general")
    assert out.tolist() == [[2.0, 3.0]]


@pytest.mark.interpreter
@pytest.mark.parametrize("mode", ["uvu", "uvw", "uuu"])
def test_adversarial_strides(mode):
    """Expanded, permuted and offset operands and gradients."""
    plan, x, y, w = make_case(mode, "per-sample" if mode != "uvw" else "shared")
    expected = reference.tensor_product(x[:1].expand(5, -1), y, w, plan)
    strided = torch.zeros(plan.dim_in2, 10)[:, ::2].T
    strided.copy_(y)
    shifted = torch.randn(w.numel() + 1)[1:].view(w.shape)
    shifted.copy_(w)
    leaves = [x[:1].clone().requires_grad_(), strided.requires_grad_(), shifted.requires_grad_()]
    out = ops.tensor_product(leaves[0].expand(5, -1), *leaves[1:], plan)
    assert_close(out, expected)
    exact = [t.detach().clone().contiguous().requires_grad_() for t in leaves]
    truth = reference.tensor_product(exact[0].expand(5, -1), *exact[1:], plan)
    one = torch.ones(()).expand(truth.shape)
    for a, b in zip(torch.autograd.grad(out, leaves, one), torch.autograd.grad(truth, exact, one), strict=True):
        assert_close(a, b)


def test_equivariance_under_rotation_and_inversion():
    irreps = o3.Irreps("3x0e+2x1o+1x2e"), o3.Irreps("1x0e+1x1o+1x2e"), o3.Irreps("2x0e+2x1o+2x1e+1x2e")
    plan = make_plan(*irreps, fully_connected(*irreps))
    x, y, w = irreps[0].randn(6, -1), irreps[1].randn(6, -1), torch.randn(plan.weight_numel)
    for matrix in (o3.rand_matrix(), -o3.rand_matrix()):
        d = [i.D_from_matrix(matrix) for i in irreps]
        turned = ops.tensor_product(x @ d[0].T, y @ d[1].T, w, plan)
        assert_close(turned, ops.tensor_product(x, y, w, plan) @ d[2].T, atol=1e-10)


def test_result_does_not_depend_on_threads_or_edge_order():
    plan, _, _, w = make_case("uvw", "shared")
    senders, receivers = torch.randint(0, 20, (2, 500))
    x, y = torch.randn(20, plan.dim_in1), torch.randn(500, plan.dim_in2)
    w.requires_grad_()

    def run():
        out = ops.tensor_product(x, y, w, plan, ops.edge_index(senders, receivers, 20))
        return out.detach(), torch.autograd.grad(out.square().sum(), w)[0]

    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(run())
    torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    order = torch.randperm(500)
    shuffled = ops.tensor_product(x, y[order], w, plan, ops.edge_index(senders[order], receivers[order], 20))
    assert_close(shuffled, results[0][0], atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, w: (x[:, 1:], y, w), "x: expected"),
        (lambda x, y, w: (x, y[:3], w), "y: expected"),
        (lambda x, y, w: (x, y, w[1:]), "weight: expected"),
        (lambda x, y, w: (x, y, None), "weight: expected"),
        (lambda x, y, w: (x, y.float(), w), "y: expected torch.float64 as x, found torch.float32"),
        (lambda x, y, w: (x, y.to("meta"), w), "y: expected device cpu as x, found meta"),
        (lambda x, y, w: (x.int(), y.int(), w.int()), "expected float32, .* or float16, found torch.int32"),
    ],
)
def test_wrong_arguments_get_a_sentence(change, message):
    plan, x, y, w = make_case("uvw", "shared")
    with pytest.raises(ValueError, match=message):
        ops.tensor_product(*change(x, y, w), plan)


def test_wrong_lowering_gets_a_sentence():
    plan, x, y, w = make_case("uuu", "shared")
    with pytest.raises(
        ValueError, match="lowering: expected .*einsum.* for this plan with shared weights on cpu, found 'mix'"
    ):
        ops.tensor_product(x, y, w, plan, lowering="mix")


@pytest.mark.cuda_sources
def test_wrong_edges_get_a_sentence():
    with pytest.raises(ValueError, match=r"senders: expected indices in \[0, 3\), found 0 to 3"):
        ops.edge_index(torch.tensor([0, 3]), torch.tensor([0, 1]), 3)
    with pytest.raises(ValueError, match="receivers: expected indices"):
        ops.edge_index(torch.tensor([0, 1]), torch.tensor([0, -1]), 3)
    with pytest.raises(ValueError, match="senders: expected .* int64"):
        ops.edge_index(torch.tensor([0.0]), torch.tensor([0]), 3)
