"""What the ops of torch.library have in common: derivatives, and how they meet ``torch.func``, forward mode and vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def differentiable(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> Callable[..., Any]:
    """Registers the derivative of ``hamfast::name``, and returns the op as Python calls it.

    What torch.library makes of the two functions takes 60 to 200 microseconds a call in eager mode, more than a small kernel. There they
    run in a plain ``autograd.Function``; graphs (compile, export, tracing) and ``torch.func`` see the op itself.
    """
    op = getattr(torch.ops.hamfast, name).default
    torch.library.register_autograd(f"hamfast::{name}", backward, setup_context=setup_context)
    is_list = isinstance(op._schema.returns[0].type, torch.ListType)

    def forward(ctx, *inputs):
        output = op(*inputs)
        setup_context(ctx, inputs, output)
        return tuple(output) if is_list else output

    def eager_backward(ctx, *gradients):
        return backward(ctx, gradients) if is_list else backward(ctx, *gradients)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(eager_backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return op(*inputs)
        if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None:
            return op(*inputs)
        return function.apply(*inputs)

    return call


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
