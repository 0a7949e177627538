"""Numbers that are made once and kept: real ones, whatever torch is doing when they are first needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def real_tensors() -> Iterator[None]:
    """Tensors made inside are real ones, also while a tracer runs on fake ones, or ``torch.func`` on wrapped ones."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), temporarily_clear_interpreter_stack():
        yield
