"""A crystal's matrix as a sparse matrix for each cell R, its orbitals in a code's order."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from hamfast.data.blocks import BlockMatrix
from hamfast.data.codes.native import Orbitals


def by_cell(
    matrix: BlockMatrix, order: Orbitals, spins: int = 1
) -> dict[tuple[int, int, int], scipy.sparse.csr_matrix]:
    """R -> ``<orbital in cell 0 | M | orbital in cell R>``, ``[spins orbitals, spins orbitals]``.

    Args:
        matrix: its blocks have hamfast's order.
        order: of the code's orbitals.
        spins: 2 for blocks with spin: then each orbital comes with spin up and down, one after the
            other.
    """
    counts = order.counts
    starts = np.concatenate([[0], np.cumsum(counts)])
    # The position of each of hamfast's orbitals in the list of the code's.
    place = np.empty(starts[-1], dtype=np.int64)
    place[starts[order.atoms] + order.positions] = np.arange(starts[-1])
    index, sign = [], []
    for atom, count in enumerate(counts):
        own = place[starts[atom] : starts[atom] + count]
        index.append(np.concatenate([spins * own + s for s in range(spins)]))
        sign.append(np.tile(order.signs[own], spins))
    size = spins * int(starts[-1])
    parts: dict[tuple[int, int, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for n, (a, b, c, i, j) in enumerate(matrix.pairs.tolist()):
        block = matrix.block(n) * np.outer(sign[i], sign[j])
        rows, columns = np.repeat(index[i], len(index[j])), np.tile(index[j], len(index[i]))
        parts.setdefault((a, b, c), []).append((rows, columns, block.ravel()))
    found = {}
    for cell, elements in parts.items():
        rows, columns, values = (np.concatenate(arrays) for arrays in zip(*elements, strict=True))
        found[cell] = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(size, size))
    return found
