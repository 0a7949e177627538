"""Times every lowering that can run a product, and e3nn's own code beside them.

    python bench/lowerings.py --machine "2 CPU cores (AVX-512)"
    python bench/lowerings.py --fit     # prints the rates of hamfast/plan/cost.py

Writes bench/results/lowerings.csv: for few and for many rows, the forward pass, forward + backward,
and forward + backward + double backward (float32, CPU time, one thread, the least of many rounds in
which all take turns).
The cost model (hamfast/plan/cost.py) was fitted to this table, and a test compares its choices with
it.
"""

import argparse
import csv
import datetime
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from cases import separate_paths
from e3nn import o3
from e3nn.o3 import Irreps
from scipy.optimize import nnls

from hamfast import ops
from hamfast.nn.tensor_product import fully_connected
from hamfast.ops.notice import SlowPathWarning
from hamfast.ops.tensor_product import broadcast_tensor_product
from hamfast.plan import edge_frame_plan, make_plan
from hamfast.plan.cost import choose_lowering, estimates, rows_like, works

RESULT = Path(__file__).parent / "results" / "lowerings.csv"
ROWS = (32, 2000)
STEPS = ("forward", "backward", "double backward")
HARMONICS = ["0e", "0e+1o", "0e+1o+2e", "0e+1o+2e+3o", "0e+1o+2e+3o+4e"]
MIXED = "32x0e+16x1o+8x2e"

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
    # Channel-wise: the messages of MACE and NequIP.
    ("64x0e+64x1o+64x2e", "0e+1o+2e", "uvu", "uvu", False, False),
    ("8x0e+8x1o", "0e+1o", "uvu", "uvu", False, False),
    ("3x0e+3x1o", "2x0e+2x1o", "uvu", "uvu", False, False),
    ("64x0e+64x1o", "0e+1o", "uvu", "uvu", True, False),
    ("4x0e+4x7o", "1x7o", "4x7o+4x0e", "uvu", False, False),
    # A linear layer for each species: self-connections of MACE, NequIP and DeepH-E3.
    ("128x0e", "2x0e", "128x0e", "uvw", True, False),
    ("128x0e+128x1o", "10x0e", "128x0e+128x1o", "uvw", True, False),
    ("64x0e+64x1o", "10x0e", "64x0e+64x1o", "uvw", True, False),
    ("64x0e+32x1o+16x2e", "2x0e", "64x0e+32x1o+16x2e", "uvw", True, False),
    ("16x0e+8x1o", "1x0e", "16x0e+8x1o", "uvw", True, False),
    # Fully connected with shared weights: scores of attention and others.
    ("16x0e+4x1o", "16x0e+4x1o", "1x0e", "uvw", True, False),
    ("16x0e+8x1o", "4x0e+4x1o", "16x0e+8x1o", "uvw", True, False),
    ("2x0e+2x1o", "2x0e+2x1o", "2x0e+2x1o", "uvw", True, False),
    ("8x0e+8x7o", "1x7o", "8x0e+8x7o", "uvw", True, False),
    # Fully connected with weights per edge: e3tools, DiffDock.
    ("32x0e", HARMONICS[2], MIXED, "uvw", False, False),
    (MIXED, HARMONICS[2], MIXED, "uvw", False, False),
    ("64x0e+32x1o", HARMONICS[2], "64x0e+32x1o", "uvw", False, False),
    ("16x0e+16x1o+16x2e", HARMONICS[2], "16x0e+16x1o+16x2e", "uvw", False, False),
    ("24x0e+6x1o+6x1e", HARMONICS[2], "24x0e+6x1o+6x1e+24x0o", "uvw", False, False),
    ("4x0e+2x1o", "0e+1o", "4x0e+2x1o", "uvw", False, False),
    # Gates, products of like channels, and the other modes.
    ("16x1o+8x2e", "16x0e+8x0e", "16x1o+8x2e", "gate", True, False),
    ("128x1o", "128x0e", "128x1o", "gate", True, False),
    ("16x0e+16x1o+16x2e", "16x0e+16x1o+16x2e", "16x0e+16x1o+16x2e", "uuu", True, False),
    ("16x1o+16x2e", "16x1o+16x2e", "16x0e+16x2e", "uuw", True, False),
    ("8x0e+4x1o", "4x0e+4x1o", "uvuv", "uvuv", True, False),
    ("4x0e+4x1o", "16x0e+16x1o", "16x0e+16x1o", "uvv", True, False),
    ("16x0e+16x1o", "16x0e+16x1o", "16x0e+16x1e", "u<vw", True, False),
]


def plan_of(in1, in2, out, mode):
    """The plan of a shape.

    Mode ``uvu`` has one output block per path where ``out`` says so. A ``gate`` multiplies the
    n-th block by the n-th, without weights. Other modes have all paths that their multiplicities
    allow.
    """
    a, b, c = Irreps(in1), Irreps(in2), None
    if out == "uvu":
        return make_plan(a, b, *separate_paths(a, b, Irreps("0e+0o+1e+1o+2e+2o")))
    if mode == "uvuv":
        paths = [(i, j, ir) for i, (_, x) in enumerate(a) for j, (_, y) in enumerate(b) for ir in x * y]
        c = Irreps([(a[i].mul * b[j].mul, ir) for i, j, ir in paths])
        return make_plan(a, b, c, [(i, j, k, "uvuv", True, 1.0) for k, (i, j, _) in enumerate(paths)])
    c = Irreps(out)
    if mode == "gate":
        return make_plan(a, b, c, [(i, i, i, "uuu", False, 1.0) for i in range(len(a))])
    paths = [(i, j, k, mode, True, 1.0) for i, j, k, *_ in fully_connected(a, b, c)]
    if mode == "u<vw":
        paths = [path for path in paths if path[0] == path[1]]
    return make_plan(a, b, c, paths)


def runner(plan, lowering, shared, harmonics, rows, step):
    """A step without arguments, of one lowering or of e3nn's own code."""
    torch.manual_seed(0)
    x = torch.randn(rows, plan.dim_in1, requires_grad=True)
    w = torch.randn(*(() if shared else (rows,)), plan.weight_numel, requires_grad=True)
    if harmonics:
        vectors, lowered = torch.randn(rows, 3), edge_frame_plan(plan)
        l_max = max(l for _, l, _ in plan.irreps_in1 + plan.irreps_out)
        leaves = [x, w]

        def product():
            return ops.edge_tensor_product(x, w, lowered, ops.edge_frames(vectors, l_max), lowering=lowering)
    else:
        y = torch.randn(rows, plan.dim_in2, requires_grad=True)
        leaves = [x, y, w] if plan.weight_numel else [x, y]
        theirs = o3.TensorProduct(
            Irreps([(mul, (l, p)) for mul, l, p in plan.irreps_in1]),
            Irreps([(mul, (l, p)) for mul, l, p in plan.irreps_in2]),
            Irreps([(mul, (l, p)) for mul, l, p in plan.irreps_out]),
            [(i.i_in1, i.i_in2, i.i_out, i.mode, i.has_weight) for i in plan.instructions],
            internal_weights=False,
            shared_weights=shared,
        )._compiled_main_left_right

        def product():
            if lowering == "e3nn":
                return theirs(x, y, w)
            return broadcast_tensor_product(x, y, w if plan.weight_numel else None, plan, lowering=lowering)

    ones = torch.ones(rows, plan.dim_out)

    def run():
        if step == "forward":
            with torch.no_grad():
                return product()
        first = torch.autograd.grad(product(), leaves, ones, create_graph=step == "double backward")
        if step == "double backward":
            torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    return run


def least_ms(steps, seconds):
    """CPU time of each step, the least of rounds in which all take turns."""
    best = [float("inf")] * len(steps)
    begin = time.process_time()
    for step in steps:
        step()
    once = time.process_time() - begin
    for _ in range(min(max(int(seconds / once), 5), 100)):
        for n, step in enumerate(steps):
            start = time.process_time()
            step()
            best[n] = min(best[n], 1e3 * (time.process_time() - start))
    return best


def read():
    """Shape -> rows -> lowering -> milliseconds ``(forward, with derivatives)``, as measured.

    With derivatives is the sum of forward + backward, as forces take it, and of what a loss on
    forces takes.
    """
    table = {}
    with RESULT.open() as file:
        for row in csv.DictReader(file):
            shape = (
                row["in1"],
                row["in2"],
                row["out"],
                row["mode"],
                row["shared"] == "True",
                row["harmonics"] == "True",
            )
            times = table.setdefault(shape, {}).setdefault(int(row["rows"]), {}).setdefault(row["lowering"], [0.0, 0.0])
            times[row["step"] != "forward"] += float(row["ms"])
    return table


def fit(rounds=600):
    """Prints the rates with the least relative errors, none of them negative.

    Rates fitted to times alone choose wrongly where two are close. So in the next round the
    time of what was chosen wrongly is taken to be longer, and that of the fastest shorter, within
    limits; the rates whose worst choice is the best are kept.
    """
    cases = []  # (count of choices), lowering -> (name of its rates, counts, microseconds)
    for (in1, in2, out, mode, shared, harmonics), by_rows in read().items():
        found = works(plan_of(in1, in2, out, mode), shared, "cpu", harmonics)
        for rows, times in by_rows.items():
            for n in range(2):
                case = {}
                for lowering, ms in times.items():
                    parts = found.get(lowering, {})
                    if len(parts) == 1:  # of the others the parts' times are not known
                        ((name, work),) = parts.items()
                        case[lowering] = ((name, n), np.array(work.for_rows(rows_like(rows))), 1e3 * ms[n])
                cases.append((case, 1e3 * min(ms[n] for ms in times.values())))
    names = sorted({key for case, _ in cases for key, _, _ in case.values()})
    targets = [dict.fromkeys(case, 1.0) for case, _ in cases]
    best = None
    for _ in range(rounds):
        rates = {}
        for key in names:
            of_key = [
                (c / t, w[l])
                for (case, _), w in zip(cases, targets, strict=True)
                for l, (k, c, t) in case.items()
                if k == key
            ]
            counts, target = np.array([c for c, _ in of_key]), np.array([w for _, w in of_key])
            unit = counts.max(0) + (counts == 0).all(0)
            rates[key] = nnls(counts / unit / target[:, None], np.ones(len(target)))[0] / unit
        regrets = []
        for (case, least), target in zip(cases, targets, strict=True):
            estimated = {l: counts @ rates[key] for l, (key, counts, _) in case.items()}
            # Of those that are estimated alike any may be chosen: the rates are rounded.
            alike = [l for l, time in estimated.items() if time <= 1.002 * min(estimated.values())]
            chosen = max(alike, key=lambda l: case[l][2])
            regrets.append(case[chosen][2] / least)
            if regrets[-1] > 1.1:
                fastest = min(case, key=lambda l: case[l][2])
                target[chosen] = min(target[chosen] * 1.03, 3.0)
                target[fastest] = max(target[fastest] / 1.03, 0.33)
        if best is None or max(regrets) < best[0]:
            best = max(regrets), rates
        if best[0] < 1.25:
            break
    print(f"# the worst choice takes {best[0]:.2f} times as long as the fastest")
    for name in dict.fromkeys(name for name, _ in names):
        lines = [f"({', '.join(f'{r:.4g}' for r in best[1][name, n])})" for n in range(2)]
        print(f'    "{name}": (\n        {lines[0]},\n        {lines[1]},\n    ),')


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="what runs it, in words")
    parser.add_argument("--fit", action="store_true", help="of the table that is there")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each comparison, at least 5 rounds")
    options = parser.parse_args()
    if options.fit:
        fit()
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SlowPathWarning)
    table = []
    for in1, in2, out, mode, shared, harmonics in SHAPES:
        plan = plan_of(in1, in2, out, mode)
        names = [e.lowering for e in estimates(plan, shared, "cpu", harmonics)] + ([] if harmonics else ["e3nn"])
        for rows in ROWS:
            for step in STEPS:
                chosen = choose_lowering(plan, shared, "cpu", harmonics, rows, step != "forward")
                steps = [runner(plan, name, shared, harmonics, rows, step) for name in names]
                found = dict(zip(names, least_ms(steps, options.seconds), strict=True))
                print(in1, in2, mode, rows, step, {n: round(t, 2) for n, t in found.items()}, chosen, flush=True)
                shape = [in1, in2, out, mode, shared, harmonics, rows, step]
                table += [[*shape, name, f"{ms:.4f}"] for name, ms in found.items()]
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["in1", "in2", "out", "mode", "shared", "harmonics", "rows", "step", "lowering", "ms"]
        writer.writerow([*columns, "machine", "torch", "date"])
        for row in table:
            writer.writerow([*row, options.machine, torch.__version__, datetime.date.today()])


if __name__ == "__main__":
    main()
