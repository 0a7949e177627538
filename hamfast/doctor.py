"""What is installed, which backends are usable, and why the others are not."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import sys
from dataclasses import dataclass

from hamfast.errors import HamfastError

PACKAGES = ("torch", "triton", "e3nn", "numpy", "scipy", "h5py", "ase", "lightning", "pydantic", "typer", "matplotlib")


@dataclass
class Finding:
    """A line of ``hamfast doctor``."""

    name: str
    ok: bool
    text: str


def versions() -> list[Finding]:
    """The versions of Python and of the packages that hamfast stands on."""
    found = [Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in PACKAGES:
        try:
            found.append(Finding(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, False, "not installed"))
    return found


def backends() -> list[Finding]:
    """Each backend of the ops: usable, or the reason why not."""
    try:
        import hamfast._library as library
    except (ImportError, HamfastError) as error:  # the latter: an environment variable has a wrong value
        return [Finding("compiled library", False, str(error)), Finding("cpu", False, "needs the compiled library")]
    import torch

    found = [Finding("compiled library", True, str(library.PATH))]
    try:
        native = importlib.import_module("hamfast._native")
        found.append(Finding("build information", True, f"version {native.version()}, compiler {native.compiler()}"))
        found.append(Finding("cpu", True, f"instruction set {native.isa()}, {torch.get_num_threads()} threads"))
        architectures = native.cuda_architectures()
    except ImportError as error:
        found.append(
            Finding(
                "build information",
                False,
                f"hamfast._native was built for another Python than {sys.version_info.major}.{sys.version_info.minor} "
                f"({error}); the ops do not need it",
            )
        )
        found.append(Finding("cpu", True, f"{torch.get_num_threads()} threads"))
        architectures = None
    found.append(_cuda(torch, architectures))
    found.append(_run_time_compiler())
    found.append(_triton())
    from hamfast.ops import backend

    found.append(Finding("GPU tensors run on", True, backend.explain()))
    return found


def _run_time_compiler() -> Finding:
    """NVRTC, which makes the CUDA kernels of single plans."""
    from hamfast import run_time_compiler

    problem, folder = run_time_compiler.problem(), run_time_compiler.cache_folder()
    if problem:
        return Finding("cuda, kernels per plan", False, f"{problem}; tensor products run on the general kernel instead")
    path = run_time_compiler.find_compiler() or "NVRTC of the system"
    return Finding("cuda, kernels per plan", True, f"{path}, cache {folder or 'nowhere'}")


def _triton() -> Finding:
    from hamfast.ops import backend

    problem = backend.triton_problem()
    if problem:
        return Finding("triton", False, problem)
    return Finding("triton", True, f"Triton {importlib.metadata.version('triton')}")


def _cuda(torch, architectures: str | None) -> Finding:
    from hamfast.ops.backend import COMPILED

    names = "" if architectures is None else ", ".join(f"sm_{a}" for a in architectures.split(",") if a)
    if not COMPILED:
        nvcc = shutil.which("nvcc")
        why = "nvcc was not found" if nvcc is None else f"nvcc is at {nvcc}; reinstall with HAMFAST_CUDA=1"
        return Finding("cuda", False, f"the CUDA kernels were not compiled ({why})")
    if torch.version.cuda is None:
        return Finding("cuda", False, f"kernels are compiled ({names}), but torch {torch.__version__} is a CPU build")
    if not torch.cuda.is_available():
        return Finding(
            "cuda", False, f"kernels are compiled ({names}), but torch sees no GPU (driver, CUDA_VISIBLE_DEVICES)"
        )
    return Finding("cuda", True, f"{torch.cuda.get_device_name()}, kernels for {names}")
