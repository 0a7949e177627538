"""Launches of Triton kernels: the device, the options, and a record of what was launched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

OPTIONS = {"num_stages": 2, "enable_fp_fusion": True}
"""Of every kernel. Fused multiply-add said aloud: Triton's default changes with its version, and numbers with it."""

_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}


class Launch(NamedTuple):
    """One specialisation of a kernel, as Triton's ahead-of-time compiler wants it."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int


_record: dict[Launch, None] | None = None


@contextmanager
def collected() -> Iterator[dict[Launch, None]]:
    """Collects the specialisations that ops ask for inside, in order. None is launched: results are not to be used."""
    global _record
    before, _record = _record, {}
    try:
        yield _record
    finally:
        _record = before


def launch(
    kernel: Any,
    grid: Sequence[int],
    arguments: Sequence[Any],
    constants: dict[str, Any],
    like: Tensor,
    num_warps: int = 4,
) -> None:
    """Launches ``kernel`` on ``like``'s device and its current stream.

    Args:
        arguments: tensors, numbers or None, in the order of the kernel's parameters.
        constants: the ``tl.constexpr`` parameters.
    """
    if 0 in grid:
        return
    if _record is not None:
        _record[_describe(kernel, arguments, constants, num_warps)] = None
        return
    device = like.device
    with nullcontext() if device.type == "cpu" else getattr(torch, device.type).device(device):
        kernel[tuple(grid)](*arguments, **constants, num_warps=num_warps, **OPTIONS)


def _describe(kernel, arguments, constants, num_warps) -> Launch:
    names = kernel.arg_names
    signature, fixed = {}, dict(constants)
    for name, value in zip(names, arguments, strict=False):
        if value is None:
            fixed[name] = None
        elif isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 1 << 31 else "i64"
    signature |= dict.fromkeys(fixed, "constexpr")
    ordered = tuple((name, signature[name]) for name in names)
    function = kernel.fn
    return Launch(function.__module__, function.__name__, ordered, tuple(fixed.items()), num_warps)


_ON_HOST: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def on_host(table: Tensor) -> np.ndarray:
    """A table's numbers; read back from the device once, for as long as the table lives."""
    if table not in _ON_HOST:
        _ON_HOST[table] = table.cpu().numpy()
    return _ON_HOST[table]


def real_of(like: Tensor) -> Any:
    """The type a kernel computes in for a tensor's type of storage."""
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def power_of_two(n: int) -> int:
    """The next one, 1 at least."""
    return triton.next_power_of_2(max(n, 1))


def pieces(n: int, size: int) -> int:
    return -(-n // size)
