"""The overlap matrix as a function of the structure, fitted to the overlaps of a data set.

The overlap of two atomic orbitals depends on the vector between their atoms alone. So each irrep of
a block with l and the parity (-1)^l is a function of the distance times the harmonics of the
direction (Slater and Koster, Phys. Rev. 94, 1498, 1954), and the others are zero:

    x_lm(r) = f(|r|) Y_lm(r / |r|).

The functions f are cubic splines, fitted by least squares to the blocks of a training set, one for
each pair of elements and each irrep. On an atom the block is constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from e3nn import o3
from scipy.interpolate import BSpline

from hamfast.data.blocks import BlockMatrix, pair_name, reversed_pairs, species_groups
from hamfast.data.snapshot import Snapshot
from hamfast.errors import DataWarning, HamfastError
from hamfast.targets import TargetSpec

SPACING = 0.1
"""Angstrom between the knots of the splines."""
DEGREE = 3
STIFFNESS = 1e-8
"""Weight of the splines' third differences, relative to the data: they go on beyond the data as
parabolas."""
MARGIN = 0.15
"""Angstrom beyond the distances of the data to which a spline is trusted."""
OTHER_BASIS, MOST_COMPARED = 3e-3, 200
"""A mean difference of overlaps above this, over so many pairs, is one of other orbitals."""
NEAR = 0.04
"""Angstrom: further away a warning says so. In graphene, 0.14 angstrom gave an error of 1e-3."""


@dataclass
class TwoCentreOverlap:
    """Fitted overlaps; :meth:`matrix` gives those of a structure.

    All arrays are float64.
    """

    spec: TargetSpec
    """Elements and orbitals; without spin, as the overlap is."""
    knots: np.ndarray
    """``[knots]`` angstrom."""
    coefficients: np.ndarray
    """``[species pairs, splines, irreps]``."""
    onsite: np.ndarray
    """``[species, spec.dim]``: the irreps of an atom's own block."""
    seen: np.ndarray
    """``[species pairs, intervals]`` bool: does the data have pairs of such a distance? An interval
    is :data:`SPACING` wide and begins at :attr:`start`."""
    longest: np.ndarray
    """``[species pairs]`` angstrom: the longest pair of the data, 0 if there is none."""
    electrons: np.ndarray | None = None
    """``[species, 1 + compositions]``: electrons of an atom, from those of the data, and then the
    compositions of the data, from which others follow by addition."""
    error: tuple[float, float] | None = None
    """Mean and largest |dS| on structures that were not fitted; None if there were none."""

    @property
    def start(self) -> float:
        """Angstrom: where the splines begin."""
        return float(self.knots[DEGREE])

    # --- fit
    # ---------------------------------------------------------------------------------------------

    @staticmethod
    def fit(spec: TargetSpec, snapshots: Iterable[Snapshot]) -> TwoCentreOverlap | None:
        """Fits the overlaps of structures; those without one are left out. None if none has one."""
        spec = TargetSpec(spec.shells, False)
        species = {z: n for n, z in enumerate(spec.elements)}
        rows: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        onsite, counts = np.zeros((spec.num_species, spec.dim)), np.zeros(spec.num_species)
        electrons: list[tuple[np.ndarray, float]] = []
        for snapshot in snapshots:
            index = np.array([species[int(z)] for z in snapshot.numbers])
            if snapshot.occupation is not None:
                electrons.append((np.bincount(index, minlength=spec.num_species), snapshot.occupation))
            if snapshot.overlap is None:
                continue
            for first, second, which in species_groups(index, snapshot.overlap.pairs):
                blocks = torch.from_numpy(np.ascontiguousarray(snapshot.overlap.group(which), dtype=np.float64))
                x = spec.to_irreps(blocks, first, second).numpy()
                vectors = snapshot.pair_vectors(snapshot.overlap.pairs[which])
                length = np.linalg.norm(vectors, axis=1)
                home = length < 1e-6
                onsite[first] += x[home].sum(axis=0)
                counts[first] += home.sum()
                amplitudes = _amplitudes(spec, x[~home], vectors[~home])
                rows.setdefault(first * spec.num_species + second, []).append((length[~home], amplitudes))
        if not counts.any():
            return None
        lengths = [length for parts in rows.values() for length, _ in parts if len(length)]
        low = min((float(length.min()) for length in lengths), default=1.0) - 2 * MARGIN
        high = max((float(length.max()) for length in lengths), default=2.0) + 2 * MARGIN
        intervals = int(np.ceil((high - low) / SPACING))
        knots = low + SPACING * np.arange(-DEGREE, intervals + DEGREE + 1)
        pairs, splines = spec.num_species**2, intervals + DEGREE
        coefficients = np.zeros((pairs, splines, len(spec.irreps)))
        seen, longest = np.zeros((pairs, intervals), dtype=bool), np.zeros(pairs)
        for pair, parts in rows.items():
            length, amplitudes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            if not len(length):
                continue
            design = BSpline.design_matrix(length, knots, DEGREE)
            gram = (design.T @ design).toarray()
            differences = np.diff(np.eye(splines), 3, axis=0)
            gram += STIFFNESS * len(length) * differences.T @ differences
            gram += 1e-15 * len(length) * np.eye(splines)
            coefficients[pair] = np.linalg.solve(gram, design.T @ amplitudes)
            found = np.unique(((length - low) / SPACING).astype(int))
            seen[pair, found] = True
            longest[pair] = length.max()
        onsite /= np.maximum(counts, 1)[:, None]
        return TwoCentreOverlap(spec, knots, coefficients, onsite, seen, longest, _electrons(electrons))

    def measure(self, snapshots: Iterable[Snapshot]) -> None:
        """Sets :attr:`error` by structures that were not fitted."""
        differences = []
        for snapshot in snapshots:
            if snapshot.overlap is None:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # the error says it better
                try:
                    found = self._of_pairs(snapshot, snapshot.overlap.pairs)
                except HamfastError:  # a distance that the training has not
                    continue
            differences.append(np.abs(found.entries - snapshot.overlap.entries))
        if differences:
            joined = np.concatenate(differences)
            self.error = float(joined.mean()), float(joined.max())

    # --- prediction
    # ---------------------------------------------------------------------------------------------

    def matrix(self, snapshot: Snapshot, pairs: np.ndarray) -> BlockMatrix:
        """The overlap of a structure.

        Args:
            snapshot: the structure.
            pairs: ``[pairs, 5]``, of its Hamiltonian; those longer than any of the data have no
                overlap, and are left out.

        Raises:
            HamfastError: two atoms have a distance that the data do not determine.
        """
        species = self._species(snapshot)
        longest = self.longest[species[pairs[:, 3]] * self.spec.num_species + species[pairs[:, 4]]]
        length = np.linalg.norm(snapshot.pair_vectors(pairs), axis=1)
        return self._of_pairs(snapshot, pairs[length <= longest + MARGIN])

    def check_basis(self, snapshot: Snapshot) -> None:
        """Compares the overlap of a structure with this one, on the nearest pairs that it knows.

        Two codes, or two basis sets, may have the same shells and other orbitals in them.

        Raises:
            HamfastError: the overlaps are those of other orbitals.
        """
        if snapshot.overlap is None or any(int(z) not in self.spec.elements for z in snapshot.numbers):
            return
        pairs, species = snapshot.overlap.pairs, self._species(snapshot)
        kind = species[pairs[:, 3]] * self.spec.num_species + species[pairs[:, 4]]
        length = np.linalg.norm(snapshot.pair_vectors(pairs), axis=1)
        interval = np.floor((length - self.start) / SPACING).astype(int)
        inside = (interval >= 0) & (interval < self.seen.shape[1])
        inside[inside] = self.seen[kind[inside], interval[inside]]
        inside |= length < 1e-6
        longest = np.sort(length[inside])[: MOST_COMPARED + 1].max(initial=0.0)  # both directions of a pair
        known = np.flatnonzero(inside & (length < longest + 1e-6))
        own = self._of_pairs(snapshot, pairs[known])
        differences = [
            (own.block(own.index[tuple(pairs[n].tolist())]) - snapshot.overlap.block(n)).ravel() for n in known.tolist()
        ]
        difference = float(np.abs(np.concatenate(differences)).mean()) if differences else 0.0
        if difference > OTHER_BASIS:
            raise HamfastError(
                f"{snapshot.label}: its overlap is not that of the model's orbitals: |dS| of its nearest pairs is "
                f"{difference:.2g} on average, expected below {OTHER_BASIS:g}; a model knows one code and one basis"
            )

    def num_electrons(self, snapshot: Snapshot) -> float | None:
        """Electrons of the cell; None if the data did not tell."""
        if self.electrons is None:
            return None
        own = np.bincount(self._species(snapshot), minlength=self.spec.num_species).astype(float)
        known = self.electrons[:, 1:]
        # A composition that those of the data do not add up to has an unknown number.
        left = own - known @ np.linalg.lstsq(known, own, rcond=None)[0]
        return None if np.abs(left).max() > 1e-6 else float(np.round(own @ self.electrons[:, 0], 6))

    def _species(self, snapshot: Snapshot) -> np.ndarray:
        species = {z: n for n, z in enumerate(self.spec.elements)}
        return np.array([species[int(z)] for z in snapshot.numbers])

    def _of_pairs(self, snapshot: Snapshot, pairs: np.ndarray) -> BlockMatrix:
        own, back = self._fitted(snapshot, pairs), self._fitted(snapshot, reversed_pairs(pairs), False)
        groups = []  # the fits of A-B and of B-A are not one
        for (first, second), (which, blocks) in own.items():
            groups.append((which, (blocks + back[second, first][1].transpose(0, 2, 1)) / 2))
        return BlockMatrix.from_groups(pairs, groups)

    def _fitted(
        self, snapshot: Snapshot, pairs: np.ndarray, check: bool = True
    ) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """Two species -> positions of their pairs, and the blocks of these."""
        species = self._species(snapshot)
        vectors = snapshot.pair_vectors(pairs)
        length = np.linalg.norm(vectors, axis=1)
        groups = {}
        for first, second, which in species_groups(species, pairs):
            pair = first * self.spec.num_species + second
            home = length[which] < 1e-6
            hop = which[~home]
            if check:
                self._check(snapshot, pairs, hop, length, first, second)
            x = np.tile(self.onsite[first], (len(which), 1))
            if len(hop):
                inside = np.clip(length[hop], self.start, self.knots[-DEGREE - 1])
                amplitudes = BSpline.design_matrix(inside, self.knots, DEGREE) @ self.coefficients[pair]
                x[~home] = _from_amplitudes(self.spec, amplitudes, vectors[hop])
            groups[first, second] = which, self.spec.to_blocks(torch.from_numpy(x), first, second).numpy()
        return groups

    def _check(self, snapshot, pairs, which, length, first, second) -> None:
        """Raises HamfastError for a pair that the data say nothing about."""
        pair = first * self.spec.num_species + second
        own = length[which]
        if not len(own):
            return
        known = self.seen[pair]
        starts = self.start + SPACING * np.flatnonzero(known)
        # From the nearest interval that has data.
        away = np.full(len(own), np.inf)
        if len(starts):
            gap = np.maximum(starts - own[:, None], own[:, None] - starts - SPACING)
            away = np.maximum(gap, 0).min(axis=1)
        worst = int(np.argmax(away))
        if away[worst] <= NEAR:
            return
        names = f"{chemical_symbols[self.spec.elements[first]]}-{chemical_symbols[self.spec.elements[second]]}"
        pair_words = f"{pair_name(pairs[which[worst]])} is a pair {names} of {own[worst]:.2f} angstrom"
        if away[worst] > MARGIN:
            raise HamfastError(
                f"{snapshot.label}: its overlap cannot be told: {pair_words}, and the training has {_ranges(starts)}"
            )
        warnings.warn(
            f"{snapshot.label}: its overlap is extrapolated: {pair_words}, {away[worst]:.2f} from those of the training",
            DataWarning,
            stacklevel=2,
        )

    # --- in checkpoints
    # ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of it as tensors and plain numbers."""
        arrays = {name: getattr(self, name) for name in ("knots", "coefficients", "onsite", "seen", "longest")}
        return {
            **{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
            "electrons": None if self.electrons is None else torch.from_numpy(self.electrons),
            "error": None if self.error is None else list(self.error),
        }

    @staticmethod
    def from_state(spec: TargetSpec, state: dict[str, Any]) -> TwoCentreOverlap:
        """The inverse of :meth:`state`, for the elements and orbitals of a model."""
        arrays = {name: state[name].numpy() for name in ("knots", "coefficients", "onsite", "seen", "longest")}
        electrons = None if state["electrons"] is None else state["electrons"].numpy()
        error = None if state["error"] is None else (float(state["error"][0]), float(state["error"][1]))
        return TwoCentreOverlap(TargetSpec(spec.shells, False), **arrays, electrons=electrons, error=error)


def _ranges(starts: np.ndarray) -> str:
    """``1.2 to 1.7 and 2.2 to 3.0 angstrom``, or none."""
    if not len(starts):
        return "none"
    breaks = np.flatnonzero(np.diff(starts) > 1.5 * SPACING)
    begins = starts[np.concatenate([[0], breaks + 1])]
    ends = starts[np.concatenate([breaks, [len(starts) - 1]])] + SPACING
    return " and ".join(f"{a:.2f} to {b:.2f}" for a, b in zip(begins, ends, strict=True)) + " angstrom"


def _harmonics(spec: TargetSpec, vectors: np.ndarray) -> np.ndarray:
    """``[rows, spec.dim]``: for each component the harmonic of its l and m."""
    l_max = max(ir.l for _, ir in spec.irreps)
    own = torch.from_numpy(vectors[:, [1, 2, 0]])  # e3nn's axes
    harmonics = o3.spherical_harmonics(list(range(l_max + 1)), own, True, "component").numpy()
    return harmonics[:, np.concatenate([np.arange(ir.l**2, (ir.l + 1) ** 2) for _, ir in spec.irreps])]


def _natural(spec: TargetSpec) -> np.ndarray:
    """``[irreps]``: 1 for those that a function of one vector can make."""
    return np.array([float(ir.p == (-1) ** ir.l) for _, ir in spec.irreps])


def _amplitudes(spec: TargetSpec, x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``[rows, irreps]``: f of each irrep."""
    sizes = [ir.dim for _, ir in spec.irreps]
    starts = np.cumsum([0, *sizes[:-1]])
    return np.add.reduceat(x * _harmonics(spec, vectors), starts, axis=1) / sizes * _natural(spec)


def _from_amplitudes(spec: TargetSpec, amplitudes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``[rows, spec.dim]``: the irreps; the inverse of :func:`_amplitudes`."""
    return np.repeat(amplitudes, [ir.dim for _, ir in spec.irreps], axis=1) * _harmonics(spec, vectors)


def _electrons(rows: list[tuple[np.ndarray, float]]) -> np.ndarray | None:
    """Electrons per atom of each element and the compositions; None if none explain the data."""
    if not rows:
        return None
    counts, totals = np.array([row[0] for row in rows], dtype=float), np.array([row[1] for row in rows])
    found = np.linalg.lstsq(counts, totals, rcond=None)[0]
    if np.abs(counts @ found - totals).max() > 1e-3 * max(1.0, np.abs(totals).max()):
        return None
    return np.column_stack([found, np.unique(counts, axis=0).T])
