"""Tensor products beside e3nn's, forward and forward + backward; outputs are compared before anything is timed."""

import pytest
import torch
from cases import EDGE_PRODUCTS, PRODUCTS
from e3nn import o3

from hamfast import ops
from hamfast.plan import edge_frame_plan

MODES = ("forward", "forward+backward")


def step(function, leaves, mode):
    def forward():
        with torch.no_grad():
            return function(*leaves)

    def both():
        out = function(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return forward if mode == "forward" else both


def e3nn_product(case):
    a, b, _ = case.irreps
    return o3.TensorProduct(
        a, b, case.irreps_out, case.instructions, internal_weights=False, shared_weights=case.mode == "uvw"
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("implementation", ["hamfast", "e3nn"])
@pytest.mark.parametrize("case", PRODUCTS, ids=[c.name for c in PRODUCTS])
def test_tensor_product(measure, case, implementation, mode):
    plan, theirs = case.plan(), e3nn_product(case)
    leaves = [t.requires_grad_() for t in case.inputs()]

    def ours(x, y, w):
        return ops.tensor_product(x, y, w, plan)

    torch.testing.assert_close(ours(*leaves), theirs(*leaves), atol=1e-3, rtol=1e-3)
    function = ours if implementation == "hamfast" else theirs
    measure(implementation, f"tensor_product {case.name}", mode, step(function, leaves, mode))


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
    measure(implementation, f"edge_tensor_product {case.name}", mode, step(function, leaves, mode))
