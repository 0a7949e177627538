"""Launches of Triton kernels: the device, the options, and a record of what was launched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_stages": 2, "enable_fp_fusion": True}
"""Of every kernel. Fused multiply-add said aloud: Triton's default changes with its version, and
results with it.
"""

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
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    """By the position of the parameter, and of the item within a tuple."""
    num_warps: int


_record: dict[Launch, None] | None = None


@contextmanager
def collected() -> Iterator[dict[Launch, None]]:
    """Collects the specialisations that ops ask for inside, in order. None is launched: results are
    not to be used.
    """
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
        arguments: tensors, integers, floats, None, or named tuples of them, in the order of the
            kernel's parameters.
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
    fixed: dict[Any, Any] = {(names.index(name),): value for name, value in constants.items()}
    types = {name: _type(value, (n,), fixed) for n, (name, value) in enumerate(zip(names, arguments, strict=False))}
    types |= dict.fromkeys(constants, "constexpr")
    ordered = tuple((name, types[name]) for name in names)
    function = kernel.fn
    return Launch(function.__module__, function.__name__, ordered, tuple(fixed.items()), num_warps)


def _type(value: Any, path: tuple[int, ...], fixed: dict[Any, Any]) -> Any:
    """Of an argument, or of each of a tuple; what is None is a constant, noted in ``fixed``."""
    if isinstance(value, tuple):
        types = (_type(item, (*path, n), fixed) for n, item in enumerate(value))
        return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
    if value is None:
        fixed[path] = None
        return "constexpr"
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 1 << 31 else "i64"


def contiguous(arguments: Any) -> Any:
    """Named tuples of arguments with all tensors contiguous."""
    if isinstance(arguments, Tensor):
        return arguments.contiguous()
    if isinstance(arguments, tuple) and hasattr(arguments, "_fields"):
        return type(arguments)(*(contiguous(item) for item in arguments))
    return arguments


def real_of(like: Tensor) -> Any:
    """The type a kernel computes in for a tensor's type of storage."""
    return tl.float64 if like.dtype == torch.float64 else tl.float32


def power_of_two(n: int) -> int:
    """The next one, 1 at least."""
    return triton.next_power_of_2(max(n, 1))


def pieces(n: int, size: int) -> int:
    """How many pieces of ``size`` cover ``n``."""
    return -(-n // size)
