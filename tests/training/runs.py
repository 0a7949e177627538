"""Starting runs as processes, and reading what they leave."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hamfast.training.throughput import FIELDS


def losses(folder, phase="stage1", column="train_objective"):
    """The logged objective of each epoch, whatever number of log files."""
    table = np.genfromtxt(Path(folder) / phase / "logs" / "metrics.csv", delimiter=",", names=True)
    values = table[column]
    return values[np.isfinite(values)]


def final_weights(folder, phase="stage1"):
    return torch.load(Path(folder) / phase / "last.ckpt", weights_only=True)["state_dict"]


def start(settings, tmp_path, epochs, *launcher, resume=False):
    settings["training"]["stage1"]["epochs"] = epochs
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, *launcher, "-m", "hamfast", "train", str(tmp_path / "config.yaml")]
    command += ["--resume"] * resume
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        # Who starts the tests in the background of a shell may have told it to ignore Ctrl-C, and
        # children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_epoch(process, folder, epoch):
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        metrics = Path(folder) / "stage1" / "logs" / "metrics.csv"
        # A header, then a row per epoch; the checkpoint of an epoch precedes the row of the next.
        if metrics.exists() and len(metrics.read_text().splitlines()) > 1 + epoch:
            return
        time.sleep(0.1)
    pytest.fail(f"no epoch {epoch}: {process.communicate(timeout=5)[0] if process.poll() is not None else 'timed out'}")


def history(folder, phase="stage1"):
    """The rows of ``metrics.csv``, without the speed, which no two runs share."""
    return [{k: v for k, v in row.items() if k not in FIELDS} for row in rows(folder, phase)]


def rows(folder, phase="stage1"):
    """The rows of ``metrics.csv``."""
    with (Path(folder) / phase / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")


def finish(process):
    """Exit status and output of a process that ends by itself."""
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its workers
        pytest.fail("the processes wait for each other")
    return process.returncode, output
