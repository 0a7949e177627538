"""Compiles recorded launches of Triton kernels ahead of time, in a process of its own (interpreter and compiler cannot share one).

    python compile_triton.py LAUNCHES.pickle RESULT.json ARCHITECTURE...

LAUNCHES: a list of ``hamfast.triton.launch.Launch``; ARCHITECTURE: 80, 90, 100 (NVIDIA) or gfx942 (AMD).
"""

import importlib
import json
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

from hamfast.triton.configurations import PRECISION


def target_of(name):
    return GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name), 32)


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
        "spills": int(re.search(r"(\d+) bytes spill stores", done.stderr)[1]),
    }


def compile_one(job):
    launch, architecture = job
    function = getattr(importlib.import_module(launch.module), launch.kernel)
    constants = dict(launch.constants)
    if "PRECISION" in constants:
        constants["PRECISION"] = PRECISION["hip" if architecture.startswith("gfx") else "cuda"]
    source = ASTSource(fn=function, signature=dict(launch.signature), constexprs=constants)
    options = {"num_warps": launch.num_warps, "num_stages": 2, "enable_fp_fusion": True}
    made = compile(source, target=target_of(architecture), options=options)
    found = {"kernel": launch.kernel, "architecture": architecture, "shared": made.metadata.shared}
    if architecture.startswith("gfx"):
        text = made.asm["amdgcn"]
        found["local"] = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", text)[1])
        found["spills"] = int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])
        found["registers"] = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])
        found["matrix"] = sorted(set(re.findall(r"v_mfma\w+", text)))
    else:
        text = made.asm["ptx"]
        found |= assemble(text)
        found["local"] = len(re.findall(r"\b(?:st|ld)\.local", text))
        found["matrix"] = sorted(set(re.findall(r"\b(?:wgmma|mma|tcgen05)\.[\w.:]*(?:mma|m\d+n\d+k\d+)[\w.:]*", text)))
        found["atomics"] = len(re.findall(r"\b(?:atom|red)\.", text))
    return found


def main(path, result, *architectures):
    with open(path, "rb") as file:
        launches = pickle.load(file)
    jobs = [(launch, architecture) for launch in launches for architecture in architectures]
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(compile_one, jobs))
    with open(result, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
