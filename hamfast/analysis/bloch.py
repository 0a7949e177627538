"""M(k) from real-space blocks: M(k) = sum over R of exp(2 pi i k.R) M(R).

k is in fractions of the reciprocal lattice vectors, and R in whole lattice vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse

from hamfast.data.blocks import AT_ONCE, BlockMatrix


class _Tiles(NamedTuple):
    """Blocks of M(k) of one shape."""

    rows: int
    columns: int
    place: np.ndarray
    """``[tiles]``: which tile of all; tiles are ordered by column, then by row."""
    filled: np.ndarray
    """``[filled]``: the tiles, counted in here, that some blocks add to."""
    begins: np.ndarray
    """``[filled]``: where the blocks of each begin in ``blocks``."""
    blocks: np.ndarray
    """``[blocks]``: the blocks of the matrix, by tile."""
    mirror: tuple[int, np.ndarray]
    """Of the mirror images: the number of their tiles' shape, and ``[tiles]``: which one there."""


class BlochMatrix:
    """M(k) of a block matrix, assembled without ever holding a dense M(R).

    Where each block goes is found once. The elements stay where they are, in ``matrix``; what is
    held beside them is 4 bytes for each element of M(k), its row.

    Args:
        matrix: the blocks M(R).
        sizes: ``[atoms]``, how many rows each atom has in ``matrix``.
        spin_copies: 2 repeats the matrix for both spins.

    Attributes:
        size: rows of M(k).
        is_complex: are the blocks complex?
    """

    def __init__(self, matrix: BlockMatrix, sizes: np.ndarray, spin_copies: int = 1):
        self.entries, self.boundaries = matrix.entries, matrix.boundaries
        self.is_complex = np.iscomplexobj(matrix.entries)
        sites = np.repeat(np.asarray(sizes, dtype=np.int64), spin_copies)  # an atom's rows of one spin
        starts = np.concatenate([[0], np.cumsum(sites)])
        self.size = int(starts[-1])
        self.shifts, cells = _whole_rows(matrix.pairs[:, :3])
        self.cells = cells.astype(np.int32)
        spins = np.tile(np.arange(spin_copies), len(matrix))
        source = np.repeat(np.arange(len(matrix)), spin_copies)
        i, j = (matrix.pairs[source, axis] * spin_copies + spins for axis in (3, 4))
        count = max(len(sites), 1)
        key, mirrored = j * count + i, i * count + j
        keys = _distinct(np.concatenate([key, mirrored]))
        row, column = keys % count, keys // count
        own, mirror = np.searchsorted(keys, key), np.searchsorted(keys, row * count + column)
        # A column holds the rows of its tiles, one tile after the other.
        before = np.concatenate([[0], np.cumsum(sites[row])])
        first = np.searchsorted(column, np.arange(count + 1))
        heights = np.diff(before[first])[: len(sites)]
        self.indptr = np.concatenate([[0], np.cumsum(np.repeat(heights, sites))])
        self.indices = _rows_of_columns(
            before[first], heights, sites, _ranges(starts[row], sites[row]), self.indptr[-1]
        )
        if self.indptr[-1] < 2**31:  # scipy wants one type of both
            self.indptr = self.indptr.astype(np.int32)
        else:
            self.indices = self.indices.astype(np.int64)
        # Element (r, c) of a tile lies at offset + c stride + r.
        self.stride = heights[column] if len(sites) else heights
        self.offset = self.indptr[starts[column]] + before[:-1] - before[first[column]]
        self.tiles = _by_shape(np.stack([sites[row], sites[column]], axis=1), own, source, mirror)

    def at(self, k) -> scipy.sparse.csc_matrix:
        """M(k), ``[size, size]``, Hermitian.

        It is real where M(R) and all phases are real, as at Gamma, and complex otherwise.
        """
        phase = np.exp(2j * np.pi * (self.shifts @ np.asarray(k, dtype=np.float64)))
        if np.all(np.abs(phase.imag) < 1e-12):
            phase = phase.real
        sums = [self._sums(tiles, phase) for tiles in self.tiles]
        dtype = np.complex128 if self.is_complex or np.iscomplexobj(phase) else np.float64
        data = np.empty(len(self.indices), dtype)
        for tiles, own in zip(self.tiles, sums, strict=True):
            other, which = tiles.mirror
            inside = np.arange(tiles.rows)[:, None]
            for begin in range(0, len(own), AT_ONCE):
                some = slice(begin, begin + AT_ONCE)
                place = tiles.place[some]
                across = self.stride[place][:, None] * np.arange(tiles.columns)
                where = self.offset[place][:, None, None] + across[:, None, :] + inside
                data[where] = (own[some] + sums[other][which[some]].conj().transpose(0, 2, 1)) / 2
        return scipy.sparse.csc_matrix((data, self.indices, self.indptr), shape=(self.size, self.size))

    def _sums(self, tiles: _Tiles, phase: np.ndarray) -> np.ndarray:
        """``[tiles, rows, columns]``: the sums over cells."""
        dtype = np.result_type(self.entries.dtype, phase.dtype)
        found = np.zeros((len(tiles.place), tiles.rows, tiles.columns), dtype)
        inside = np.arange(tiles.rows * tiles.columns)
        ends = np.append(tiles.begins, len(tiles.blocks))
        for begin in range(0, len(tiles.begins), AT_ONCE):
            stop = min(begin + AT_ONCE, len(tiles.begins))
            blocks = tiles.blocks[ends[begin] : ends[stop]]
            values = self.entries[self.boundaries[blocks][:, None] + inside] * phase[self.cells[blocks]][:, None]
            sums = values
            if len(blocks) > stop - begin:
                sums = np.add.reduceat(values, ends[begin:stop] - ends[begin])
            found[tiles.filled[begin:stop]] = sums.reshape(-1, tiles.rows, tiles.columns)
        return found


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Each key once, in ascending order; faster than numpy's unique where most are distinct."""
    keys = np.sort(keys)
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


def _whole_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of whole numbers, and which one each row is."""
    if not len(rows):
        return rows.reshape(0, 3), np.zeros(0, dtype=np.int64)
    low = rows.min(axis=0)
    sizes = rows.max(axis=0) - low + 1
    code = np.ravel_multi_index(tuple((rows - low).T), tuple(int(n) for n in sizes))
    codes = _distinct(code)
    return np.stack(np.unravel_index(codes, tuple(int(n) for n in sizes)), axis=1) + low, np.searchsorted(codes, code)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``starts[n] ... starts[n] + lengths[n] - 1`` for every n, in one row."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def _rows_of_columns(first, heights, sites, rows, elements) -> np.ndarray:
    """The row of every element, column by column: each column of a site has the same rows."""
    found = np.empty(elements, np.int32)
    at = 0
    for begin, height, columns in zip(first, heights, sites, strict=False):
        found[at : at + height * columns].reshape(columns, height)[:] = rows[begin : begin + height]
        at += height * columns
    return found


def _by_shape(shapes: np.ndarray, own: np.ndarray, source: np.ndarray, mirror: np.ndarray) -> list[_Tiles]:
    """The tiles of each shape.

    Args:
        shapes: ``[tiles, 2]``.
        own, source: ``[blocks]``, the tile and the number of each block.
        mirror: ``[tiles]``, the tile that is the mirror image of each.
    """
    kinds, kind = np.unique(shapes, axis=0, return_inverse=True)
    kind = kind.ravel()
    inside = np.empty(len(shapes), dtype=np.int64)  # which tile of its shape
    places = [np.flatnonzero(kind == n) for n in range(len(kinds))]
    for place in places:
        inside[place] = np.arange(len(place))
    order = np.argsort(own, kind="stable")
    found = []
    for n, ((rows, columns), place) in enumerate(zip(kinds.tolist(), places, strict=True)):
        chosen = order[kind[own[order]] == n]
        tile = inside[own[chosen]]
        begins = np.flatnonzero(np.diff(tile, prepend=-1))
        other = int(np.flatnonzero((kinds == (columns, rows)).all(axis=1))[0])
        found.append(_Tiles(rows, columns, place, tile[begins], begins, source[chosen], (other, inside[mirror[place]])))
    return found
