"""What was found out about a tensor, as long as nothing has changed in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hamfast.ops.transforms import is_transformed

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """A function of a tensor, computed once for the layers of a model that share the tensor.

    Results are kept by the tensor's identity and version, and go when the tensor does.
    """

    def __init__(self, function: Callable[..., Result]):
        self.function = function
        self.latest: dict[tuple[int, Hashable], tuple[weakref.ref, int, Result]] = {}

    def __call__(self, tensor: Tensor, *settings: Hashable) -> Result:
        """``function(tensor, *settings)``."""
        if tensor.is_inference():  # it has no version
            return self.function(tensor, *settings)
        key = (id(tensor), settings)
        if key in self.latest:
            owner, version, result = self.latest[key]
            if owner() is tensor and version == tensor._version:
                return result
        result = self.function(tensor, *settings)
        owner = weakref.ref(tensor, lambda _: self.latest.pop(key, None))
        self.latest[key] = (owner, tensor._version, result)
        return result


def may_look(looked_at: Tensor, *others: Tensor) -> bool:
    """May a choice depend on the numbers of a tensor?

    Not while torch traces, transforms or records. A gradient holds for other numbers, too: whoever
    looks at a tensor that has one must see to that.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if type(looked_at) is not Tensor or _get_current_dispatch_mode() is not None:
        return False
    if torch.is_autocast_enabled(looked_at.device.type) or is_transformed((looked_at, *others)):
        return False
    # What is looked at has to be waited for, which a CUDA graph cannot.
    device = looked_at.device.type
    return device == "cpu" or (device == "cuda" and not torch.cuda.is_current_stream_capturing())
