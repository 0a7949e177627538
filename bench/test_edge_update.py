"""The update of edges' features beside torch's own layers.

The graph has 2,000 nodes with 40 neighbours each; rows have 128 channels.
The update is gather, sum, layer normalisation and SiLU.
HAMFAST_BENCH_COMPILED=1 adds torch.compile'd code.
"""

import pytest
import torch
from cases import ordered_graph
from test_attention import COMPILED, DEGREE, NODES, kept_for_backward, step
from test_products import MODES

from hamfast import ops, reference

WIDTH = 128


class UpdateProblem:
    """The graph, the leaves, and every implementation as a function of them."""

    def __init__(self, device="cpu", nodes=NODES):
        torch.manual_seed(0)
        senders, receivers = ordered_graph(nodes, DEGREE)
        self.senders, self.receivers = senders.to(device), receivers.to(device)
        self.edges = ops.edge_index(self.senders, self.receivers, nodes)
        rows = [torch.randn(n, WIDTH) for n in (nodes * DEGREE, nodes, nodes)]
        self.leaves = [t.to(device).requires_grad_() for t in (*rows, *torch.rand(2, WIDTH))]

    def hamfast(self, *leaves):
        """The update by :func:`hamfast.ops.edge_update`, ``[edges, WIDTH]``."""
        return ops.edge_update(self.edges, *leaves)

    def plain_torch(self, *leaves):
        """The update by torch's own layers."""
        return reference.edge_update(self.senders, self.receivers, *leaves)

    def functions(self, compiled):
        """name -> function of the leaves; ``compiled`` adds torch.compile."""
        functions = {"hamfast": self.hamfast, "plain torch": self.plain_torch}
        return functions | ({"compiled torch": torch.compile(self.plain_torch)} if compiled else {})


CASES = [
    *((name, mode) for mode in MODES for name in ("hamfast", "plain torch", *(["compiled torch"] if COMPILED else []))),
    *((name, "force step") for name in ("hamfast", "plain torch")),  # compiled code has no second derivative
]


@pytest.mark.parametrize(("implementation", "mode"), CASES)
def test_edge_update(measure, implementation, mode):
    """The update beside torch's layers, on results that agree."""
    problem = UpdateProblem()
    function = problem.functions(bool(COMPILED))[implementation]
    torch.testing.assert_close(function(*problem.leaves), problem.plain_torch(*problem.leaves), atol=1e-4, rtol=1e-4)
    kept = None if implementation == "compiled torch" else round(kept_for_backward(function, problem.leaves, []), 1)
    run = step(function, problem.leaves, [], mode)
    measure(implementation, "edge_update", mode, run, rounds=5 if mode == "force step" else 10, kept_MB=kept)
