"""NVRTC, which compiles CUDA kernels for single plans at run time.

CUDA builds of torch bring it along as the package ``nvidia-cuda-nvrtc``. The compiled library opens
it when such a kernel is first needed, and keeps what it makes in :func:`cache_folder`. This module
says where NVRTC is, or why it cannot be used.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import torch

from hamfast import _library


def find_compiler() -> Path | None:
    """The library of an ``nvidia-cuda-nvrtc`` package; None if there is none.

    Of several the one of torch's own CUDA version is taken, else the newest.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or []]
    found = {int(f.name.rsplit(".", 1)[1]): f for folder in folders for f in folder.glob("*/lib/libnvrtc.so.[0-9]*")}
    own = int((torch.version.cuda or "0").split(".")[0])
    return found.get(own) or (found[max(found)] if found else None)


@cache
def _functions() -> ctypes.CDLL:
    functions = ctypes.CDLL(str(_library.PATH))
    functions.hamfast_set_compiler.argtypes = [ctypes.c_char_p]
    functions.hamfast_jit_channel.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    for name in ("hamfast_jit_problem", "hamfast_jit_channel", "hamfast_cache_folder"):
        getattr(functions, name).restype = ctypes.c_char_p
    path = find_compiler()
    functions.hamfast_set_compiler(str(path or "").encode())
    return functions


@cache
def problem() -> str:
    """Why kernels cannot be compiled or loaded here, in one sentence; empty if they can."""
    return _functions().hamfast_jit_problem().decode()


def compile_channel(header: str, capability: int, load: bool = False) -> None:
    """Compiles the channel-wise kernel into the cache.

    Args:
        header: the plan, as ``torch.ops.hamfast.channel_kernel_source`` gives it.
        capability: of the GPU, 90 for 9.0.
        load: load it into the driver, too.

    Raises:
        RuntimeError: with a sentence that says what is missing.
    """
    failure = _functions().hamfast_jit_channel(header.encode(), capability, int(load)).decode()
    if failure:
        raise RuntimeError(f"hamfast: {failure}")


def cache_folder() -> str:
    """The folder of compiled kernels; empty if there is none.

    It is ``$HAMFAST_CACHE``, else ``$XDG_CACHE_HOME/hamfast``, else ``~/.cache/hamfast``.
    """
    return _functions().hamfast_cache_folder().decode()
