"""Cases for tests that search: each op at sizes that are drawn, with its truth."""

from __future__ import annotations

import functools

import torch
from e3nn import o3
from kit import fully_connected, pick

from hamfast import ops, reference
from hamfast.plan import contraction_plan, edge_frame_plan, make_plan

SIZES = {
    "edges": (0, 1, 2, 7),
    "senders": (0, 1, 3),
    "receivers": (0, 1, 3),
    "heads": (0, 1, 2, 3),
    "width": (0, 1, 2, 5, 17),
    "value": (0, 1, 3),
    "features": (0, 1, 4),
    "components": (0, 1, 3),
}


class Graph:
    """A random graph of the drawn sizes; without nodes on a side it has no edges."""

    def __init__(self, sizes: dict[str, int]):
        self.num_senders, self.num_receivers = sizes["senders"], sizes["receivers"]
        count = sizes["edges"] if min(self.num_senders, self.num_receivers) else 0
        self.senders = torch.randint(max(self.num_senders, 1), (count,))
        self.receivers = torch.randint(max(self.num_receivers, 1), (count,))
        self.rows = {"edge": count, "sender": self.num_senders, "receiver": self.num_receivers}
        self.index = {"edge": torch.arange(count), "sender": self.senders, "receiver": self.receivers}

    def prepared(self, device: str) -> ops.EdgeIndex:
        return ops.edge_index(self.senders, self.receivers, self.num_senders, self.num_receivers).to(device)

    def summed(self, rows: torch.Tensor, place: str) -> torch.Tensor:
        return rows.new_zeros(self.rows[place], *rows.shape[1:]).index_add(0, self.index[place], rows)


def product(sizes, graph):
    mul, other = sizes["width"] % 4, sizes["heads"]
    in1, in2 = f"{mul}x0e+{sizes['value']}x1o", f"{min(other, 1)}x0e+1x1o"
    gather, scatter = pick([True, False]), pick([True, False])
    layout = pick(["mul_ir", "ir_mul"])
    if pick([True, False]):
        out = f"{mul}x0e+{mul}x1o+{sizes['value']}x1o+{sizes['value']}x0e"
        paths = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 0, 2, "uvu", False), (1, 1, 3, "uvu", True)]
        if min(other, 1) == 0:
            paths = [paths[1], paths[3]]
    else:
        out = f"{sizes['features']}x0e+2x1o"
        paths = fully_connected(o3.Irreps(in1), o3.Irreps(in2), o3.Irreps(out))
    plan = make_plan(in1, in2, out, paths)
    edges = graph.rows["edge"]
    shared = pick([True, False])
    shapes = [
        (graph.num_senders if gather else edges, plan.dim_in1),
        (edges, plan.dim_in2),
        (plan.weight_numel,) if shared else (edges, plan.weight_numel),
    ]

    def run(prepared, x, y, w):
        x = ops.layout.convert_layout(x, plan.irreps_in1, "mul_ir", layout)
        made = ops.tensor_product(x, y, w, plan, prepared, gather=gather, scatter=scatter, layout=layout)
        return ops.layout.convert_layout(made, plan.irreps_out, layout, "mul_ir")

    def truth(x, y, w):
        each = reference.tensor_product(x[graph.senders] if gather else x, y, w, plan)
        return graph.summed(each, "receiver") if scatter else each

    return run, truth, shapes


def radial(sizes, graph):
    mul, hidden = sizes["width"] % 4, sizes["features"]
    plan = make_plan(f"2x0e+{mul}x1o", "1x1o", f"2x1o+{mul}x0e", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)])
    edges = graph.rows["edge"]
    shapes = [(graph.num_senders, plan.dim_in1), (edges, 3), (edges, hidden), (hidden, plan.weight_numel)]

    def run(prepared, x, y, h, matrix):
        return ops.tensor_product(x, y, ops.RadialWeights(h, matrix), plan, prepared)

    def truth(x, y, h, matrix):
        return graph.summed(reference.tensor_product(x[graph.senders], y, h @ matrix, plan), "receiver")

    return run, truth, shapes


def radial_mixing(sizes, graph):
    irreps = [
        f"{sizes['width'] % 4}x0e+2x1o",
        f"1x0e+{min(sizes['heads'], 2)}x1o",
        f"{sizes['value']}x0e+2x1o+{sizes['value']}x0e",
    ]
    plan = make_plan(*irreps, fully_connected(*map(o3.Irreps, irreps)))
    edges, hidden = graph.rows["edge"], sizes["features"]
    gather, scatter = pick([(True, True), (True, False), (False, True)])
    rows = graph.num_senders if gather else edges
    shapes = [(rows, plan.dim_in1), (edges, plan.dim_in2), (edges, hidden), (hidden, plan.weight_numel)]

    def run(prepared, x, y, h, matrix):
        return ops.tensor_product(x, y, ops.RadialWeights(h, matrix), plan, prepared, gather=gather, scatter=scatter)

    def truth(x, y, h, matrix):
        each = reference.tensor_product(x[graph.senders] if gather else x, y, h @ matrix, plan)
        return graph.summed(each, "receiver") if scatter else each

    return run, truth, shapes


def edge_frame(sizes, graph):
    places = [pick(["edge", "sender", "receiver"]) for _ in range(pick([1, 2, 3]))]
    parts = [o3.Irreps(f"{sizes['width'] % 4}x0e+{sizes['value']}x1o") for _ in places]
    irreps = sum(parts[1:], parts[0])
    out, harmonics = o3.Irreps(f"{sizes['features']}x0e+2x1o+{sizes['heads']}x2e"), o3.Irreps("1x0e+1x1o+1x2e")
    plan = edge_frame_plan(make_plan(irreps, harmonics, out, fully_connected(irreps, harmonics, out)))
    vectors = torch.randn(graph.rows["edge"], 3)
    separate = pick([True, False])
    weights = [(plan.plan.weight_numel,)]
    if separate:
        shapes = [ins.weight_shape for ins in plan.plan.instructions]
        weights = [(sum(n1 * n3 for n1, _, n3 in shapes),), (sum(n3 for *_, n3 in shapes),)]

    def run(prepared, *leaves):
        rows, weight = leaves[: len(places)], leaves[len(places) :]
        dtype = torch.float32 if rows[0].dtype.itemsize == 2 else rows[0].dtype
        frames = ops.edge_frames(vectors.to(rows[0].device, dtype), 2)
        given = ops.SeparateWeights(*weight) if separate else weight[0]
        return ops.edge_tensor_product(ops.EdgeSources(tuple(rows), tuple(places), prepared), given, plan, frames)

    def truth(*leaves):
        rows, weight = leaves[: len(places)], leaves[len(places) :]
        x = torch.cat([t[graph.index[p]] for t, p in zip(rows, places, strict=True)], 1)
        full = reference.separate_weights(*weight, plan.plan) if separate else weight[0]
        return reference.edge_tensor_product(x, full, plan.plan, vectors)

    return run, truth, [*((graph.rows[p], part.dim) for p, part in zip(places, parts, strict=True)), *weights]


def einsum(sizes, graph):
    places = [pick(["edge", "sender", "receiver"]) for _ in range(pick([2, 3, 4]))]
    axes = (sizes["heads"], sizes["components"], sizes["width"])
    shapes = [tuple(pick([1, size]) for size in axes) for _ in places[1:]]
    # An axis that no operand has is not there to be kept.
    out = tuple(pick([1, n]) if any(s[d] == n for s in shapes) else 1 for d, n in enumerate(axes))

    def run(prepared, *operands):
        return ops.edge_einsum(prepared, places[0], out, *zip(operands, places[1:], strict=True))

    def truth(*operands):
        each = functools.reduce(torch.mul, (t[graph.index[p]] for t, p in zip(operands, places[1:], strict=True)))
        for d in range(3):
            each = each.sum(d + 1, keepdim=True) if out[d] == 1 else each
        return graph.summed(each, places[0])

    return run, truth, [(graph.rows[p], *s) for p, s in zip(places[1:], shapes, strict=True)]


def edge_update(sizes, graph):
    places = [p for p in ("edge", "sender", "receiver") if pick([True, False])] or ["sender"]
    norm, activation = pick([True, False]), pick(["silu", "identity"])
    names = [*places, *(["weight", "bias"] if norm else [])]
    shapes = [(graph.rows[p], sizes["width"]) for p in places] + [(sizes["width"],)] * (2 * norm)

    def run(prepared, *leaves):
        return ops.edge_update(prepared, **dict(zip(names, leaves, strict=True)), activation=activation)

    def truth(*leaves):
        given = dict(zip(names, leaves, strict=True))
        return reference.edge_update(graph.senders, graph.receivers, **given, activation=activation)

    return run, truth, shapes


def attention(sizes, graph):
    heads, width, value, features = (sizes[n] for n in ("heads", "width", "value", "features"))
    rows = graph.rows
    score = pick(["dot", "additive", "given"])
    fixed = {"score": score, "weight": pick(["softmax", "softmax", "silu", "sigmoid", "identity"])}
    shapes = {}
    if score != "given":
        shapes["query_receiver"] = (rows["receiver"], heads, width)
        shapes["key_sender"] = (rows["sender"], heads, width)
        fixed |= pick([{}, {"scale": 0.7}])
    else:
        shapes["bias"] = (rows["edge"], heads)
    if score == "additive":
        shapes["vector"] = (heads, width)
        fixed["score_activation"] = pick(["silu", "smooth_leaky_relu"])
    filtered = pick([True, False])
    components = (sizes["components"],) if filtered and pick([True, False]) else ()
    place = pick(["edge", "sender", "receiver"])
    shapes[f"value_{place}"] = (rows[place], heads, *components, value)
    if filtered:
        shapes["value_filter"] = (rows["edge"], heads, value)
        if score == "dot":
            shapes["key_filter"] = (rows["edge"], heads, width)
    elif pick([True, False]):
        shapes["edge"] = (rows["edge"], features)
        shapes["edge_value_weight"] = (heads, value, features)
        if score != "given":
            shapes["edge_key_weight"] = (heads, width, features)
    for name in ("bias", "score_scale", "envelope", "gate"):
        if name not in shapes and (name != "score_scale" or score != "given") and pick([True, False]):
            shapes[name] = pick([(rows["edge"],), (rows["edge"], heads)])
    names = list(shapes)

    def given(leaves):
        operands = dict(zip(names, leaves, strict=True))
        if "envelope" in operands:
            operands["envelope"] = operands["envelope"].square() + 0.1
        return operands | fixed

    def run(prepared, *leaves):
        return ops.graph_attention(prepared, **given(leaves))

    def truth(*leaves):
        return reference.graph_attention(graph.senders, graph.receivers, graph.num_receivers, **given(leaves))[0]

    return run, truth, list(shapes.values())


def sparse_map(sizes, graph):
    dense = torch.randn(sizes["width"], sizes["features"]) * (torch.rand(sizes["width"], sizes["features"]) < 0.5)

    def run(prepared, x):
        return ops.sparse_map(x, ops.sparse_matrix(dense).to(x))

    return run, lambda x: x @ dense.T, [(sizes["receivers"], sizes["features"])]


def contraction(sizes, graph):
    """Tensors without any symmetry, of some degrees; y of one species, or a mixture."""
    dim, paths, species = sizes["features"], sizes["value"], sizes["heads"]
    degrees = pick([(1,), (2,), (3,), (3, 2, 1), (2, 1)])
    tensors = [[torch.randn(d, *(dim,) * n, paths) for n in degrees] for d in pick([(1,), (3, 1), (2,)])]
    plan = contraction_plan([[t.numpy() for t in block] for block in tensors], dim)
    nodes, channels = graph.num_receivers, sizes["width"]
    of_one = torch.eye(species)[torch.randint(max(species, 1), (nodes if species else 0,))] if species else None
    one_each = of_one is not None and pick([True, False])

    def run(prepared, x, w, *y):
        return ops.symmetric_contraction(x, w, of_one.to(x) if one_each else y[0], plan)

    def truth(x, w, *y):
        return reference.symmetric_contraction(x, w, of_one if one_each else y[0], tensors)

    shapes = [(nodes, channels, dim), (species, plan.paths, channels)]
    return run, truth, shapes if one_each else [*shapes, (nodes, species)]


FUNCTIONS = (product, radial, radial_mixing, edge_frame, einsum, edge_update, attention, sparse_map, contraction)
CASES = {f.__name__: f for f in FUNCTIONS}
NO_HALF = ("einsum", "sparse_map")
