"""M(k) from real-space blocks: M(k) = sum over R of exp(2 pi i k.R) M(R).

k is in fractions of the reciprocal lattice vectors, and R in whole lattice vectors.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from hamfast.data.blocks import BlockMatrix


class BlochMatrix:
    """M(k) of a block matrix, assembled without ever holding a dense M(R).

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
        rows, columns, cells, values = [], [], [], []
        shifts, which_cell = np.unique(matrix.pairs[:, :3], axis=0, return_inverse=True)
        for shape in np.unique(matrix.shapes, axis=0):
            which = np.flatnonzero(np.all(matrix.shapes == shape, axis=1))
            blocks = matrix.group(which)
            i, j = matrix.pairs[which, 3], matrix.pairs[which, 4]
            for spin in range(spin_copies):
                r = (starts[i] + spin * shape[0])[:, None, None] + np.arange(shape[0])[None, :, None]
                c = (starts[j] + spin * shape[1])[:, None, None] + np.arange(shape[1])[None, None, :]
                r, c = np.broadcast_arrays(r, c)
                rows.append(r.ravel())
                columns.append(c.ravel())
                cells.append(np.repeat(which_cell.ravel()[which], blocks[0].size))
                values.append(blocks.ravel())
        self.rows, self.columns = np.concatenate(rows), np.concatenate(columns)
        self.cells, self.values = (
            np.concatenate(cells),
            np.concatenate(values).astype(np.complex128 if np.iscomplexobj(matrix.entries) else np.float64),
        )
        self.shifts = shifts

    def at(self, k) -> scipy.sparse.csc_matrix:
        """M(k), ``[size, size]``, Hermitian.

        It is real where M(R) and all phases are real, as at Gamma, and complex otherwise.
        """
        phase = np.exp(2j * np.pi * (self.shifts @ np.asarray(k, dtype=np.float64)))
        if np.all(np.abs(phase.imag) < 1e-12):
            phase = phase.real
        entries = self.values * phase[self.cells]
        matrix = scipy.sparse.coo_matrix((entries, (self.rows, self.columns)), shape=(self.size, self.size)).tocsc()
        return (matrix + matrix.conj().T) / 2
