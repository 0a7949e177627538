"""What does not run fast says so, once and by name; under ``strict`` it is an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from hamfast import environment


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


def slow_path(op: str, device: str, reason: str) -> None:
    """Reports that a product runs on the general kernel, because the faster ones cannot run."""
    if torch.compiler.is_compiling():
        return
    sentence = f"hamfast: {op} on {device} runs on the general kernel, which is right but slow: {reason}"
    if _strict:
        raise RuntimeError(sentence + "; strict mode forbids it")
    _warn_once(sentence)


def lower_backend(op: str, backend: str, reason: str, cause: Exception | None = None) -> None:
    """Reports that an op on a GPU runs on a backend lower on the ladder of
    ``hamfast.ops.backend``."""
    sentence = f"hamfast: {op} on a GPU runs on the {backend} backend, on copies of its tensors, which is right but slow: {reason}"
    if _strict:
        raise RuntimeError(sentence + "; strict mode forbids it") from cause
    _warn_once(sentence)


@cache
def _warn_once(sentence: str) -> None:
    warnings.warn(sentence, SlowPathWarning, stacklevel=4)
