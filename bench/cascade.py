"""Is the cascade better than stage 1 trained for the same total time?

Trains both on one data set, and fits the closed-form start alone; writes a CSV:

    python bench/cascade.py CONFIG bench/results/cascade.csv --machine "2 CPU cores (AVX-512)"
"""

import argparse
import csv
import datetime
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from hamfast.analysis import evaluate
from hamfast.data import read_split
from hamfast.training import Run, load_config, load_model
from hamfast.training.config import parse_config

FIELDS = ["model", "epochs", "seconds", "MAE_all_meV", "MAE_onsite_meV", "equivariance_error", "test_structures"]
FIELDS += ["machine", "threads", "torch", "date"]


def train(config, folder):
    """Trains a configuration in a folder: the path of its model, and how many seconds it took."""
    started = time.perf_counter()
    path = Run(parse_config(config | {"output": str(folder)}, "bench"), Console(quiet=True)).train()
    return path, time.perf_counter() - started


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every number of epochs")
    options = parser.parse_args()
    content = load_config(options.config).model_dump()
    for phase in ("stage1", "stage2"):
        content["training"][phase]["epochs"] = max(1, round(content["training"][phase]["epochs"] * options.scale))
    folders = read_split(Path(content["data"]["root"]))["test"]
    rows = []

    def report(model, epochs, seconds, path):
        found = evaluate(load_model(path), folders, eigenvalues=False)["stages"]
        for stage in found:
            rows.append(
                {
                    "model": model if stage == list(found)[-1] else f"{model}: its stage 1",
                    "epochs": epochs,
                    "seconds": f"{seconds:.0f}",
                    "MAE_all_meV": f"{found[stage]['MAE_all']:.3f}",
                    "MAE_onsite_meV": f"{found[stage]['MAE_onsite']:.3f}",
                    "equivariance_error": f"{found[stage]['equivariance_error']:.1e}",
                    "test_structures": len(folders),
                    "machine": options.machine,
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "date": datetime.date.today().isoformat(),
                }
            )

    with tempfile.TemporaryDirectory() as scratch:
        content["data"]["cache"] = str(Path(scratch) / "cache")
        phases = content["training"]
        # First, as its fit is kept with the data, and both others start from it.
        fitted = {"stage1": None, "stage2": None}
        path, seconds = train(content | fitted | {"training": phases | fitted}, Path(scratch) / "closed form")
        report("closed-form start alone", "0", seconds, path)
        path, total = train(content, Path(scratch) / "cascade")
        report("cascade", f"{phases['stage1']['epochs']}+{phases['stage2']['epochs']}", total, path)
        # As many epochs of stage 1 as fit into the cascade's time.
        stamps = [(Path(scratch) / "cascade" / p / "finished.json").stat().st_mtime for p in ("stage1", "stage2")]
        stage1_seconds = total - (stamps[1] - stamps[0])

        def alone(epochs):
            training = phases | {"stage2": None, "stage1": phases["stage1"] | {"epochs": epochs}}
            return content | {"stage2": None, "training": training}

        # What comes before the first epoch takes as long for both: one epoch shows how long.
        first = train(alone(1), Path(scratch) / "one epoch")[1]
        epoch = (stage1_seconds - first) / (phases["stage1"]["epochs"] - 1)
        epochs = round((total - first) / epoch) + 1
        path, seconds = train(alone(epochs), Path(scratch) / "alone")
        report("stage 1 alone", str(epochs), seconds, path)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
