"""What the Triton kernels share: rows of components as tuples of tiles, and where a program's edges are."""

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
def add_to(tiles, COUNT: tl.constexpr, PLACE: tl.constexpr, more):
    """``tiles`` with COUNT of them, from PLACE on, increased by ``more``."""
    for i in tl.static_range(COUNT):
        tiles = tiles[: PLACE + i] + (tiles[PLACE + i] + more[i],) + tiles[PLACE + i + 1 :]
    return tiles


@triton.jit
def edges_of_slots(order, slot, mask):
    """Which edges the places of a list hold; without a list, the places themselves."""
    edge = slot
    if order is not None:
        edge = tl.load(order + slot, mask=mask, other=0)
    return edge


@triton.jit
def row_of(index, edge, mask):
    """Which row of a tensor an edge reads."""
    row = edge
    if index is not None:
        row = tl.load(index + edge, mask=mask, other=0)
    return row
