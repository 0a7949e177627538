"""``hamfast::symmetric_contraction`` on tensors, where there is no kernel of CUDA: by torch's own
operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hamfast.ops.contraction_formula import contraction_derivatives
from hamfast.records.ops import SYMMETRIC_CONTRACTION


def symmetric_contraction(*flat: Any) -> tuple[Tensor, ...]:
    """The op, with its arguments as its record has them."""
    return contraction_derivatives(SYMMETRIC_CONTRACTION.read(flat))
