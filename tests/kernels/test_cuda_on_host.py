"""csrc/*_cuda.cu, launchers and kernels, built for the host on the executor of tests/simt, in place
of the CPU kernels: the tests of the ops then run through them, unchanged, under the address and
undefined-behaviour sanitizers.
"""

import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from programs import ROOT

SOURCES = [
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*_cuda.cu"))),
    "csrc/library.cpp",
    "csrc/block_matmul/block_matmul.cpp",
    "csrc/common/host_pool.cpp",
    "csrc/tensor_product/channel_source.cpp",
    "csrc/tensor_product/channel_source_op.cpp",
    "csrc/tensor_product/channel_jit.cpp",
    "tests/simt/jit.cpp",
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compile_all(folder: Path) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    torch_folder = Path(torch.__file__).parent
    command = [compiler, "-std=c++20", "-O1", "-g1", "-fPIC", "-w", "-fvisibility=hidden", "-DHAMFAST_SIMT", *SANITIZE]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", '-DHAMFAST_VERSION="tests"']
    command += [f"-I{ROOT / name}" for name in ("tests/simt", "csrc", "kernels")]
    command += ["-isystem", str(torch_folder / "include")]

    def compile_one(source):
        made = folder / (Path(source).name + ".o")
        done = subprocess.run(
            [*command, "-x", "c++", "-c", str(ROOT / source), "-o", str(made)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[:5000]
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    library = folder / "libhamfast_on_host.so"
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10", "-ldl"]
    subprocess.run([compiler, "-shared", *SANITIZE, *objects, "-o", str(library), *libraries], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """With which Python runs the CUDA sources in place of the CPU kernels; plans are compiled
    beside the library."""
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Plans are compiled without sanitizers (test_cuda_kernels.py runs that kernel with them), by a
    # compiler that is not under them either, with the executor's header read once.
    simt, header = ROOT / "tests" / "simt", library.parent / "simt.h"
    plan = ["g++", "-std=c++20", "-O0", "-w", "-fvisibility=hidden", "-fPIC", "-DHAMFAST_SIMT", f"-I{simt}"]
    subprocess.run([*plan, "-x", "c++-header", str(simt / "simt.h"), "-o", f"{header}.gch"], check=True)
    plan = ["env", "-u", "LD_PRELOAD", *plan, f"-I{ROOT / 'kernels'}", "-include", str(header)]
    plan += [str(simt / "channel_library.cpp")]
    return os.environ | {
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "HAMFAST_LIBRARY": str(library),
        "HAMFAST_SIMT_FOLDER": str(library.parent / "plans"),
        "HAMFAST_SIMT_COMPILE": shlex.join(plan),
    }


@pytest.mark.slow
def test_ops_through_the_cuda_sources(tmp_path):
    given = environment(compile_all(tmp_path))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--durations=20", "tests/ops", "--through", "cuda_sources"]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    print(done.stdout)
