"""The edge frame's ops on tensors, for the kernels of kernels/edge_frame.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hamfast.constants import on_host
from hamfast.kernels.edge_frame import add_matrix_terms, rotate_from_edges, rotate_into_edges
from hamfast.triton.configurations import FRAME
from hamfast.triton.launch import launch, pieces, real_of


class _Blocks(NamedTuple):
    """The irreps blocks of a table that share a kernel."""

    constants: dict
    work: Tensor
    """``[programs, 2]``: row of the table, first channel."""


_BLOCKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _blocks_of(table: Tensor) -> list[_Blocks]:
    if table not in _BLOCKS:
        found: dict[tuple, list[list[int]]] = {}
        for number, (mul, l, natural, _, *places) in enumerate(on_host(table).tolist()):
            stored = tuple(places[4 * m] >= 0 for m in range(l + 1))
            edges, channels = FRAME.cut(mul)
            work = found.setdefault((l, bool(natural), stored, edges, channels), [])
            work += [[number, piece * channels] for piece in range(pieces(mul, channels))]
        names = ("L", "NATURAL", "STORED", "EDGES", "CHANNELS")
        _BLOCKS[table] = [
            _Blocks(dict(zip(names, key, strict=True)), torch.tensor(work, dtype=torch.int64).to(table.device))
            for key, work in found.items()
            if work
        ]
    return _BLOCKS[table]


def rotate_to_edge(
    x0, x1, x2, t0, t1, t2, i0, i1, i2, o0, o1, o2, p0, p1, p2, wigner, frame_dim, channels_fast, partial
):
    """``hamfast::rotate_to_edge``: see csrc/library.cpp. Orders and pointers are for the adjoint."""
    wigner = wigner.contiguous()
    edges = wigner.shape[0]
    frame = (x0.new_zeros if partial else x0.new_empty)(edges * frame_dim)
    for x, table, index in ((x0, t0, i0), (x1, t1, i1), (x2, t2, i2)):
        if x is None:
            continue
        x, index = x.contiguous(), None if index is None else index.contiguous()
        for constants, work in _blocks_of(table):
            arguments = (x, frame, wigner, index, table, work, edges, x.shape[1], wigner.shape[1], table.shape[1])
            constants = constants | {"CHANNELS_FAST": channels_fast, "REAL": real_of(x)}
            grid = (pieces(edges, constants["EDGES"]), work.shape[0])
            launch(rotate_into_edges, grid, arguments, constants, x, FRAME.num_warps)
    return frame


def rotate_from_edge(frame, table, index, order, ptr, wigner, dim, channels_fast, partial):
    """``hamfast::rotate_from_edge``: see csrc/library.cpp. The index and ``partial`` are for the adjoint."""
    frame, wigner = frame.contiguous(), wigner.contiguous()
    edges = wigner.shape[0]
    rows = edges if ptr is None else ptr.shape[0] - 1
    x = frame.new_empty(rows, dim)
    for constants, work in _blocks_of(table):
        arguments = (frame, x, wigner, order, ptr, table, work, edges, dim, wigner.shape[1], table.shape[1])
        constants = constants | {"CHANNELS_FAST": channels_fast, "REAL": real_of(x)}
        grid = (rows if ptr is not None else pieces(edges, constants["EDGES"]), work.shape[0])
        launch(rotate_from_edges, grid, arguments, constants, x, FRAME.num_warps)
    return x


_TILE = 16, 64
"""Rows and columns of matrices a program adds up."""


def edge_frame_weights(weight, scale, matrix, terms, factors, by_matrix, by_path, path_order, slot, numel):
    """``hamfast::edge_frame_weights``: see csrc/library.cpp."""
    operands = [None if t is None else t.contiguous() for t in (weight, scale, matrix)]
    like = operands[2 if slot == 0 else 0]
    assert like is not None
    out = like.new_zeros(numel)
    order, ptr = (None, by_matrix) if slot == 2 else (path_order, by_path)
    if terms.shape[0] == 0:
        return out
    most_rows, most_columns = on_host(terms)[:, 4:6].max(0).tolist()
    grid = (ptr.shape[0] - 1, 1 if slot == 1 else pieces(most_rows, _TILE[0]), pieces(most_columns, _TILE[1]))
    constants = {"SLOT": slot, "REAL": real_of(like), "ROWS": _TILE[0], "COLUMNS": _TILE[1]}
    launch(add_matrix_terms, grid, (*operands, out, terms, factors, order, ptr), constants, like)
    return out
