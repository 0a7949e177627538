"""What the ops of torch.library have in common: derivatives, and how they meet ``torch.func``, forward mode and vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def differentiable(
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    jvp: Callable[[list[Any], tuple[Any, ...]], Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    linear_in: int = 0,
) -> Callable[..., Any]:
    """Registers the derivative of ``hamfast::name``, and returns the op as Python calls it.

    What torch.library makes of the two functions takes 60 to 200 microseconds a call in eager mode, more than a small kernel, and knows
    neither forward mode nor ``torch.func``. There they run in a plain ``autograd.Function``; graphs (compile, export, tracing) see the op.

    Args:
        jvp: ``(inputs, tangents) -> tangents of the outputs``. With it the op works in forward mode and under ``torch.func``, without it
            whoever calls it takes care of that (:func:`is_transformed`).
        vmap: the rule of :func:`torch.library.register_vmap`; by default a call per sample.
        linear_in: the op is linear in each of so many first inputs, from which jvp follows.
    """
    op = getattr(torch.ops.hamfast, name).default
    torch.library.register_autograd(f"hamfast::{name}", backward, setup_context=setup_context)
    is_list = isinstance(op._schema.returns[0].type, torch.ListType)

    def run(*inputs):
        output = op(*inputs)
        return tuple(output) if is_list else output

    def note(ctx, inputs, output):
        setup_context(ctx, inputs, output)
        if jvp is not None:
            ctx.save_for_forward(*(t for t in inputs if isinstance(t, Tensor)))
            ctx.fixed = [None if isinstance(t, Tensor) else (t,) for t in inputs]

    def run_and_note(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            output = run(*inputs)
        note(ctx, inputs, output)
        return output

    def reverse(ctx, *gradients):
        return backward(ctx, gradients) if is_list else backward(ctx, *gradients)

    def forward_mode(ctx, *tangents):
        tensors = iter(ctx.saved_tensors)
        assert jvp is not None
        return jvp([next(tensors) if fixed is None else fixed[0] for fixed in ctx.fixed], tangents)

    def of_linear(inputs, tangents):
        """The sum of calls, each with a tangent in place of its operand."""
        terms = [
            call(*inputs[:n], tangent, *inputs[n + 1 :])
            for n, tangent in enumerate(tangents[:linear_in])
            if tangent is not None
        ]
        return sum(terms[1:], terms[0])

    if linear_in:
        jvp = of_linear
    methods = {"backward": reverse} | ({"jvp": forward_mode} if jvp is not None else {})

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            if _derivative_in_graph():
                raise NotImplementedError(
                    f"hamfast: {name}: torch.func.grad and jvp cannot be compiled: a graph has the op without its forward mode; "
                    "compile what is inside them, or without fullgraph"
                )
            return op(*inputs)
        if torch._C._get_tracing_state() is not None:
            return op(*inputs)
        if under_torch_func():
            return op(*inputs) if jvp is None else transformed.apply(*inputs)
        has_gradients = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)
        if has_gradients or forward_ad._current_level >= 0:
            return eager.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():  # past torch.library's own, which would find nothing to do
            return op(*inputs)

    rule = vmap or by_sample(call)
    torch.library.register_vmap(f"hamfast::{name}", rule)
    # Two, because with setup_context, which torch.func wants, every call inspects its signature.
    eager = _function(name, forward=run_and_note, **methods)
    transformed = _function(name, forward=run, setup_context=note, vmap=rule, **methods)
    return call


def _function(name: str, **methods: Any) -> Any:
    return type(name, (torch.autograd.Function,), {key: staticmethod(f) for key, f in methods.items()})


@torch.compiler.assume_constant_result
def _derivative_in_graph() -> bool:
    """Is torch.func.grad or jvp being compiled? A tangent would be lost there without a word."""
    derivatives = (torch._C._functorch.TransformType.Jvp, torch._C._functorch.TransformType.Grad)
    return any(level.key() in derivatives for level in torch._C._functorch.get_interpreter_stack() or ())


def under_torch_func() -> bool:
    """Is a transformation of ``torch.func`` at work?

    Raises:
        NotImplementedError: forward mode within forward mode.
    """
    stack = torch._C._functorch.get_interpreter_stack()
    if stack is None:
        return False
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
        raise NotImplementedError(
            "hamfast: forward mode within forward mode (jvp of jvp, jacfwd of jacfwd): torch gives wrong numbers for any "
            "autograd.Function there (pytorch#197867); take reverse mode for one of them (jacfwd of jacrev, hessian)"
        )
    return True


def is_transformed(tensors: Iterable[Tensor | None]) -> bool:
    """Is torch.func, or forward mode, at work? Ops of torch.library know neither."""
    if torch.compiler.is_compiling():
        return False
    if under_torch_func():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def gradients_along(
    pairs: Sequence[tuple[Tensor, Tensor]], tensors: Sequence[Any], wanted: Sequence[int], create_graph: bool
) -> list[Tensor | None]:
    """Gradients of ``sum <output, direction>`` over the pairs, in those of the tensors that are wanted; None for the others."""
    found: list[Tensor | None] = [None] * len(tensors)
    if pairs and wanted:
        outputs, directions = zip(*pairs, strict=True)
        targets = [tensors[n] for n in wanted]
        results = torch.autograd.grad(outputs, targets, directions, allow_unused=True, create_graph=create_graph)
        for n, result in zip(wanted, results, strict=True):
            found[n] = result
    return found


def by_sample(op: Callable[..., Any]) -> Callable[..., Any]:
    """vmap as one call per sample: a batch of graphs is one graph, so nothing is gained by more."""

    def rule(info, in_dims, *args):
        each = []
        for n in range(info.batch_size):
            sample = [a.select(d, n) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]
            each.append(op(*sample))
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        kind = type(each[0])
        return kind(torch.stack(parts) for parts in zip(*each, strict=True)), kind([0] * len(each[0]))

    return rule
