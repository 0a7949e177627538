"""The statistics of a data set: those of each structure, and of all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hamfast.data.formats import format_of, read_pairs, read_snapshot, read_structure
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError
from hamfast.shells import ShellSpec

CUTOFF_MARGIN = 1e-3
"""Angstrom by which a cutoff exceeds the longest pair, so that rounding does not leave it out."""

ONSITE = 1e-6
"""Angstrom: shorter pairs are those of on-site blocks."""

Lengths = Callable[[np.ndarray], np.ndarray]
"""``[pairs, 3]`` angstrom -> ``[pairs]``."""


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
class StructureStatistics:
    """What one structure is made of, and how large and long-ranged it is."""

    layout: str
    """Its on-disk format."""
    shells: dict[int, tuple[int, ...]]
    """Atomic number -> l of the shells, of its elements in order of first appearance."""
    spinful: bool
    num_atoms: int
    half_cell: float
    """Angstrom: half the distance between an atom and its nearest image."""
    matrices: MatrixSizes | None = None
    """If its matrices were read."""
    count: PairCount | None = None
    """If its pairs were measured."""
    longest_pairs: dict[tuple[int, int], float] = field(default_factory=dict)
    """The two atomic numbers -> angstrom, if its pairs were measured."""
    nearest: float = 0.0
    """Angstrom: the longest way from an atom to its nearest neighbour, if they were."""

    @classmethod
    def of(cls, folder: Path, snapshot: Snapshot) -> StructureStatistics:
        """Those of a structure whose pairs are not measured."""
        shells = {z: tuple(snapshot.shells[z]) for z in snapshot.elements}
        return cls(format_of(folder).NAME, shells, snapshot.spinful, snapshot.num_atoms, snapshot.half_cell)

    def measure(self, snapshot: Snapshot, pairs: np.ndarray | None, lengths: Lengths) -> None:
        """Counts the pairs ``[pairs, 5]`` of the structure and takes their lengths; None: it has
        no matrix."""
        self.count = PairCount(0, 0)
        if pairs is None or not len(pairs):
            return
        length = lengths(snapshot.pair_vectors(pairs))
        first, second = snapshot.numbers[pairs[:, 3]], snapshot.numbers[pairs[:, 4]]
        shells = ShellSpec.from_mapping(self.shells, self.spinful)
        orbitals = np.zeros(1 + max(shells.elements), dtype=np.int64)
        for species, z in enumerate(shells.elements):
            orbitals[z], _ = shells.block_shape(species, species)
        self.count = PairCount(len(pairs), int((orbitals[first] * orbitals[second]).sum()))
        neighbour = np.full(snapshot.num_atoms, np.inf)
        hopping = length > ONSITE
        np.minimum.at(neighbour, pairs[hopping, 3], length[hopping])
        self.nearest = float(neighbour.max(where=np.isfinite(neighbour), initial=0.0))
        for a, b in np.unique(np.stack([first, second], axis=1), axis=0).tolist():
            self.longest_pairs[a, b] = float(length[(first == a) & (second == b)].max())

    def unmeasured(self) -> StructureStatistics:
        """These, without those of pairs."""
        return replace(self, count=None, longest_pairs={}, nearest=0.0)

    def state(self) -> dict[str, Any]:
        """Plain numbers, for a file; without the sizes of the matrices."""
        return {
            "layout": self.layout,
            "shells": [[z, list(ls)] for z, ls in self.shells.items()],
            "spinful": self.spinful,
            "num_atoms": self.num_atoms,
            "half_cell": self.half_cell,
            "count": self.count,
            "longest_pairs": [[*pair, length] for pair, length in self.longest_pairs.items()],
            "nearest": self.nearest,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> StructureStatistics:
        """The inverse of :meth:`state`."""
        changed = {
            "shells": {z: tuple(ls) for z, ls in state["shells"]},
            "count": None if state["count"] is None else PairCount(*state["count"]),
            "longest_pairs": {(a, b): length for a, b, length in state["longest_pairs"]},
        }
        return cls(**(state | changed))


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


def together(structures: Mapping[Path, StructureStatistics]) -> DatasetStatistics:
    """The statistics of several structures as those of a data set.

    Raises:
        HamfastError: two structures give one element different orbitals, or differ in spin.
    """
    shells: dict[int, tuple[int, ...]] = {}
    owner: dict[int, Path] = {}
    spinful = None
    found = DatasetStatistics(ShellSpec(()))
    for folder, one in structures.items():
        if spinful is None:
            spinful, first = one.spinful, folder
        if one.spinful != spinful:
            raise HamfastError(f"{folder}: spinful is {one.spinful}, in {first} it is {spinful}")
        for z, own in one.shells.items():
            if shells.setdefault(z, own) != own:
                raise HamfastError(
                    f"{folder}: atomic number {z} has shells {list(own)}, in {owner[z]} {list(shells[z])}"
                )
            owner.setdefault(z, folder)
        found.layouts[one.layout] += 1
        found.num_atoms.append(one.num_atoms)
        found.half_cells[folder] = one.half_cell
        if one.matrices is not None:
            found.matrices.append(one.matrices)
        if one.count is not None:
            found.counts[folder] = one.count
        found.nearest = max(found.nearest, one.nearest)
        for pair, length in one.longest_pairs.items():
            found.longest_pairs[pair] = max(found.longest_pairs.get(pair, 0.0), length)
    found.shells = ShellSpec.from_mapping(shells, bool(spinful))
    return found


def dataset_statistics(
    folders: Sequence[Path],
    *,
    measured: Collection[Path] = (),
    read_whole: Collection[Path] = (),
) -> DatasetStatistics:
    """Reads every structure once.

    Args:
        folders: of the structures.
        measured: those of them whose pairs are measured; of their matrices only the pairs are read.
        read_whole: those of them whose matrices are read and checked, and whose pairs are measured.

    Raises:
        HamfastError: as :func:`together`; or one cannot be read.
    """
    measured, read_whole = set(measured), set(read_whole)
    found = {}
    for folder in folders:
        snapshot = read_snapshot(folder) if folder in read_whole else read_structure(folder)
        found[folder] = one = StructureStatistics.of(folder, snapshot)
        if folder in read_whole:
            one.matrices, matrix = _sizes(snapshot), snapshot.first_matrix
            one.measure(snapshot, None if matrix is None else matrix.pairs, norms)
        elif folder in measured:
            one.measure(snapshot, read_pairs(folder, snapshot), norms)
    return together(found)


def _sizes(snapshot: Snapshot) -> MatrixSizes:
    h, s, matrix = snapshot.hamiltonian, snapshot.overlap, snapshot.first_matrix
    return MatrixSizes(
        pairs=0 if matrix is None else len(matrix),
        elements=0 if matrix is None else len(matrix.entries),
        has_hamiltonian=h is not None,
        has_overlap=s is not None,
        extra_pairs=0 if h is None or s is None else len(h) - len(s),
    )
