"""What the ops of torch.library have in common under ``torch.func``, forward mode and vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed(tensors: Iterable[Tensor | None]) -> bool:
    """Is torch.func, or forward mode, at work? Ops of torch.library know neither."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def by_sample(op: Callable[..., Any]) -> Callable[..., Any]:
    """vmap as one call per sample: a batch of graphs is one graph, so nothing is gained by more."""

    def rule(info, in_dims, *args):
        each = []
        for n in range(info.batch_size):
            sample = [a if d is None else a.select(d, n) for a, d in zip(args, in_dims, strict=True)]
            each.append(op(*sample))
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        return [torch.stack(parts) for parts in zip(*each, strict=True)], [0] * len(each[0])

    return rule
