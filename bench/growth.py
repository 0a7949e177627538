"""How time and memory of forward + backward grow with edges, multiplicity and l.

    python bench/growth.py --machine "2 CPU cores (AVX-512)"

Writes bench/results/growth.csv and a plot for the docs.
"""

import argparse
import csv
import datetime
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import torch
from cases import separate_paths
from e3nn.o3 import Irreps

from hamfast import ops
from hamfast.nn.tensor_product import fully_connected
from hamfast.plan import edge_frame_plan, make_plan

HERE = Path(__file__).parent
RESULT, PLOT = HERE / "results" / "growth.csv", HERE.parent / "docs" / "images" / "growth.png"
DEGREE = 40


def convolution(edges, mul, l_max):
    """Channel-wise with radial weights, gather and scatter: every path to every l."""
    irreps = Irreps([(mul, (l, (-1) ** l)) for l in range(l_max + 1)])
    sh = Irreps.spherical_harmonics(l_max)
    allowed = Irreps([(1, (l, p)) for l in range(l_max + 1) for p in (1, -1)])
    plan = make_plan(irreps, sh, *separate_paths(irreps, sh, allowed))
    nodes = max(edges // DEGREE, 1)
    graph = ops.edge_index(torch.randint(nodes, (edges,)), torch.arange(edges) % nodes, nodes)
    leaves = [torch.randn(nodes, plan.dim_in1), torch.randn(edges, plan.dim_in2)]
    leaves += [torch.randn(edges, 32), torch.randn(32, plan.weight_numel)]
    return leaves, lambda x, y, h, m: ops.tensor_product(x, y, ops.RadialWeights(h, m), plan, graph)


def edge_frame(edges, mul, l_max):
    """Leaves and function of a product in the edge frame: every path to every l."""
    irreps, sh = Irreps([(mul, (l, (-1) ** l)) for l in range(l_max + 1)]), Irreps.spherical_harmonics(l_max)
    plan = edge_frame_plan(make_plan(irreps, sh, irreps, fully_connected(irreps, sh, irreps)))
    frames = ops.edge_frames(torch.randn(edges, 3), l_max)
    leaves = [torch.randn(edges, plan.plan.dim_in1), torch.randn(plan.plan.weight_numel)]
    return leaves, lambda x, w: ops.edge_tensor_product(x, w, plan, frames, lowering="edge_frame")


SERIES = {
    "edges": (convolution, [(n, 16, 2) for n in (1_000, 10_000, 100_000, 1_000_000)]),
    "multiplicity": (convolution, [(10_000, mul, 2) for mul in (8, 16, 32, 64, 128)]),
    "l, channel-wise": (convolution, [(4_000, 32, l) for l in range(1, 7)]),
    "l, edge frame": (edge_frame, [(4_000, 32, l) for l in range(1, 7)]),
}
"""Name -> what is measured, and (edges, multiplicity, l) of each point."""


def measure(series, edges, mul, l_max):
    """Median milliseconds of a step, and by how many MB the peak of memory rose."""
    make, _ = SERIES[series]
    leaves, run = make(edges, mul, l_max)
    leaves = [t.requires_grad_() for t in leaves]
    grad = torch.ones_like(run(*leaves))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        torch.autograd.grad(run(*leaves), leaves, grad)
        times.append(time.perf_counter() - begin)
    return 1e3 * sorted(times)[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def plot(rows):
    """Draws time against each of the sizes, with both axes logarithmic."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.1), constrained_layout=True)
    for axis, name in zip(axes, names, strict=True):
        points = [row for row in rows if row[0] == name]
        column = {"edges": 1, "multiplicity": 2}.get(name, 3)
        x, y = [p[column] for p in points], [float(p[4]) for p in points]
        if column == 3:
            x = [2 * l + 1 for l in x]
        power = math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2])
        axis.loglog(x, y, "o-", label=f"time, last step: power {power:.1f}")
        axis.set_xlabel({1: "edges", 2: "multiplicity", 3: "2 l + 1"}[column])
        axis.set_ylabel("forward + backward (ms)")
        axis.set_title(name)
        axis.legend(fontsize=7)
    figure.savefig(PLOT, dpi=110)


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="what runs it, in words")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        series, *sizes = options.one
        print(*measure(series, *map(int, sizes)))
        return
    rows = []
    for point in [(series, *sizes) for series, (_, points) in SERIES.items() for sizes in points]:
        command = [sys.executable, __file__, "--one", *map(str, point)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ms, mb = map(float, done.stdout.split())
        rows.append([*point, f"{ms:.2f}", f"{mb:.0f}"])
        print(*rows[-1], flush=True)
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["series", "edges", "multiplicity", "l", "ms", "peak_mb", "machine", "torch", "date"])
        writer.writerows([*row, options.machine, torch.__version__, datetime.date.today()] for row in rows)
    plot(rows)


if __name__ == "__main__":
    main()
