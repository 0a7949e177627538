"""Makes of pytest-benchmark's JSON the rows of bench/results/*.csv and prints the ratios.

HAMFAST_BENCH_THREADS=2 python -m pytest bench --benchmark-only --benchmark-json=two.json
HAMFAST_BENCH_THREADS=1 python -m pytest bench --benchmark-only --benchmark-json=one.json
python bench/to_csv.py two.json one.json bench/results/NAME.csv --machine "2 CPU cores (AVX-512)"

The repeats of an implementation (bench/conftest.py) are one run, and so are several files of as
many
threads: their rounds are pooled.
"""

import argparse
import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path

FIELDS = [
    "case",
    "mode",
    "implementation",
    "median_ms",
    "min_ms",
    "compile_s",
    "kept_MB",
    "machine",
    "threads",
    "torch",
    "e3nn",
    "date",
]


def rows_of(paths, machine):
    """A row per case, mode, implementation and number of threads, from files of
    pytest-benchmark."""
    pooled = {}
    for path in paths:
        content = json.loads(path.read_text())
        info = content["machine_info"]
        for entry in content["benchmarks"]:
            label = entry["extra_info"]
            row = {
                "case": label["case"],
                "mode": label["mode"],
                "implementation": label["implementation"],
                "compile_s": label.get("compile_s", ""),
                "kept_MB": label.get("kept_MB", ""),
                "machine": machine,
                "threads": info["threads"],
                "torch": info["torch"],
                "e3nn": info["e3nn"],
                "date": content["datetime"][:10],
            }
            key = tuple(row[name] for name in ("threads", "case", "mode", "implementation", "torch"))
            pooled.setdefault(key, (row, []))[1].extend(entry["stats"]["data"])
    for row, times in pooled.values():
        yield row | {"median_ms": f"{statistics.median(times) * 1e3:.3f}", "min_ms": f"{min(times) * 1e3:.3f}"}


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--machine", required=True, help="what ran it, in words")
    options = parser.parse_args()
    rows = list(rows_of(options.results, options.machine))
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    groups = defaultdict(dict)
    for row in rows:
        groups[row["threads"], row["case"], row["mode"]][row["implementation"]] = float(row["median_ms"])
    print("| threads | case | mode | against | hamfast ms | peer ms | ratio |\n|---|---|---|---|---|---|---|")
    for (threads, case, mode), medians in groups.items():
        ours = medians.pop("hamfast", None)
        for peer, theirs in medians.items():
            if ours is not None:
                print(f"| {threads} | {case} | {mode} | {peer} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f}x |")


if __name__ == "__main__":
    main()
