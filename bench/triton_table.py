"""Compiles the Triton kernels ahead of time.

    python bench/triton_table.py

Writes bench/results/triton_table.csv, for sm_80, sm_90, sm_100 and gfx942.
A row has the registers, shared memory, local memory, spills and matrix instructions of a kernel.
No GPU is needed. A test compiles a part of it anew.
"""

import csv
import importlib
import os
import pickle
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from hamfast.triton.launch import OPTIONS

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "triton_table.csv"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
COLUMNS = ["kernel", "problem", "architecture", "registers", "shared_bytes", "local_accesses", "spill_bytes", "matrix", "atomics", "error"]  # fmt: skip


def compile_one(job):
    """A row of the table; ``error`` is empty if it compiled."""
    problem, launch, architecture = job
    is_amd = architecture.startswith("gfx")
    function = getattr(importlib.import_module(launch.module), launch.kernel)
    source = ASTSource(fn=function, signature=dict(launch.signature), constexprs=dict(launch.constants))
    target = GPUTarget("hip", architecture, 64) if is_amd else GPUTarget("cuda", int(architecture[3:]), 32)
    options = {"num_warps": launch.num_warps, **OPTIONS}
    row = dict.fromkeys(COLUMNS, 0) | {
        "kernel": launch.kernel,
        "problem": problem,
        "architecture": architecture,
        "error": "",
    }
    try:
        made = compile(source, target=target, options=options)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error} {error.__cause__ or ''}"}
    row["shared_bytes"] = made.metadata.shared
    if is_amd:
        text = made.asm["amdgcn"]

        def number(name):
            return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])

        row |= {"registers": number("vgpr_count"), "spill_bytes": 4 * number("vgpr_spill_count")}
        row["local_accesses"] = len(re.findall(r"\bscratch_(?:load|store)", text))
        row["matrix"] = " ".join(sorted(set(re.findall(r"v_mfma\w+", text))))
        row["atomics"] = len(re.findall(r"\bglobal_atomic", text))
    else:
        text = made.asm["ptx"]
        row |= assemble(text)
        row["local_accesses"] = len(re.findall(r"\b(?:st|ld)\.local", text))
        found = re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\S*", text)
        row["matrix"] = " ".join(sorted(set(found)))
        row["atomics"] = len(re.findall(r"\b(?:atom|red)\.", text))
        # Constants of float64 kernels must have all digits.
        row["doubles"] = sorted(set(re.findall(r"0d[0-9A-F]{16}", text)))
    return row


def assemble(ptx):
    """Registers and bytes spilled, as Triton's own assembler reports them."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    target = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        for name in ("ptxas-blackwell", "ptxas"):  # some versions of Triton bring two, for different versions of PTX
            command = [folder / name, "-v", f"--gpu-name={target}", file.name, "-o", os.devnull]
            done = subprocess.run(command, capture_output=True, text=True) if command[0].exists() else None
            if done and done.returncode == 0:
                break
        else:
            sys.exit(f"no assembler of Triton takes its own PTX for {target}: {done and done.stderr}")
    return {
        "registers": int(re.search(r"Used (\d+) registers", done.stderr)[1]),
        "spill_bytes": int(re.search(r"(\d+) bytes spill stores", done.stderr)[1]),
    }


def collect(path, *arguments):
    """The launches, from a process of its own: interpreter and compiler cannot share one."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(ROOT / "bench" / "triton_launches.py"), str(path), *arguments]
    subprocess.run(command, env=environment, check=True)
    with open(path, "rb") as file:
        return pickle.load(file)


def compile_all(launches, architectures=ARCHITECTURES, workers=2):
    """A row per launch and architecture that fits it."""
    makers = {name: "hip" if name.startswith("gfx") else "cuda" for name in architectures}
    jobs = [
        (problem, launch, architecture)
        for problem, maker, launch in launches
        for architecture in architectures
        if makers[architecture] == maker
    ]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(compile_one, jobs))


def main():
    """Runs the command line. Exits if a kernel does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        rows = compile_all(collect(Path(folder) / "launches", "all"))
    failed = [row for row in rows if row["error"]]
    if failed:
        sys.exit(
            "\n".join(
                f"{row['kernel']} of {row['problem']} for {row['architecture']}: {row['error']}" for row in failed
            )
        )
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in COLUMNS if name != "error"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: [str(row[name]) for name in COLUMNS]))
    print(
        f"{RESULT}: {len(rows)} rows, {sum(row['spill_bytes'] > 0 for row in rows)} with spills, Triton {triton.__version__}"
    )


if __name__ == "__main__":
    main()
