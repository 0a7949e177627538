"""Builds csrc/ with CMake: hamfast/lib/libhamfast.so (the ops) and hamfast/_native (pybind11: build
information).

The ops use torch's stable ABI only, so they depend neither on the Python version, nor on the build
of torch (CPU or CUDA) they were compiled with, nor on later releases of torch. HAMFAST_CUDA=0 or 1
forces the CUDA kernels off or on; by default they are compiled if nvcc is found. Neither a GPU nor
a CUDA build of torch is needed for that.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))  # an isolated build does not look into the source folder

from hamfast import environment  # noqa: E402
from hamfast.errors import HamfastError  # noqa: E402

MINIMUM_TORCH = (2, 11)


def stop(sentence):
    sys.exit(f"\nhamfast cannot be built: {sentence}\n")


def find_nvcc():
    home = environment.text("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def check_tools():
    try:
        import torch
    except ImportError:
        stop("torch is not installed; install it first, then run pip with --no-build-isolation")
    found = tuple(int(n) for n in re.match(r"(\d+)\.(\d+)", torch.__version__).groups())
    if found < MINIMUM_TORCH:
        stop(f"torch {'.'.join(map(str, MINIMUM_TORCH))} or newer is needed, found {torch.__version__}")
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            stop(f"{tool} was not found; `pip install {tool}`")
    compiler = environment.text("CXX")
    if shutil.which(compiler.split()[0]) is None:
        stop(f"the C++ compiler {compiler!r} was not found; install g++ 11 or newer, or clang 14 or newer, or set CXX")


def cuda_compiler():
    try:
        wanted = environment.text("HAMFAST_CUDA")
    except HamfastError as error:
        stop(error)
    nvcc = find_nvcc()
    if wanted == "1" and nvcc is None:
        stop("HAMFAST_CUDA=1, but nvcc was found neither in CUDA_HOME nor on the PATH")
    return None if wanted == "0" else nvcc


class CMakeBuild(build_ext):
    def run(self):
        check_tools()
        nvcc = cuda_compiler()
        package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        options = [
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DHAMFAST_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DCMAKE_INSTALL_PREFIX={package / 'hamfast'}",
        ]
        if nvcc:
            options.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            # By itself CMake reads it in a new build folder only.
            chosen = environment.text("CUDAARCHS")
            options.append(f"-DCMAKE_CUDA_ARCHITECTURES={chosen}" if chosen else "-UCMAKE_CUDA_ARCHITECTURES")
        self.cmake("configuration", ["-S", ROOT, "-B", build, *options], build, nvcc)
        self.cmake("compilation", ["--build", build, "--target", "install"], build, nvcc)

    def cmake(self, step, arguments, build, nvcc):
        done = subprocess.run(
            ["cmake", *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode == 0:
            print(done.stdout)
            return
        build.mkdir(parents=True, exist_ok=True)
        log = build / "failed.log"
        log.write_text(done.stdout)
        errors = [line.strip() for line in done.stdout.splitlines() if re.search(r"\berror\b|CMake Error", line, re.I)]
        first = errors[0] if errors else done.stdout.strip().splitlines()[-1]
        if nvcc and ("_cuda.cu" in done.stdout or "nvcc" in done.stdout or "CUDA" in first):
            stop(f"the CUDA kernels did not pass {step} with {nvcc}: {first}. The full output is in {log}; "
                 "HAMFAST_CUDA=0 builds without them")  # fmt: skip
        stop(f"{step} failed: {first}. The full output is in {log}")

    def get_outputs(self):
        return []


class AnyPythonWheel(bdist_wheel):
    """The ops link to no Python: one wheel serves every Python 3 (hamfast._native, then, only the
    one that built it)."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("hamfast.libhamfast", sources=[])],  # a name only: CMake does the work
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
