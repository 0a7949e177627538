"""A real-space matrix as sparse blocks, one for each ordered atom pair."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hamfast.errors import HamfastError


@dataclass(frozen=True)
class BlockMatrix:
    """Blocks ``M[(R, i, j)]``, one for each ordered pair of atoms.

    The rows of a block are the orbitals of atom i in the home cell. Its columns are those of atom j
    in the cell at the lattice vector R.

    Raises:
        HamfastError: the arrays do not fit each other.
    """

    pairs: np.ndarray
    """``[pairs, 5]`` int64: R1, R2, R3, i, j; atoms counted from 0."""
    shapes: np.ndarray
    """``[pairs, 2]`` int64: rows and columns of each block."""
    boundaries: np.ndarray
    """``[pairs + 1]`` int64: block n is ``entries[boundaries[n]:boundaries[n + 1]]``, row-major."""
    entries: np.ndarray
    """Flat, real or complex: eV for a Hamiltonian, plain numbers for an overlap."""

    def __post_init__(self):
        pairs = len(self.pairs) if self.pairs.ndim else 0
        if self.pairs.shape != (pairs, 5) or self.shapes.shape != (pairs, 2):
            raise HamfastError(
                f"expected atom_pairs [N, 5] and chunk_shapes [N, 2], found {self.pairs.shape} and {self.shapes.shape}"
            )
        size = self.shapes[:, 0] * self.shapes[:, 1]
        if np.any(self.shapes < 1):
            raise HamfastError(
                f"chunk_shapes: expected blocks of one row and column or more, found {self.shapes.min()}"
            )
        if self.boundaries.shape != (pairs + 1,) or self.boundaries[0] != 0 or np.any(np.diff(self.boundaries) != size):
            raise HamfastError("chunk_boundaries do not fit chunk_shapes: each block must hold rows x columns numbers")
        if self.entries.shape != (self.boundaries[-1],):
            raise HamfastError(f"entries: expected {self.boundaries[-1]} numbers, found {self.entries.shape}")

    @staticmethod
    def from_blocks(pairs, blocks) -> BlockMatrix:
        """From pairs ``(R1, R2, R3, i, j)`` and as many two-dimensional blocks."""
        shapes = np.array([b.shape for b in blocks], dtype=np.int64).reshape(-1, 2)
        boundaries = np.concatenate([[0], np.cumsum(shapes[:, 0] * shapes[:, 1])]).astype(np.int64)
        entries = np.concatenate([np.ravel(b) for b in blocks]) if blocks else np.zeros(0)
        return BlockMatrix(np.array(pairs, dtype=np.int64).reshape(-1, 5), shapes, boundaries, entries)

    def joined(self, pairs: np.ndarray, blocks: list[np.ndarray]) -> BlockMatrix:
        """The matrix with further pairs ``[more, 5]`` and their blocks behind its own."""
        own = [self.block(n) for n in range(len(self))]
        return BlockMatrix.from_blocks(np.concatenate([self.pairs, pairs]), own + blocks)

    def __len__(self) -> int:
        return len(self.pairs)

    def block(self, n: int) -> np.ndarray:
        """``[rows, columns]``: the block of the n-th pair."""
        return self.entries[self.boundaries[n] : self.boundaries[n + 1]].reshape(self.shapes[n])

    def group(self, which: np.ndarray) -> np.ndarray:
        """``[blocks, rows, columns]``: the blocks with these indices, which all have one shape."""
        rows, columns = self.shapes[which[0]]
        index = self.boundaries[which][:, None] + np.arange(rows * columns)
        return self.entries[index].reshape(-1, rows, columns)

    @cached_property
    def index(self) -> dict[tuple[int, ...], int]:
        """The position of each pair."""
        return {tuple(pair): n for n, pair in enumerate(self.pairs.tolist())}

    @cached_property
    def reverse(self) -> np.ndarray:
        """``[pairs]``: the position of (-R, j, i) for each pair (R, i, j).

        Raises:
            HamfastError: a pair lacks its reverse, or occurs twice.
        """
        return reverse_pairs(self.pairs, self.index)

    def hermiticity_error(self) -> tuple[float, int]:
        """Largest ``|M[(R, i, j)] - M[(-R, j, i)]^dagger|``, and the position of its pair."""
        worst, where = 0.0, 0
        for n, m in enumerate(self.reverse.tolist()):
            if n <= m:
                error = float(np.max(np.abs(self.block(n) - self.block(m).conj().T), initial=0.0))
                if error > worst:
                    worst, where = error, n
        return worst, where

    def hermitian_part(self) -> BlockMatrix:
        """The mean of each block and the conjugate transpose of its reverse.

        Raises:
            HamfastError: a pair lacks its reverse, or occurs twice.
        """
        blocks = [0.5 * (self.block(n) + self.block(m).conj().T) for n, m in enumerate(self.reverse.tolist())]
        return BlockMatrix.from_blocks(self.pairs, blocks)

    def norm(self) -> float:
        """The square root of the sum of all ``|entries|^2``."""
        return float(np.sqrt(np.sum(np.abs(self.entries.astype(np.complex128)) ** 2)))


def species_groups(species: np.ndarray, pairs: np.ndarray):
    """Yields (first species, second species, positions of the pairs between them).

    Args:
        species: ``[atoms]``, any whole number for each species.
        pairs: ``[pairs, 5]``.
    """
    count = int(species.max()) + 1 if len(species) else 0
    code = species[pairs[:, 3]] * count + species[pairs[:, 4]]
    for value in np.unique(code):
        yield int(value) // count, int(value) % count, np.flatnonzero(code == value)


def pair_name(pair) -> str:
    """``R = (0, 0, 1), i = 0, j = 2``, for messages."""
    a, b, c, i, j = (int(n) for n in pair)
    return f"R = ({a}, {b}, {c}), i = {i}, j = {j}"


def reverse_pairs(pairs: np.ndarray, index: dict[tuple[int, ...], int] | None = None) -> np.ndarray:
    """``[pairs]``: the position of (-R, j, i) for each pair (R, i, j).

    Args:
        pairs: ``[pairs, 5]``.
        index: the position of each pair, if it is known already.

    Raises:
        HamfastError: a pair lacks its reverse, or occurs twice.
    """
    index = {tuple(pair): n for n, pair in enumerate(pairs.tolist())} if index is None else index
    if len(index) != len(pairs):
        raise HamfastError(f"{len(pairs) - len(index)} atom pairs occur more than once")
    found = np.empty(len(pairs), dtype=np.int64)
    for n, (a, b, c, i, j) in enumerate(pairs.tolist()):
        reverse = index.get((-a, -b, -c, j, i))
        if reverse is None:
            raise HamfastError(
                f"pair R = ({a}, {b}, {c}), i = {i}, j = {j} has no reverse pair R = ({-a}, {-b}, {-c}), i = {j}, "
                f"j = {i}; a Hermitian matrix has both"
            )
        found[n] = reverse
    return found
