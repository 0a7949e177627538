"""What it takes to load a structure that is not kept in memory, against its training step.

    python bench/loading.py --machine "2 CPU cores"

Writes bench/results/loading.csv: CPU ms for a structure of the bundled set with one thread: reading
its graph from prepared.sqlite, making tensors of it, its shift and scale (computed, and with the
shift from prepared.sqlite where it is kept there), its part in the fits of both, and a step of the
first stage of examples/graphene/config.yaml.
"""

import argparse
import copy
import csv
import datetime
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml

from hamfast.sums import Sums
from hamfast.training import Run
from hamfast.training.config import parse_config
from hamfast.training.module import CascadeTraining
from hamfast.training.sampler import EpochSampler

HERE = Path(__file__).parent
RESULT, CONFIG = HERE / "results" / "loading.csv", HERE.parent / "examples" / "graphene" / "config.yaml"
FIELDS = [
    "shift",
    "edges",
    "read_ms",
    "tensors_ms",
    "units_ms",
    "kept_ms",
    "fit_ms",
    "step_ms",
    "machine",
    "torch",
    "date",
]
ROUNDS = 7


def cpu_ms(function):
    """The median over the rounds."""
    times = []
    for _ in range(ROUNDS + 1):
        begun = time.process_time()
        function()
        times.append(1e3 * (time.process_time() - begun))
    return statistics.median(times[1:])


def measure(shift, scratch):
    """A row."""
    content = yaml.safe_load(CONFIG.read_text()) | {"output": f"{scratch}/run", "threads": 1}
    content["data"] = {"root": str(CONFIG.parent), "cache": str(scratch)}
    content["target"]["shift"] = shift
    config = parse_config(content, str(CONFIG))
    run = Run(config)
    with run._settings():
        model, cutoffs = run._initial_model()
    data, prepared = run.data.training, run.data.prepared
    data.fits = False  # as of a large set
    data.normalize(None)
    number = prepared.numbers[data.folders[0]]
    read = cpu_ms(lambda: prepared.store.graph(number))
    tensors = cpu_ms(lambda: data[0])
    fits = [(fit, Sums()) for fit in copy.deepcopy(model.normalization).fits()]
    own = data[0]
    fitting = cpu_ms(lambda: [fit.add(sums, 0, own) for fit, sums in fits])
    data.normalize(model.normalization)
    kept = cpu_ms(lambda: data[0]) if data.name_of_shift is not None else None
    data.name_of_shift = None
    units = cpu_ms(lambda: data[0])
    graph, sampler = data[0], EpochSampler(1, None, 0, 1, 1)
    module = CascadeTraining(model, config, "stage1", cutoffs, 1, sampler, sampler).train()
    step = cpu_ms(lambda: module._loss(graph, (0, 1), 0).backward())
    return {
        "shift": shift,
        "edges": graph.num_edges,
        "read_ms": f"{read:.2f}",
        "tensors_ms": f"{tensors - read:.2f}",
        "units_ms": f"{units - tensors:.2f}",
        "kept_ms": "" if kept is None else f"{kept - tensors:.2f}",
        "fit_ms": f"{fitting:.0f}",
        "step_ms": f"{step:.1f}",
    }


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", required=True, help="what runs it, in words")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = {"machine": options.machine, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    with tempfile.TemporaryDirectory() as scratch, RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for shift in ("radial", "environment"):
            row = measure(shift, scratch)
            writer.writerow(row | about)
            print(row, flush=True)


if __name__ == "__main__":
    main()
