"""Every Triton kernel as the ops launch it on real problems, for the ahead-of-time compiler.

    TRITON_INTERPRET=1 python bench/triton_launches.py FILE [all]

Writes a pickle of triples (problem, ``cuda`` or ``hip``, ``hamfast.triton.launch.Launch``).
Launches are described, not run.
Without ``all`` there is one plan of products, enough for every kernel and every order of
derivative.
"""

import pickle
import sys
from functools import partial
from unittest.mock import patch

import torch
from cases import EDGE_PRODUCTS, GPU_PRODUCTS, RADIAL_WIDTH, SH, ProductCase

import hamfast
from hamfast import ops
from hamfast.plan import contraction_plan, edge_frame_plan
from hamfast.plan.generalized_cg import generalized_cg
from hamfast.triton.launch import Launch, collected

NODES, EDGES = 64, 640
HEADS, WIDTH, FEATURES = 8, 32, 64


def derivatives(function, *operands):
    """The op, its gradients, and theirs."""
    leaves = [t.requires_grad_() for t in operands]
    out = function(*leaves)
    grad = torch.zeros_like(out).requires_grad_()
    first = torch.autograd.grad(out, leaves, grad, create_graph=True, allow_unused=True)
    given = [g for g in first if g is not None and g.requires_grad]
    torch.autograd.grad(given, (*leaves, grad), [torch.zeros_like(g) for g in given], allow_unused=True)


def graph():
    """A random graph."""
    index = torch.randint(NODES, (2, EDGES))
    return ops.edge_index(index[0], index[1], NODES)


UNEQUAL = ProductCase("unequal", "64x0e+32x1o+8x2e", SH[2], "64x0e+32x1o+8x2e", "uvu", 0)


def products(case, edges, dtype=torch.float32):
    """Launches of a product, its gradients, and theirs."""
    plan = case.plan()
    x, y = torch.zeros(NODES, plan.dim_in1, dtype=dtype), torch.zeros(EDGES, plan.dim_in2, dtype=dtype)
    w = torch.zeros(EDGES, plan.weight_numel, dtype=dtype)
    derivatives(lambda x, y, w: ops.tensor_product(x, y, w, plan, edges, layout="ir_mul"), x, y, w)


def radial(case, edges):
    """Launches of a product whose kernel makes the weights, and its gradients."""
    plan = case.plan()
    x, y = torch.zeros(NODES, plan.dim_in1), torch.zeros(EDGES, plan.dim_in2)
    hidden, matrix = torch.zeros(EDGES, RADIAL_WIDTH), torch.zeros(RADIAL_WIDTH, plan.weight_numel)
    leaves = [t.requires_grad_() for t in (x, y, hidden, matrix)]
    out = ops.tensor_product(x, y, ops.RadialWeights(hidden, matrix), plan, edges, layout="ir_mul")
    torch.autograd.grad(out, leaves, torch.zeros_like(out))


def double_precision(edges):
    """Launches of a product in float64, forward only."""
    plan = ProductCase("", "32x1o", "1x1o", "32x1e", "uvu", 0).plan()
    x, y, w = (
        torch.zeros(n, d, dtype=torch.float64)
        for n, d in ((NODES, plan.dim_in1), (EDGES, 3), (EDGES, plan.weight_numel))
    )
    ops.tensor_product(x, y, w, plan, edges)


def edge_frame(case, edges):
    """Launches of the product in the edge frame."""
    plan = edge_frame_plan(case.plan())
    frames = ops.edge_frames(torch.randn(EDGES, 3), max(ir.l for irreps in case.irreps for _, ir in irreps))
    x, w = torch.zeros(NODES, plan.plan.dim_in1), torch.zeros(plan.plan.weight_numel)
    sources = lambda x: ops.EdgeSources((x,), ("sender",), edges)  # noqa: E731
    derivatives(lambda x, w: ops.edge_tensor_product(sources(x), w, plan, frames, "ir_mul"), x, w)


def attention(edges):
    """Launches of attention: dot and additive scores, float32 and bfloat16."""
    rows = lambda n, *shape: torch.zeros(n, HEADS, *shape)  # noqa: E731
    names = (
        "query_receiver",
        "key_sender",
        "value_sender",
        "edge",
        "edge_key_weight",
        "edge_value_weight",
        "bias",
        "envelope",
    )

    def run(*tensors, **more):
        return ops.graph_attention(edges, **dict(zip(names, tensors, strict=False)), **more)

    operands = [rows(NODES, WIDTH), rows(NODES, WIDTH), rows(NODES, WIDTH), torch.zeros(EDGES, FEATURES)]
    operands += [torch.zeros(HEADS, WIDTH, FEATURES), torch.zeros(HEADS, WIDTH, FEATURES)]
    operands += [torch.zeros(EDGES, HEADS), torch.ones(EDGES)]
    derivatives(run, *operands)
    derivatives(run, *(t.detach().bfloat16() for t in operands))
    seed = torch.tensor(3)
    more = {
        "score": "additive",
        "score_activation": "silu",
        "weight": "silu",
        "dropout": 0.1,
        "seed": seed,
        "clip": 5.0,
    }

    def additive(query, key, value, vector):
        rows = {"query_receiver": query, "key_sender": key, "value_sender": value}
        return ops.graph_attention(edges, **rows, vector=vector, **more)

    derivatives(additive, *operands[:3], torch.zeros(HEADS, WIDTH))


def edge_update(edges):
    """Launches of the update of edges: with and without norm, float32 and bfloat16."""
    rows = [torch.zeros(n, HEADS * WIDTH) for n in (EDGES, NODES, NODES)]
    norm = [torch.zeros(HEADS * WIDTH), torch.zeros(HEADS * WIDTH)]
    derivatives(lambda *t: ops.edge_update(edges, *t), *rows, *norm)
    derivatives(lambda *t: ops.edge_update(edges, *t), *(t.bfloat16() for t in rows), *norm)
    derivatives(lambda *t: ops.edge_update(edges, *t, activation="identity"), *rows)
    # The edges of a network's first layer have no row of their own yet.
    derivatives(lambda *t: ops.edge_update(edges, None, *t), *rows[1:], *norm)


def einsum_and_head(edges):
    """Launches of the einsum over edges and of the model's last step, a sparse map."""
    a, b = torch.zeros(NODES, HEADS, 3, WIDTH), torch.zeros(EDGES, HEADS, 1, 1)
    derivatives(lambda a, b: ops.edge_einsum(edges, "receiver", (HEADS, 3, WIDTH), (a, "sender"), (b, "edge")), a, b)
    matrix = ops.sparse_matrix((torch.rand(169, 169) < 0.05).float())
    derivatives(lambda x: ops.sparse_map(x, matrix), torch.zeros(EDGES, 169))


def contraction():
    """Launches of a symmetric contraction of degree 3."""
    plan = contraction_plan([[generalized_cg("0e+1o", ir, n) for n in (3, 2, 1)] for ir in ("0e", "1o")], 4)
    shapes = (NODES, FEATURES, plan.dim_in), (2, plan.paths, FEATURES), (NODES, 2)
    derivatives(lambda x, w, y: ops.symmetric_contraction(x, w, y, plan), *(torch.zeros(shape) for shape in shapes))


def collect(everything: bool) -> list[tuple[str, str, Launch]]:
    """(problem, ``cuda`` or ``hip``, launch) of all problems; ``everything``: with the plans of the
    benchmarks.
    """
    torch.manual_seed(0)
    edges = graph()
    problems = {
        "attention": lambda: attention(edges),
        "contraction": contraction,
        "edge update": lambda: edge_update(edges),
        "einsum and head": lambda: einsum_and_head(edges),
        "float64": lambda: double_precision(edges),
    }
    case = EDGE_PRODUCTS[0] if everything else ProductCase("", "64x0e+16x1o", SH[2], "64x0e+16x1o", "uvw", 0)
    problems["edge frame"] = partial(edge_frame, case, edges)
    for case in (GPU_PRODUCTS[0], GPU_PRODUCTS[-1]) if everything else (UNEQUAL,):
        problems[f"{case.name} product"] = partial(products, case, edges)
        problems[f"{case.name} radial"] = partial(radial, case, edges)
    found: dict[tuple[str, str, Launch], None] = {}
    for maker in ("cuda", "hip"):  # each with its own sizes of tiles
        with hamfast.backend("triton"), patch("hamfast.triton.configurations.architecture", lambda maker=maker: maker):
            for name, problem in problems.items():
                with collected() as launches:
                    problem()
                found |= dict.fromkeys((name, maker, launch) for launch in launches)
    return list(found)


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        pickle.dump(collect("all" in sys.argv[2:]), file)
