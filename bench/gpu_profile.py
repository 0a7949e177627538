"""What bounds the CUDA kernels, by the hardware's counters.

    python bench/gpu_profile.py --machine "one H200"

Runs each kernel of a product, of the same with its radial layer, and of attention once under
Nsight Compute (``ncu``, which must be on the PATH and may read the counters), with the card's
clocks as they are, and writes bench/results/gpu_profile.csv.
``--log FILE`` reads what ncu wrote before.
"""

import argparse
import csv
import datetime
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "gpu_profile.csv"
SECTIONS = ["SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "MemoryWorkloadAnalysis", "SchedulerStats"]
METRICS = {
    "us": "Duration",
    "registers": "Registers Per Thread",
    "occupancy": "Achieved Occupancy",
    "memory": "DRAM Throughput",
    "L2": "L2 Cache Throughput",
    "units": "Compute (SM) Throughput",
    "issued_per_cycle": "Issued Warp Per Scheduler",
}
"""Column -> ncu's name. Percent, but for the first two and the last."""
# In the order of the launches.
STEPS = [
    ("convolution mace-large", "forward"),
    ("convolution mace-large", "backward"),
    *[("convolution mace-large", "double backward")] * 2,
    ("with radial layer mace-large", "forward"),
    *[("with radial layer mace-large", "backward")] * 4,
    *[("attention A x 10", "forward")] * 3,
    *[("attention A x 10", "backward")] * 6,
]


def launch_kernels():
    """Runs every kernel once, in the order of STEPS."""
    import torch
    from cases import GPU_PRODUCTS, RADIAL_WIDTH, random_graph
    from roofline import ATTENTION
    from test_attention import Problem

    from hamfast import ops

    case = GPU_PRODUCTS[0]
    plan, nodes = case.plan(), case.edges // 40
    edges = ops.edge_index(*(t.cuda() for t in random_graph(nodes, 40)), nodes)
    x, y, w = (t.cuda() for t in case.inputs())
    leaves = [t.requires_grad_() for t in (x[:nodes].contiguous(), y, w)]
    out = ops.tensor_product(*leaves, plan, edges, layout="ir_mul")
    grad = torch.randn_like(out).requires_grad_()
    first = torch.autograd.grad(out, leaves, grad, create_graph=True)
    torch.autograd.grad(first, [*leaves, grad], [torch.randn_like(t) for t in first])
    hidden = torch.randn(case.edges, RADIAL_WIDTH, device="cuda", requires_grad=True)
    matrix = torch.randn(RADIAL_WIDTH, plan.weight_numel, device="cuda", requires_grad=True)
    out = ops.tensor_product(*leaves[:2], ops.RadialWeights(hidden, matrix), plan, edges, layout="ir_mul")
    out.backward(grad.detach())
    function, leaves = Problem("cuda", ATTENTION[-1].nodes).functions()["op", "hamfast"]
    function(*leaves).sum().backward()
    torch.cuda.synchronize()


def profile(log):
    """Runs this script under ncu, which writes ``log``."""
    command = ["ncu", "--clock-control", "none", "-k", "regex:hamfast", "--csv", "--page", "details"]
    command += [word for name in SECTIONS for word in ("--section", name)]
    subprocess.run([*command, "--log-file", str(log), sys.executable, __file__, "--launch"], check=True)


def rows_of(log):
    """One row per launch, of ncu's log in CSV."""
    lines = [line for line in log.read_text().splitlines() if line.startswith('"')]
    launches: dict[str, dict[str, str]] = {}
    for entry in csv.DictReader(lines):
        launch = launches.setdefault(entry["ID"], {"kernel": entry["Kernel Name"]})
        launch[entry["Metric Name"]] = entry["Metric Value"].replace(",", "")
    if len(launches) != len(STEPS):
        sys.exit(f"{log}: expected {len(STEPS)} launches, found {len(launches)}")
    for (case, step), launch in zip(STEPS, launches.values(), strict=True):
        kernel = re.search(r"(?:hamfast::)?(\w+)", launch["kernel"].removeprefix("void "))[1]
        found = {column: float(launch[name]) for column, name in METRICS.items()}
        found["us"] = round(found["us"] / 1e3, 1)
        found["registers"] = int(found["registers"])
        if kernel == "hamfast":
            kernel = re.search(r"hamfast::(\w+)", launch["kernel"])[1]
        yield {"case": case, "step": step, "kernel": kernel, **found}


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", help='what it is, in words: "one H200"')
    parser.add_argument("--log", type=Path, help="of ncu, to be read")
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.launch:
        return launch_kernels()
    if not options.machine:
        parser.error("--machine is needed: the name of the GPU goes into the table")
    with tempfile.TemporaryDirectory() as folder:
        log = options.log or Path(folder) / "ncu.csv"
        if not options.log:
            profile(log)
        about = {"machine": options.machine, "date": datetime.date.fromtimestamp(log.stat().st_mtime).isoformat()}
        rows = [row | about for row in rows_of(log)]
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(RESULT)


if __name__ == "__main__":
    main()
