"""Argument checks of the public ops: what was expected, what was found."""

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def check_rows(op: str, name: str, tensor: Tensor, rows: int | None, *shape: int) -> None:
    """``tensor`` must be ``[rows, *shape]``; ``rows=None`` allows any number."""
    wrong_rows = rows is not None and tensor.shape[0] != rows
    if tensor.dim() != 1 + len(shape) or tuple(tensor.shape[1:]) != shape or wrong_rows:
        expected = ", ".join(str(n) for n in ("rows" if rows is None else rows, *shape))
        raise ValueError(f"{op}: {name}: expected [{expected}], found {list(tensor.shape)}")


def check_same(op: str, half: bool = False, /, **tensors: Tensor | None) -> None:
    """All tensors must have one dtype, float32 or float64 (or, if ``half``, bfloat16 or float16), on one device."""
    first_name, first = _first(tensors)
    allowed = [torch.float32, torch.float64, *(HALF if half else ())]
    if first.dtype not in allowed:
        names = [str(dtype).removeprefix("torch.") for dtype in allowed]
        expected = ", ".join(names[:-1]) + f" or {names[-1]}"
        raise ValueError(f"{op}: {first_name}: expected {expected}, found {first.dtype}")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype != first.dtype:
            raise ValueError(f"{op}: {name}: expected {first.dtype} as {first_name}, found {tensor.dtype}")
    check_device(op, **tensors)


def check_device(op: str, **tensors: Tensor | None) -> None:
    """All tensors must be on one device."""
    first_name, first = _first(tensors)
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"{op}: {name}: expected device {first.device} as {first_name}, found {tensor.device}")


def _first(tensors: dict[str, Tensor | None]) -> tuple[str, Tensor]:
    return next((name, tensor) for name, tensor in tensors.items() if tensor is not None)
