"""The statistics of a data set: one object, made in one pass over its structures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hamfast.data.formats import format_of, read_pairs, read_snapshot, read_structure
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError
from hamfast.shells import ShellSpec

CUTOFF_MARGIN = 1e-3
"""Angstrom by which a cutoff exceeds the longest pair, so that rounding does not leave it out."""

ONSITE = 1e-6
"""Angstrom: shorter pairs are those of on-site blocks."""


@dataclass
class MatrixSizes:
    """How large the matrices of one structure are."""

    pairs: int
    """Of the Hamiltonian, or of the overlap if there is no Hamiltonian."""
    elements: int
    """Matrix elements of all their blocks."""
    has_hamiltonian: bool
    has_overlap: bool
    extra_pairs: int
    """How many pairs the Hamiltonian has more than the overlap; 0 where one of them is missing."""


class PairCount(NamedTuple):
    """How much a network has to do for a structure, as its list of pairs says."""

    pairs: int
    """Edges of its graph."""
    elements: int
    """Matrix elements of all their blocks."""


@dataclass
class DatasetStatistics:
    """What the structures of a data set are made of, and how large and long-ranged they are."""

    shells: ShellSpec
    """Elements, in order of first appearance, with their orbitals; and whether there is spin."""
    layouts: Counter[str] = field(default_factory=Counter)
    """How many structures each on-disk format has."""
    num_atoms: list[int] = field(default_factory=list)
    """Of each structure."""
    half_cells: dict[Path, float] = field(default_factory=dict)
    """Of each structure, angstrom: half the distance between an atom and its nearest image."""
    matrices: list[MatrixSizes] = field(default_factory=list)
    """Of each structure whose matrices were read."""
    longest_pairs: dict[tuple[int, int], float] = field(default_factory=dict)
    """The two atomic numbers -> angstrom: the longest pair of the structures that were measured."""
    counts: dict[Path, PairCount] = field(default_factory=dict)
    """Of each structure that was measured."""
    nearest: float = 0.0
    """Angstrom: the longest way from an atom to its nearest neighbour, in what was measured."""

    @property
    def longest_pair(self) -> float | None:
        """Angstrom, over all species pairs; None if no pair was measured."""
        return max(self.longest_pairs.values(), default=None)

    def pair_cutoffs(self) -> np.ndarray:
        """``[species, species]`` angstrom: the longest pair of two species and a margin, or 0."""
        cutoffs = np.zeros((self.shells.num_species, self.shells.num_species))
        row = {z: n for n, z in enumerate(self.shells.elements)}
        for (first, second), length in self.longest_pairs.items():
            cutoffs[row[first], row[second]] = length + CUTOFF_MARGIN
        return cutoffs


def norms(vectors: np.ndarray) -> np.ndarray:
    """The lengths of vectors ``[pairs, 3]``."""
    return np.linalg.norm(vectors, axis=1)


def dataset_statistics(
    folders: Sequence[Path],
    *,
    measured: Collection[Path] = (),
    read_whole: Collection[Path] = (),
    lengths: Callable[[np.ndarray], np.ndarray] = norms,
) -> DatasetStatistics:
    """Reads every structure once.

    Args:
        folders: of the structures.
        measured: those of them whose pairs are measured; of their matrices only the pairs are read.
        read_whole: those of them whose matrices are read and checked, and whose pairs are measured.
        lengths: ``[pairs, 3]`` angstrom -> ``[pairs]``.

    Raises:
        HamfastError: two structures give one element different orbitals, or differ in spin; one
            cannot be read.
    """
    measured, read_whole = set(measured), set(read_whole)
    shells: dict[int, tuple[int, ...]] = {}
    owner: dict[int, Path] = {}
    spinful = None
    found = DatasetStatistics(ShellSpec(()))
    for folder in folders:
        snapshot = read_snapshot(folder) if folder in read_whole else read_structure(folder)
        if spinful is None:
            spinful = snapshot.spinful
        if snapshot.spinful != spinful:
            raise HamfastError(f"{folder}: spinful is {snapshot.spinful}, in {folders[0]} it is {spinful}")
        for z in snapshot.elements:
            if shells.setdefault(z, snapshot.shells[z]) != snapshot.shells[z]:
                raise HamfastError(
                    f"{folder}: atomic number {z} has shells {list(snapshot.shells[z])}, in {owner[z]} {list(shells[z])}"
                )
            owner.setdefault(z, folder)
        found.layouts[format_of(folder).NAME] += 1
        found.num_atoms.append(snapshot.num_atoms)
        found.half_cells[folder] = snapshot.half_cell
        if folder in read_whole:
            found.matrices.append(_sizes(snapshot))
            matrix = snapshot.first_matrix
            _measure(found, folder, snapshot, None if matrix is None else matrix.pairs, lengths)
        elif folder in measured:
            _measure(found, folder, snapshot, read_pairs(folder, snapshot), lengths)
    found.shells = ShellSpec.from_mapping(shells, bool(spinful))
    return found


def _sizes(snapshot: Snapshot) -> MatrixSizes:
    h, s, matrix = snapshot.hamiltonian, snapshot.overlap, snapshot.first_matrix
    return MatrixSizes(
        pairs=0 if matrix is None else len(matrix),
        elements=0 if matrix is None else len(matrix.entries),
        has_hamiltonian=h is not None,
        has_overlap=s is not None,
        extra_pairs=0 if h is None or s is None else len(h) - len(s),
    )


def _measure(found: DatasetStatistics, folder: Path, snapshot: Snapshot, pairs: np.ndarray | None, lengths) -> None:
    """Counts the pairs ``[pairs, 5]`` of a structure, and takes their lengths into the others'."""
    if pairs is None or not len(pairs):
        found.counts[folder] = PairCount(0, 0)
        return
    length = lengths(snapshot.pair_vectors(pairs))
    first, second = snapshot.numbers[pairs[:, 3]], snapshot.numbers[pairs[:, 4]]
    shells = ShellSpec.from_mapping(snapshot.shells, snapshot.spinful)
    orbitals = np.zeros(1 + max(shells.elements), dtype=np.int64)
    for species, z in enumerate(shells.elements):
        orbitals[z], _ = shells.block_shape(species, species)
    found.counts[folder] = PairCount(len(pairs), int((orbitals[first] * orbitals[second]).sum()))
    neighbour = np.full(snapshot.num_atoms, np.inf)
    hopping = length > ONSITE
    np.minimum.at(neighbour, pairs[hopping, 3], length[hopping])
    found.nearest = max(found.nearest, neighbour.max(where=np.isfinite(neighbour), initial=0.0))
    for a, b in np.unique(np.stack([first, second], axis=1), axis=0).tolist():
        longest = float(length[(first == a) & (second == b)].max())
        found.longest_pairs[a, b] = max(found.longest_pairs.get((a, b), 0.0), longest)
