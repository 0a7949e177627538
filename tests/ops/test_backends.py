"""Every op on every backend, dtype and order of derivative, against the float64 reference: where
docs/backends.md is from.

The Triton kernels run on a GPU, or in Triton's interpreter where there is none.
"""

import functools

import pytest
import torch
from kit import HAS_GPU, fully_connected, running_on

from hamfast import ops, reference
from hamfast.ops import backend as backends
from hamfast.plan import contraction_plan, edge_frame_plan, make_plan

pytestmark = pytest.mark.usefixtures("double")

NODES = 3
SENDERS, RECEIVERS = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 1, 0, 0, 2])
EDGES = len(SENDERS)
GRAPH = (SENDERS, RECEIVERS, NODES)


def product(mode, lowering, shared, out="2x0e+3x1o"):
    in1, in2 = "2x0e+3x1o", "1x0e+1x1o"
    if mode == "uvu":
        plan = make_plan(in1, in2, "2x0e+2x1o+3x1o+3x0e", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 0, 2, "uvu", True), (1, 1, 3, "uvu", True)])  # fmt: skip
    else:
        from e3nn import o3

        plan = make_plan(in1, in2, out, fully_connected(o3.Irreps(in1), o3.Irreps(in2), o3.Irreps(out), mode))
    weight = torch.randn(plan.weight_numel) if shared else torch.randn(EDGES, plan.weight_numel)
    leaves = [torch.randn(NODES, plan.dim_in1), torch.randn(EDGES, plan.dim_in2), weight]
    return (
        lambda edges, x, y, w: ops.tensor_product(x, y, w, plan, edges, lowering=lowering),
        lambda x, y, w: reference.tensor_product(x, y, w, plan, *GRAPH),
        leaves,
    )


def radial():
    plan = make_plan("2x0e+3x1o", "1x1o", "2x1o+3x0e", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)])
    leaves = [
        torch.randn(NODES, plan.dim_in1),
        torch.randn(EDGES, 3),
        torch.randn(EDGES, 4),
        torch.randn(4, plan.weight_numel),
    ]
    return (
        lambda edges, x, y, h, m: ops.tensor_product(x, y, ops.RadialWeights(h, m), plan, edges),
        lambda x, y, h, m: reference.tensor_product(x, y, h @ m, plan, *GRAPH),
        leaves,
    )


def radial_mixing():
    from e3nn import o3

    irreps = [o3.Irreps(i) for i in ("2x0e+3x1o", "1x0e+1x1o", "16x0e+3x1o")]
    plan = make_plan(*irreps, fully_connected(*irreps))
    shapes = [(NODES, plan.dim_in1), (EDGES, plan.dim_in2), (EDGES, 4), (4, plan.weight_numel)]
    return (
        lambda edges, x, y, h, m: ops.tensor_product(x, y, ops.RadialWeights(h, m), plan, edges),
        lambda x, y, h, m: reference.tensor_product(x, y, h @ m, plan, *GRAPH),
        [torch.randn(s) for s in shapes],
    )


def edge_frame():
    from e3nn import o3

    irreps, harmonics = o3.Irreps("2x0e+3x1o+1x2e"), o3.Irreps("1x0e+1x1o+1x2e")
    plan = edge_frame_plan(make_plan(irreps, harmonics, irreps, fully_connected(irreps, harmonics, irreps)))
    vectors = torch.randn(EDGES, 3)
    y = o3.spherical_harmonics([0, 1, 2], vectors, normalize=True, normalization="component")

    @functools.cache
    def frames(device, dtype):
        return ops.edge_frames(vectors.to(device, dtype), 2)

    def run(edges, x, w):
        sources = ops.EdgeSources((x,), ("sender",), edges)
        return ops.edge_tensor_product(
            sources, w, plan, frames(x.device, torch.float32 if x.dtype.itemsize == 2 else x.dtype)
        )

    leaves = [torch.randn(NODES, irreps.dim), torch.randn(plan.plan.weight_numel)]
    return run, lambda x, w: reference.tensor_product(x[SENDERS], y, w, plan.plan), leaves


def einsum():
    def run(edges, a, b):
        return ops.edge_einsum(edges, "receiver", (2, 1, 5), (a, "sender"), (b, "edge")).flatten(1)

    def truth(a, b):
        each = (a[SENDERS] * b).sum(2, keepdim=True)
        return each.new_zeros(NODES, 2, 1, 5).index_add(0, RECEIVERS, each).flatten(1)

    return run, truth, [torch.randn(NODES, 2, 3, 5), torch.randn(EDGES, 1, 3, 1)]


def edge_update():
    shapes = [(EDGES, 5), (NODES, 5), (NODES, 5), (5,), (5,)]
    return (
        lambda edges, *t: ops.edge_update(edges, *t),
        lambda *t: reference.edge_update(SENDERS, RECEIVERS, *t),
        [torch.randn(s) for s in shapes],
    )


def attention(score):
    names = [
        "query_receiver",
        "key_sender",
        "value_sender",
        "edge",
        "edge_key_weight",
        "edge_value_weight",
        "bias",
        "envelope",
    ]
    shapes = [(NODES, 2, 3), (NODES, 2, 3), (NODES, 2, 4), (EDGES, 5), (2, 3, 5), (2, 4, 5), (EDGES, 2), (EDGES,)]
    fixed = {}
    if score == "additive":
        names, shapes = [*names[:3], "vector"], [*shapes[:3], (2, 3)]
        fixed = {"score": "additive", "score_activation": "silu"}
    leaves = [torch.rand(s) + 0.1 if n == "envelope" else torch.randn(s) for n, s in zip(names, shapes, strict=True)]
    return (
        lambda edges, *t: ops.graph_attention(edges, **dict(zip(names, t, strict=True)), **fixed),
        lambda *t: reference.graph_attention(*GRAPH, **dict(zip(names, t, strict=True)), **fixed)[0],
        leaves,
    )


def sparse_map():
    dense = torch.randn(7, 5) * (torch.rand(7, 5) < 0.5)
    matrix = functools.cache(
        lambda device, dtype: ops.sparse_matrix(dense).to(torch.empty(0, device=device, dtype=dtype))
    )
    return (
        lambda edges, x: ops.sparse_map(x, matrix(x.device, x.dtype)),
        lambda x: x @ dense.T,
        [torch.randn(4, 5)],
    )


def contraction():
    from hamfast.plan.generalized_cg import generalized_cg

    blocks = [[generalized_cg("0e+1o", ir, n) for n in degrees] for ir, degrees in (("0e", (2, 1)), ("1o", (3,)))]
    plan = contraction_plan(blocks, 4)
    dense = [[torch.tensor(t) for t in tensors] for tensors in blocks]
    return (
        lambda edges, x, w, y: ops.symmetric_contraction(x, w, y, plan),
        lambda x, w, y: reference.symmetric_contraction(x, w, y, dense),
        [torch.randn(3, 3, 4), torch.randn(2, plan.paths, 3), torch.randn(3, 2)],
    )


CASES = {
    "tensor_product, channel-wise": lambda: product("uvu", "channel", False),
    "tensor_product, mix": lambda: product("uvw", "mix", True),
    "tensor_product, general": lambda: product("uvw", "general", False),
    "tensor_product, mix, weights per row": lambda: product("uvw", "mix", False),
    "tensor_product, radial weights": radial,
    "tensor_product, radial weights, mix": radial_mixing,
    "edge_tensor_product": edge_frame,
    "edge_einsum": einsum,
    "edge_update": edge_update,
    "graph_attention, dot": lambda: attention("dot"),
    "graph_attention, additive": lambda: attention("additive"),
    "sparse_map": sparse_map,
    "symmetric_contraction": contraction,
}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
HALF = CASES.keys() - {"edge_einsum", "sparse_map"}


def derivatives(function, leaves, order, directions):
    """The result, its gradients along a direction, or the gradients of those."""
    out = function(*leaves)
    if order == 0:
        return [out]
    grad = directions[0].to(out).requires_grad_()
    first = torch.autograd.grad(out, leaves, grad, create_graph=order > 1, allow_unused=True)
    if order == 1:
        return first
    given = [(g, d.to(g)) for g, d in zip(first, directions[1:], strict=True) if g is not None and g.requires_grad]
    return torch.autograd.grad([g for g, _ in given], (*leaves, grad), [d for _, d in given], allow_unused=True)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.parametrize("case", list(CASES))
def test_backend(case, backend, dtype, order):
    if dtype.itemsize == 2 and case not in HALF:
        pytest.skip("float32 and float64 only")
    if dtype == torch.bfloat16 and backend == "triton" and not HAS_GPU:
        pytest.skip("Triton's interpreter knows no bfloat16")
    run, truth, exact = CASES[case]()
    # What the storage keeps of them is what both sides get.
    exact = [t.to(dtype).double().requires_grad_() for t in exact]
    directions = [torch.randn_like(t).to(dtype) for t in (truth(*exact).detach(), *exact)]
    expected = derivatives(truth, exact, order, directions)
    with running_on(backend) as device:
        leaves = [t.detach().to(device, dtype).requires_grad_() for t in exact]
        edges = ops.edge_index(*GRAPH).to(device)
        found = derivatives(lambda *t: run(edges, *t), leaves, order, [d.to(device) for d in directions])
    for a, b in zip(found, expected, strict=True):
        a = torch.zeros_like(b) if a is None and b is not None else a
        b = torch.zeros_like(a) if b is None and a is not None else b
        if a is not None:
            assert a.dtype in (dtype, torch.float64)
            scale = b.abs().max().clamp(min=1.0).item()
            torch.testing.assert_close(a.double().cpu(), b.cpu().double(), atol=TOLERANCE[dtype] * scale, rtol=0.0)
