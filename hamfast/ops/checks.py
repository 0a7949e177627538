"""Argument checks of the public ops: what was expected, what was found."""

from numbers import Integral, Number, Real
from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def found(value: Any) -> str:
    """What a message says of an argument of the wrong type."""
    if value is None or isinstance(value, str):
        return repr(value)
    if isinstance(value, Number):
        return str(value)  # repr would say np.int64(13)
    type_ = type(value)
    name = type_.__name__ if type_.__module__ == "builtins" else f"{type_.__module__}.{type_.__name__}"
    return f"{name} {list(value.shape)}" if isinstance(getattr(value, "shape", None), tuple) else name


def check_tensor(op: str, name: str, value: Any) -> None:
    """Raises TypeError, which names the op and the argument, for what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: expected a tensor, found {found(value)}")


def check_count(op: str, name: str, value: Any, least: int = 0) -> None:
    """``value`` must be an integer of at least so much."""
    if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{op}: {name}: expected an integer, found {found(value)}")
    if value < least:
        raise ValueError(f"{op}: {name}: expected {least} or more, found {found(value)}")


def check_probability(op: str, name: str, value: Any) -> None:
    """Raises TypeError for what is no number, ValueError for one outside of 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: {name}: expected a number, found {found(value)}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{op}: {name}: expected a probability from 0 to 1, found {found(value)}")


def check_rows(op: str, name: str, tensor: Tensor, rows: int | None, *shape: int) -> None:
    """``tensor`` must be ``[rows, *shape]``; ``rows=None`` allows any number."""
    check_tensor(op, name, tensor)
    wrong_rows = rows is not None and tensor.shape[:1] != (rows,)
    if tensor.dim() != 1 + len(shape) or tuple(tensor.shape[1:]) != shape or wrong_rows:
        expected = ", ".join(str(n) for n in ("rows" if rows is None else rows, *shape))
        raise ValueError(f"{op}: {name}: expected [{expected}], found {list(tensor.shape)}")


def check_same(op: str, half: bool = False, /, **tensors: Tensor | None) -> None:
    """All tensors must have one dtype, float32 or float64 (or, if ``half``, bfloat16 or float16),
    on one device."""
    first_name, first = _first(op, tensors)
    check_tensor(op, first_name, first)
    allowed = [torch.float32, torch.float64, *(HALF if half else ())]
    if first.dtype not in allowed:
        names = [str(dtype).removeprefix("torch.") for dtype in allowed]
        expected = ", ".join(names[:-1]) + f" or {names[-1]}"
        raise ValueError(f"{op}: {first_name}: expected {expected}, found {first.dtype}")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_tensor(op, name, tensor)
        if tensor.dtype != first.dtype:
            raise ValueError(f"{op}: {name}: expected {first.dtype} as {first_name}, found {tensor.dtype}")
    check_device(op, **tensors)


def check_device(op: str, **tensors: Tensor | None) -> None:
    """All tensors must be on one device."""
    first_name, first = _first(op, tensors)
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"{op}: {name}: expected device {first.device} as {first_name}, found {tensor.device}")


def _first(op: str, tensors: dict[str, Tensor | None]) -> tuple[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor is not None:
            return name, tensor
    raise ValueError(f"{op}: expected at least one of {', '.join(tensors)}, found none")
