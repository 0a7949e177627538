"""Time and memory of large sheets of graphene: their prediction, and levels of it at Gamma.

    python bench/large.py --machine "2 CPU cores" --atoms 1000 5000 20000 50000 --memory 4GB
    python bench/large.py --machine "2 CPU cores" --atoms 1000 2000 5000 10000 --levels
    python bench/large.py --hold "one H200" 139

Sheets are rattled by 0.03 angstrom and predicted with the model that comes along.
`--levels` finds 60 levels around the Fermi level at Gamma, too.
Each step is a process of its own, whose CPU time and peak of memory go to bench/results/large.csv.
Rows of other sizes stay, and docs/images/large.png is drawn from all.
`--hold` computes how many atoms a device with so many GiB would hold, from what an edge of the
sheet needs on this machine; bench/results/large_held.csv.
"""

import argparse
import csv
import datetime
import os
import shutil
import sys
import time
from pathlib import Path

import matplotlib
import torch
from ase.build import graphene

HERE = Path(__file__).parent
RESULT, PLOT = HERE / "results" / "large.csv", HERE.parent / "docs" / "images" / "large.png"
COLUMNS = ["step", "atoms", "orbitals", "cpu_s", "clock_s", "peak_mb", "file_mb", "note", "threads", "machine"]
COLUMNS += ["torch", "date"]
SAMPLE = 2000
"""Atoms of the sheet whose edges are measured."""
HELD_COLUMNS = ["device", "GiB", "model", "edges_per_atom", "kB_per_edge", "kB_per_atom"]
HELD_COLUMNS += ["atoms_at_once", "atoms_in_pieces", "date"]
HELD = HERE / "results" / "large_held.csv"
ORBITALS = 13
FERMI = -1.67
"""eV, of graphene in the model's gauge."""


def sheet(atoms, folder):
    """A rattled sheet of about so many atoms, as a CIF; its path and its atoms."""
    cells = round((atoms / 2) ** 0.5)
    made = graphene("C2", a=2.46, size=(cells, cells, 1), vacuum=8.0)
    made.rattle(0.03, seed=1)
    path = folder / f"sheet_{len(made)}.cif"
    made.write(path)
    return path, len(made)


def measured(command):
    """Runs a command: seconds on the clock, CPU seconds, peak of memory in MB."""
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.execvpe(command[0], command, {**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def levels(folder):
    """Finds the levels, in a process of its own: ``--find FOLDER``."""
    from hamfast.analysis.bands import matrices_of
    from hamfast.analysis.eigen import eigen_problem
    from hamfast.data import read_snapshot

    snapshot = read_snapshot(folder)
    (matrix,) = matrices_of(snapshot, folder, None).values()
    problem = eigen_problem(snapshot, matrix, solver="pardiso")
    found = problem.levels([[0, 0, 0]], 60, FERMI)
    if found.first_band is None or found.energies.shape[1] != 60:
        sys.exit(f"expected 60 counted levels, found {found.energies.shape[1]}, first band {found.first_band}")


def held(device, gib, folder):
    """How many atoms of the sheet would fit, for the model that comes along and a published one."""
    import yaml

    from hamfast.analysis.crystal import read_atoms
    from hamfast.analysis.in_pieces import MOST, SHARE, Needs
    from hamfast.analysis.prediction import graph_of
    from hamfast.configs import preset_text
    from hamfast.models.pieces import PieceMaker, by_boxes
    from hamfast.training.checkpoint import build_model, load_model
    from hamfast.training.config import parse_config

    loaded = load_model("graphene", dtype=torch.float32)
    (snapshot,) = read_atoms(loaded, sheet(SAMPLE, folder)[0])
    graph = graph_of(loaded, snapshot).to(dtype=torch.float32)
    edges, free = graph.num_edges / graph.num_atoms, SHARE * gib * 2**30
    own = loaded.model
    networks = {"graphene, which comes along": own}
    for name in ("default", "default-published"):
        config = parse_config(yaml.safe_load(preset_text(name)) | {"output": "-"}, name)
        networks[f"preset {name}"] = build_model(config, own.spec, own.r_max).float()
    rows = []
    for name, model in networks.items():
        needs = Needs.of(model.eval(), PieceMaker(graph, by_boxes(snapshot.positions), torch.device("cpu")))
        whole = (free - needs.at_once(0)) / (needs.at_once(1) - needs.at_once(0)) / edges
        fixed = needs.in_pieces(0, MOST)
        pieces = (free - fixed) / (needs.in_pieces(1, MOST) - fixed)
        each = (f"{edges:.0f}", f"{needs.per_edge_at_once / 1e3:.1f}", f"{needs.per_atom / 1e3:.1f}")
        rows.append((device, gib, name, *each, f"{whole:.2g}", f"{pieces:.2g}", datetime.date.today().isoformat()))
        print(*rows[-1], flush=True)
    with HELD.open("w", newline="") as file:
        csv.writer(file).writerows([HELD_COLUMNS, *rows])


def plot(rows):
    """Draws time and memory against atoms, with both axes logarithmic."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, column, scale, label in ((axes[0], "cpu_s", 1 / 60, "CPU minutes"), (axes[1], "peak_mb", 1e-3, "GB")):
        for step in dict.fromkeys(row["step"] for row in rows):
            points = sorted((int(row["atoms"]), float(row[column]) * scale) for row in rows if row["step"] == step)
            axis.loglog(*zip(*points, strict=True), "o-", label=step)
        axis.set(xlabel="atoms", ylabel=label)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(frameon=False)
    figure.savefig(PLOT, dpi=150)


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine")
    parser.add_argument("--atoms", type=int, nargs="+", default=[])
    parser.add_argument("--memory", default="4GB", help="of a prediction")
    parser.add_argument("--levels", action="store_true")
    parser.add_argument("--scratch", type=Path, default=Path("runs/large"))
    parser.add_argument("--hold", nargs=2, metavar=("DEVICE", "GIB"), help="compute what a device would hold")
    parser.add_argument("--find", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.find:
        return levels(options.find)
    if options.hold:
        options.scratch.mkdir(parents=True, exist_ok=True)
        return held(options.hold[0], float(options.hold[1]), options.scratch)
    if not options.machine:
        parser.error("--machine is needed: what runs it, in words")
    options.scratch.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(RESULT.open())) if RESULT.exists() else []

    def add(step, atoms, times, size, note):
        clock, cpu, peak = times
        row = dict.fromkeys(COLUMNS, "") | {"step": step, "atoms": atoms, "orbitals": ORBITALS * atoms}
        row |= {"cpu_s": f"{cpu:.1f}", "clock_s": f"{clock:.1f}", "peak_mb": f"{peak:.0f}", "file_mb": f"{size:.0f}"}
        row |= {"note": note, "threads": 1, "machine": options.machine}
        row |= {"torch": torch.__version__, "date": datetime.date.today().isoformat()}
        print(*row.values(), flush=True)
        rows[:] = [r for r in rows if (r["step"], int(r["atoms"])) != (step, atoms)] + [row]
        rows.sort(key=lambda r: (r["step"], int(r["atoms"])))
        with RESULT.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        plot(rows)

    for wanted in options.atoms:
        path, atoms = sheet(wanted, options.scratch)
        output = options.scratch / f"predicted_{atoms}"
        shutil.rmtree(output, ignore_errors=True)
        hamfast = [sys.executable, "-m", "hamfast"]
        command = [*hamfast, "predict", "graphene", str(path), "--output", str(output), "--memory", options.memory]
        times = measured(command)
        folder = output / path.stem
        size = sum(file.stat().st_size for file in folder.glob("*.h5")) / 1e6
        add("prediction", atoms, times, size, f"--memory {options.memory}")
        if options.levels:
            times = measured([sys.executable, __file__, "--find", str(folder)])
            add("60 levels at Gamma", atoms, times, size, "pardiso")
        shutil.rmtree(output)


if __name__ == "__main__":
    main()
