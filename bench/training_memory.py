"""What `training.recompute`, also in pieces, `training.mixed_precision` and
`training.share_structures` save and cost.

    python bench/training_memory.py --machine "2 CPU cores"

Writes bench/results/training_memory.csv, measured on structures of the bundled set. For each kind
of second stage, with the networks of examples/graphene/config.yaml, trained at once: how far the
memory rises in a step of 6 structures above one of 1, its CPU time against that of a plain step
(rounds alternate), and how far the predicted blocks (without the closed-form shift) and the
gradient are from those in float32. The weights are random. Where two processes share the
structures, memory and time are those of one of them.
"""

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from torch import distributed

from hamfast.graph import batch_graphs, structures_of
from hamfast.models.in_training import InTraining
from hamfast.training import Run
from hamfast.training.config import parse_config
from hamfast.training.module import CascadeTraining
from hamfast.training.sampler import EpochSampler

HERE = Path(__file__).parent
RESULT, CONFIG = HERE / "results" / "training_memory.csv", HERE.parent / "examples" / "graphene" / "config.yaml"
FIELDS = [
    "stage2",
    "processes",
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
SHARING = 2
"""So many processes share the structures."""


def configuration(kind, scratch):
    """That of the demo, both stages at once."""
    content = yaml.safe_load(CONFIG.read_text())
    content |= {"output": f"{scratch}/run", "threads": 1}
    content["data"] = {"root": str(CONFIG.parent), "cache": str(scratch)}
    content["stage2"]["kind"] = kind
    content["training"] |= {"joint": True, "freeze_stage1": False, "stage2": None}
    content["training"]["share_structures"] = distributed.is_initialized()
    return parse_config(content, str(CONFIG))


def step(module, graph, recompute, at_once, mixed, group=None):
    """CPU seconds, output and gradient of a step."""
    module.model.mixed_precision = mixed
    module.model.sweeps_over = InTraining(recompute, at_once, group)
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


def peak(module, graph, *mode):
    """MB by which a step rises above one of a single structure; in a process of its own."""
    step(module, structures_of(graph, 0, 1), *mode)  # all that is made once is there then
    before = status("VmHWM")
    step(module, graph, *mode)
    return status("VmHWM") - before


def of_a_share(kind, recompute, scratch, rounds):
    """Prints memory, time and errors of one of several processes; it is one of them."""
    distributed.init_process_group("gloo")
    group = distributed.group.WORLD
    module, graph, shift = prepared(kind, scratch)
    mode, times = (recompute, None, False, group), []
    rise = peak(module, graph, *mode)
    for _ in range(rounds):
        (own, output, gradient), (whole, true_output, true_gradient) = (
            step(module, graph, *mode),
            step(module, graph, *PLAIN),
        )
        times.append(own / whole)
    distributed.all_reduce(gradient)
    errors = error(output - shift, true_output - shift), error(gradient, true_gradient)
    print(json.dumps([rise, statistics.median(times), *errors]))
    distributed.destroy_process_group()


def shared(kind, recompute, scratch, rounds):
    """Rows of the first of several processes."""
    command = [sys.executable, "-W", "ignore", __file__, "--rounds", str(rounds)]
    command += ["--share", kind, str(int(recompute)), str(scratch)]
    about = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29531", "WORLD_SIZE": str(SHARING)}
    running = [
        subprocess.Popen(command, env=about | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(SHARING)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("a process has failed")
    return json.loads(outputs[0].splitlines()[-1])


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

    def row(processes, mode, rise, time_ratio, output_error, gradient_error):
        values = (kind, processes, mode[0], mode[1] or "", mode[2], graph.num_edges, f"{rise:.0f}")
        values += (f"{rise / peaks[PLAIN]:.2f}", f"{time_ratio:.2f}", output_error, gradient_error)
        return dict(zip(FIELDS, values, strict=False))

    for mode, (own_output, own_gradient) in found.items():
        ratio = statistics.median(a / b for a, b in zip(times[mode], times[PLAIN], strict=True))
        errors = error(own_output - shift, output - shift), error(own_gradient, gradient)
        yield row(1, mode, peaks[mode], ratio, *errors)
    for recompute in (False, True):
        yield row(SHARING, (recompute, None, False), *shared(kind, recompute, scratch, rounds))


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="what runs it, in words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help="print the peak of a kind, number of a mode, scratch folder")
    parser.add_argument("--share", nargs=3, help="be one of several processes: kind, recompute or not, scratch folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        kind, number, scratch = options.one
        print(peak(*prepared(kind, scratch)[:2], *MODES[int(number)]))
        return
    if options.share:
        kind, recompute, scratch = options.share
        of_a_share(kind, recompute == "1", scratch, options.rounds)
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
