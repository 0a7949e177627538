"""``hamfast::sparse_map`` on tensors, for the kernel of kernels/sparse_map.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from hamfast.constants import on_host
from hamfast.kernels.sparse_map import sparse_map as kernel
from hamfast.records.ops import SPARSE_MAP as SPARSE_MAP_OP
from hamfast.triton.configurations import SPARSE_MAP
from hamfast.triton.launch import launch, pieces, real_of


def sparse_map(*flat: Any) -> Tensor:
    """The op, with its arguments as its record has them."""
    arguments = SPARSE_MAP_OP.read(flat)
    x, ptr = arguments.x.contiguous(), arguments.ptr
    rows, dim_out = x.shape[0], ptr.shape[0] - 1
    out = x.new_empty(rows, dim_out)
    tile, columns = SPARSE_MAP.cut(dim_out)
    constants = {"REAL": real_of(x), "ROWS": tile, "COLUMNS": columns}
    most = int(np.diff(on_host(ptr)).max(initial=0))
    given = (x, ptr, arguments.column, arguments.value, out, rows, x.shape[1], dim_out, most)
    launch(kernel, (pieces(rows, tile), pieces(dim_out, columns)), given, constants, out, SPARSE_MAP.num_warps)
    return out
