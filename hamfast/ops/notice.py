"""What does not run fast says so, once and by name; under ``strict`` it is an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from hamfast import environment
from hamfast.plan import Plan
from hamfast.plan.channel import is_channel_wise, is_mixing, live_paths
from hamfast.plan.plan import format_irreps


class SlowPathWarning(UserWarning):
    """A product runs on the general kernel: right, but not one of the fast ones."""


_strict = environment.switch("HAMFAST_STRICT")


@contextmanager
def strict(enabled: bool = True) -> Iterator[None]:
    """Inside, a slow path raises ``RuntimeError`` in place of a warning. ``HAMFAST_STRICT=1`` does
    so everywhere."""
    global _strict
    before, _strict = _strict, enabled
    try:
        yield
    finally:
        _strict = before


def slow_path(op: str, plan: Plan, device: str, reason: str = "") -> None:
    """Reports the paths of a plan that only the general kernel knows; or the reason why all of it
    runs there."""
    if torch.compiler.is_compiling():
        return
    if _strict:
        raise RuntimeError(_sentence(op, plan, device, reason) + "; strict mode forbids it")
    _warn_once(op, plan, device, reason)


def lower_backend(op: str, backend: str, reason: str, cause: Exception | None = None) -> None:
    """Reports that an op on a GPU runs on a backend lower on the ladder of
    ``hamfast.ops.backend``."""
    sentence = f"hamfast: {op} on a GPU runs on the {backend} backend, on copies of its tensors, which is right but slow: {reason}"
    if _strict:
        raise RuntimeError(sentence + "; strict mode forbids it") from cause
    _warn_of_backend(sentence)


@cache
def _warn_of_backend(sentence: str) -> None:
    warnings.warn(sentence, SlowPathWarning, stacklevel=4)


@cache
def _warn_once(op: str, plan: Plan, device: str, reason: str) -> None:
    warnings.warn(_sentence(op, plan, device, reason), SlowPathWarning, stacklevel=5)


def _sentence(op, plan, device, reason):
    if reason:
        return f"hamfast: {op} on {device} runs on the general kernel, which is right but slow: {reason}"
    slow = []
    for ins in live_paths(plan):
        if not is_channel_wise(plan, ins):
            blocks = (plan.irreps_in1[ins.i_in1], plan.irreps_in2[ins.i_in2], plan.irreps_out[ins.i_out])
            reason = "weights per row" if is_mixing(plan, ins) else f"mode {ins.mode}"
            slow.append("{} x {} -> {}".format(*(format_irreps((b,)) for b in blocks)) + f" ({reason})")
    shown = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
    return f"hamfast: {op} runs {len(slow)} of {len(plan.instructions)} paths on the general kernel: {shown}"
