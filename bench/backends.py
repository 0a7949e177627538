"""Which op runs on which backend, in which dtype, to which order of derivative, tested where.

    python bench/backends.py [--executor] [--machine "one H200"]

Runs tests/ops/test_backends.py and puts what passed into bench/results/backends.csv.
Rows of other machines stay there.
Then it writes the tables of docs/backends.md, from that file and from the dispatcher's
registrations.
With --executor it also builds the CUDA sources for the host (tests/simt, a few minutes), and runs
the tests on them.
"""

import argparse
import csv
import datetime
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from hamfast.ops import backend as backends

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "backends.csv"
PAGE = ROOT / "docs" / "backends.md"
COLUMNS = ["case", "backend", "dtype", "order", "where", "date"]
DTYPES = ("float64", "float32", "bfloat16", "float16")


def run_tests(environment, *chosen):
    """(case, backend, dtype, order) of what passed; stops at a failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/ops/test_backends.py", f"--junitxml={report}", *chosen]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout[-3000:]}{done.stderr[-2000:]}")
        cases = ElementTree.parse(report).getroot().iter("testcase")
        passed = [case.get("name") for case in cases if len(case) == 0]
    return [re.fullmatch(r"test_backend\[(.*)-(\w+)-(\w+)-(\d)\]", name).groups() for name in passed]


def run_executor():
    """(case, backend, dtype, order) of what passed on the CUDA sources, which the host runs."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "kernels")]
    from test_cuda_on_host import compile_all, environment

    with tempfile.TemporaryDirectory() as folder:
        found = run_tests(
            environment(compile_all(Path(folder))), "-k", "cpu and not radial"
        )  # that one is the plain op, in blocks
    return [(case, "cuda", dtype, order) for case, backend, dtype, order in found if backend == "cpu"]


def where_tested(backend, machine):
    """Where a backend was tested, in words."""
    if backend == "cpu" or torch.cuda.is_available():
        return machine
    import triton

    return f"Triton {triton.__version__}'s interpreter"


def read_rows():
    """The rows of bench/results/backends.csv; none if there is no such file."""
    if not RESULT.exists():
        return []
    with RESULT.open() as file:
        return list(csv.DictReader(file))


def tested(rows):
    """One line per op, backend and machine: the orders of derivative that passed in each dtype."""
    lines = [
        "| op, lowering | backend | " + " | ".join(DTYPES) + " | tested on |",
        "|---|---|" + "---|" * (len(DTYPES) + 1),
    ]
    keys = list(dict.fromkeys((row["case"], row["backend"], row["where"]) for row in rows))
    for case, backend, where in sorted(keys, key=lambda key: (key[0], backends.BACKENDS[::-1].index(key[1]), key[2])):
        cells = []
        for dtype in DTYPES:
            chosen = (case, backend, where, dtype)
            orders = sorted(r["order"] for r in rows if (r["case"], r["backend"], r["where"], r["dtype"]) == chosen)
            cells.append(", ".join(orders) or "-")
        lines.append(f"| {case} | `{backend}` | " + " | ".join(cells) + f" | {where} |")
    return "\n".join(lines)


def registered():
    """What the dispatcher and the ladder know."""
    lines = ["| op of `torch.ops.hamfast` | `cpu` | `cuda` | `triton` |", "|---|---|---|---|"]
    sources = "".join(path.read_text() for path in (ROOT / "csrc").glob("*/*_cuda.cu"))
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    by_torch = {
        "block_matmul": "torch's products",
        "irreps_linear": "torch's products",
        "row_matmul": "torch's products",
        "edge_outer": "torch's operations",
    }
    for op in sorted([*backends.LAUNCHERS, *by_torch]):
        cuda = triton = by_torch.get(op, "")
        if not cuda:
            is_own = re.search(rf'm\.impl\(\s*"{op}"', sources) is not None
            cuda = "kernel" if is_own else "kernel; float64 by the plain op"
            triton = f"`hamfast/triton/{backends.LAUNCHERS[op]}.py`"
        own = by_torch[op] if op == "block_matmul" else "kernel"
        cpu = own if has(f"hamfast::{op}", "CPU") else "missing"
        lines.append(f"| `{op}` | {cpu} | {cuda} | {triton} |")
    return "\n".join(lines)


def replace(text, name, content):
    """The text with new content between the two marks of a name."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    assert begin in text and end in text, f"{PAGE}: expected the marks {begin} and {end}"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="2 CPU cores", help='what it is, in words: "one H200"')
    parser.add_argument("--executor", action="store_true")
    options = parser.parse_args()
    today = datetime.date.today().isoformat()
    found = [(*row, where_tested(row[1], options.machine), today) for row in run_tests(dict(os.environ))]
    if options.executor:
        found += [(*row, "the executor of tests/simt", today) for row in run_executor()]
    new = [dict(zip(COLUMNS, row, strict=True)) for row in found]
    renewed = {(row["backend"], row["where"]) for row in new}
    kept = [row for row in read_rows() if (row["backend"], row["where"]) not in renewed]
    rows = sorted(kept + new, key=lambda row: [row[name] for name in COLUMNS])
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    PAGE.write_text(replace(replace(PAGE.read_text(), "registered", registered()), "tested", tested(rows)))
    print(f"{RESULT}: {len(rows)} rows; {PAGE}")


if __name__ == "__main__":
    main()
