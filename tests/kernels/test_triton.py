"""The Triton kernels, compiled ahead of time for NVIDIA's and AMD's GPUs, and run in Triton's
interpreter by the tests of the ops.

tests/ops/test_backends.py meets the reference op by op; here are more options, and what only a
compiler shows. What this cannot show: how fast they are, and whether a GPU's memory agrees with the
interpreter's, which runs one program after another.
"""

import ast
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import ROOT

from hamfast.ops.backend import triton_problem

OLDEST = Path(sys.prefix) / "oldest_triton"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(triton_problem()), reason=triton_problem())]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: test_backends.py runs the kernels there")
def test_options_of_the_ops_in_the_interpreter():
    environment = os.environ | {"HAMFAST_BACKEND": "triton", "TRITON_INTERPRET": "1"}
    options = ["-q", "-x", "--durations=5", "-p", "no:cacheprovider", "--through", "interpreter"]
    command = [sys.executable, "-m", "pytest", *options, "tests/ops"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    print(done.stdout)


def compiled(tmp_path, *architectures, before=()):
    """Rows of the table of compiled kernels, made in a process without the interpreter.

    ``before``: folders to import from first.
    """
    program = (
        "import json, sys, triton_table as t\n"
        "rows = t.compile_all(t.collect(sys.argv[1]), sys.argv[3:] or t.ARCHITECTURES)\n"
        "json.dump(rows, open(sys.argv[2], 'w'))\n"
    )
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(str(p) for p in (*before, ROOT, ROOT / "bench")),
    }
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "launches"), str(tmp_path / "rows.json")]
    done = subprocess.run([*command, *architectures], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads((tmp_path / "rows.json").read_text())


@pytest.mark.long
@pytest.mark.skipif(
    not OLDEST.exists(), reason=f"the oldest Triton is not in {OLDEST}; tools/setup_peers.sh puts it there"
)
def test_every_kernel_compiles_with_the_oldest_triton(tmp_path):
    rows = compiled(tmp_path, "sm_90", before=[OLDEST])
    assert [row for row in rows if row["error"]] == []
    assert {row["kernel"] for row in rows} == kernels_in_the_folder()


@pytest.mark.parametrize(
    "architectures", [("sm_90", "gfx942"), pytest.param(("sm_80", "sm_100"), marks=pytest.mark.long)]
)
def test_every_kernel_compiles_for_every_architecture(tmp_path, architectures):
    """For those of the first line in every run of the tests."""
    rows = compiled(tmp_path, *architectures)
    assert [row for row in rows if row["error"]] == []
    kernels = {row["kernel"] for row in rows}
    assert kernels == kernels_in_the_folder()
    for row in rows:
        name = f"{row['kernel']} of {row['problem']} for {row['architecture']}"
        assert row["local_accesses"] == 0, f"{name}: local memory"
        # The sums for the radial network's matrix leave few registers
        # (bench/results/triton_table.csv), and every version of Triton spills others; laid out
        # badly, these kernels spill thousands of bytes.
        most = 256 if row["problem"].endswith("radial") else 16
        assert row["spill_bytes"] <= most, f"{name}: {row['spill_bytes']} bytes of registers are spilled"
        assert row["atomics"] == 0, f"{name}: atomics, and with them an order that changes"
        meant = row["problem"].endswith("radial")
        expected = "mfma" if row["architecture"].startswith("gfx") else "tf32"
        assert (expected in row["matrix"]) == meant, f"{name}: matrix instructions {row['matrix']!r}"
    # 1 x 1 -> 1: the coupling is 1/sqrt(6), times the path's sqrt(3).
    digits = "0d" + struct.pack(">d", (1 / 2) ** 0.5).hex().upper()
    found = [row for row in rows if row["problem"] == "float64" and row["architecture"].startswith("sm")]
    assert found and all(close_double(digits, row["doubles"]) for row in found)


def close_double(digits, found):
    """Is one of the constants this number, up to its last bits and sign? Of float32's digits it
    would be far."""
    wanted = abs(struct.unpack(">d", bytes.fromhex(digits[2:]))[0])
    values = [abs(struct.unpack(">d", bytes.fromhex(text[2:]))[0]) for text in found]
    return any(abs(value - wanted) < 1e-15 for value in values)


def kernels_in_the_folder():
    """What the launchers take from kernels/*.py."""
    names = set()
    for path in (ROOT / "hamfast" / "triton").glob("*.py"):
        module = ast.parse(path.read_text())
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hamfast.kernels."):
                # Kernels are functions; classes group what they take.
                names |= {alias.name for alias in node.names if alias.name.islower()}
    return names
