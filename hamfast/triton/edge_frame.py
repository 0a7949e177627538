"""The edge frame's ops on tensors, for the kernels of kernels/edge_frame.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hamfast.constants import on_host
from hamfast.kernels.edge_frame import Sizes, Work, add_matrix_terms, rotate_from_edges, rotate_into_edges
from hamfast.records.choices import WeightSlot
from hamfast.records.ops import EDGE_FRAME_WEIGHTS, ROTATE_FROM_EDGE, ROTATE_TO_EDGE
from hamfast.records.tables import FrameBlock, FrameColumns, MatrixTerm
from hamfast.triton.configurations import FRAME
from hamfast.triton.launch import contiguous, launch, pieces, real_of


class _Blocks(NamedTuple):
    """The irreps blocks of a table that share a kernel."""

    constants: dict
    work: Tensor
    """``[programs, 2]``: row of the table, first channel."""


_BLOCKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _blocks_of(table: Tensor) -> list[_Blocks]:
    if table not in _BLOCKS:
        found: dict[tuple, list[list[int]]] = {}
        head, step = len(FrameBlock._fields), len(FrameColumns._fields)
        for row, values in enumerate(on_host(table).tolist()):
            block = FrameBlock(*values[:head])
            columns = [FrameColumns(*values[n : n + step]) for n in range(head, len(values), step)]
            stored = tuple(of_m.start >= 0 for of_m in columns[: block.l + 1])
            edges, channels = FRAME.cut(block.mul)
            work = found.setdefault((block.l, bool(block.natural), stored, edges, channels), [])
            work += [[row, piece * channels] for piece in range(pieces(block.mul, channels))]
        names = ("L", "NATURAL", "STORED", "EDGES", "CHANNELS")
        _BLOCKS[table] = [
            _Blocks(dict(zip(names, key, strict=True)), torch.tensor(work, dtype=torch.int64).to(table.device))
            for key, work in found.items()
            if work
        ]
    return _BLOCKS[table]


def rotate_to_edge(*flat: Any) -> Tensor:
    """The op, with its arguments as its record has them."""
    arguments = contiguous(ROTATE_TO_EDGE.read(flat))
    wigner, like = arguments.wigner, arguments.x.x0
    edges = wigner.shape[0]
    frame = (like.new_zeros if arguments.partial else like.new_empty)(edges * arguments.frame_dim)
    for x, table, index in zip(arguments.x, arguments.tables, arguments.index, strict=True):
        if x is None:
            continue
        for constants, items in _blocks_of(table):
            work, sizes = Work(table, items, table.shape[1]), Sizes(edges, x.shape[1], wigner.shape[1])
            constants = constants | {"CHANNELS_FAST": arguments.channels_fast, "REAL": real_of(x)}
            grid = (pieces(edges, constants["EDGES"]), items.shape[0])
            launch(rotate_into_edges, grid, (x, frame, wigner, index, work, sizes), constants, x, FRAME.num_warps)
    return frame


def rotate_from_edge(*flat: Any) -> Tensor:
    """The op, with its arguments as its record has them."""
    arguments = contiguous(ROTATE_FROM_EDGE.read(flat))
    frame, table, wigner, ptr = arguments.frame, arguments.table, arguments.wigner, arguments.ptr
    edges = wigner.shape[0]
    rows = edges if ptr is None else ptr.shape[0] - 1
    x = frame.new_empty(rows, arguments.dim)
    for constants, items in _blocks_of(table):
        work, sizes = Work(table, items, table.shape[1]), Sizes(edges, arguments.dim, wigner.shape[1])
        constants = constants | {"CHANNELS_FAST": arguments.channels_fast, "REAL": real_of(x)}
        grid = (rows if ptr is not None else pieces(edges, constants["EDGES"]), items.shape[0])
        given = (frame, x, wigner, arguments.order, ptr, work, sizes)
        launch(rotate_from_edges, grid, given, constants, x, FRAME.num_warps)
    return x


_TILE = 16, 64
"""Rows and columns of matrices a program adds up."""


def edge_frame_weights(*flat: Any) -> Tensor:
    """The op, with its arguments as its record has them."""
    arguments = contiguous(EDGE_FRAME_WEIGHTS.read(flat))
    operands, terms, slot = arguments.operands, arguments.terms, arguments.slot
    like = operands.matrix if slot == WeightSlot.WEIGHT else operands.weight
    out = like.new_zeros(arguments.numel)
    by_matrix = slot == WeightSlot.MATRIX
    order, ptr = (None, arguments.by_matrix) if by_matrix else (arguments.path_order, arguments.by_path)
    if terms.shape[0] == 0:
        return out
    largest = MatrixTerm(*on_host(terms).max(0).tolist())
    row_tiles = 1 if slot == WeightSlot.SCALE else pieces(largest.rows, _TILE[0])
    grid = (ptr.shape[0] - 1, row_tiles, pieces(largest.columns, _TILE[1]))
    constants = {"SLOT": slot, "REAL": real_of(like), "ROWS": _TILE[0], "COLUMNS": _TILE[1]}
    launch(add_matrix_terms, grid, (*operands, out, terms, arguments.factors, order, ptr), constants, like)
    return out
