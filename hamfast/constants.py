"""Tensors that are made once and kept, and what is in them.

They are real ones, whatever torch is doing when they are first needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary


@contextmanager
def real_tensors() -> Iterator[None]:
    """Tensors made inside are real ones, also while a tracer runs on fake ones, or ``torch.func``
    on wrapped ones.

    They are not of inference mode either: those cannot be saved for a backward pass, and what is
    kept may be needed in training.
    """
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with _disable_current_modes(), temporarily_clear_interpreter_stack(), outside_inference_mode():
        yield


def outside_inference_mode():
    """A context whose tensors can be saved for a backward pass."""
    if is_traced() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(False)


def is_traced() -> bool:
    """Is a graph of operations being made, so that tensors may have no values yet?

    That is so under ``torch.compile`` and ``torch.export``, and while torch.fx traces symbolically.
    """
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def constant(array: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A table as a tensor of its own memory.

    Its strides are torch's. Numpy gives a table without rows strides of 0, over which
    ``torch.export.save`` stumbles.
    """
    given = torch.as_tensor(array)
    return torch.empty(given.shape, dtype=dtype or given.dtype, device=device).copy_(given)


_ON_HOST: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def on_host(table: Tensor) -> np.ndarray:
    """A table's entries; read back from the device once, for as long as the table lives."""
    if table not in _ON_HOST:
        _ON_HOST[table] = table.cpu().numpy()
    return _ON_HOST[table]
