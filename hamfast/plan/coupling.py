"""Coupling coefficients as numpy arrays, from e3nn's tables."""

from functools import cache

import numpy as np
from e3nn import o3

from hamfast.constants import real_tensors


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> np.ndarray:
    """e3nn's real Wigner 3j symbol as float64, ``[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]``.

    The sum of its squares is 1. The array cannot be written to.
    """
    import torch  # only to name the dtype in which e3nn computes

    with real_tensors():
        table = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy().copy()
    # e3nn's change of basis leaves entries of 1e-17 where the exact value is 0.
    table[np.abs(table) < 1e-14] = 0.0
    table.setflags(write=False)
    return table
