"""Turns pytest-benchmark's JSON into the rows of bench/results/*.csv and prints the ratios.

python -m pytest bench --benchmark-only --benchmark-json=result.json
python bench/to_csv.py result.json bench/results/NAME.csv --machine "2 CPU cores (AVX-512)"
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

FIELDS = ["case", "mode", "implementation", "median_ms", "min_ms", "machine", "threads", "torch", "e3nn", "date"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--machine", required=True, help="what ran it, in words")
    options = parser.parse_args()
    content = json.loads(options.result.read_text())
    info = content["machine_info"]
    rows, groups = [], defaultdict(dict)
    for entry in content["benchmarks"]:
        label, stats = entry["extra_info"], entry["stats"]
        rows.append(
            {
                "case": label["case"],
                "mode": label["mode"],
                "implementation": label["implementation"],
                "median_ms": f"{stats['median'] * 1e3:.3f}",
                "min_ms": f"{stats['min'] * 1e3:.3f}",
                "machine": options.machine,
                "threads": info["threads"],
                "torch": info["torch"],
                "e3nn": info["e3nn"],
                "date": content["datetime"][:10],
            }
        )
        groups[label["case"], label["mode"]][label["implementation"]] = stats["median"]
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print("| case | mode | against | hamfast ms | peer ms | ratio |\n|---|---|---|---|---|---|")
    for (case, mode), medians in groups.items():
        ours = medians.pop("hamfast")
        for peer, theirs in medians.items():
            print(f"| {case} | {mode} | {peer} | {ours * 1e3:.1f} | {theirs * 1e3:.1f} | {theirs / ours:.1f}x |")


if __name__ == "__main__":
    main()
