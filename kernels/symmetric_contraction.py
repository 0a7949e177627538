"""Symmetric contractions, in Triton: see kernels/symmetric_contraction.cuh for the formula.

Each result is a sum of products, and a table says of which: an entry is a term, the component of
the result that it belongs to, and the factors that it is multiplied by, rows of x. In place of a
factor that an entry lacks there is -1. Channels are next to each other in all tensors.
"""

from typing import NamedTuple

import triton
import triton.language as tl

HEAD = tl.constexpr(2)
"""Columns of an entry before its factors."""


class Operands(NamedTuple):
    """What all kernels read."""

    x: object
    """``[nodes, dim_x, channels]``; with a direction its components follow those of x."""
    y: object
    """``[nodes, species]``."""
    coefficients: object
    """``[species, terms, channels]``."""
    g: object
    """``[nodes, dim_g, channels]``, or None."""


class Table(NamedTuple):
    """Entries, one row of the result after the other."""

    ptr: object
    """``[rows + 1]``."""
    entries: object
    """``[entries, 2 + degree]``."""
    times: object
    """``[entries]``: what an entry counts."""


class Sizes(NamedTuple):
    """Of the tensors."""

    nodes: object
    species: object
    channels: object
    dim_x: object
    dim_g: object
    terms: object


@triton.jit
def product(operands, table, sizes, e, node, c, mask, DEGREE: tl.constexpr, HAS_G: tl.constexpr, REAL: tl.constexpr):
    """``[CHANNELS]``: an entry without its coefficient."""
    at = table.entries + e * (HEAD + DEGREE)
    value = tl.load(table.times + e).to(REAL) + tl.zeros(c.shape, dtype=REAL)
    if HAS_G:
        row = node * sizes.dim_g + tl.load(at + 1)
        value *= tl.load(operands.g + row * sizes.channels + c, mask=mask, other=0.0).to(REAL)
    for n in tl.static_range(DEGREE):
        j = tl.load(at + HEAD + n) + tl.zeros_like(c)
        row = node * sizes.dim_x + j
        value *= tl.load(operands.x + row * sizes.channels + c, mask=mask & (j >= 0), other=1.0).to(REAL)
    return value


@triton.jit
def weighted(
    operands, table, sizes, e, s, node, c, mask, DEGREE: tl.constexpr, HAS_G: tl.constexpr, REAL: tl.constexpr
):
    """``[CHANNELS]``: an entry with its coefficient of a species."""
    term = s * sizes.terms + tl.load(table.entries + e * (HEAD + DEGREE))
    coefficient = tl.load(operands.coefficients + term * sizes.channels + c, mask=mask, other=0.0).to(REAL)
    return coefficient * product(operands, table, sizes, e, node, c, mask, DEGREE, HAS_G, REAL)


@triton.jit
def contraction_rows(
    operands, table, sizes, out, rows, DEGREE: tl.constexpr, HAS_G: tl.constexpr, REAL: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """``out[node, row, channel]``: the sum of a row's entries. A program makes CHANNELS of them."""
    node, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    mask = c < sizes.channels
    begin, end = tl.load(table.ptr + row), tl.load(table.ptr + row + 1)
    total = tl.zeros((CHANNELS,), dtype=REAL)
    for s in range(sizes.species):
        share = tl.load(operands.y + node * sizes.species + s).to(REAL)
        if share != 0.0:  # a node has one species as a rule
            part = tl.zeros((CHANNELS,), dtype=REAL)
            for e in range(begin, end):
                part += weighted(operands, table, sizes, e, s, node, c, mask, DEGREE, HAS_G, REAL)
            total += share * part
    tl.store(out + (node * rows + row) * sizes.channels + c, total, mask=mask)


@triton.jit
def contraction_species(
    operands, table, sizes, out, entries, DEGREE: tl.constexpr, REAL: tl.constexpr, CHANNELS: tl.constexpr
):
    """``out[node, species]``: the sum of all entries and channels, times g."""
    node, s = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    total = tl.zeros((CHANNELS,), dtype=REAL)
    for first in range(0, sizes.channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS).to(tl.int64)
        mask = c < sizes.channels
        for e in range(0, entries):
            total += weighted(operands, table, sizes, e, s, node, c, mask, DEGREE, True, REAL)
    tl.store(out + node * sizes.species + s, tl.sum(total, axis=0))


@triton.jit
def contraction_coefficients(
    operands, table, sizes, out, DEGREE: tl.constexpr, REAL: tl.constexpr, CHANNELS: tl.constexpr
):
    """``out[species, term, channel]``: the sum over nodes, where the table's rows are terms."""
    s, term = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    mask = c < sizes.channels
    begin, end = tl.load(table.ptr + term), tl.load(table.ptr + term + 1)
    total = tl.zeros((CHANNELS,), dtype=REAL)
    for n in range(sizes.nodes):
        node = s * 0 + n  # in 64 bits
        share = tl.load(operands.y + node * sizes.species + s).to(REAL)
        if share != 0.0:
            for e in range(begin, end):
                total += share * product(operands, table, sizes, e, node, c, mask, DEGREE, True, REAL)
    tl.store(out + (s * sizes.terms + term) * sizes.channels + c, total, mask=mask)
