"""M(k) from real-space blocks: M(k) = sum over R of exp(2 pi i k.R) M(R).

k is in fractions of the reciprocal lattice vectors, and R in whole lattice vectors.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from hamfast.data.blocks import BlockMatrix


class BlochMatrix:
    """M(k) of a block matrix, assembled without ever holding a dense M(R).

    Elements are sorted once, by where they are in M(k); M(k) is then a product with phases and a
    sum of neighbours. Of each element its value and the number of its cell are held, 12 bytes (20
    where they are complex), and of each element of M(k) the row and that of its mirror image, 12.

    Args:
        matrix: the blocks M(R).
        sizes: ``[atoms]``, how many rows each atom has in ``matrix``.
        spin_copies: 2 repeats the matrix for both spins.

    Attributes:
        size: rows of M(k).
    """

    def __init__(self, matrix: BlockMatrix, sizes: np.ndarray, spin_copies: int = 1):
        starts = np.concatenate([[0], np.cumsum(sizes * spin_copies)])
        self.size = int(starts[-1])
        places, cells, values = [], [], []
        self.shifts, which_cell = np.unique(matrix.pairs[:, :3], axis=0, return_inverse=True)
        for shape in np.unique(matrix.shapes, axis=0):
            which = np.flatnonzero(np.all(matrix.shapes == shape, axis=1))
            blocks = matrix.group(which)
            i, j = matrix.pairs[which, 3], matrix.pairs[which, 4]
            for spin in range(spin_copies):
                r = (starts[i] + spin * shape[0])[:, None, None] + np.arange(shape[0])[None, :, None]
                c = (starts[j] + spin * shape[1])[:, None, None] + np.arange(shape[1])[None, None, :]
                places.append((c * self.size + r).ravel())  # column by column, as CSC has them
                cells.append(np.repeat(which_cell.ravel()[which].astype(np.int32), blocks[0].size))
                values.append(blocks.ravel())
        place = np.concatenate(places)
        order = np.argsort(place, kind="stable")
        place = place[order]
        self.values = np.concatenate(values)[order].astype(
            np.complex128 if np.iscomplexobj(matrix.entries) else np.float64, copy=False
        )
        self.cells = np.concatenate(cells)[order]
        self.begins = np.flatnonzero(np.diff(place, prepend=-1))
        own = place[self.begins]
        mirrored = own % self.size * self.size + own // self.size
        filled = np.union1d(own, mirrored)
        self.slots = None if len(filled) == len(own) else np.searchsorted(filled, own)
        self.mirror = np.searchsorted(filled, filled % self.size * self.size + filled // self.size)
        columns = np.searchsorted(filled, self.size * np.arange(self.size + 1))
        whole = np.int32 if len(filled) < 2**31 else np.int64  # scipy wants one type of both
        self.indices, self.indptr = (filled % self.size).astype(whole), columns.astype(whole)

    def at(self, k) -> scipy.sparse.csc_matrix:
        """M(k), ``[size, size]``, Hermitian.

        It is real where M(R) and all phases are real, as at Gamma, and complex otherwise.
        """
        phase = np.exp(2j * np.pi * (self.shifts @ np.asarray(k, dtype=np.float64)))
        if np.all(np.abs(phase.imag) < 1e-12):
            phase = phase.real
        sums = np.add.reduceat(self.values * phase[self.cells], self.begins)
        if self.slots is not None:
            all_sums = np.zeros(len(self.indices), sums.dtype)
            all_sums[self.slots] = sums
            sums = all_sums
        data = (sums + sums[self.mirror].conj()) / 2
        return scipy.sparse.csc_matrix((data, self.indices, self.indptr), shape=(self.size, self.size))
