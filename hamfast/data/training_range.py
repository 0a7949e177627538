"""Which structures a training set has: distances, angles, neighbours, elements, cells.

A network is as good as its training where structures are like those of the training. What was seen
is kept in the checkpoint as ranges of a few numbers per atom, and a structure is compared with them
before it is predicted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from hamfast.data.snapshot import Snapshot

BOND = 1.25
"""Atoms closer than this many sums of their covalent radii are bonded."""
SPHERES = (2.0, 3.0, 4.0, 5.0, 6.0)
"""Angstrom: the radii within which an atom's neighbours are counted."""
SHORTER = 0.02
"""The fraction by which a distance may be shorter than the shortest that was seen."""
ANGLE_STEP = 5.0
"""Degrees, of the histogram of angles between bonds."""
SLACK = 1
"""So far from one that was seen, a number of neighbours or a bin of angles counts as seen."""
FEW = 0.02
"""The fraction of atoms or angles that may be new before it is worth a word."""


@dataclass
class TrainingRange:
    """What a set of structures has."""

    structures: int = 0
    atoms: tuple[int, int] | None = None
    """The fewest and the most of a structure."""
    half_cells: tuple[float, float] | None = None
    """Angstrom: the smallest and the largest, see :func:`hamfast.data.cell_size.half_cell`."""
    shortest: dict[tuple[int, int], float] = field(default_factory=dict)
    """Two atomic numbers -> angstrom, the shortest distance from the first to the second."""
    neighbours: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    """The same -> ``[2, spheres]``: the fewest and the most of the second that an atom of the first
    has within each of ``SPHERES``."""
    angles: dict[int, set[int]] = field(default_factory=dict)
    """Atomic number -> the bins of ``ANGLE_STEP`` with an angle between two of its bonds."""
    bonds: dict[int, set[int]] = field(default_factory=dict)
    """Atomic number -> how many bonds such an atom has."""

    @classmethod
    def of(cls, snapshots: Iterable[Snapshot]) -> TrainingRange:
        """That of some structures."""
        return cls.together(map(cls._of_one, snapshots))

    @classmethod
    def _of_one(cls, snapshot: Snapshot) -> TrainingRange:
        own = _Measured.of(snapshot)
        return cls(
            1,
            (snapshot.num_atoms, snapshot.num_atoms),
            (snapshot.half_cell, snapshot.half_cell),
            own.shortest,
            {pair: np.stack([n.min(axis=0), n.max(axis=0)]) for pair, n in own.neighbours.items()},
            {z: set(_bins(degrees).tolist()) for z, degrees in own.angles.items()},
            {z: set(bonds.tolist()) for z, bonds in own.bonds.items()},
        )

    @classmethod
    def together(cls, ranges: Iterable[TrainingRange | None]) -> TrainingRange:
        """That of several sets of structures."""
        found = cls()
        for one in ranges:
            if one is not None:
                found._take(one)
        return found

    def _take(self, other: TrainingRange) -> None:
        self.structures += other.structures
        self.atoms, self.half_cells = _wider(self.atoms, other.atoms), _wider(self.half_cells, other.half_cells)
        for pair, shortest in other.shortest.items():
            self.shortest[pair] = min(shortest, self.shortest.get(pair, np.inf))
        for pair, span in other.neighbours.items():
            before = self.neighbours.get(pair, span)
            self.neighbours[pair] = np.stack([np.minimum(before[0], span[0]), np.maximum(before[1], span[1])])
        for mine, others in ((self.angles, other.angles), (self.bonds, other.bonds)):
            for z, seen in others.items():
                mine[z] = mine.get(z, set()) | seen

    def outside(self, snapshot: Snapshot) -> list[str]:
        """What a structure has that these do not, each in words; empty if nothing."""
        own, words = _Measured.of(snapshot), []
        for pair, counts in sorted(own.neighbours.items()):
            first, second = (chemical_symbols[z] for z in pair)
            if pair not in self.neighbours:
                words.append(f"{first} and {second} within {SPHERES[-1]:g} angstrom of each other")
                continue
            shortest = own.shortest.get(pair, np.inf)
            if pair[0] <= pair[1] and shortest < (1 - SHORTER) * self.shortest.get(pair, 0.0):
                words.append(
                    f"a {first}-{second} distance of {shortest:.2f} angstrom, the shortest was {self.shortest[pair]:.2f}"
                )
            low, high = self.neighbours[pair]
            new = (counts < low - SLACK) | (counts > high + SLACK)
            worst = int(new.sum(axis=0).argmax())
            if new[:, worst].sum() > FEW * len(counts):
                there = _span((counts[new[:, worst], worst].min(), counts[new[:, worst], worst].max()), "d")
                words.append(
                    f"{first} atoms with {there} {second} within {SPHERES[worst]:g} angstrom, there "
                    f"{_span((low[worst], high[worst]), 'd')}"
                )
        for z, counts in sorted(own.bonds.items()):
            new = counts[~np.isin(counts, list(self.bonds.get(z, ())))]
            if len(new):
                words.append(f"{chemical_symbols[z]} atoms with {_listed(new)} bonds ({len(new)} of {len(counts)})")
        for z, degrees in sorted(own.angles.items()):
            seen = self.angles.get(z, set())
            new = degrees[~_seen(_bins(degrees), seen)] if seen else degrees
            if len(new) > FEW * len(degrees):
                words.append(
                    f"angles at {chemical_symbols[z]} as {np.median(new):.0f} degrees ({len(new) / len(degrees):.0%} of them)"
                )
        return words

    def lines(self) -> list[tuple[str, str]]:
        """Name and text of what was seen, for a card."""
        found = [("structures", f"{self.structures}, of {_span(self.atoms, 'd')} atoms")] if self.atoms else []
        if self.half_cells is not None:
            found.append(("half of the cells", f"{_span(self.half_cells, '.1f')} angstrom"))
        for (a, b), shortest in sorted(self.shortest.items()):
            if a <= b:
                found.append((f"{chemical_symbols[a]}-{chemical_symbols[b]}", f"{shortest:.2f} angstrom and longer"))
        for z, counts in sorted(self.bonds.items()):
            degrees = self.angles.get(z)
            text = f"{_listed(np.array(sorted(counts)))}"
            if degrees:
                text += f", at {ANGLE_STEP * min(degrees):.0f} to {ANGLE_STEP * (max(degrees) + 1):.0f} degrees"
            found.append((f"bonds of {chemical_symbols[z]}", text))
        return found

    def state(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "structures": self.structures,
            "atoms": None if self.atoms is None else list(self.atoms),
            "half_cells": None if self.half_cells is None else list(self.half_cells),
            "shortest": [[*pair, length] for pair, length in self.shortest.items()],
            "neighbours": [[*pair, counts.tolist()] for pair, counts in self.neighbours.items()],
            "angles": [[z, sorted(bins)] for z, bins in self.angles.items()],
            "bonds": [[z, sorted(counts)] for z, counts in self.bonds.items()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TrainingRange:
        """The inverse of :meth:`state`."""
        atoms, half_cells = (None if state[key] is None else tuple(state[key]) for key in ("atoms", "half_cells"))
        found = cls(state["structures"], atoms, half_cells)
        found.shortest.update({(a, b): length for a, b, length in state["shortest"]})
        found.neighbours.update({(a, b): np.array(counts) for a, b, counts in state["neighbours"]})
        found.angles.update({z: set(bins) for z, bins in state["angles"]})
        found.bonds.update({z: set(counts) for z, counts in state["bonds"]})
        return found


class _Measured(NamedTuple):
    """The numbers of one structure."""

    shortest: dict[tuple[int, int], float]
    neighbours: dict[tuple[int, int], np.ndarray]
    """``[atoms of the first element, spheres]``."""
    angles: dict[int, np.ndarray]
    """Degrees."""
    bonds: dict[int, np.ndarray]
    """``[atoms of the element]``."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> _Measured:
        i, j, d, vector = snapshot.neighbors("ijdD", SPHERES[-1])
        first, second = snapshot.numbers[i], snapshot.numbers[j]
        elements = np.unique(snapshot.numbers).tolist()
        shortest, neighbours = {}, {}
        for a in elements:
            for b in elements:
                which = (first == a) & (second == b)
                if which.any():
                    shortest[a, b] = float(d[which].min())
                    near = [np.bincount(i[which & (d < r)], minlength=snapshot.num_atoms) for r in SPHERES]
                    neighbours[a, b] = np.stack(near, axis=1)[snapshot.numbers == a]
        bonded = d < BOND * (covalent_radii[first] + covalent_radii[second])
        counts = np.bincount(i[bonded], minlength=snapshot.num_atoms)
        angles: dict[int, list[np.ndarray]] = defaultdict(list)
        unit = vector[bonded] / d[bonded, None]
        for atom in np.flatnonzero(counts > 1):
            own = unit[i[bonded] == atom]
            cosines = (own @ own.T)[np.triu_indices(len(own), 1)]
            angles[int(snapshot.numbers[atom])].append(np.degrees(np.arccos(np.clip(cosines, -1, 1))))
        return cls(
            shortest,
            neighbours,
            {z: np.concatenate(parts) for z, parts in angles.items()},
            {z: counts[snapshot.numbers == z] for z in elements},
        )


def _bins(degrees: np.ndarray) -> np.ndarray:
    return np.floor(degrees / ANGLE_STEP).astype(int)


def _seen(bins: np.ndarray, seen: set[int]) -> np.ndarray:
    known = np.array(sorted(seen))
    return np.abs(bins[:, None] - known[None, :]).min(axis=1) <= SLACK


def _wider(span, other):
    known = [s for s in (span, other) if s is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _span(span, form: str) -> str:
    low, high = (format(value, form) for value in span)
    return low if low == high else f"{low} to {high}"


def _listed(values: np.ndarray) -> str:
    words = [str(value) for value in np.unique(values)]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" or {words[-1]}"
