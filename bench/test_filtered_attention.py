"""The attention of TorchMD-NET's equivariant Transformer, as its paper states it and by our ops.

Thoelke, De Fabritiis (arXiv 2202.02541), eq. 4 to 8, beside `graph_attention` and `edge_einsum`.
The graph has 2,000 nodes with 40 neighbours each; there are 8 heads x 16.
Filters of the distance are per edge and channel, vectors have rank one, and there is no softmax.
Results are compared before anything is timed.
"""

from functools import cache

import pytest
import torch
from cases import ordered_graph
from test_attention import step
from test_products import MODES

from hamfast import ops

HEADS, WIDTH, NODES, DEGREE = 8, 16, 2000, 40


class Problem:
    """The graph, the leaves, and both implementations as functions of them."""

    def __init__(self):
        torch.manual_seed(0)
        self.senders, self.receivers = ordered_graph(NODES, DEGREE)
        self.edges = ops.edge_index(self.senders, self.receivers, NODES)

        def leaf(*shape):
            return torch.randn(*shape, requires_grad=True)

        edges = NODES * DEGREE
        self.leaves = [
            *(leaf(NODES, HEADS, WIDTH) for _ in range(5)),  # q, k, v, v1, v2
            leaf(NODES, HEADS, 3, WIDTH),
            *(leaf(edges, HEADS, WIDTH) for _ in range(4)),  # filters
            leaf(edges),
            leaf(edges, 3),
        ]

    def published(self, q, k, v, v1, v2, vectors, dk, dv, dv1, dv2, cutoff, direction):
        """Equations 4 to 8 as printed, ``[nodes, heads, 4, width]``: scalars, then vectors."""
        s, r = self.senders, self.receivers
        weight = torch.nn.functional.silu((q[r] * k[s] * dk).sum(-1)) * cutoff[:, None]
        moved = vectors[s] * (v1[s] * dv1)[:, :, None] + (v2[s] * dv2)[:, :, None] * direction[:, None, :, None]
        edges = torch.cat([(weight[..., None] * (v[s] * dv))[:, :, None], moved], dim=2)
        return edges.new_zeros(NODES, HEADS, 4, WIDTH).index_add(0, r, edges)

    def hamfast(self, q, k, v, v1, v2, vectors, dk, dv, dv1, dv2, cutoff, direction):
        """The same by hamfast's ops."""
        scalars = ops.graph_attention(
            self.edges, query_receiver=q, key_sender=k, key_filter=dk, scale=1.0, weight="silu", envelope=cutoff,
            value_sender=v, value_filter=dv,
        )  # fmt: skip
        to = (self.edges, "receiver", (HEADS, 3, WIDTH))
        scaled = ops.edge_einsum(*to, (vectors * v1[:, :, None], "sender"), (dv1[:, :, None], "edge"))
        pointed = ops.edge_einsum(
            *to, (v2[:, :, None], "sender"), (dv2[:, :, None], "edge"), (direction[:, None, :, None], "edge")
        )
        return torch.cat([scalars[:, :, None], scaled + pointed], dim=2)


@cache
def problem():
    """The problem, made once for all benchmarks."""
    return Problem()


@pytest.mark.parametrize("mode", [*MODES, "force step"])
@pytest.mark.parametrize("implementation", ["hamfast", "plain torch"])
def test_filtered_attention(measure, implementation, mode):
    """Filtered attention beside the printed equations, on results that agree."""
    case = problem()
    functions = {"hamfast": case.hamfast, "plain torch": case.published}
    expected = case.published(*case.leaves)
    torch.testing.assert_close(case.hamfast(*case.leaves), expected, atol=1e-4, rtol=1e-4)
    run = step(functions[implementation], case.leaves, [], mode)
    measure(implementation, "filtered attention", mode, run, rounds=5)
