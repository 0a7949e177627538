"""The shells of a data set's elements, and the irreps of the blocks between them.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

Channel = tuple[int, int, int, int]
"""(l1, n1, l2, n2): the n1-th shell of angular momentum l1 with the n2-th of l2."""


@dataclass(frozen=True)
class ShellSpec:
    """The orbitals of a data set, and which irreps its blocks are made of.

    Args:
        shells: (atomic number, l of each shell in orbital order) for each element, in the data
            set's order.
        spinful: blocks carry spin (spin-orbit coupling).
    """

    shells: tuple[tuple[int, tuple[int, ...]], ...]
    spinful: bool = False

    @classmethod
    def from_mapping(cls, shells: Mapping[int, list[int] | tuple[int, ...]], spinful: bool) -> Self:
        """From atomic number -> l of the shells."""
        return cls(tuple((int(z), tuple(int(l) for l in ls)) for z, ls in shells.items()), bool(spinful))

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers."""
        return tuple(z for z, _ in self.shells)

    @property
    def num_species(self) -> int:
        """How many elements there are."""
        return len(self.shells)

    def num_orbitals(self, species: int) -> int:
        """Orbitals of the species with this index, without spin."""
        return sum(2 * l + 1 for l in self.shells[species][1])

    def block_shape(self, first: int, second: int) -> tuple[int, int]:
        """Shape of a block between two species (by index), spin included."""
        factor = 2 if self.spinful else 1
        return factor * self.num_orbitals(first), factor * self.num_orbitals(second)

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        """Pairs of shells, shared between element pairs, in order of first appearance."""
        found: dict[Channel, None] = {}
        for _, first in self.shells:
            for _, second in self.shells:
                for a in labelled(first):
                    for b in labelled(second):
                        found[(*a, *b)] = None
        return tuple(found)

    @cached_property
    def irrep_list(self) -> tuple[tuple[int, int], ...]:
        """(l, parity) of every irrep of a block, in the order of the components."""
        entries = []
        for l1, _, l2, _ in self.channels:
            parity = (-1) ** (l1 + l2)
            ls = range(abs(l1 - l2), l1 + l2 + 1)
            entries += [(l, parity) for l in ls]
            if self.spinful:
                entries += [(k, parity) for l in ls for k in range(abs(l - 1), l + 2)]
        return tuple(entries) * (2 if self.spinful else 1)

    @property
    def dim(self) -> int:
        """Components of all irreps: real numbers for each pair of atoms."""
        return sum(2 * l + 1 for l, _ in self.irrep_list)


def labelled(shells) -> list[tuple[int, int]]:
    """(l, n) of each shell: n counts the shells of one l."""
    seen: dict[int, int] = {}
    labels = []
    for l in shells:
        labels.append((l, seen.get(l, 0)))
        seen[l] = seen.get(l, 0) + 1
    return labels
