"""Kernels compiled at run time: for every architecture, into a cache that nothing breaks, with a
sentence for what can go wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import compile_table
import pytest
from cases import PRODUCTS

from hamfast import run_time_compiler

pytestmark = pytest.mark.skipif(
    run_time_compiler.find_compiler() is None,
    reason="nvidia-cuda-nvrtc is not installed (pip install nvidia-cuda-nvrtc)",
)

PROGRAM = """
import sys
from pathlib import Path
from hamfast import run_time_compiler as compiler
if "no-compiler" in sys.argv:
    compiler.find_compiler = lambda: None
try:
    if "problem" in sys.argv:
        print(compiler.problem())
    else:
        for capability in sys.argv[2].split(","):
            compiler.compile_channel(Path(sys.argv[1]).read_text(), int(capability), "load" in sys.argv)
except RuntimeError as error:
    print(error)
"""


def write_header(folder, **options):
    path = folder / "hamfast_plan.h"
    path.write_text(compile_table.channel_header(PRODUCTS[0], "forward", **options))
    return path


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    return write_header(tmp_path_factory.mktemp("plan"))


def start(header, *arguments, **environment):
    command = [sys.executable, "-c", PROGRAM, str(header), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def run(header, *arguments, **environment):
    process = start(header, *arguments, **environment)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out + err


def kernels(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_compiles_for_every_architecture_into_the_cache(header, tmp_path):
    assert run(header, "80,90,100", HAMFAST_CACHE=str(tmp_path)) == ""
    assert len(kernels(tmp_path)) == 3
    for file in kernels(tmp_path):
        content = file.read_bytes()
        assert content[:8] == b"hamfast1" and content[24:28] == b"\x7fELF"  # machine code, not PTX
    before = [file.stat().st_mtime_ns for file in kernels(tmp_path)]
    assert run(header, 90, HAMFAST_CACHE=str(tmp_path)) == ""
    assert [file.stat().st_mtime_ns for file in kernels(tmp_path)] == before


def test_weights_made_on_tensor_cores(tmp_path):
    header = write_header(tmp_path, hidden=64)
    assert run(header, "80,100", HAMFAST_CACHE=str(tmp_path / "cache")) == ""


def test_gpus_newer_than_the_compiler_get_ptx(header, tmp_path):
    assert run(header, 990, HAMFAST_CACHE=str(tmp_path)) == ""
    assert b".target sm_" in kernels(tmp_path)[0].read_bytes()


def test_unsupported_architecture(header, tmp_path):
    assert "GPU architecture sm_30 is not supported: this NVRTC compiles for sm_" in run(header, 30)


def test_a_damaged_file_is_made_anew(header, tmp_path):
    run(header, 90, HAMFAST_CACHE=str(tmp_path))
    (file,) = kernels(tmp_path)
    whole = file.read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    for damaged in (whole[: len(whole) // 2], flipped, b""):
        file.write_bytes(damaged)
        assert "is damaged; it is compiled anew" in run(header, 90, HAMFAST_CACHE=str(tmp_path))
        assert file.read_bytes() == whole and len(kernels(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_costs_a_notice(header, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    out = run(header, 90, HAMFAST_CACHE=str(blocked / "cache"))
    assert "cannot be written (Not a directory): kernels are compiled anew in every process" in out
    assert "no cache folder" in run(header, 90, HAMFAST_CACHE="", XDG_CACHE_HOME="", HOME="")


def test_many_processes_at_once(header, tmp_path):
    processes = [start(header, 90, HAMFAST_CACHE=str(tmp_path)) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == [""] * 4
    assert len(kernels(tmp_path)) == 1  # and nothing half-written beside it
    assert run(header, 90, HAMFAST_CACHE=str(tmp_path)) == ""


def test_without_a_compiler(header):
    assert "NVRTC was not found" in run(header, "problem", "no-compiler")


def test_without_a_driver(header, tmp_path):
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a driver")
    assert run(header, "problem") == "there is no NVIDIA driver: libcuda.so.1 was not found\n"
    assert "there is no NVIDIA driver" in run(header, 90, "load", HAMFAST_CACHE=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "environment", "sentence"),
    [
        ([], {}, ""),
        (
            ["-DOLD"],
            {},
            "the NVIDIA driver is too old: it is for CUDA 11.4, and kernels compiled at run time need one for",
        ),
        ([], {"STUB_ERROR": "2"}, "hamfast_channel was not loaded: the GPU is out of memory"),
        ([], {"STUB_ERROR": "222"}, "the driver (for CUDA 13.0) cannot load what NVRTC"),
        ([], {"STUB_ERROR": "999"}, "hamfast_channel was not loaded: unknown error"),
    ],
)
def test_drivers(header, tmp_path, options, environment, sentence):
    """A stand-in for libcuda that loads, fails or is old."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    source = Path(__file__).parent / "stub_driver.c"
    subprocess.run(["gcc", "-shared", "-fPIC", *options, str(source), "-o", str(tmp_path / "libcuda.so.1")], check=True)
    folders = os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")])
    out = run(header, 90, "load", LD_LIBRARY_PATH=folders, HAMFAST_CACHE=str(tmp_path / "cache"), **environment)
    assert sentence in out if sentence else out == ""
