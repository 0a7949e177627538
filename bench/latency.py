"""What a call costs where there is nearly nothing to compute: 4 edges of 3 nodes.

    python bench/latency.py --machine "2 CPU cores (AMD EPYC, AVX-512)"

Small molecules, and runs on GPUs that are bound by launches, are like this.
Writes bench/results/latency.csv: microseconds of hamfast's ops and of e3nn's product, on one
thread.
The calls alternate.
"""

import argparse
import csv
import datetime
import statistics
import time
from pathlib import Path

import e3nn
import torch
from e3nn import o3

from hamfast import ops
from hamfast.plan import make_plan

RESULT = Path(__file__).parent / "results" / "latency.csv"
EDGES, NODES = 4, 3
IRREPS = "4x0e+4x1o", "1x0e+1x1o", "4x0e+4x1o"
PATHS = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 0, 1, "uvu", True)]


def functions():
    """name -> (function of leaves, leaves)"""
    senders, receivers = torch.randint(NODES, (2, EDGES))
    edges, plan = ops.edge_index(senders, receivers, NODES), make_plan(*IRREPS, PATHS)
    theirs = o3.TensorProduct(*IRREPS, PATHS, internal_weights=False, shared_weights=False)

    def leaves(*shapes):
        return [torch.randn(shape, requires_grad=True) for shape in shapes]

    def scattered(x, y, w):
        out = theirs(x[senders], y, w)
        return out.new_zeros(NODES, out.shape[1]).index_add(0, receivers, out)

    def attention(q, k, v):
        return ops.graph_attention(edges, query_receiver=q, key_sender=k, value_sender=v)

    operands = leaves((NODES, 16), (EDGES, 4), (EDGES, plan.weight_numel))
    return {
        "convolution, hamfast": (lambda x, y, w: ops.tensor_product(x, y, w, plan, edges), operands),
        "convolution, e3nn": (scattered, operands),
        "graph_attention": (attention, leaves(*[(NODES, 2, 4)] * 3)),
        "edge_update": (lambda *t: ops.edge_update(edges, *t), leaves((EDGES, 8), (NODES, 8), (NODES, 8), (8,), (8,))),
    }


def modes(function, leaves):
    """name -> step without arguments, for a function of leaves."""
    grad = torch.ones_like(function(*leaves), requires_grad=True)
    tangents = [torch.randn_like(t) for t in leaves]

    def forward():
        with torch.no_grad():
            function(*leaves)

    def both():
        torch.autograd.grad(function(*leaves), leaves, grad.detach())

    def double():
        first = torch.autograd.grad(function(*leaves), leaves, grad, create_graph=True)
        torch.autograd.grad(first, (*leaves, grad), tangents)

    return {"forward": forward, "forward+backward": both, "double backward": double}


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", required=True)
    machine = parser.parse_args().machine
    torch.manual_seed(0)
    torch.set_num_threads(1)
    steps = {(name, mode): step for name, given in functions().items() for mode, step in modes(*given).items()}
    times = {key: [] for key in steps}
    for _ in range(300):
        for key, step in steps.items():
            begin = time.perf_counter()
            step()
            times[key].append(time.perf_counter() - begin)
    date = datetime.date.today().isoformat()
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["call", "mode", "median_us", "min_us", "machine", "torch", "e3nn", "date"])
        for (name, mode), found in times.items():
            rest = (machine, torch.__version__, e3nn.__version__, date)
            writer.writerow(
                [name, mode, *(f"{1e6 * t:.0f}" for t in (statistics.median(found[50:]), min(found))), *rest]
            )
    print(RESULT)


if __name__ == "__main__":
    main()
