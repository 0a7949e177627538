"""Tensor products beside e3nn's (eager, compiled) and cuEquivariance's CPU path.

Outputs are compared before anything is timed.
HAMFAST_BENCH_COMPILED=1 adds torch.compile'd e3nn: minutes of compiling.
"""

import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import EDGE_PRODUCTS, PRODUCTS, RADIAL_WIDTH, random_graph
from e3nn import o3

from hamfast import environment, ops
from hamfast.plan import edge_frame_plan

sys.path.append(str(Path(sys.prefix) / "peers"))
MODES = ("forward", "forward+backward")
FORCE_MODES = (*MODES, "double backward")
COMPILED = ["e3nn compiled"] if environment.switch("HAMFAST_BENCH_COMPILED") else []


def step(function, leaves, mode):
    """One step of a mode; the incoming gradients exist before the clock starts."""

    def forward():
        with torch.no_grad():
            return function(*leaves)

    grad = torch.ones_like(forward()).requires_grad_(mode == "double backward")
    tangents = [torch.randn_like(t) for t in leaves]

    def both():
        return torch.autograd.grad(function(*leaves), leaves, grad)

    def double():
        first = torch.autograd.grad(function(*leaves), leaves, grad, create_graph=True)
        return torch.autograd.grad(first, (*leaves, grad), tangents)

    return {"forward": forward, "forward+backward": both, "double backward": double}[mode]


def e3nn_product(case):
    """e3nn's module of a case."""
    a, b, _ = case.irreps
    return o3.TensorProduct(
        a, b, case.irreps_out, case.instructions, internal_weights=False, shared_weights=case.mode == "uvw"
    )


@cache
def compiled_e3nn(case, mode):
    """The compiled product, and how long its first call took."""
    product = torch.compile(e3nn_product(case))
    begin = time.perf_counter()
    step(product, [t.requires_grad_() for t in case.inputs()], mode)()
    return product, time.perf_counter() - begin


def cuequivariance(case):
    """Its channel-wise product on the same irreps, layout ir_mul (its faster one), or a skip."""
    cue = pytest.importorskip("cuequivariance")
    cuet = pytest.importorskip("cuequivariance_torch")
    a, b, c = ("+".join(f"{mul}x{ir}" for mul, ir in irreps) for irreps in case.irreps)
    irreps = [cue.Irreps("O3", i) for i in (a, b)]
    names = [ir for _, ir in cue.Irreps("O3", c)]
    product = cuet.ChannelWiseTensorProduct(
        *irreps, filter_irreps_out=names, shared_weights=False, internal_weights=False, layout=cue.ir_mul
    )
    return lambda x, y, w: product(x, y, w)


@pytest.mark.parametrize("mode", FORCE_MODES)
@pytest.mark.parametrize("implementation", ["hamfast", "e3nn", *COMPILED, "cuequivariance"])
@pytest.mark.parametrize("case", PRODUCTS, ids=[c.name for c in PRODUCTS])
def test_tensor_product(measure, case, implementation, mode):
    """The product beside e3nn's and cuEquivariance's, on results that agree."""
    plan, theirs = case.plan(), e3nn_product(case)
    leaves = [t.requires_grad_() for t in case.inputs()]

    def ours(x, y, w):
        return ops.tensor_product(x, y, w, plan)

    torch.testing.assert_close(ours(*leaves), theirs(*leaves), atol=1e-3, rtol=1e-3)
    note = {}
    if implementation == "e3nn compiled":
        if case.name == "b_large" or mode == "double backward":
            pytest.skip("compiling takes many minutes, or torch.compile has no double backward")
        function, seconds = compiled_e3nn(case, mode)
        note = {"compile_s": f"{seconds:.1f}"}
    elif implementation == "cuequivariance":
        function = cuequivariance(case)
        assert function(*leaves).shape == (case.edges, plan.dim_out)
    else:
        function = ours if implementation == "hamfast" else theirs
    measure(implementation, f"tensor_product {case.name}", mode, step(function, leaves, mode), rounds=7, **note)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("implementation", ["hamfast", "e3nn"])
@pytest.mark.parametrize("case", PRODUCTS, ids=[c.name for c in PRODUCTS])
def test_convolution(measure, case, implementation, mode):
    """Gather, product and scatter-sum on a graph of 40 neighbours."""
    plan, theirs = case.plan(), e3nn_product(case)
    nodes = case.edges // 40
    senders, receivers = random_graph(nodes, 40)
    edges = ops.edge_index(senders, receivers, nodes)
    x, y, w = case.inputs()
    leaves = [t.requires_grad_() for t in (x[:nodes].contiguous(), y, w)]

    def ours(x, y, w):
        return ops.tensor_product(x, y, w, plan, edges)

    def e3nn(x, y, w):
        return x.new_zeros(nodes, plan.dim_out).index_add(0, receivers, theirs(x[senders], y, w))

    torch.testing.assert_close(ours(*leaves), e3nn(*leaves), atol=1e-2, rtol=1e-3)
    function = ours if implementation == "hamfast" else e3nn
    measure(implementation, f"convolution {case.name}", mode, step(function, leaves, mode), rounds=7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("implementation", ["hamfast", "hamfast, weights stored", "e3nn"])
@pytest.mark.parametrize("case", PRODUCTS, ids=[c.name for c in PRODUCTS])
def test_radial_weights(measure, case, implementation, mode):
    """The product and the last layer of the radial network that makes its weights."""
    plan, theirs = case.plan(), e3nn_product(case)
    x, y, _ = case.inputs()
    h, matrix = torch.randn(case.edges, RADIAL_WIDTH), torch.randn(RADIAL_WIDTH, plan.weight_numel) / 8
    leaves = [t.requires_grad_() for t in (x, y, h, matrix)]

    def fused(x, y, h, matrix):
        return ops.tensor_product(x, y, ops.RadialWeights(h, matrix), plan)

    def stored(x, y, h, matrix):
        return ops.tensor_product(x, y, h @ matrix, plan)

    def e3nn(x, y, h, matrix):
        return theirs(x, y, h @ matrix)

    torch.testing.assert_close(fused(*leaves), e3nn(*leaves), atol=1e-3, rtol=1e-3)
    function = {"hamfast": fused, "e3nn": e3nn}.get(implementation, stored)
    measure(implementation, f"with radial layer {case.name}", mode, step(function, leaves, mode), rounds=7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("implementation", ["hamfast", "e3nn"])
@pytest.mark.parametrize("case", EDGE_PRODUCTS, ids=[c.name for c in EDGE_PRODUCTS])
def test_edge_tensor_product(measure, case, implementation, mode):
    """Both include what depends on the directions: e3nn its harmonics, hamfast its rotations."""
    plan, theirs = edge_frame_plan(case.plan()), e3nn_product(case)
    vectors = torch.randn(case.edges, 3)
    l_max = max(ir.l for irreps in case.irreps for _, ir in irreps)
    x, _, w = case.inputs()
    leaves = [x.requires_grad_(), w.requires_grad_()]

    def ours(x, w):
        return ops.edge_tensor_product(x, w, plan, ops.edge_frames(vectors, l_max))

    def e3nn(x, w):
        return theirs(x, o3.spherical_harmonics(case.irreps[1], vectors, True, "component"), w)

    torch.testing.assert_close(ours(*leaves), e3nn(*leaves), atol=1e-3, rtol=1e-3)
    function = ours if implementation == "hamfast" else e3nn
    measure(implementation, f"edge_tensor_product {case.name}", mode, step(function, leaves, mode), rounds=5)
