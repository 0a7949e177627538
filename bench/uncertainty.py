"""What the uncertainties of the model that comes with hamfast hold, on structures of graphene.

As it is, calibrated on a validation set with cells of two sizes, and calibrated again on that with
one. Writes a CSV with the share of test errors within the intervals, by the number of atoms:

    python bench/uncertainty.py GRAPHENE bench/results/uncertainty.csv --machine "2 CPU cores"

GRAPHENE is the set of docs/accuracy.md, of which examples/graphene is a part. It has both splits,
and all of their validation and test structures are unknown to the training. Levels are compared for
the model as it is.
"""

import argparse
import csv
import datetime
import time
from collections import defaultdict
from pathlib import Path

import torch

from hamfast.analysis.calibration import calibrate
from hamfast.analysis.coverage import Coverage
from hamfast.analysis.metrics import reference_bands
from hamfast.analysis.prediction import predict
from hamfast.analysis.uncertainty import LEVEL
from hamfast.data import read_snapshot, read_split
from hamfast.training import load_model

MIXED, SINGLE = "split_mixed_sizes.json", "dataset_split.json"
FIELDS = ["validation_atoms", "validation_structures", "level", "atoms", "test_structures", "kind", "count", "coverage"]
FIELDS += ["coverage_of_worst_structure", "mean_half_width_meV", "mean_error_meV", "rank_correlation", "calibration_s"]
FIELDS += ["machine", "torch", "date"]


def number(value):
    """As a text for the file; empty for None."""
    return "" if value is None else f"{value:.4g}"


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--machine", required=True)
    options = parser.parse_args()
    mixed = read_split(options.root, options.root / MIXED)
    test = [read_snapshot(folder) for folder in mixed["test"]]
    references = [reference_bands(snapshot) for snapshot in test]
    rows = []
    for name in (MIXED, SINGLE):
        held_out = read_split(options.root, options.root / name)["validate"]
        loaded, seconds = load_model("graphene"), ""
        if name == SINGLE:
            begun = time.process_time()
            calibrate(loaded, mixed["train"], held_out)
            seconds = f"{time.process_time() - begun:.1f}"
        sizes = sorted({read_snapshot(folder).num_atoms for folder in held_out})
        by_size = defaultdict(lambda: Coverage(LEVEL))
        counts = defaultdict(int)
        for snapshot, reference in zip(test, references, strict=True):
            found = predict(loaded, snapshot, LEVEL)
            by_size[snapshot.num_atoms].add(snapshot, found, reference if name == MIXED else None)
            counts[snapshot.num_atoms] += 1
            print(name, snapshot.label, flush=True)
        for atoms, coverage in sorted(by_size.items()):
            for kind, found in coverage.summary().items():
                if kind == "level":
                    continue
                rows.append(
                    {
                        "validation_atoms": " and ".join(map(str, sizes)),
                        "validation_structures": len(held_out),
                        "level": LEVEL,
                        "atoms": atoms,
                        "test_structures": counts[atoms],
                        "kind": kind,
                        "count": found["count"],
                        "coverage": number(found["coverage"]),
                        "coverage_of_worst_structure": number(found["coverage_of_worst_structure"]),
                        "mean_half_width_meV": number(found["mean_half_width"]),
                        "mean_error_meV": number(found["mean_error"]),
                        "rank_correlation": number(found["rank_correlation"]),
                        "calibration_s": seconds,
                        "machine": options.machine,
                        "torch": torch.__version__,
                        "date": datetime.date.today().isoformat(),
                    }
                )
                print(rows[-1], flush=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
