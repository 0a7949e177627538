"""What the ops of torch.library have in common: derivatives, and how they meet ``torch.func``,
forward mode and vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hamfast.records.ops import RECORDS


def differentiable(
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    jvp: Callable[[list[Any], tuple[Any, ...]], Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    multilinear: bool = False,
) -> Callable[..., Any]:
    """Registers the derivative of ``hamfast::name``, and returns the op as Python calls it.

    What torch.library makes of the two functions takes 60 to 200 microseconds a call in eager mode,
    more than a small kernel, and knows neither forward mode nor ``torch.func``. There they run in a
    plain ``autograd.Function``; graphs (compile, export, tracing) see the op.

    Args:
        jvp: ``(inputs, tangents) -> tangents of the outputs``. With it the op works in forward mode
            and under ``torch.func``, without it whoever calls it takes care of that
            (:func:`is_transformed`).
        vmap: the rule of :func:`torch.library.register_vmap`; by default a call per sample.
        multilinear: the op is linear in each operand that its record calls differentiable, from
            which jvp follows.
    """
    op = getattr(torch.ops.hamfast, name).default
    torch.library.register_autograd(f"hamfast::{name}", backward, setup_context=setup_context)

    def note(ctx, inputs, output):
        setup_context(ctx, inputs, output)
        if jvp is not None:
            ctx.save_for_forward(*(t for t in inputs if isinstance(t, Tensor)))
            ctx.fixed = [None if isinstance(t, Tensor) else (t,) for t in inputs]

    def run_and_note(ctx, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        note(ctx, inputs, output)
        return output

    def forward_mode(ctx, *tangents):
        tensors = iter(ctx.saved_tensors)
        assert jvp is not None
        return jvp([next(tensors) if fixed is None else fixed[0] for fixed in ctx.fixed], tangents)

    def of_linear(inputs, tangents):
        """The sum of calls, each with a tangent in place of its operand."""
        terms = [
            call(*inputs[:n], tangents[n], *inputs[n + 1 :])
            for n in RECORDS[name].differentiable
            if tangents[n] is not None
        ]
        return sum(terms[1:], terms[0])

    if multilinear:
        jvp = of_linear
    methods = {"backward": backward} | ({"jvp": forward_mode} if jvp is not None else {})

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
    transformed = _function(name, forward=op, setup_context=note, vmap=rule, **methods)
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
    """Gradients of ``sum <output, tangent>`` over the pairs, in those of the tensors that are
    wanted; None for the others."""
    found: list[Tensor | None] = [None] * len(tensors)
    if pairs and wanted:
        outputs, tangents = zip(*pairs, strict=True)
        targets = [tensors[n] for n in wanted]
        results = torch.autograd.grad(outputs, targets, tangents, allow_unused=True, create_graph=create_graph)
        for n, result in zip(wanted, results, strict=True):
            found[n] = result
    return found


def second_derivative(
    function: Callable[[list[Any]], Sequence[Tensor]],
    operands: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    tangents: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of ``sum_n <d/d operand_n of sum_k <result_k, gradient_k>, tangent_n>``, by torch's
    derivatives of ``function``.

    Args:
        function: from the operands to the results, of operations that torch can differentiate often
            enough.
        gradients: one for each result or None.
        tangents: one for each operand or None.
        needed: whether that in each of the gradients, then each of the operands is.

    Returns:
        Those in the gradients, then in the operands; None where not needed, or where nothing
        depends on it.
    """
    tensors: list[Any] = [*gradients, *operands]
    count = len(gradients)
    along = [count + n for n, tangent in enumerate(tangents) if tangent is not None]
    wanted = [n for n, t in enumerate(tensors) if needed[n] and t is not None]
    nothing: list[Tensor | None] = [None] * len(tensors)
    if not along or not wanted or all(g is None for g in gradients):
        return nothing
    free = sorted({*along, *wanted})

    def with_values(positions, values, all_of):
        given = dict(zip(positions, values, strict=True))
        return [given.get(n, t) for n, t in enumerate(all_of)]

    def results(given):
        """Those that have a gradient."""
        made = function(given[count:])
        return tuple(r for r, g in zip(made, gradients, strict=True) if g is not None)

    def gradients_like(made, given):
        present = [g for g in given[:count] if g is not None]
        return tuple(g.to(r.dtype) for r, g in zip(made, present, strict=True))

    def tangents_like(found):
        given: list[Any] = [tangents[n - count] for n in along]
        return tuple(d if f is None else d.reshape(f.shape).to(f.dtype) for d, f in zip(given, found, strict=True))

    if under_torch_func():  # where no tensor may be made to require a gradient
        vjp: Any = torch.func.vjp

        def first(*values):
            given = with_values(free, values, tensors)
            made, pull = vjp(lambda *at: results(with_values(along, at, given)), *(given[n] for n in along))
            return pull(gradients_like(made, given))

        found, pull = vjp(first, *(tensors[n] for n in free))
        second = dict(zip(free, pull(tangents_like(found)), strict=True))
        return [second[n] if n in wanted else None for n in range(len(tensors))]

    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: derivatives in one operand must not run on into another, or into what it was made
        # from.
        aliases = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (tensors[n] for n in free)]
        given = with_values(free, aliases, tensors)
        made = results(given)
        used = [(r, g) for r, g in zip(made, gradients_like(made, given), strict=True) if r.requires_grad]
        found = gradients_along(used, given, along, create_graph=True)
        found = [found[n] for n in along]
        pairs = [(f, d) for f, d in zip(found, tangents_like(found), strict=True) if f is not None and f.requires_grad]
        return gradients_along(pairs, given, wanted, keep)


def gradients_of_three(
    op: Callable[..., Tensor],
    others: Mapping[Any, tuple[Any, Any]],
    made: Any,
    given: Sequence[Tensor],
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of an op that makes one of three tensors from the two others.

    The op is what a number that is linear in all three has as its derivative. So each gradient is
    the op again: it makes the operand, and ``grad`` takes the place of what came out.

    Args:
        op: called with the two others and the name of what is made.
        others: the name of each of the three -> the names of what it is made of, in the op's order.
        made: what came out.
        given: the operands, in the order of ``others[made]``.
        needed: which gradients are wanted.
    """
    names = others[made]
    known = {names[0]: given[0], names[1]: given[1], made: grad}
    return [
        op(*(known[other] for other in others[name]), name) if wanted else None
        for name, wanted in zip(names, needed[:2], strict=True)
    ]


def by_sample(op: Callable[..., Any]) -> Callable[..., Any]:
    """vmap as one call per sample: a batch of graphs is one graph, so nothing is gained by more."""

    def rule(info, in_dims, *args):
        each = []
        for n in range(info.batch_size):
            sample = [a.select(d, n) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]
            each.append(op(*sample))
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        results = type(each[0])
        return results(torch.stack(samples) for samples in zip(*each, strict=True)), results([0] * len(each[0]))

    return rule
