"""What a linear model of environments leaves of a data set's blocks, by the environment's radius.

Fits the shift by environment to the training set, several times, and writes a CSV with the errors
of the test set by the number of atoms in a cell:

    python bench/closed_form.py examples/graphene bench/results/closed_form.csv --machine "2 cores"

The first row of each size, with radius 0, is the radial shift alone. A plot of the bundled result,
docs/images/cell_size.svg, is made without fitting:

    python bench/closed_form.py --plot
"""

import argparse
import csv
import datetime
import math
import sys
import time
from collections import defaultdict
from pathlib import Path

import matplotlib
import torch

from hamfast.data import GraphDataset, dataset_spec, read_split
from hamfast.models import TargetNormalization

HERE = Path(__file__).parent
RESULT, PLOT = HERE / "results" / "closed_form.csv", HERE.parent / "docs" / "images" / "cell_size.svg"
HALF_CELL = 3.7
"""Angstrom: half of the training cells of the bundled set, which have 18 atoms."""

FIELDS = ["environment", "atoms", "test_structures", "onsite_rms_meV", "onsite_mean_meV", "hopping_rms_meV"]
FIELDS += ["hopping_mean_meV", "coefficients", "train_structures", "fit_s", "evaluation_ms"]
FIELDS += ["machine", "threads", "torch", "date"]


def errors(spec, normalization, graphs):
    """rms and mean of |dH| in meV, of blocks of one atom and of two; and ms for a structure."""
    parts, seconds = ([], []), []
    for graph in graphs:
        begun = time.perf_counter()
        with torch.no_grad():
            shift, _ = normalization.shift_and_scale(graph)
        seconds.append(time.perf_counter() - begun)
        left, pair, onsite = graph.target - shift, graph.pair_species(spec.num_species), graph.onsite
        for kind in pair.unique().tolist():
            blocks = spec.to_blocks(left, kind // spec.num_species, kind % spec.num_species)
            for part, which in zip(parts, (onsite, ~onsite), strict=True):
                part.append(1e3 * blocks[which & (pair == kind)].abs().double().flatten())
    found = []
    for part in parts:
        values = torch.cat(part)
        found += [math.sqrt(float(values.square().mean())), float(values.mean())]
    return found, 1e3 * min(seconds)


def plot(rows):
    """Mean |dH| against the radius, a line for each number of atoms; on-site and hopping blocks."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same file whenever it is made, with text as text.
    plt.rcParams.update({"svg.hashsalt": "closed_form", "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.9), constrained_layout=True)
    panels = (("onsite_mean_meV", "blocks of one atom"), ("hopping_mean_meV", "blocks of two atoms"))
    for axis, (column, title) in zip(axes, panels, strict=True):
        for atoms in sorted({int(row["atoms"]) for row in rows}):
            own = [row for row in rows if int(row["atoms"]) == atoms and float(row["environment"])]
            radii = [float(row["environment"]) for row in own]
            label = f"{atoms} atoms" + (", as trained" if atoms == 18 else "")
            axis.plot(radii, [float(row[column]) for row in own], "o-", ms=4, label=label)
        axis.axvline(HALF_CELL, color="grey", ls="--", lw=1, label="half of the training cell")
        axis.set(title=title, xlabel="radius (angstrom)", ylabel="mean |dH| (meV)", yscale="log")
        axis.set_yticks([1, 2, 3] if "hopping" in column else [5, 10, 20, 30])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    axes[0].legend(fontsize=7)
    figure.savefig(PLOT, metadata={"Date": None})


def main():
    """Runs the command line."""
    if sys.argv[1:] == ["--plot"]:
        with RESULT.open(newline="") as file:
            plot(list(csv.DictReader(file)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--split", type=Path, help="default: dataset_split.json of the data set")
    parser.add_argument("--environments", type=float, nargs="+", default=[2.7, 3.2, 3.6, 4.2], help="angstrom")
    parser.add_argument("--test", nargs="*", default=[], help="more folders of structures to test")
    options = parser.parse_args()
    split = read_split(options.root, options.split)
    spec = dataset_spec(split["train"])
    train = list(GraphDataset(split["train"], spec, None))
    test = defaultdict(list)
    for graph in GraphDataset([*split["test"], *map(Path, options.test)], spec, None):
        test[graph.num_atoms].append(graph)
    r_max = 1.001 * max(float(graph.length.max()) for graph in train)
    rows = []
    for environment in [0.0, *options.environments]:
        shift = "environment" if environment else "radial"
        normalization = TargetNormalization(spec, shift, "none", r_max, environment=environment)
        begun = time.perf_counter()
        normalization.fit(train)
        seconds = time.perf_counter() - begun
        count = sum(c.numel() for c in normalization.closed_form.state_dict().values()) if environment else 0
        for atoms, graphs in sorted(test.items()):
            found, milliseconds = errors(spec, normalization, graphs)
            rows.append(
                {
                    "environment": environment,
                    "atoms": atoms,
                    "test_structures": len(graphs),
                    **dict(zip(FIELDS[3:7], (f"{value:.3f}" for value in found), strict=True)),
                    "coefficients": count,
                    "train_structures": len(train),
                    "fit_s": f"{seconds:.1f}",
                    "evaluation_ms": f"{milliseconds:.1f}",
                    "machine": options.machine,
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "date": datetime.date.today().isoformat(),
                }
            )
            print(rows[-1], flush=True)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
