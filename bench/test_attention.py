"""Graph attention beside PyG's TransformerConv, compiled scatter code and DGL.

The graph has 2,000 nodes with 40 neighbours each; there are 8 heads x 32 and 64 edge features.
Results are compared before anything is timed.

- `op`: from q, k, v and edge features to the sum, with the edge's projection.
- `layer`: with all linear layers.
- `GATv2 layer`: PyG's GATv2Conv with additive scores. Its edge features are not linear in the
score,
  and so are projected for every edge.

HAMFAST_BENCH_COMPILED=1 adds torch.compile'd scatter code.
"""

import sys
import types
from functools import cache

import pytest
import torch
from cases import ordered_graph
from test_products import MODES

from hamfast import environment, nn, ops

HEADS, WIDTH, FEATURES, NODES, DEGREE = 8, 32, 64, 2000, 40
COMPILED = ["compiled scatter"] if environment.switch("HAMFAST_BENCH_COMPILED") else []


class Problem:
    """The graph, the layer of PyG with its weights, and every implementation as a function of
    leaves.
    """

    def __init__(self, device="cpu", nodes=NODES):
        geometric = pytest.importorskip("torch_geometric.nn")
        self.nodes = nodes
        torch.manual_seed(0)
        senders, receivers = ordered_graph(nodes, DEGREE)
        self.senders, self.receivers = senders.to(device), receivers.to(device)
        self.edges = ops.edge_index(self.senders, self.receivers, nodes)
        self.pairs = torch.stack([self.senders, self.receivers])
        sizes = {"heads": HEADS, "edge_dim": FEATURES, "root_weight": False}
        self.pyg = geometric.TransformerConv(HEADS * WIDTH, WIDTH, **sizes).to(device)
        self.ours = nn.GraphTransformerConv(HEADS * WIDTH, WIDTH, **sizes).to(device)
        self.ours.load_state_dict(self.pyg.state_dict())
        sizes = {"heads": HEADS, "edge_dim": FEATURES, "add_self_loops": False}
        self.pyg_gatv2 = geometric.GATv2Conv(HEADS * WIDTH, WIDTH, **sizes).to(device)
        self.gatv2 = nn.GATv2Conv(HEADS * WIDTH, WIDTH, **sizes).to(device)
        self.gatv2.load_state_dict(self.pyg_gatv2.state_dict())

        def leaf(*shape):
            return torch.randn(*shape, device=device, requires_grad=True)

        self.e, self.x = leaf(nodes * DEGREE, FEATURES), leaf(nodes, HEADS * WIDTH)
        self.qkv = [leaf(nodes, HEADS, WIDTH) for _ in range(3)]

    def hamfast_op(self, q, k, v, e):
        """Attention by :func:`hamfast.ops.graph_attention`, ``[nodes, heads, width]``."""
        weight = self.pyg.lin_edge.weight.to(e.dtype).unflatten(0, (HEADS, WIDTH))
        return ops.graph_attention(
            self.edges, query_receiver=q, key_sender=k, value_sender=v, edge=e, edge_key_weight=weight,
            edge_value_weight=weight,
        )  # fmt: skip

    def pyg_op(self, q, k, v, e):
        """Attention by PyG's message passing."""
        return self.pyg.propagate(self.pairs, query=q, key=k, value=v, edge_attr=e, size=None)

    def scatter_op(self, q, k, v, e):
        """Attention by gather and scatter of torch."""
        projected = torch.nn.functional.linear(e, self.pyg.lin_edge.weight).unflatten(-1, (HEADS, WIDTH))
        score = (q[self.receivers] * (k[self.senders] + projected)).sum(-1) / WIDTH**0.5
        index = self.receivers[:, None].expand_as(score)
        top = score.new_full((self.nodes, HEADS), -torch.inf).scatter_reduce(0, index, score.detach(), "amax")
        weight = torch.exp(score - top[self.receivers])
        weight = weight / weight.new_zeros(self.nodes, HEADS).index_add(0, self.receivers, weight)[self.receivers]
        message = weight.unsqueeze(-1) * (v[self.senders] + projected)
        return v.new_zeros(self.nodes, HEADS, WIDTH).index_add(0, self.receivers, message)

    def dgl_op(self, q, k, v, e):
        """Attention by DGL's message functions."""
        dgl, softmax, graph = load_dgl(self)
        projected = torch.nn.functional.linear(e, self.pyg.lin_edge.weight).unflatten(-1, (HEADS, WIDTH))
        score = (dgl.ops.u_dot_v(graph, k, q) + dgl.ops.e_dot_v(graph, projected, q)) / WIDTH**0.5
        weight = softmax(graph, score)
        return dgl.ops.u_mul_e_sum(graph, v, weight) + dgl.ops.copy_e_sum(graph, projected * weight)

    def functions(self):
        """(level, implementation) -> (function, leaves)."""
        on_qkv, on_x = [*self.qkv, self.e], [self.x, self.e]
        return {
            ("op", "hamfast"): (self.hamfast_op, on_qkv),
            ("op", "pyg"): (self.pyg_op, on_qkv),
            ("op", "dgl"): (self.dgl_op, on_qkv),
            ("op", "compiled scatter"): (compiled_scatter(self), on_qkv),
            ("layer", "hamfast"): (lambda x, e: self.ours(x, self.edges, e), on_x),
            ("layer", "pyg"): (lambda x, e: self.pyg(x, self.pairs, e), on_x),
            ("GATv2 layer", "hamfast"): (lambda x, e: self.gatv2(x, self.edges, e), on_x),
            ("GATv2 layer", "pyg"): (lambda x, e: self.pyg_gatv2(x, self.pairs, e), on_x),
        }

    def parameters(self, level, implementation):
        """Those that a step differentiates in."""
        if level == "op":
            return [self.pyg.lin_edge.weight]
        modules = {
            ("layer", "hamfast"): self.ours,
            ("layer", "pyg"): self.pyg,
            ("GATv2 layer", "hamfast"): self.gatv2,
            ("GATv2 layer", "pyg"): self.pyg_gatv2,
        }
        named = modules[level, implementation].named_parameters()
        return [parameter for name, parameter in named if not name.startswith("lin_skip")]  # of the root, left out


@cache
def problem():
    """The problem, made once for all benchmarks."""
    return Problem()


@cache
def compiled_scatter(case):
    """``scatter_op`` by torch.compile."""
    return torch.compile(case.scatter_op)


@cache
def load_dgl(case):
    """DGL, its softmax over edges, and the graph as its own; or a skip."""
    # Its data loaders are built for one version of torch and are not needed.
    sys.modules.setdefault("dgl.graphbolt", types.ModuleType("dgl.graphbolt"))
    dgl = pytest.importorskip("dgl")
    from dgl.nn.functional import edge_softmax

    return dgl, edge_softmax, dgl.graph((case.senders, case.receivers), num_nodes=case.nodes)


def kept_for_backward(function, leaves, parameters):
    """MB that autograd keeps, without leaves and parameters."""
    given = {t.untyped_storage().data_ptr() for t in (*leaves, *parameters)}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(*leaves)
    return sum(kept.values()) / 1e6


def step(function, leaves, parameters, mode):
    """A step without arguments: forward, forward and backward, or the gradient of a gradient."""

    def forward():
        with torch.no_grad():
            function(*leaves)

    grad = torch.ones_like(function(*leaves))

    def both():
        torch.autograd.grad(function(*leaves), [*leaves, *parameters], grad)

    # Tangents as a loss on forces gives them.
    # That loss's own arithmetic belongs to the positions, not to attention's operands.
    tangents = [torch.randn_like(t) for t in leaves]

    def force():
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        torch.autograd.grad(first, [*leaves, *parameters], tangents, allow_unused=True)

    return {"forward": forward, "forward+backward": both, "force step": force}[mode]


CASES = [
    *(("op", name, mode) for mode in MODES for name in ("hamfast", "pyg", "dgl", *COMPILED)),
    *((level, name, mode) for level in ("layer", "GATv2 layer") for mode in MODES for name in ("hamfast", "pyg")),
    *((level, name, "force step") for level in ("op", "layer", "GATv2 layer") for name in ("hamfast", "pyg")),
]


@pytest.mark.parametrize(("level", "implementation", "mode"), CASES)
def test_attention(measure, level, implementation, mode):
    """Attention beside PyG's, DGL's and compiled code, on results that agree."""
    case = problem()
    function, leaves = case.functions()[level, implementation]
    expected = case.functions()[level, "pyg"][0](*leaves)
    torch.testing.assert_close(function(*leaves).reshape(expected.shape), expected, atol=1e-4, rtol=1e-4)
    parameters = case.parameters(level, implementation)
    kept = None if implementation == "compiled scatter" else kept_for_backward(function, leaves, parameters)
    run = step(function, leaves, parameters, mode)
    rounds = 5 if mode == "force step" else 10
    measure(implementation, f"attention A {level}", mode, run, rounds=rounds, kept_MB=kept and round(kept, 1))


@pytest.mark.parametrize("edges", [10_000, 100_000, 1_000_000])
def test_growth(measure, edges):
    """Time by number of edges."""
    case = Problem(nodes=edges // DEGREE)
    function, leaves = case.functions()["op", "hamfast"]
    run = step(function, leaves, [case.pyg.lin_edge.weight], "forward+backward")
    measure("hamfast", f"attention {edges} edges", "forward+backward", run, rounds=5)
