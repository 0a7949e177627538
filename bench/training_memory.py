"""What `training.recompute`, also in pieces, and `training.mixed_precision` save and cost.

    python bench/training_memory.py --machine "2 CPU cores"

Writes bench/results/training_memory.csv, measured on structures of the bundled set. For each kind
of second stage, with the networks of examples/graphene/config.yaml, trained at once: how far the
memory rises in a step of 6 structures above one of 1, its CPU time against that of a plain step
(rounds alternate), and how far the predicted blocks (without the closed-form shift) and the
gradient are from those in float32. The weights are random.
"""

import argparse
import csv
import datetime
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from hamfast.graph import batch_graphs, structures_of
from hamfast.training import Run
from hamfast.training.config import parse_config
from hamfast.training.module import CascadeTraining
from hamfast.training.sampler import EpochSampler

HERE = Path(__file__).parent
RESULT, CONFIG = HERE / "results" / "training_memory.csv", HERE.parent / "examples" / "graphene" / "config.yaml"
FIELDS = [
    "stage2",
    "recompute",
    "pieces_of",
    "mixed_precision",
    "edges",
    "peak_MB",
    "peak_ratio",
    "time_ratio",
    "output_error",
]
FIELDS += ["gradient_error", "machine", "torch", "date"]
BATCH = 6
"""Structures of a step."""
AT_ONCE = 700
"""Edges of a piece, where a step is worked off in pieces: half of a structure."""
MODES = [(recompute, at_once, False) for recompute, at_once in ((False, None), (True, None), (True, AT_ONCE))]
MODES += [(False, None, True), (True, None, True)]
PLAIN = MODES[0]
"""Each mode: are layers computed twice, in pieces of how many edges, and with mixed precision?"""


def configuration(kind, scratch):
    """That of the demo, both stages at once."""
    content = yaml.safe_load(CONFIG.read_text())
    content |= {"output": f"{scratch}/run", "threads": 1}
    content["data"] = {"root": str(CONFIG.parent), "cache": str(scratch)}
    content["stage2"]["kind"] = kind
    content["training"] |= {"joint": True, "freeze_stage1": False, "stage2": None}
    return parse_config(content, str(CONFIG))


def step(module, graph, recompute, at_once, mixed):
    """CPU seconds, output and gradient of a step."""
    module.model.mixed_precision = mixed
    for stage in (module.model.stage1, module.model.stage2):
        stage.recompute, stage.edges_at_once = recompute, at_once
    module.zero_grad()
    begun = time.process_time()
    output = module.predict(graph)
    module.errors(graph, output - graph.target)[0].sum().backward()
    seconds = time.process_time() - begun
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return seconds, output.detach(), gradient


def status(name):
    """MB, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1e3


def peak(kind, mode, scratch):
    """MB by which a step rises above one of a single structure; in a process of its own."""
    module, graph, _ = prepared(kind, scratch)
    step(module, structures_of(graph, 0, 1), *mode)  # all that is made once is there then
    before = status("VmHWM")
    step(module, graph, *mode)
    return status("VmHWM") - before


def error(found, truth):
    """Relative, of norms."""
    return f"{float((found - truth).norm() / truth.norm()):.1e}"


def prepared(kind, scratch):
    """A module with random weights, a batch, and its closed-form shift."""
    config = configuration(kind, scratch)
    run = Run(config)
    with run._settings():
        model, cutoffs = run._initial_model()
    torch.manual_seed(0)
    for layer in ("output", "onsite_output"):  # which begin as zeros
        for weight in getattr(model.stage2, layer, torch.nn.Identity()).parameters():
            torch.nn.init.normal_(weight, std=0.05)
    sampler = EpochSampler(BATCH, None, 0, 1, BATCH)
    module = CascadeTraining(model, config, "joint", cutoffs, 1, sampler, sampler).train()
    graph = batch_graphs([run.data.training[n] for n in range(BATCH)])
    return module, graph, model.normalization.shift_and_scale(graph)[0]


def measure(kind, scratch, rounds):
    """Rows of all modes."""
    module, graph, shift = prepared(kind, scratch)
    times, found = {mode: [] for mode in MODES}, {}
    for turn in range(rounds + 1):
        for mode in MODES:
            seconds, *found[mode] = step(module, graph, *mode)
            if turn:  # the first is a warm-up
                times[mode].append(seconds)
    output, gradient = found[PLAIN]
    peaks = {}
    for mode in MODES:
        number = str(MODES.index(mode))
        command = [sys.executable, "-W", "ignore", __file__, "--one", kind, number, str(scratch)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[mode] = float(done.stdout.split()[-1])
    for mode, (own_output, own_gradient) in found.items():
        recompute, at_once, mixed = mode
        ratios = [a / b for a, b in zip(times[mode], times[PLAIN], strict=True)]
        yield {
            "stage2": kind,
            "recompute": recompute,
            "pieces_of": at_once or "",
            "mixed_precision": mixed,
            "edges": graph.num_edges,
            "peak_MB": f"{peaks[mode]:.0f}",
            "peak_ratio": f"{peaks[mode] / peaks[PLAIN]:.2f}",
            "time_ratio": f"{statistics.median(ratios):.2f}",
            "output_error": error(own_output - shift, output - shift),
            "gradient_error": error(own_gradient, gradient),
        }


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="what runs it, in words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help="print the peak of a kind, number of a mode, scratch folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        kind, number, scratch = options.one
        print(peak(kind, MODES[int(number)], scratch))
        return
    about = {"machine": options.machine, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("frames", "plain"):
            for row in measure(kind, scratch, options.rounds):
                rows.append(row | about)
                print(row, flush=True)
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
