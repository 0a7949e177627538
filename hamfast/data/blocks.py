"""A real-space matrix as sparse blocks, one for each ordered atom pair."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hamfast.errors import HamfastError

AT_ONCE = 50_000
"""Blocks that are worked on at a time."""


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

    @staticmethod
    def from_groups(pairs: np.ndarray, groups: list[tuple[np.ndarray, np.ndarray]]) -> BlockMatrix:
        """From pairs ``[pairs, 5]``, and groups of blocks of one shape.

        A group is the positions of its pairs, and the blocks ``[blocks, rows, columns]``. Every
        pair is in one group.
        """
        shapes = np.zeros((len(pairs), 2), dtype=np.int64)
        for which, blocks in groups:
            shapes[which] = blocks.shape[1:]
        boundaries = np.concatenate([[0], np.cumsum(shapes[:, 0] * shapes[:, 1])]).astype(np.int64)
        entries = np.zeros(boundaries[-1], dtype=groups[0][1].dtype if groups else np.float64)
        for which, blocks in groups:
            entries[boundaries[which][:, None] + np.arange(blocks[0].size)] = blocks.reshape(len(which), -1)
        return BlockMatrix(pairs, shapes, boundaries, entries)

    @staticmethod
    def one_after_the_other(parts: list[BlockMatrix]) -> BlockMatrix:
        """The blocks of several matrices, no pair of which is in two."""
        boundaries = np.cumsum(np.concatenate([[0], *(np.diff(part.boundaries) for part in parts)]))
        pairs, shapes, entries = (
            np.concatenate([getattr(p, n) for p in parts]) for n in ("pairs", "shapes", "entries")
        )
        return BlockMatrix(pairs, shapes, boundaries.astype(np.int64), entries)

    def joined(self, pairs: np.ndarray, blocks: list[np.ndarray]) -> BlockMatrix:
        """The matrix with further pairs ``[more, 5]`` and their blocks behind its own."""
        return BlockMatrix.one_after_the_other([self, BlockMatrix.from_blocks(pairs, blocks)])

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
        return reverse_pairs(self.pairs)

    def _with_reversed(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Some pairs of one shape at a time: their positions, their blocks ``[blocks, rows,
        columns]``, and the conjugate transposes of the blocks of their reverse pairs."""
        for which in self.same_shape():
            back = self.reverse[which]
            yield which, self.group(which), self.group(back).conj().transpose(0, 2, 1)

    def same_shape(self) -> Iterator[np.ndarray]:
        """The positions of pairs whose blocks have one shape, some at a time."""
        _, kind = np.unique(self.shapes, axis=0, return_inverse=True)
        order = np.argsort(kind.ravel(), kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(kind.ravel()[order])) + 1):
            yield from np.split(group, range(AT_ONCE, len(group), AT_ONCE))

    def hermiticity_error(self) -> tuple[float, int]:
        """Largest ``|M[(R, i, j)] - M[(-R, j, i)]^dagger|``, and the position of its pair."""
        worst, where = 0.0, 0
        for which, own, back in self._with_reversed():
            errors = np.abs(own - back).max(axis=(1, 2))
            n = int(np.argmax(errors))
            if errors[n] > worst:
                worst, where = float(errors[n]), int(min(which[n], self.reverse[which[n]]))
        return worst, where

    def hermitian_part(self) -> BlockMatrix:
        """The mean of each block and the conjugate transpose of its reverse.

        Raises:
            HamfastError: a pair lacks its reverse, or occurs twice.
        """
        return BlockMatrix.from_groups(self.pairs, [(n, 0.5 * (own + back)) for n, own, back in self._with_reversed()])

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


def find_pairs(pairs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``[wanted]`` int64: the position of each wanted pair among the others, -1 where it is not.

    Args:
        pairs, wanted: ``[pairs, 5]`` and ``[wanted, 5]``; of equal pairs any one is found.
    """
    both = np.concatenate([pairs, wanted]).astype(np.int64)
    if not len(both):
        return np.zeros(0, dtype=np.int64)
    low = both.min(axis=0)
    sizes = [int(n) for n in both.max(axis=0) - low + 1]
    if math.prod(sizes) < 2**62:
        codes = np.zeros(len(both), dtype=np.int64)
        for axis, size in enumerate(sizes):
            codes = codes * size + (both[:, axis] - low[axis])
    else:
        codes = np.unique(both, axis=0, return_inverse=True)[1].ravel()
    known, asked = codes[: len(pairs)], codes[len(pairs) :]
    if not len(known):
        return np.full(len(asked), -1)
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known, asked, sorter=order), len(known) - 1)
    found = order[place]
    return np.where(known[found] == asked, found, -1)


def onsite_pairs(atoms: int) -> np.ndarray:
    """``[atoms, 5]`` int64: the pairs (0, a, a)."""
    pairs = np.zeros((atoms, 5), dtype=np.int64)
    pairs[:, 3] = pairs[:, 4] = np.arange(atoms)
    return pairs


def reversed_pairs(pairs: np.ndarray) -> np.ndarray:
    """``[pairs, 5]``: (-R, j, i) of each pair (R, i, j)."""
    return np.concatenate([-pairs[:, :3], pairs[:, 4:], pairs[:, 3:4]], axis=1)


def reverse_pairs(pairs: np.ndarray) -> np.ndarray:
    """``[pairs]``: the position of (-R, j, i) for each pair (R, i, j).

    Args:
        pairs: ``[pairs, 5]``.

    Raises:
        HamfastError: a pair lacks its reverse, or occurs twice.
    """
    own = find_pairs(pairs, pairs)
    if len(np.unique(own)) != len(pairs):
        raise HamfastError(f"{len(pairs) - len(np.unique(own))} atom pairs occur more than once")
    found = find_pairs(pairs, reversed_pairs(pairs))
    if (found < 0).any():
        a, b, c, i, j = pairs[int(np.flatnonzero(found < 0)[0])].tolist()
        raise HamfastError(
            f"pair R = ({a}, {b}, {c}), i = {i}, j = {j} has no reverse pair R = ({-a}, {-b}, {-c}), i = {j}, "
            f"j = {i}; a Hermitian matrix has both"
        )
    return found
