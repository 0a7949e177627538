"""Times every lowering that can run a plan, forward + backward.

    python bench/lowerings.py --machine "2 CPU cores (AVX-512)"

Writes bench/results/lowerings.csv.
The cost model (hamfast/plan/cost.py) was fitted to this table, and a test compares its choices with
it.
"""

import argparse
import csv
import datetime
import time
import warnings
from pathlib import Path

import torch
from cases import separate_paths
from e3nn.o3 import Irreps

from hamfast import ops
from hamfast.nn.tensor_product import fully_connected
from hamfast.ops.notice import SlowPathWarning
from hamfast.plan import edge_frame_plan, make_plan
from hamfast.plan.cost import choose_lowering, estimates

RESULT = Path(__file__).parent / "results" / "lowerings.csv"
ROWS = 1000
HARMONICS = ["0e", "0e+1o", "0e+1o+2e", "0e+1o+2e+3o", "0e+1o+2e+3o+4e"]

# in1, in2, out, mode, weights shared, second operand is harmonics
SHAPES = [
    *(
        (f"{m}x0e+{m}x1o", HARMONICS[l], f"{m}x0e+{m}x1o", "uvw", True, True)
        for m, l in ((4, 1), (16, 1), (64, 1), (16, 2), (64, 2))
    ),
    ("32x0e", "0e+1o+2e", "32x0e+32x1o+32x2e", "uvw", True, True),
    ("64x0e+32x1o+16x2e", HARMONICS[2], "64x0e+32x1o+16x2e", "uvw", True, True),
    ("64x0e+32x1o+16x2e+8x3o+8x4e", HARMONICS[4], "64x0e+32x1o+16x2e+8x3o+8x4e", "uvw", True, True),
    ("32x0e+16x1o+8x2e+4x3o+4x4e", HARMONICS[4], "32x0e+16x1o+8x2e+4x3o+4x4e", "uvw", True, True),
    ("16x0e+16x1o+16x2e+16x3o", HARMONICS[3], "16x0e+16x1o+16x2e+16x3o", "uvw", True, True),
    ("64x0e+64x1o", "10x0e", "64x0e+64x1o", "uvw", True, False),
    ("16x0e+8x1o", "4x0e+4x1o", "16x0e+8x1o", "uvw", True, False),
    ("2x0e+2x1o", "2x0e+2x1o", "2x0e+2x1o", "uvw", True, False),
    ("64x0e+64x1o+64x2e", "0e+1o+2e", "uvu", "uvu", False, False),
    ("8x0e+8x1o", "0e+1o", "uvu", "uvu", False, False),
    ("3x0e+3x1o", "2x0e+2x1o", "uvu", "uvu", False, False),
    ("64x0e+64x1o", "0e+1o", "uvu", "uvu", True, False),
]


def plan_of(in1, in2, out, mode):
    """The plan of a shape; mode uvu has one output block per path, whatever ``out`` says."""
    a, b = Irreps(in1), Irreps(in2)
    if mode == "uvu":
        return make_plan(a, b, *separate_paths(a, b, Irreps("0e+0o+1e+1o+2e+2o")))
    return make_plan(a, b, out, fully_connected(a, b, Irreps(out)))


def runner(plan, lowering, shared, harmonics):
    """A step without arguments: forward and backward of 1,000 rows by one lowering."""
    x = torch.randn(ROWS, plan.dim_in1, requires_grad=True)
    w = torch.randn(*(() if shared else (ROWS,)), plan.weight_numel, requires_grad=True)
    if harmonics:
        vectors, lowered = torch.randn(ROWS, 3), edge_frame_plan(plan)
        l_max = max(l for _, l, _ in plan.irreps_in1 + plan.irreps_out)
        leaves = [x, w]

        def product():
            return ops.edge_tensor_product(x, w, lowered, ops.edge_frames(vectors, l_max), lowering=lowering)
    else:
        y = torch.randn(ROWS, plan.dim_in2, requires_grad=True)
        leaves = [x, y, w]

        def product():
            return ops.tensor_product(x, y, w, plan, lowering=lowering)

    def step():
        out = product()
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def median_ms(steps, rounds=15):
    """Of all steps, interleaved."""
    times = [[] for _ in steps]
    for n in range(rounds + 3):
        for step, record in zip(steps, times, strict=True):
            begin = time.perf_counter()
            step()
            if n >= 3:
                record.append(1e3 * (time.perf_counter() - begin))
    return [sorted(record)[len(record) // 2] for record in times]


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, help="what runs it, in words")
    machine = parser.parse_args().machine
    warnings.simplefilter("ignore", SlowPathWarning)
    rows = []
    for in1, in2, out, mode, shared, harmonics in SHAPES:
        plan = plan_of(in1, in2, out, mode)
        names = [e.lowering for e in estimates(plan, shared, "cpu", harmonics)]
        found = median_ms([runner(plan, name, shared, harmonics) for name in names])
        chosen = choose_lowering(plan, shared, "cpu", harmonics)
        print(
            in1, in2, mode, {n: round(t, 2) for n, t in zip(names, found, strict=True)}, "chosen:", chosen, flush=True
        )
        for name, ms in zip(names, found, strict=True):
            rows.append([in1, in2, out, mode, shared, harmonics, name, f"{ms:.3f}"])
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["in1", "in2", "out", "mode", "shared", "harmonics", "lowering", "ms", "machine", "torch", "date"]
        )
        for row in rows:
            writer.writerow([*row, machine, torch.__version__, datetime.date.today()])


if __name__ == "__main__":
    main()
