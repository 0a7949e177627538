"""C++ test programs: compiled with sanitizers, fed with arrays in a file."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def compile_program(program: Path, source: str, options: list[str], sanitizers: str = "address,undefined") -> Path:
    """``source``: a file under tests/."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folders = [f"-I{ROOT / folder}" for folder in ("csrc", "kernels", "tests")]
    command = [compiler, "-std=c++20", "-O1", "-g1", "-fno-omit-frame-pointer", "-fopenmp-simd", "-pthread"]
    command += [
        f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all",
        *options,
        *folders,
        str(ROOT / "tests" / source),
    ]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:5000]
    return program


def run_program(*command) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return done.stdout


def write_arrays(path: Path, arrays) -> None:
    """As tests/cpp/case_file.h reads them. None: there is no such array, which one without elements
    is not."""
    with path.open("wb") as file:
        for array in arrays:
            content = b"" if array is None else np.ascontiguousarray(array).tobytes()
            file.write(np.int64(-1 if array is None else len(content)).tobytes() + content)


def read_arrays(path: Path) -> list[bytes]:
    content, arrays = path.read_bytes(), []
    while content:
        size = int(np.frombuffer(content[:8], np.int64)[0])
        arrays.append(content[8 : 8 + size])
        content = content[8 + size :]
    return arrays
