"""Peak memory of forward + backward, each in a process of its own.

    python bench/memory.py --machine "2 CPU cores (AVX-512)"

Writes bench/results/memory.csv: how far the peak rises above what the operands take.
"""

import argparse
import csv
import datetime
import resource
import subprocess
import sys
from pathlib import Path

import torch
from cases import EDGE_PRODUCTS, PRODUCTS, RADIAL_WIDTH
from e3nn import o3
from test_products import e3nn_product

from hamfast import ops
from hamfast.plan import edge_frame_plan

RESULT = Path(__file__).parent / "results" / "memory.csv"


def peak_mb():
    """The most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def product(case):
    """Leaves of a tensor product, and its implementations by name."""
    plan, theirs = case.plan(), e3nn_product(case)
    return case.inputs(), {"hamfast": lambda x, y, w: ops.tensor_product(x, y, w, plan), "e3nn": theirs}


def radial(case):
    """The same with the last layer of the radial network, which makes the weights."""
    plan, theirs = case.plan(), e3nn_product(case)
    x, y, _ = case.inputs()
    leaves = (x, y, torch.randn(case.edges, RADIAL_WIDTH), torch.randn(RADIAL_WIDTH, plan.weight_numel))
    return leaves, {
        "hamfast": lambda x, y, h, m: ops.tensor_product(x, y, ops.RadialWeights(h, m), plan),
        "hamfast, weights stored": lambda x, y, h, m: ops.tensor_product(x, y, h @ m, plan),
        "e3nn": lambda x, y, h, m: theirs(x, y, h @ m),
    }


def edge(case):
    """The same for the product with the harmonics of the edge."""
    plan, theirs = edge_frame_plan(case.plan()), e3nn_product(case)
    vectors = torch.randn(case.edges, 3)
    l_max = max(ir.l for irreps in case.irreps for _, ir in irreps)
    x, _, w = case.inputs()
    return (x, w), {
        "hamfast": lambda x, w: ops.edge_tensor_product(x, w, plan, ops.edge_frames(vectors, l_max)),
        "e3nn": lambda x, w: theirs(x, o3.spherical_harmonics(case.irreps[1], vectors, True, "component"), w),
    }


MEASURED = {
    "tensor_product": (product, PRODUCTS),
    "with radial layer": (radial, PRODUCTS),
    "edge_tensor_product": (edge, EDGE_PRODUCTS),
}


def measure(product_name, name, implementation):
    """By how many MB forward and backward raise the peak of this process."""
    make, cases = MEASURED[product_name]
    leaves, functions = make(next(c for c in cases if c.name == name))
    leaves = [t.requires_grad_() for t in leaves]
    small = torch.randn(64, 64)
    _ = small @ small  # libraries load before the first reading
    run = functions[implementation]
    before = peak_mb()
    torch.autograd.grad(run(*leaves).sum(), leaves)
    return peak_mb() - before


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="what runs it, in words")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(*options.one))
        return
    rows = []
    for product_name, (_, cases) in MEASURED.items():
        for case in cases:
            for implementation in ("hamfast", "hamfast, weights stored", "e3nn"):
                if "stored" in implementation and product_name != "with radial layer":
                    continue
                done = subprocess.run(
                    [sys.executable, __file__, "--one", product_name, case.name, implementation],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                rows.append([f"{product_name} {case.name}", implementation, f"{float(done.stdout.split()[-1]):.0f}"])
                print(*rows[-1], flush=True)
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "implementation", "peak_mb", "machine", "torch", "date"])
        writer.writerows([*row, options.machine, torch.__version__, datetime.date.today()] for row in rows)


if __name__ == "__main__":
    main()
