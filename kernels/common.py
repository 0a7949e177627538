"""What the Triton kernels share: components as tuples of tiles, rows behind an index,
activations."""

import triton
import triton.language as tl


@triton.jit
def zero_tiles(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr):
    """COUNT tiles ``[ROWS, COLUMNS]`` of zeros: sums that stay in registers."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros((ROWS, COLUMNS), dtype=REAL),)
    return tiles


@triton.jit
def load_tiles(data, at, step, COUNT: tl.constexpr, mask, REAL: tl.constexpr):
    """The elements ``at + i step`` for i < COUNT, a tile each; 0 where masked."""
    tiles = ()
    for i in tl.static_range(COUNT):
        tiles = tiles + (tl.load(data + at + i * step, mask=mask, other=0.0).to(REAL),)
    return tiles


@triton.jit
def add_to(tiles, COUNT: tl.constexpr, more):
    """The sums of two tuples' tiles."""
    sums = ()
    for i in tl.static_range(COUNT):
        sums = sums + (tiles[i] + more[i],)
    return sums


@triton.jit
def look_up(index, at, mask):
    """``index[at]``; without an index, ``at`` itself."""
    found = at
    if index is not None:
        found = tl.load(index + at, mask=mask, other=0)
    return found


@triton.jit
def edge_tile(order, first, end, EDGES: tl.constexpr):
    """``[EDGES, 1]``: the edges at ``first`` and after it in an order (None: as they are numbered),
    and which of them come before ``end``."""
    position = first + tl.arange(0, EDGES)[:, None].to(tl.int64)
    mask = position < end
    return look_up(order, position, mask), mask


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu_slope(x):
    y = sigmoid(x)
    return y * (1.0 + x * (1.0 - y))


@triton.jit
def silu_curvature(x):
    y = sigmoid(x)
    return y * (1.0 - y) * (2.0 + x * (1.0 - 2.0 * y))
