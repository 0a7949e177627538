"""Sums over the structures of a set, from which something is fitted."""

from __future__ import annotations

from typing import Any, Protocol

from hamfast.graph import CrystalGraph


class Sums(dict[Any, Any]):
    """Tensors, or other things with ``+=``, by name."""

    def join(self, other: Sums) -> None:
        """Adds the sums over other structures."""
        for key, value in other.items():
            if key in self:
                self[key] += value
            else:
                self[key] = value


class Fit(Protocol):
    """What is fitted to sums over structures, which several processes may make in parts."""

    name: str
    """For the user, and for what is kept."""

    def bytes(self) -> int:
        """The memory of the sums."""

    def add(self, sums: Sums, number: int, graph: CrystalGraph) -> None:
        """Adds a structure, which is the one of this number in the set."""

    def solve(self, sums: Sums) -> None:
        """Takes what is fitted from the sums over all structures."""
