"""A set of many structures: prepared, trained for an epoch, killed in between, and its memory.

    python bench/many_structures.py /tmp/many --machine "2 CPU cores"

Makes copies of a structure with noise in the folder (``--structures``, 20,000), unless they are
there. Then `hamfast data prepare` is killed and started again, and so is a training of one epoch of
a small network. Writes bench/results/many_structures.csv: every few seconds, the memory of all
processes together (PSS, which counts shared pages once), and what happened when.
"""

import argparse
import csv
import datetime
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import lightning
import numpy as np
import psutil
import torch
import yaml

from hamfast.data import BlockMatrix, by_name, read_snapshot

HERE = Path(__file__).parent
RESULT = HERE / "results" / "many_structures.csv"
SOURCE = HERE.parent / "tests" / "data" / "fixtures" / "dft" / "graphene_1x1_000"
FIELDS = ["stage", "event", "seconds", "structures", "MB", "machine", "threads", "torch", "lightning", "date"]
EVERY = 3.0
"""Seconds between two looks at the memory."""
NETWORK = {"irreps_mid": "8x0e+4x1o+4x2e+2x3o+2x4e", "num_basis": 16, "radial_hidden": 16, "embed_dim": 8}


def make(root, count):
    """The data set, unless it is there: size and blocks of one structure with noise."""
    if (root / "dataset_split.json").exists():
        return
    snapshot, layout = read_snapshot(SOURCE), by_name("deeph")
    h = snapshot.hamiltonian
    waiting = mock.patch("os.fsync")  # each file waits for the disk; a set that is made anew need not
    waiting.start()
    for n in range(count):
        random = np.random.default_rng(n)
        noise = BlockMatrix(h.pairs, h.shapes, h.boundaries, 0.01 * h.entries * random.normal(size=h.entries.shape))
        noisy = replace(h, entries=h.entries + noise.hermitian_part().entries)
        strain = 1 - 0.01 * abs(random.normal())  # pairs reach no further than the files say
        folder = root / "dft" / f"s{n:06}"
        folder.mkdir(parents=True, exist_ok=True)
        layout.write(strained(snapshot, strain, folder.name, noisy), folder)
    waiting.stop()
    labels = [f"s{n:06}" for n in range(count)]
    validation = max(1, count // 20)
    split = {"train": labels[validation:], "validate": labels[:validation]}
    (root / "dataset_split.json").write_text(json.dumps(split))


def strained(snapshot, strain, label, hamiltonian):
    """A crystal that is larger by a factor, with another Hamiltonian; its directions stay."""
    cell, positions = strain * snapshot.cell, strain * snapshot.positions
    return replace(snapshot, label=label, cell=cell, positions=positions, hamiltonian=hamiltonian)


def configuration(root, options):
    """The file of the training."""
    content = {
        "output": str(root / "run"),
        "threads": options.threads,
        "data": {"root": str(root), "batch_size": 100, "max_edges": 3000},
        "stage1": NETWORK | {"environment": 3.0, "num_blocks": 1, "pair_blocks": 1},
        "stage2": None,
        "training": {"save_minutes": 0.5, "stage2": None, "stage1": {"epochs": 1, "learning_rate": 1e-3}},
    }
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def memory(process):
    """MB of a process and all below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total / 1e6


class Stage:
    """A command, its memory every few seconds, and when it said what.

    Args:
        name: in the table.
        rows: of the table; new ones come behind.
        root: of the data set.
        arguments: of ``hamfast``.
    """

    def __init__(self, name, rows, root, *arguments):
        self.name, self.rows, self.root = name, rows, root
        self.begun = time.monotonic()
        command = [sys.executable, "-m", "hamfast", *map(str, arguments)]
        # In a group of its own, so that it can be killed with all of its processes.
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        )
        self.lines = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def seconds(self):
        """Since the start."""
        return time.monotonic() - self.begun

    def read(self):
        """Notes the lines; the head of the table of epochs is printed where the steps begin."""
        for line in self.process.stdout:
            print(f"{self.seconds():8.1f} {line}", end="", flush=True)
            self.lines.append(line)
            if "training" in line and "valid." in line:
                self.note("first step")

    def note(self, event):
        """A row."""
        try:
            used = memory(psutil.Process(self.process.pid))
        except psutil.Error:
            used = 0.0
        row = {"stage": self.name, "event": event, "seconds": f"{self.seconds():.1f}"}
        self.rows.append(row | {"structures": prepared(self.root), "MB": f"{used:.0f}"})
        print(self.rows[-1], flush=True)

    def run(self, until=lambda: False):
        """To its end, or until it is killed."""
        while self.process.poll() is None:
            if until():
                self.note("killed")
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                return
            self.note("")
            for _ in range(10):
                if self.process.poll() is None and not until():
                    time.sleep(EVERY / 10)
        self.reader.join()
        self.note("finished")
        if self.process.returncode:
            raise SystemExit("".join(self.lines))


def prepared(root):
    """How many structures are in the store."""
    path = root / ".hamfast_cache" / "prepared.sqlite"
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=20) as file:
            return file.execute("SELECT count(*) FROM structures").fetchone()[0]
    except sqlite3.Error:
        return 0


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", required=True, help="what runs it, in words")
    parser.add_argument("--structures", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1, help="of the network")
    parser.add_argument("--only-train", action="store_true", help="take what was prepared, and its rows of the table")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    root, rows = options.folder, []
    begun = time.monotonic()
    make(root, options.structures)
    print(f"made in {time.monotonic() - begun:.0f} s")
    config = configuration(root, options)
    shutil.rmtree(root / "run", ignore_errors=True)
    if options.only_train:
        with options.result.open(newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["stage"].startswith("prepare")]
    else:
        shutil.rmtree(root / ".hamfast_cache", ignore_errors=True)
        half = options.structures // 2
        Stage("prepare", rows, root, "data", "prepare", config).run(until=lambda: prepared(root) >= half)
        Stage("prepare, again", rows, root, "data", "prepare", config).run()
    last = root / "run" / "stage1" / "last.ckpt"
    started = []

    def killed_after_a_checkpoint():
        """Twice: the first one is that of the start."""
        if last.exists() and last.stat().st_mtime_ns not in started:
            started.append(last.stat().st_mtime_ns)
        return len(started) > 2

    Stage("train", rows, root, "train", config).run(until=killed_after_a_checkpoint)
    Stage("train --resume", rows, root, "train", config, "--resume").run()
    with (root / "run" / "stage1" / "logs" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name in ("structures_per_s", "edges_per_s", "waiting_percent"):
                rows.append({"stage": "epoch", "event": name, "seconds": row[name]})
    rows.append(
        {
            "stage": "file",
            "event": "prepared.sqlite",
            "MB": f"{(root / '.hamfast_cache' / 'prepared.sqlite').stat().st_size / 1e6:.0f}",
            "structures": options.structures,
        }
    )
    about = {
        "machine": options.machine,
        "threads": options.threads,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "date": datetime.date.today().isoformat(),
    }
    with options.result.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(row | about for row in rows)


if __name__ == "__main__":
    main()
