"""Spherical harmonics and their gradient: e3nn (eager, compiled) and sphericart.

    python bench/harmonics.py --machine "2 CPU cores (AVX-512)"

Writes bench/results/harmonics.csv, which decides which of them hamfast uses.
"""

import argparse
import csv
import datetime
import sys
import time
from pathlib import Path

import torch
from e3nn import o3

sys.path.append(str(Path(sys.prefix) / "peers"))
RESULT = Path(__file__).parent / "results" / "harmonics.csv"
POINTS = 100_000


def candidates(l_max):
    """name -> function of vectors ``[points, 3]``, all with the same result."""
    import sphericart.torch

    degrees = list(range(l_max + 1))

    def e3nn(v):
        return o3.spherical_harmonics(degrees, v, normalize=True, normalization="component")

    def sphericart_(v):
        return sphericart.torch.e3nn_spherical_harmonics(degrees, v, normalize=True, normalization="component")

    return {"e3nn": e3nn, "e3nn compiled": torch.compile(e3nn), "sphericart": sphericart_}


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, help="what runs it, in words")
    machine = parser.parse_args().machine
    rows = []
    for l_max in (3, 5):
        v = torch.randn(POINTS, 3, requires_grad=True)
        functions = candidates(l_max)
        expected = functions["e3nn"](v)
        grad = torch.randn_like(expected)
        for function in functions.values():
            torch.testing.assert_close(function(v), expected, atol=1e-4, rtol=1e-4)
        for mode in ("forward", "forward+backward"):
            times = {name: [] for name in functions}
            for _ in range(12):
                for name, function in functions.items():
                    begin = time.perf_counter()
                    if mode == "forward":
                        with torch.no_grad():
                            function(v)
                    else:
                        torch.autograd.grad(function(v), v, grad)
                    times[name].append(1e3 * (time.perf_counter() - begin))
            for name, found in times.items():
                rows.append([l_max, mode, name, f"{sorted(found)[len(found) // 2]:.2f}"])
                print(*rows[-1], flush=True)
    with RESULT.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["l_max", "mode", "implementation", "median_ms", "machine", "torch", "date"])
        writer.writerows([*row, machine, torch.__version__, datetime.date.today()] for row in rows)


if __name__ == "__main__":
    main()
