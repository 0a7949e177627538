"""tensor_product under torch's transformations: compile, export, AOTInductor, vmap and torch.func,
autocast, low precision."""

import sys

import pytest
import torch
from kit import assert_close
from torch._dynamo.testing import CompileCounterWithBackend

from hamfast import ops, reference
from hamfast.ops.notice import SlowPathWarning, strict
from hamfast.plan import make_plan

UVU = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 1, 2, "uvu", True), (1, 0, 3, "uvu", True)]
UVW = [(0, 0, 0, "uvw", True), (1, 1, 0, "uvw", True), (0, 1, 1, "uvw", True), (1, 0, 1, "uvw", True)]
PLANS = {
    "channel": make_plan("5x0e+4x1o", "1x0e+1x1o", "5x0e+5x1o+4x0e+4x1o", UVU),
    "mix": make_plan("5x0e+4x1o", "1x0e+1x1o", "3x0e+2x1o", UVW),
    "general": make_plan("4x0e+4x1o", "4x0e+4x1o", "4x0e+4x1o", [(0, 0, 0, "uuu", True), (0, 1, 1, "uuu", True)]),
}


def make_case(name, rows=6, dtype=torch.float64):
    plan = PLANS[name]
    shape = (rows, plan.weight_numel) if name == "channel" else (plan.weight_numel,)
    tensors = (torch.randn(rows, plan.dim_in1), torch.randn(rows, plan.dim_in2), torch.randn(shape))
    return plan, *(t.to(dtype) for t in tensors)


class Convolution(torch.nn.Module):
    """Gather, product, scatter-sum."""

    def __init__(self, name):
        super().__init__()
        self.plan = PLANS[name]

    def forward(self, x, y, w, senders, sender_order, sender_ptr, receivers, receiver_order, receiver_ptr):
        edges = ops.EdgeIndex(senders, receivers, 3, 4, sender_order, sender_ptr, receiver_order, receiver_ptr)
        return ops.tensor_product(x, y, w, self.plan, edges)


def convolution_case(name, edges=6):
    plan, x, y, w = make_case(name, edges)
    e = ops.edge_index(torch.randint(3, (edges,)), torch.randint(4, (edges,)), 3, 4)
    graph = (e.senders, e.sender_order, e.sender_ptr, e.receivers, e.receiver_order, e.receiver_ptr)
    expected = reference.tensor_product(x[:3], y, w, plan, e.senders, e.receivers, 4)
    return (x[:3].contiguous(), y, w, *graph), expected


@pytest.mark.parametrize("name", PLANS)
def test_compiles_once_for_all_row_counts(name):
    torch._dynamo.reset()  # what was compiled for other plans counts for this code, too
    counter = CompileCounterWithBackend("aot_eager")
    plan = PLANS[name]
    compiled = torch.compile(
        lambda x, y, w: ops.tensor_product(x, y, w, plan), fullgraph=True, dynamic=True, backend=counter
    )
    for rows in (5, 7, 11):
        _, x, y, w = make_case(name, rows)
        leaves = [t.requires_grad_() for t in (x, y, w)]
        out, expected = compiled(*leaves), reference.tensor_product(*leaves, plan)
        assert_close(out, expected)
        for a, b in zip(
            torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            assert_close(a, b)
    # The lowering einsum compares a float, which torch takes for a symbol first: it compiles twice.
    assert counter.frame_count == (2 if name == "general" else 1)


@pytest.mark.parametrize("name", ["channel", "mix"])
def test_export_with_dynamic_edges(name):
    args, expected = convolution_case(name)
    edges = torch.export.Dim("edges", min=2, max=1000)
    per_edge = {0: edges}
    weight = per_edge if name == "channel" else None
    shapes = (None, per_edge, weight, per_edge, per_edge, None, per_edge, per_edge, None)
    exported = torch.export.export(Convolution(name), args, dynamic_shapes=shapes)
    assert_close(exported.module()(*args), expected)
    more, expected = convolution_case(name, edges=9)
    assert_close(exported.module()(*more), expected)


def test_aot_inductor(tmp_path):
    args, expected = convolution_case("channel")
    exported = torch.export.export(Convolution("channel"), args)
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "convolution.pt2"))
    assert_close(torch._inductor.aoti_load_package(package)(*args), expected)


@pytest.mark.parametrize("name", PLANS)
def test_vmap_is_the_loop(name):
    plan, x, y, w = make_case(name)
    xs, ws = torch.randn(4, *x.shape, dtype=x.dtype), torch.randn(4, *w.shape, dtype=w.dtype)

    def product(x, w):
        return ops.tensor_product(x, y, w, plan)

    assert_close(torch.vmap(product)(xs, ws), torch.stack([product(a, b) for a, b in zip(xs, ws, strict=True)]))
    assert_close(torch.vmap(product, (0, None))(xs, w), torch.stack([product(a, w) for a in xs]))


@pytest.mark.parametrize("name", PLANS)
def test_hessians_row_by_row_and_vectorized(name):
    plan, x, y, w = make_case(name, rows=2)

    def energy(y, product=ops.tensor_product):
        return product(x, y, w, plan).pow(3).sum()

    truth = torch.autograd.functional.hessian(lambda y: energy(y, reference.tensor_product), y)
    assert_close(torch.autograd.functional.hessian(energy, y), truth)
    assert_close(torch.autograd.functional.hessian(energy, y, vectorize=True), truth)  # vmap over the backward pass


@pytest.mark.parametrize("name", PLANS)
def test_autocast_takes_mixed_operands(name):
    plan, x, y, w = make_case(name, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ops.tensor_product(x.bfloat16(), y, w, plan)
        low = ops.tensor_product(x.bfloat16(), y.bfloat16(), w.bfloat16(), plan)
    assert mixed.dtype == torch.float32 and low.dtype == torch.bfloat16
    assert_close(mixed, reference.tensor_product(x.bfloat16().float(), y, w, plan), atol=1e-5, rtol=1e-5)


# Stored with 8 or 11 bits, summed in float32: the error is that of rounding inputs and result once.
# docs/ops.md has the table.
EPS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.mark.parametrize("dtype", EPS, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", PLANS)
def test_low_precision_storage_rounds_only_inputs_and_result(name, dtype):
    plan, x, y, w = make_case(name, rows=40)
    leaves = [t.to(dtype).requires_grad_() for t in (x, y, w)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    out, truth = ops.tensor_product(*leaves, plan), reference.tensor_product(*exact, plan)
    assert out.dtype == dtype
    grad = torch.randn_like(out)
    grads, truths = torch.autograd.grad(out, leaves, grad), torch.autograd.grad(truth, exact, grad.double())
    for found, expected in zip((out, *grads), (truth, *truths), strict=True):
        assert found.dtype == dtype
        # mix rounds the coupled pairs as well
        limit = EPS[dtype] * (4 if name == "mix" else 1)
        assert float((found.double() - expected).norm() / expected.norm()) < limit


def test_slow_paths_say_why_once_and_are_forbidden_under_strict(monkeypatch):
    monkeypatch.setattr(sys.modules["hamfast.ops.tensor_product"], "_problem", lambda device: "no compiler here")
    plan, x, y, w = make_case("general")
    with pytest.warns(SlowPathWarning, match="on cpu runs on the general kernel, .* slow: no compiler here"):
        ops.tensor_product(x, y, w, plan)
    with strict(), pytest.raises(RuntimeError, match="general kernel.* strict mode forbids it"):
        ops.tensor_product(x, y, w, plan)
    monkeypatch.undo()
    with strict():
        plan, x, y, w = make_case("channel")
        ops.tensor_product(x, y, w, plan)
