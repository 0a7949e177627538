"""Split conformal prediction: from scores of held-out errors to intervals with a stated level.

A score is an error over the spread that was expected of it. Of n held-out scores and one more that
is exchangeable with them, the new one is at most the k-th smallest of the n with a probability of
at least ``level``, if k = ceil((n + 1) level); and of at most ``level`` + 1 / (n + 1) without ties
(Vovk et al., Algorithmic Learning in a Random World, 2005; Lei et al., J. Am. Stat. Assoc. 113,
1094, 2018). Nothing is assumed of the spread: a bad one makes wide intervals, not wrong ones.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from hamfast.errors import DataWarning, HamfastError
from hamfast.graph import ONSITE

KEPT = 400
"""So many order statistics of a class are kept: all of a small one."""
ENOUGH = 100
"""Blocks that a class of one species or pair has at least."""
FEWEST = 10
"""The same of all on-site blocks, of all hoppings, and of both."""


def check_level(level: float) -> float:
    """Raises HamfastError unless the level lies between 0 and 1; returns it."""
    if not 0 < level < 1:
        raise HamfastError(f"level: expected a number between 0 and 1, such as 0.9, found {level}")
    return level


@dataclass(frozen=True)
class Scores:
    """Scores of held-out errors of one class."""

    values: np.ndarray
    """``[kept]`` float64, ascending: some of the scores, the largest among them."""
    ranks: np.ndarray
    """``[kept]`` int64, from 1: the place of each among all."""
    rms: float
    """Of all."""

    @classmethod
    def of(cls, scores: np.ndarray) -> Scores:
        """Of ``[scores]``, of which there is at least one."""
        ranks = np.unique(np.linspace(1, len(scores), min(KEPT, len(scores))).round().astype(np.int64))
        return cls(np.sort(scores)[ranks - 1], ranks, float(np.sqrt(np.mean(np.square(scores)))))

    @property
    def count(self) -> int:
        """How many scores there were."""
        return int(self.ranks[-1])

    def quantile(self, level: float) -> float:
        """The score that a new one does not exceed, with a probability of ``level``.

        Between two scores that were kept it is the larger one.

        Raises:
            HamfastError: there are too few scores for this level.
        """
        place = math.ceil((self.count + 1) * check_level(level) - 1e-9)
        if place > self.count:
            raise HamfastError(
                f"level {level:g}: expected at least {math.ceil(level / (1 - level) - 1e-9)} held-out errors of each kind, found "
                f"{self.count}; use a lower level, or a larger validation set"
            )
        return float(self.values[np.searchsorted(self.ranks, place)])

    def state(self) -> dict[str, Any]:
        """Tensors and plain numbers, for a checkpoint."""
        return {"values": torch.from_numpy(self.values), "ranks": torch.from_numpy(self.ranks), "rms": self.rms}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Scores:
        """The inverse of :meth:`state`."""
        return cls(state["values"].numpy(), state["ranks"].numpy(), float(state["rms"]))


@dataclass(frozen=True)
class BlockClass:
    """Which blocks have scores of their own."""

    onsite: bool | None
    """None: of both kinds."""
    species: tuple[int, int] | None
    """The smaller index first; None: all species."""
    low: float
    high: float
    """Angstrom: lengths from ``low`` to below ``high``."""

    def holds(self, first: np.ndarray, second: np.ndarray, length: np.ndarray) -> np.ndarray:
        """``[blocks]`` bool; the arguments are those of :meth:`BlockScores.fit`."""
        found = (length >= self.low) & (length < self.high)
        if self.onsite is not None:
            found &= (length < ONSITE) == self.onsite
        if self.species is not None:
            found &= (np.minimum(first, second) == self.species[0]) & (np.maximum(first, second) == self.species[1])
        return found


@dataclass(frozen=True)
class BlockScores:
    """Scores of blocks by class, the general classes first; a block belongs to its last one.

    On-site blocks have one class per species. Hoppings have one per pair of species and angstrom.
    Neighbouring angstroms share a class until it has ``ENOUGH`` blocks. A species or a pair with
    fewer belongs to the class of all species. On-site blocks and hoppings share a class only where
    there are fewer than ``FEWEST`` of one kind, and a warning says so.
    """

    classes: tuple[tuple[BlockClass, Scores], ...]

    @classmethod
    def fit(cls, first: np.ndarray, second: np.ndarray, length: np.ndarray, scores: np.ndarray) -> BlockScores:
        """Sorts held-out scores into classes.

        Args:
            first, second: ``[blocks]`` int64, the species of the two atoms.
            length: ``[blocks]`` angstrom.
            scores: ``[blocks]``, each block and its reverse once.

        Raises:
            HamfastError: there are fewer than 10 blocks.
        """
        if len(scores) < FEWEST:
            raise HamfastError(f"uncertainties: expected {FEWEST} held-out blocks or more, found {len(scores)}")
        wanted = [BlockClass(None, None, 0.0, math.inf)]
        wanted += [BlockClass(onsite, None, 0.0, math.inf) for onsite in (True, False)]
        low, high = np.minimum(first, second), np.maximum(first, second)
        for a, b in sorted(set(zip(low.tolist(), high.tolist(), strict=True))):
            own = (low == a) & (high == b)
            if a == b:
                wanted.append(BlockClass(True, (a, a), 0.0, math.inf))
            edges = _edges(length[own & (length >= ONSITE)])
            wanted += [BlockClass(False, (a, b), *span) for span in pairwise(edges)]
        found = []
        for kind in wanted:
            which = kind.holds(first, second, length)
            if which.sum() >= (FEWEST if kind.species is None else ENOUGH):
                found.append((kind, Scores.of(scores[which])))
            elif kind.species is None and which.any():
                warnings.warn(
                    f"uncertainties: only {which.sum()} {'on-site blocks' if kind.onsite else 'hoppings'} are held out, expected "
                    f"{FEWEST}; they share the scores of all blocks, which may be far off",
                    DataWarning,
                    stacklevel=2,
                )
        return cls(tuple(found))

    def class_of(self, first: np.ndarray, second: np.ndarray, length: np.ndarray) -> np.ndarray:
        """``[blocks]`` int64: the number of each block's class."""
        found = np.zeros(len(length), dtype=np.int64)
        for n, (kind, _) in enumerate(self.classes):
            found[kind.holds(first, second, length)] = n
        return found

    def quantiles(self, level: float) -> np.ndarray:
        """``[classes]``: :meth:`Scores.quantile` of each.

        Raises:
            HamfastError: a class has too few blocks for this level.
        """
        return np.array([scores.quantile(level) for _, scores in self.classes])

    def state(self) -> list[Any]:
        """Tensors and plain numbers, for a checkpoint."""
        return [
            [c.onsite, None if c.species is None else list(c.species), c.low, c.high, scores.state()]
            for c, scores in self.classes
        ]

    @classmethod
    def from_state(cls, state: list[Any]) -> BlockScores:
        """The inverse of :meth:`state`."""
        return cls(
            tuple(
                (BlockClass(onsite, None if s is None else (s[0], s[1]), low, high), Scores.from_state(scores))
                for onsite, s, low, high, scores in state
            )
        )


def _edges(length: np.ndarray) -> list[float]:
    """Where classes of hoppings begin and end: at whole angstroms, from 0 to infinity."""
    if not len(length):
        return [0.0, math.inf]
    edges, begun = [0.0], 0
    counts = np.bincount(np.floor(length).astype(int))
    for n, count in enumerate(counts.tolist()):
        begun += count
        if begun >= ENOUGH:
            edges.append(float(n + 1))
            begun = 0
    if len(edges) == 1:
        return [0.0, math.inf]
    return [*edges[:-1], math.inf]
