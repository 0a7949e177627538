"""A constant sparse matrix times rows, in Triton: see kernels/sparse_map.cuh."""

import triton
import triton.language as tl


@triton.jit
def sparse_map(
    x,
    ptr,
    column,
    value,
    out,
    rows,
    dim_in,
    dim_out,
    most,
    REAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program makes ROWS x COLUMNS elements. most: entries of the fullest row of the matrix."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    i = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    begin = tl.load(ptr + i, mask=i < dim_out, other=0)
    end = tl.load(ptr + i + 1, mask=i < dim_out, other=0)
    total = tl.zeros((ROWS, COLUMNS), dtype=REAL)
    for n in range(0, most):
        inside = begin + n < end
        at = tl.load(column + begin + n, mask=inside, other=0)
        factor = tl.load(value + begin + n, mask=inside, other=0.0)
        total += tl.where(inside, factor * tl.load(x + row * dim_in + at, mask=(row < rows) & inside, other=0.0), 0.0)
    tl.store(out + row * dim_out + i, total, mask=(row < rows) & (i < dim_out))
