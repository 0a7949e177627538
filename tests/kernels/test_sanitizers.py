"""The CPU kernels under the address, undefined-behaviour and thread sanitizers, outside of torch,
against the reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import o3
from kit import fully_connected
from programs import compile_program, read_arrays, run_program, write_arrays

from hamfast import ops, reference
from hamfast.ops.edge_outer import by_torch as edge_outer_formula
from hamfast.ops.multilinear import general_tables, make_tables
from hamfast.ops.row_matmul import by_torch as row_matmul_formula
from hamfast.plan import contraction_plan, make_plan
from hamfast.plan.channel import row_tasks
from hamfast.plan.symmetric_contraction import contraction_tables
from hamfast.records.choices import MatrixProduct, OuterSlot, Score, ScoreActivation, Weighting
from hamfast.records.ops import PRODUCT_TABLES

ISAS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw"],
}
SANITIZERS = {"address": "address,undefined", "thread": "thread"}


def supported(isa):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return isa == "baseline" or {"avx2": "avx2", "avx512": "avx512bw"}[isa] in flags


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """build(name, isa, sanitizer) -> program, compiled once."""
    folder, made = tmp_path_factory.mktemp("sanitizers"), {}

    def build(name, isa, sanitizer):
        if (name, isa, sanitizer) not in made:
            options = [*ISAS[isa], f"-DHAMFAST_ISA={isa}", *["-DHAMFAST_X86"] * (isa != "baseline")]
            program = folder / f"{name}_{isa}_{sanitizer}"
            made[name, isa, sanitizer] = compile_program(program, f"cpp/{name}.cpp", options, SANITIZERS[sanitizer])
        return made[name, isa, sanitizer]

    return build


def write_case(path, shared, nodes=9, count=40):
    """Odd multiplicities, l up to 4, a path without weight, multi-edges, self-loops, nodes without
    edges."""
    torch.manual_seed(3)
    instructions = [
        (0, 0, 0, "uvu", True),
        (1, 1, 1, "uvu", True),
        (1, 2, 2, "uvu", True),
        (2, 2, 3, "uvu", True),
        (2, 1, 4, "uvu", False),
        (3, 2, 5, "uvu", True),
    ]
    plan = make_plan("19x0e+3x1o+17x2e+1x4e", "2x0e+1x1o+1x2e", "19x0e+3x0e+3x1o+17x2e+17x1o+1x3e", instructions)
    edges = ops.edge_index(torch.randint(7, (count,)), torch.randint(max(nodes, 1), (count,)), nodes)
    x, y = torch.randn(nodes, plan.dim_in1), torch.randn(count, plan.dim_in2)
    w = torch.randn(plan.weight_numel if shared else (count, plan.weight_numel))
    leaves = [t.requires_grad_() for t in (x, y, w)]
    out = reference.tensor_product(*leaves, plan, edges.senders, edges.receivers, nodes)
    g = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, g)
    tables = make_tables(plan, "channel", x.dtype, x.device)
    table, index, value, scratch = general_tables(plan, list(plan.instructions))
    arrays = [np.array(tables.dims._replace(scratch=scratch)), np.array([count, nodes, int(shared)])]
    tensors = [t.numpy() for t in tables.tensors]
    general = PRODUCT_TABLES.fields(*tensors)._replace(paths=table, cg_index=index, cg_value=value)
    arrays += [*general, *(t.numpy() for t in edges.graph)]
    arrays += [t.detach().numpy() for t in (*leaves, g, out, *grads)]
    write_arrays(path, arrays)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("shared", [False, True], ids=["weights-per-edge", "shared-weights"])
@pytest.mark.parametrize(
    ("isa", "sanitizer"), [("baseline", "address"), ("avx2", "address"), ("avx512", "address"), ("baseline", "thread")]
)
def test_kernels(build, tmp_path, isa, sanitizer, shared):
    if not supported(isa):
        pytest.skip(f"this processor has no {isa}")
    for sizes in ({}, {"count": 0}, {"nodes": 0, "count": 0}):
        write_case(tmp_path / "case", shared, **sizes)
        run_program(build("run_products", isa, sanitizer), tmp_path / "case", 4)


# Score, its activation and weighting as numbers, and how the reference calls them.
ATTENTION = {
    "dot-softmax": ((Score.DOT, ScoreActivation.LEAKY_RELU, Weighting.SOFTMAX), {}),
    "additive-silu": (
        (Score.ADDITIVE, ScoreActivation.SMOOTH_LEAKY_RELU, Weighting.SILU),
        {"score": "additive", "score_activation": "smooth_leaky_relu", "weight": "silu"},
    ),
}


ATTENTION_SIZES = {"heads": 3, "width": 19, "value": 5, "features": 33, "nodes": 6, "count": 90}


def write_attention_case(path, form, **changed):
    """Widths that fill no vector, sums of parts, a clip, nodes without edges.

    Returns the reference's results and derivatives, in the order of the program's.
    """
    torch.manual_seed(4)
    choices, chosen = ATTENTION[form]
    heads, width, value, features, nodes, count = (ATTENTION_SIZES | changed).values()
    edges = ops.edge_index(torch.randint(max(nodes, 1), (count,)), torch.randint(max(nodes - 1, 1), (count,)), nodes)
    shapes = {
        "query_receiver": (nodes, heads, width),
        "query_edge": (count, heads, width),
        "key_sender": (nodes, heads, width),
        "value_sender": (nodes, heads, value),
        "value_edge": (count, heads, value),
        "query_on_edge": (nodes, heads, features),
        "edge": (count, features),
        "vector": (heads, width),
        "bias": (count, heads),
        "envelope": (count, heads),
    }
    if chosen.get("score") != "additive":
        del shapes["vector"]
    leaves = {n: (torch.rand(s) - 0.5 * (n != "envelope")).requires_grad_() for n, s in shapes.items()}
    given = {n: t for n, t in leaves.items() if n not in ("query_on_edge", "edge")}
    # The term of the edges' features as a bias; their sum as values.
    features_term = (leaves["query_on_edge"][edges.receivers] * leaves["edge"][:, None]).sum(-1)
    given["bias"] = leaves["bias"] + 0.5 * features_term
    nothing = torch.zeros(nodes, heads, features)
    shared = leaves["edge"][:, None].expand(-1, heads, -1)
    given["value_sender"] = torch.cat([leaves["value_sender"], nothing], dim=-1)
    given["value_edge"] = torch.cat([leaves["value_edge"], shared], dim=-1)
    settings = {"scale": 0.5, "clip": 2.0, **chosen}
    joined, _, logits, lse = reference.graph_attention(edges.senders, edges.receivers, nodes, **given, **settings)
    found = lse if "weight" not in chosen else torch.zeros(nodes, heads)  # there is no sum without softmax
    finite = torch.where(torch.isinf(found), torch.zeros_like(found), found) + 0 * joined[..., 0]
    outs = [*joined.split([value, features], -1), finite, logits]
    grads = [torch.randn_like(t).requires_grad_() for t in outs]
    first = torch.autograd.grad(outs, list(leaves.values()), grads, create_graph=True)
    tangents = [torch.randn_like(t) for t in first]
    second = torch.autograd.grad(first, [*leaves.values(), *grads], tangents)
    sizes = np.array([heads, width, value, features, count, nodes, *choices])
    graph = (*edges.by_sender, *edges.by_receiver)
    none = [] if "vector" in shapes else [None]

    def in_order(tensors):
        """None where there is no vector."""
        arrays = [t.detach().numpy() for t in tensors]
        return [*arrays[:7], *none, *arrays[7:]]

    arrays = [sizes, *(t.numpy() for t in graph), *in_order(leaves.values())]
    write_arrays(path, [*arrays, *(t.detach().numpy() for t in grads), *in_order(tangents)])
    return [t.detach().flatten() for t in (*outs[:2], found, logits, *first, *second)]


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", list(ATTENTION))
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_attention_kernels(build, tmp_path, sanitizer, form):
    """The widest vectors of this processor under the address sanitizer.

    Under that of threads the plainest ones: to compile more would take too long.
    """
    isa = next(name for name in reversed(ISAS) if supported(name)) if sanitizer == "address" else "baseline"
    threads, zero = 4, [{name: 0} for name in ATTENTION_SIZES if name != "nodes"]
    for sizes in ({}, *zero, {"nodes": 0, "count": 0}):
        expected = write_attention_case(tmp_path / "case", form, **sizes)
        run_program(build("run_attention", isa, sanitizer), tmp_path / "case", tmp_path / "results", threads)
        for found, true in zip(read_arrays(tmp_path / "results"), expected, strict=True):
            result = torch.tensor(np.frombuffer(found))
            if result.numel() > true.numel():  # the vector's gradient: a chunk of every thread
                result = result.view(threads, -1).sum(0)
            torch.testing.assert_close(result, true, atol=1e-10, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("width", "count"), [(5, 27), (16, 27), (37, 27), (5, 0), (0, 3)])
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_edge_update_kernels(build, tmp_path, isa, width, count):
    """Rows of less than a vector, of whole vectors, and with a rest; with and without a norm, some
    parts absent."""
    if not supported(isa):
        pytest.skip(f"this processor has no {isa}")
    torch.manual_seed(5)
    nodes, threads = 4, 3
    senders, receivers = torch.randint(nodes, (2, count))
    for present in ((1, 1, 1, 1), (1, 0, 0, 1), (0, 1, 1, 0)):
        rows = [torch.randn(n, width) if p else None for n, p in zip((count, nodes, nodes), present, strict=False)]
        norm = [torch.randn(width).requires_grad_() for _ in range(2)] if present[3] else [None, None]
        total = reference.edge_update(senders, receivers, *rows, activation="identity").requires_grad_()
        out = reference.edge_update(senders, receivers, total, None, None, *norm)
        grad = torch.randn_like(out).requires_grad_()
        leaves = [t for t in (total, *norm) if t is not None]
        first = torch.autograd.grad(out, leaves, grad, create_graph=True)
        directions = [torch.randn_like(t) for t in first]
        second = torch.autograd.grad(first, (grad, *leaves), directions)
        expected = [out, *first, *second]
        tangent_norm = torch.stack(directions[1:]) if present[3] else None
        arrays = [np.array([count, width]), senders, receivers, *rows, *norm, grad, directions[0], tangent_norm]
        write_arrays(tmp_path / "case", [t.detach().numpy() if isinstance(t, torch.Tensor) else t for t in arrays])
        run_program(build("run_edge_update", isa, "address"), tmp_path / "case", tmp_path / "results", threads)
        results = [np.frombuffer(x) for x in read_arrays(tmp_path / "results")]
        found = []
        for n, result in enumerate(results):
            is_norm = n in (2, 5)  # weight's and bias's, a part for each thread
            found += [result] if not is_norm else [*result.reshape(threads, 2, -1).sum(0)] if present[3] else []
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b.detach().numpy().ravel(), atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_contraction_kernels(build, tmp_path, sanitizer):
    """Channels of less than a vector, of whole vectors, and with a rest; runs of one node and of
    several, of one species and mixed; also no node, and no channel.

    Vectors as those of attention's test.
    """
    isa = next(name for name in reversed(ISAS) if supported(name)) if sanitizer == "address" else "baseline"
    program = build("run_contraction", isa, sanitizer)
    for nodes, channels in ((7, 3), (9, 16), (6, 21), (0, 4), (5, 0)):
        torch.manual_seed(6)
        species, dim = 3, 4
        tensors = [[torch.randn(d, *(dim,) * n, 2) for n in (3, 2, 1)] for d in (1, 3, 2)]
        plan = contraction_plan([[t.numpy() for t in block] for block in tensors], dim)
        tables, dims = contraction_tables(plan), np.array([dim, plan.dim_out, plan.paths, 0])
        x, w = torch.randn(nodes, channels, dim), torch.randn(species, plan.paths, channels)
        y = torch.eye(species)[torch.arange(nodes) % 2]
        runs, order = [], [*range(0, nodes, 2), *range(1, nodes, 2)]
        if nodes:
            y[order[-1]] = torch.randn(species)
            even, odd = len(range(0, nodes, 2)), len(range(1, nodes, 2))
            runs = [(0, even, 0), (even, even + odd - 1, 1), (even + odd - 1, nodes, -1)]
        x.requires_grad_()
        direction = torch.randn_like(x)
        # Each run's weights apart, as the kernel's results are.
        mixed = [torch.einsum("s,skc->kc", y[order[first]], w).detach().requires_grad_() for first, _, _ in runs]
        per_node = {order[i]: m for (first, last, _), m in zip(runs, mixed, strict=True) for i in range(first, last)}
        stacked = torch.stack([per_node[n] for n in range(nodes)]) if nodes else w.new_zeros(0, plan.paths, channels)

        def truth(x, stacked=stacked, nodes=nodes, tensors=tensors):
            return reference.symmetric_contraction(x, stacked, torch.eye(nodes), tensors)

        g = torch.randn(nodes, channels * plan.dim_out)
        expected = []
        for value in (truth(x), torch.func.jvp(truth, (x,), (direction,))[1]):
            given = [x, *mixed]
            found = torch.autograd.grad(value, given, g, retain_graph=True) if nodes else [torch.zeros_like(x)]
            grads = [t.flatten() for t in found[1:]] or [torch.zeros(0)]
            expected += [value.flatten(), found[0].flatten(), torch.cat(grads)]
        rows = [x, y, w, g, direction, np.array(runs, dtype=np.int64), np.array(order, dtype=np.int64)]
        rows += [tables.products, tables.groups, tables.buckets, tables.factors, tables.by_path, tables.by_path_value]
        rows += [tables.by_term, tables.by_term_value, tables.blocks]
        arrays = [np.array([nodes, channels, species]), dims, *rows]
        write_arrays(tmp_path / "case", [t.detach().numpy() if isinstance(t, torch.Tensor) else t for t in arrays])
        run_program(program, tmp_path / "case", tmp_path / "results", 3)
        for a, b in zip(read_arrays(tmp_path / "results"), expected, strict=True):
            np.testing.assert_allclose(np.frombuffer(a), b.detach().numpy(), atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("isa", "sanitizer"), [("avx2", "address"), ("baseline", "thread")])
def test_row_product_kernels(build, tmp_path, isa, sanitizer):
    """Channels of less than a vector, of whole ones, and with a rest; several channels of y; a path
    that does not mix; nodes with no, one and several edges; and no row at all."""
    if not supported(isa):
        pytest.skip(f"this processor has no {isa}")
    program = build("run_row_products", isa, sanitizer)
    blocks, width = [(1, 5), (3, 17), (2, 32)], 7
    irreps = [o3.Irreps(i) for i in ("5x0e+3x1o", "2x0e+1x1o", "35x0e+1x1o+16x1o+3x1o")]
    paths = [p for p in fully_connected(*irreps) if p[2] != 3]
    plan = make_plan(*irreps, [*paths, (1, 0, 3, "uvu", True)])
    tasks, dims = row_tasks(plan)
    for rows, edges in ((9, 20), (1, 1), (0, 0)):
        torch.manual_seed(7)
        a, b, c = (torch.randn(rows * n) for n in dims[:3])
        b = b.view(rows, dims.b)
        expected = [
            row_matmul_formula(*given, torch.as_tensor(tasks), rows, product, list(dims))
            for product, given in ((MatrixProduct.C, (a, b)), (MatrixProduct.A, (c, b)), (MatrixProduct.B, (a, c)))
        ]
        nodes, numel = rows, sum(d * n for d, n in blocks)
        index = torch.randint(max(nodes - 1, 1), (edges,))
        _, order, ptr = ops.edge_index(torch.zeros_like(index), index, 1, nodes).by_receiver
        node, factor, channels = (
            torch.randn(nodes * width * numel),
            torch.randn(edges, width),
            torch.randn(edges * numel),
        )
        shapes = [n for block in blocks for n in block]
        slots = (
            (OuterSlot.NODE, (factor, channels)),
            (OuterSlot.FACTOR, (node, channels)),
            (OuterSlot.CHANNELS, (node, factor)),
        )
        expected += [edge_outer_formula(*given, order, ptr, slot, width, shapes) for slot, given in slots]
        outer_rows, before = [], 0
        for d, n in blocks:
            for m in range(d):
                at = nodes * before * width + m * width * n
                outer_rows.append([edges * before + m * n, d * n, at, d * width * n, n])
            before += d * n
        arrays = [np.array([rows]), tasks, np.array(dims), a, b, c, np.array([width]), np.array(outer_rows)]
        arrays += [order, ptr, node, factor, channels]
        write_arrays(tmp_path / "case", [t.numpy() if isinstance(t, torch.Tensor) else t for t in arrays])
        run_program(program, tmp_path / "case", tmp_path / "results", 3)
        for found, true in zip(read_arrays(tmp_path / "results"), expected, strict=True):
            np.testing.assert_allclose(np.frombuffer(found), true.numpy().ravel(), atol=1e-10)
