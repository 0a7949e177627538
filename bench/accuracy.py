"""How accurate each network is after a given CPU time, or a given number of steps, by cell size.

Trains the configurations of bench/accuracy/ on a data set with one thread and adds rows to a CSV,
one for each stage and each formula of the test structures:

    python bench/accuracy.py train graphene ROOT --variants stage1 cascade --minutes 4 15 60 \\
        --machine "2 CPU cores"
    python bench/accuracy.py train graphene ROOT --variants deeph-e3 cascade --steps 4000
    python bench/accuracy.py train graphene ROOT --variants "stage1+no scale" --minutes 4
    python bench/accuracy.py plot

A run whose rows are there is skipped, and an interrupted one goes on where it was, so that one
command can be started again and again. Each run's configuration and its losses by epoch stand in
a folder beside the CSV. A variant with a + has one setting of bench/accuracy/levers.json changed.
`--test` names more structures to test, of other sizes.
"""

import argparse
import copy
import csv
import datetime
import json
import math
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from ase import Atoms
from rich.console import Console

from hamfast.analysis import evaluate
from hamfast.data import read_snapshot, read_split
from hamfast.data.graphs import build_graph
from hamfast.ops import rotate_irreps, rotation_from_euler
from hamfast.training import Run, load_config, load_model
from hamfast.training.config import parse_config

RESULTS = Path("bench/results")
TABLE = RESULTS / "accuracy.csv"
DETAILS = RESULTS / "accuracy"
SETTINGS = Path("bench/accuracy")
STAGE1_SHARE = 0.35
"""Of the time of a run with two stages, what the first has."""
METRICS = {
    "MAE_meV": "MAE_all",
    "MAE_onsite_meV": "MAE_onsite",
    "bands_meV": "eigenvalue_MAE",
    "gap_meV": "gap_error",
    "valence_edge_meV": "valence_edge_error",
    "conduction_edge_meV": "conduction_edge_error",
}
KEY = ["set", "variant", "budget", "seed"]
FIELDS = [
    *KEY,
    "stage",
    "formula",
    "atoms",
    "test_structures",
    *METRICS,
    "MAE_rotated_meV",
    "equivariance_error",
    "steps",
]
FIELDS += ["epochs", "cpu_s", "parameters", "train_structures", "machine", "torch", "date"]


def configuration(name, variant, root, split, seed):
    """The settings of a variant for a data set: its file, and on top of it that of the set."""
    base, _, lever = variant.partition("+")
    content = load_config(SETTINGS / f"{base}.yaml").model_dump()
    if lever:
        merge(content, json.loads((SETTINGS / "levers.json").read_text())[lever])
    own = SETTINGS / f"{name}.json"
    if own.exists():
        merge(content, json.loads(own.read_text()).get(variant, {}))
    content["data"] |= {"root": str(root), "split": None if split is None else str(split)}
    return content | {"seed": seed, "threads": 1}


def merge(content, changes):
    """Writes the changes over the content, section by section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            merge(content[key], value)
        else:
            content[key] = value


def phases(content):
    """The sections of the phases that the configuration trains."""
    return [name for name in ("stage1", "stage2") if content["training"][name] is not None]


def with_epochs(content, folder, epochs):
    """The parsed configuration of a run in a folder, with so many epochs of each phase."""
    content = copy.deepcopy(content) | {"output": str(folder)}
    for name, count in zip(phases(content), epochs, strict=True):
        content["training"][name]["epochs"] = count
    return parse_config(content, "bench/accuracy.py")


def run(config, resume=False):
    """Trains; returns the path of the model and the CPU seconds."""
    started = time.process_time()
    path = Run(config, Console(quiet=True)).train(resume=resume)
    return path, time.process_time() - started


def epochs_of(content, budget, structures):
    """How many epochs of each phase a budget allows: ``15min`` of CPU time, or ``4000steps``.

    An epoch's time is that of the last of a few. A run before them prepares the graphs, and its
    time is not counted.
    """
    names = phases(content)
    shares = [1.0] if len(names) == 1 else [STAGE1_SHARE, 1 - STAGE1_SHARE]
    if budget.endswith("steps"):
        return [max(1, round(share * int(budget[:-5]) / structures)) for share in shares]
    times = []
    with tempfile.TemporaryDirectory() as scratch:
        few, more = 1, 1 + max(2, math.ceil(100 / structures))
        run(with_epochs(content, Path(scratch) / "prepared", [1] * len(names)))
        for number in range(len(names)):
            seconds = []
            for count in (few, more):
                counts = [count if n == number else 1 for n in range(len(names))]
                folder = Path(scratch) / f"{number}-{count}"
                seconds.append(run(with_epochs(content, folder, counts))[1])
            times.append((seconds[1] - seconds[0]) / (more - few))
    total = 60 * float(budget.removesuffix("min"))
    return [max(1, round(share * total / seconds)) for share, seconds in zip(shares, times, strict=True)]


@torch.no_grad()
def rotated_error(loaded, folders, refine):
    """meV: the mean of |dH| of randomly rotated copies, whose blocks are turned back."""
    model, total, count = loaded.model, 0.0, 0
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    for folder in folders:
        graph = build_graph(read_snapshot(folder), model.spec).to(weight.device, weight.dtype)
        rotation = rotation_from_euler(torch.rand(3, generator=generator, dtype=torch.float64) * 2 * torch.pi)
        turned = model(graph.rotated(rotation), refine=refine).refined
        left = rotate_irreps(turned, model.spec.irreps, rotation.T) - graph.known_target()
        pair = graph.pair_species(model.spec.num_species)
        for n in pair.unique().tolist():
            blocks = model.spec.to_blocks(left[pair == n], n // model.spec.num_species, n % model.spec.num_species)
            total += 1e3 * float(blocks.abs().double().sum())
            count += blocks.numel()
    return total / count


def rows_of(key, path, tests, about):
    """The rows of a trained model: one for each stage and formula of a cell."""
    loaded, rows = load_model(path), []
    cells = defaultdict(list)
    for folder in tests:
        numbers = read_snapshot(folder).numbers
        cells[len(numbers), Atoms(numbers).get_chemical_formula()].append(folder)
    for (atoms, formula), folders in sorted(cells.items()):
        for stage, found in evaluate(loaded, folders)["stages"].items():
            values = {name: found[metric] for name, metric in METRICS.items()}
            values["MAE_rotated_meV"] = rotated_error(loaded, folders, stage == "cascade")
            rows.append(
                {
                    **key,
                    "stage": stage,
                    "formula": formula,
                    "atoms": atoms,
                    "test_structures": len(folders),
                    **{name: "" if value is None else f"{value:.4f}" for name, value in values.items()},
                    "equivariance_error": f"{found['equivariance_error']:.1e}",
                    "parameters": sum(p.numel() for p in loaded.model.parameters()),
                    **about,
                }
            )
    return rows


def train(options):
    """Trains every run that is asked for and not there yet, and adds its rows."""
    torch.set_num_threads(1)
    split = read_split(options.root, options.split)
    tests = [*split.get("test", []), *options.test]
    budgets = [f"{m:g}min" for m in options.minutes] + [f"{s}steps" for s in options.steps]
    for budget in budgets:
        for seed in options.seeds:
            for variant in options.variants:
                key = {"set": options.name, "variant": variant, "budget": budget, "seed": str(seed)}
                if any(all(row[k] == key[k] for k in KEY) for row in table()):
                    continue
                content = configuration(options.name, variant, options.root, options.split, seed)
                content["data"]["cache"] = str(options.scratch / f"{options.name}-cache")
                folder = options.scratch / "-".join(key.values()).replace(" ", "-")
                counts_file, seconds_file = folder.with_suffix(".epochs"), folder.with_suffix(".seconds")
                if not counts_file.exists():
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    counts_file.write_text(json.dumps(epochs_of(content, budget, len(split["train"]))))
                epochs = json.loads(counts_file.read_text())
                begun = folder.exists()
                before = float(seconds_file.read_text()) if seconds_file.exists() else 0.0
                path, seconds = run(with_epochs(content, folder, epochs), resume=begun)
                seconds_file.write_text(str(before + seconds))
                about = {
                    "steps": sum(epochs) * len(split["train"]),
                    "epochs": "+".join(map(str, epochs)),
                    "cpu_s": f"{before + seconds:.0f}",
                    "train_structures": len(split["train"]),
                    "machine": options.machine,
                    "torch": torch.__version__,
                    "date": datetime.date.today().isoformat(),
                }
                keep(folder)
                add(rows_of(key, path, tests, about))


def table():
    """The rows that are there."""
    if not TABLE.exists():
        return []
    with TABLE.open() as file:
        return list(csv.DictReader(file))


def add(rows):
    """Writes rows behind those that are there."""
    new = not TABLE.exists()
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print({name: row[name] for name in FIELDS[:9]} | {"cpu_s": row["cpu_s"]}, flush=True)


def keep(folder):
    """Copies a run's configuration and its losses by epoch to the results."""
    DETAILS.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "config.yaml", DETAILS / f"{folder.name}.yaml")
    for history in folder.glob("*/logs/metrics.csv"):
        shutil.copy(history, DETAILS / f"{folder.name}-{history.parent.parent.name}.csv")


def plot(options):
    """A figure in docs/images of each set with several times: the error by CPU time, and by the
    size of the cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_set = defaultdict(list)
    for row in table():
        last = "stage 1" if row["variant"] in ("deeph-e3", "stage1") else "cascade"
        is_lever = "+" in row["variant"]
        if row["stage"] == last and row["budget"].endswith("min") and not is_lever:
            by_set[row["set"]].append(row)
    for name, rows in by_set.items():
        if len({row["budget"] for row in rows}) == 1:  # no curve
            continue
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        smallest = min(int(row["atoms"]) for row in rows)
        longest = {v: max(float(r["budget"][:-3]) for r in rows if r["variant"] == v) for v in variants(rows)}
        for variant in variants(rows):
            own = [row for row in rows if row["variant"] == variant]
            draw(left, variant, [(float(r["cpu_s"]) / 60, r) for r in own if int(r["atoms"]) == smallest])
            best = [(int(r["atoms"]), r) for r in own if float(r["budget"][:-3]) == longest[variant]]
            draw(right, f"{variant}, {longest[variant]:g} min", best)
        left.set(xlabel="CPU minutes, one thread", ylabel="MAE of H (meV)", xscale="log", yscale="log")
        left.set_title(f"{name}: test cells of {smallest} atoms", fontsize=10)
        right.set(xlabel="atoms of the test cell", yscale="log")
        right.set_title("longest runs, by cell size", fontsize=10)
        for axes in (left, right):
            axes.legend(fontsize=7)
            axes.grid(alpha=0.3, which="both")
        figure.savefig(f"docs/images/accuracy-{name}.png", dpi=130)
        pyplot.close(figure)


def variants(rows):
    """The variants of some rows, in the order of the table."""
    return list(dict.fromkeys(row["variant"] for row in rows))


def draw(axes, label, points):
    """A line through the means over seeds."""
    means = defaultdict(list)
    for x, row in points:
        means[round(x, 1)].append(float(row["MAE_meV"]))
    xs = sorted(means)
    axes.plot(xs, [sum(means[x]) / len(means[x]) for x in xs], marker="o", markersize=4, label=label)


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    trains = commands.add_parser("train", help="trains and evaluates")
    trains.set_defaults(function=train)
    trains.add_argument("name", help="of the data set in the table")
    trains.add_argument("root", type=Path)
    trains.add_argument("--split", type=Path, help="default: dataset_split.json of the data set")
    trains.add_argument("--test", type=Path, nargs="*", default=[], help="more structures to test")
    trains.add_argument("--variants", nargs="+", required=True, help="files of bench/accuracy/")
    trains.add_argument("--minutes", type=float, nargs="*", default=[], help="CPU minutes of a run")
    trains.add_argument("--steps", type=int, nargs="*", default=[], help="optimiser steps of a run")
    trains.add_argument("--seeds", type=int, nargs="+", default=[0])
    trains.add_argument("--scratch", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    trains.add_argument("--machine", required=True)
    plots = commands.add_parser("plot", help="draws the curves")
    plots.set_defaults(function=plot)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
