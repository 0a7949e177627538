"""Which kernels run on GPU tensors: a ladder of backends, the first usable one taken, and why the
others were not.

- ``cuda``: the compiled kernels (csrc/*_cuda.cu), for NVIDIA, where nvcc was there when hamfast was
  built.
- ``triton``: the Triton kernels (kernels/*.py), for NVIDIA, AMD and Intel, compiled when first
  needed.
- ``cpu``: the CPU kernels on copies of the tensors: right everywhere, and slow.

CPU tensors always run on the CPU kernels; but under Triton's interpreter (``TRITON_INTERPRET=1``)
``triton`` is for them, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast import (
    _library,  # noqa: F401  (loads the kernels)
    environment,
    run_time_compiler,
)
from hamfast.ops.notice import lower_backend
from hamfast.ops.radial_blocks import radial_in_blocks
from hamfast.records.ops import OPS

BACKENDS = ("cuda", "triton", "cpu")
MINIMUM_TRITON = (3, 6)

LAUNCHERS = {op.name: op.triton for op in OPS if op.triton}
"""The ops that have kernels of their own on each backend, and the module of ``hamfast.triton`` that
launches them. ``block_matmul`` is torch's matrix products everywhere."""

COMPILED = torch._C._dispatch_has_kernel_for_dispatch_key("hamfast::tensor_product", "CUDA")
"""Are the CUDA kernels in the library?"""


class Rung(NamedTuple):
    """One backend on the ladder."""

    backend: str
    problem: str
    """Why it cannot be used; empty if it can."""
    drawback: str
    """Why another that has none is better."""


def ladder() -> list[Rung]:
    """All backends for GPU tensors, best first. None of the checks starts a GPU."""
    cuda = _cuda_problem()
    no_compiler = "" if cuda else run_time_compiler.problem()
    drawback = f"tensor products run on the general kernel: {no_compiler}" if no_compiler else ""
    return [
        Rung("cuda", cuda, drawback),
        Rung("triton", triton_problem(), ""),
        Rung("cpu", "", "tensors are copied to the CPU and back"),
    ]


def _cuda_problem() -> str:
    if not COMPILED:
        return "the CUDA kernels were not compiled (no nvcc when hamfast was built)"
    if torch.version.hip:
        return "this torch is for AMD GPUs"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    return ""


@cache
def triton_problem() -> str:
    """Why Triton cannot be used; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed (pip install 'triton>={'.'.join(map(str, MINIMUM_TRITON))}')"
    try:
        version = importlib.import_module("triton").__version__
        importlib.import_module("triton.language")
    except Exception as error:  # whatever a broken installation raises
        return f"Triton does not load: {type(error).__name__}: {error}"
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < MINIMUM_TRITON:
        return f"Triton {'.'.join(map(str, MINIMUM_TRITON))} or newer is needed, found {version}"
    return ""


def interpreting() -> bool:
    """Is Triton to run its interpreter in place of its compiler?"""
    return environment.switch("TRITON_INTERPRET")


def choose(wanted: str) -> Rung:
    """The rung for GPU tensors: the one wanted, with its problem if it has one; or the first
    without problem and drawback, else without problem."""
    rungs = ladder()
    if wanted != "auto":
        return next(rung for rung in rungs if rung.backend == wanted)
    return min((rung for rung in rungs if not rung.problem), key=lambda rung: rung.drawback != "")


def current() -> str:
    """The backend that GPU tensors run on now."""
    return _current.backend


def explain() -> str:
    """The backend of GPU tensors, and why not those above it."""
    passed = []
    for rung in ladder():
        if rung.backend == _current.backend:
            break
        passed.append(f"not {rung.backend}: {rung.problem or rung.drawback}")
    if _wanted != "auto":
        passed = ["as HAMFAST_BACKEND or hamfast.backend() asks"]
    trouble = [_current.problem or _current.drawback] if _current.problem or _current.drawback else []
    return "; ".join([_current.backend, *trouble, *passed])


_wanted = "auto"
_current = choose("auto")
_installed: list[torch.library.Library] = []


def _check_name(name: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend: expected auto, {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}, found {name!r}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """``with hamfast.backend("triton"):`` GPU tensors run on that backend inside; ``auto`` takes
    the first usable one.

    The choice holds for the whole process, all threads included. ``HAMFAST_BACKEND`` chooses from
    the start.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: it cannot be used here; the message says why.
    """
    before = _wanted
    rung = choose(_check_name(name))
    if rung.problem:
        raise RuntimeError(f"hamfast: backend {name!r} cannot be used: {rung.problem}")
    _use(name)
    try:
        yield
    finally:
        _use(before)


def _use(name: str) -> None:
    """Puts the backend's functions in front of the compiled kernels, or takes them away."""
    global _wanted, _current
    _wanted, _current = name, choose(name)
    while _installed:
        _installed.pop()._destroy()
    library = torch.library.Library("hamfast", "IMPL")
    _installed.append(library)
    own = _current.backend == "cuda" and not _current.problem
    if own:
        library.impl("radial_tensor_product", radial_in_blocks, "CUDA")
    keys = ["XPU"]  # no compiled kernels there
    # A torch that knows no GPU asks for none.
    if not own and (name != "auto" or torch.version.cuda or torch.version.hip):
        keys.append("CUDA")
    if name == "triton" and not _current.problem and interpreting():
        keys.append("CPU")
    with warnings.catch_warnings():
        # What is overridden comes back when the library is destroyed.
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for op in LAUNCHERS:
            for key in keys:
                library.impl(op, partial(_run, op, _current), key)


def _run(op: str, rung: Rung, *arguments: Any) -> Any:
    """What the dispatcher calls."""
    if rung.problem:
        raise RuntimeError(f"hamfast: {op}: backend {rung.backend!r} cannot be used: {rung.problem}")
    if rung.backend == "cuda":  # of another GPU than NVIDIA's
        raise RuntimeError(f"hamfast: {op}: backend 'cuda' is for NVIDIA's GPUs; HAMFAST_BACKEND=triton is for others")
    if op in _failed:
        return _on_copies(op, arguments)
    if rung.backend == "cpu":
        lower_backend(op, "cpu", "; ".join(f"{r.backend}: {r.problem}" for r in ladder() if r.problem))
        return _on_copies(op, arguments)
    if op == "radial_tensor_product" and arguments[0].dtype == torch.float64:
        return radial_in_blocks(*arguments)  # no such matrix products in all versions of Triton
    try:
        return getattr(importlib.import_module(f"hamfast.triton.{LAUNCHERS[op]}"), op)(*arguments)
    except Exception as error:
        if interpreting() or not _is_compiler_failure(error):
            raise
        # Under strict this raises, with Triton's own message.
        lower_backend(op, "cpu", f"Triton did not compile its kernel: {_reason(error)}", error)
        _failed.add(op)
        return _on_copies(op, arguments)


_failed: set[str] = set()
"""Ops whose kernels Triton did not compile: not tried again."""


def _is_compiler_failure(error: Exception) -> bool:
    """Of Triton, of the assembler behind it, or of the C compiler that builds its launchers."""
    module = type(error).__module__
    return module.startswith("triton.") or "PassManager::run failed" in str(error) or "C compiler" in str(error)


def _reason(error: BaseException) -> str:
    """What an error began with, in a line. Triton's own message ends with a mark below a line of
    the source; the reason is in the error it was raised from.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _on_copies(op: str, arguments: tuple) -> Any:
    """The op by the CPU kernels."""
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    found = getattr(torch.ops.hamfast, op).default(*(a.cpu() if isinstance(a, Tensor) else a for a in arguments))
    if isinstance(found, Tensor):
        return found.to(device)
    return type(found)(t.to(device) for t in found)


_use(environment.text("HAMFAST_BACKEND"))
