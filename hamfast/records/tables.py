"""Rows of the integer tables that kernels read: the columns by name, each an int64.

A row of such a class is a row of the table.
The C++ structs of ``kernels/records.cuh`` have the same fields, with the docstrings as comments.
"""

from __future__ import annotations

from typing import NamedTuple


class Path(NamedTuple):
    """A path of the general kernel."""

    pairing: int
    """A number of Pairing."""
    mixing: int
    """1 if all pairs meet every output channel, 0 if each goes to one."""
    n1: int
    n2: int
    n3: int
    """Multiplicities."""
    d1: int
    d2: int
    d3: int
    """2 l + 1."""
    offset1: int
    offset2: int
    offset3: int
    """First element in the rows of x, y and g."""
    weight_offset: int
    """First element in the row of w; -1 without a weight."""
    out_u: int
    out_v: int
    """Without mixing the pair (u, v) goes to output channel out_u u + out_v v."""
    cg_begin: int
    cg_end: int
    """Entries of the coupling list."""


class ChannelTask(NamedTuple):
    """n channels of one irreps block of x times one channel of y: a task of the channel-wise
    kernels.
    """

    n: int
    """Channels."""
    d1: int
    d2: int
    d3: int
    """2 l + 1."""
    x_at: int
    x_stride: int
    """First element in x's padded blocks, and elements from component to component."""
    y_offset: int
    """In y's row."""
    g_at: int
    g_stride: int
    """In g's padded blocks."""
    w_offset: int
    w_stride: int
    """First element in w's row (-1 without a weight), and elements from channel to channel."""
    coupling_at: int
    coupling_size: int
    """First element, and the padded length of a row, of the couplings ``C[j][k * d1 + i]``."""
    entries_begin: int
    entries_end: int
    """C's entries that are not 0."""
    diagonal: int
    """1 if the matrix is a multiple of the unit matrix, because y is a scalar."""
    x_block: int
    """Row of the table of x's blocks."""
    g_block: int
    """Row of the table of g's blocks."""
    g_first: int
    """First channel there."""


class ChannelBlock(NamedTuple):
    """An irreps block of x or g: channels [mul] of d components."""

    mul: int
    d: int
    """Channels, and components of each."""
    offset: int
    """First element in a row of the tensor."""
    at: int
    stride: int
    """First element in the padded blocks, and elements from component to component."""


class CouplingEntry(NamedTuple):
    """A Clebsch-Gordan coefficient of a task that is not 0."""

    i: int
    j: int
    k: int
    """Components of x, y and g."""
    p: int
    """Element k d1 + i of the task's matrix."""
    at: int
    """In the task's couplings, from coupling_at on."""


class ProductDims(NamedTuple):
    """The sizes of a plan."""

    x: int
    y: int
    w: int
    g: int
    """Row lengths."""
    scratch: int
    """Elements of scratch memory that a row of the general kernel needs."""
    x_padded: int
    g_padded: int
    """Elements of a row's padded blocks."""
    max_coupling: int
    """Longest coupling_size of a task."""
    covers_weights: int
    """1 if every weight belongs to a task."""
    key: int
    """Tells this plan's channel-wise tables from those of others."""


class RowTask(NamedTuple):
    """The pairs of one channel v of y on a path, times that path's weights: a task of
    ``row_matmul``.

    ``C[m, w] += sum over u < n of A[m, a_first + u] B[b_offset + u b_stride + w]``, for m < d and
    w < c_columns.
    """

    d: int
    """Components."""
    n: int
    """Pairs."""
    a_block: int
    """Elements of a row of A in the blocks before this one."""
    a_columns: int
    a_first: int
    """Columns of the block of A, and the first of them."""
    b_offset: int
    b_stride: int
    """In B's row: first element, and elements from one pair to the next."""
    c_block: int
    c_columns: int
    """The block of C, as that of A; the task has all its columns."""
    begins: int
    """1 if the task is the first one of its block of C."""


class RowDims(NamedTuple):
    """Elements of a row of A, B and C in ``row_matmul``."""

    a: int
    b: int
    c: int
    covers_weights: int
    """1 if every element of B belongs to a task."""


class LinearTask(NamedTuple):
    """One matrix of ``irreps_linear``: from the channels of a block of A to those of a block of C.

    ``C[r, w, m] += sum over u < k of A[r, u, m] B[b_offset + s b_step + u b_stride + w]``, for
    m < d and w < n, with s the row's species. Tasks of one block of C follow each other.
    """

    d: int
    """Components, 2 l + 1."""
    k: int
    n: int
    """Channels of both blocks."""
    a_offset: int
    c_offset: int
    """Where the blocks begin in a row of A and of C."""
    b_offset: int
    b_stride: int
    b_step: int
    """In B: the first element, from one row of the matrix to the next, from one species to the
    next."""


class LinearDims(NamedTuple):
    """Elements of a row of A and of C, and of all of B, in ``irreps_linear``."""

    a: int
    b: int
    c: int
    covers_a: int
    covers_c: int
    """1 if every element of a row belongs to a task."""


class ChannelVariant(NamedTuple):
    """What the channel-wise CUDA kernel of a plan is compiled for; sets of x, y, w, g are bits."""

    forward: int
    """1 for dF/dg, 0 for those of dF/dx, dF/dy, dF/dw that are wanted."""
    operands: int
    tangents: int
    wanted: int
    """Which of them there are, and which derivatives are made."""
    storage: int
    """A number of Storage."""
    x_layout: int
    g_layout: int
    """Numbers of Layout."""
    shared_weights: int
    """1 if all edges share one row of weights."""
    hidden: int
    """Length of the row that the kernel makes an edge's weights from; 0 if it reads them."""
    passes: int
    """Of the tensor cores, as kernels/tensor_core.cuh has them."""


class FrameBlock(NamedTuple):
    """An irreps block of an edge frame's operand; for each m = 0 ... l_max a FrameColumns follows
    in the row.
    """

    mul: int
    l: int
    """Channels, and degree."""
    natural: int
    """1 if its parity is that of the spherical harmonics."""
    offset: int
    """In a row of the operand."""


class FrameColumns(NamedTuple):
    """Where the components (+m, -m) of a FrameBlock lie in the frame tensor."""

    start: int
    """First element of the matrix of this m, in units of as many elements as
    there are edges; -1 if this m is not stored."""
    stride: int
    """Elements per edge, which are width or twice as many."""
    width: int
    """Of a row of the matrix."""
    column: int
    """Of the first channel of the irreps block."""


class MatrixTerm(NamedTuple):
    """Adds factor weight[u, w] scale[w] to matrix[u * stride + w]."""

    weight: int
    scale: int
    matrix: int
    """Offsets."""
    stride: int
    """From row to row of the matrix."""
    rows: int
    columns: int
    """Of u, and of w."""


class Product(NamedTuple):
    """A monomial of a symmetric contraction that is the product of two others. Monomial 0 is 1, the
    next are the components of x, then come these, in order.
    """

    parent: int
    factor: int
    """Monomials; the factor is a component of x."""


class ContractionGroup(NamedTuple):
    """Terms of one component of the result that share all factors but one."""

    prefix: int
    """The monomial of the factors that they share."""
    component: int
    """Of the result."""
    first: int
    terms: int
    """Where its terms begin, and how many they are."""


class ContractionEntry(NamedTuple):
    """A number other than 0 of the matrix from paths' weights to terms' coefficients, or of its
    transpose.
    """

    source: int
    target: int
    """Path and term, or term and path."""


class ContractionBlock(NamedTuple):
    """A block of the result: d components of each channel."""

    d: int
    first: int
    """Components, and those of the blocks before it."""


class ContractionDims(NamedTuple):
    """The sizes of a symmetric contraction's plan."""

    x: int
    g: int
    """Components per channel."""
    paths: int
    """Weights per channel."""
    key: int
    """Tells this plan's tables from those of others."""


TABLES = (
    Path,
    ChannelTask,
    ChannelBlock,
    CouplingEntry,
    ProductDims,
    LinearTask,
    LinearDims,
    RowTask,
    RowDims,
    ChannelVariant,
    FrameBlock,
    FrameColumns,
    MatrixTerm,
    Product,
    ContractionGroup,
    ContractionEntry,
    ContractionBlock,
    ContractionDims,
)
"""All of them, in the order of the C++ header."""
