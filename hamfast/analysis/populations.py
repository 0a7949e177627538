"""How much of each level lies on which atoms and shells, after Mulliken.

For a level c with c^+ S c = 1 the share of a set g of orbitals is

    w_g = sum over m in g of Re(conj(c_m) (S c)_m)

(R. S. Mulliken, J. Chem. Phys. 23, 1833, 1955). All shares of a level add up to 1. One of them may
be a little below 0, where orbitals of neighbours overlap much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from hamfast.analysis.eigen import EigenProblem
from hamfast.analysis.fermi import density_of_states
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

LETTERS = "spdfghi"
SAME_ENERGY = 1e-5
"""eV: neighbours that are closer are one multiplet."""


@dataclass
class Populations:
    """Shares of levels."""

    names: list[str]
    """Of the sets of orbitals: ``C``, or ``C s``, ``C p``, or ``up``, ``down``."""
    energies: np.ndarray
    """``[kpoints, bands]`` eV; NaN where directions of S(k) were left out."""
    shares: np.ndarray
    """``[kpoints, bands, sets]``."""

    def densities(self, grid: np.ndarray, zero: float, width: float, degeneracy: int) -> np.ndarray:
        """``[sets, points]`` states / eV / cell: the density of states, each level by its shares.

        Args:
            grid: ``[points]`` eV, relative to ``zero``.
            zero: eV.
            width: eV, the standard deviation of the Gaussian on each level.
            degeneracy: electrons that a band holds.
        """
        energies = self.energies - zero
        return np.stack(
            [density_of_states(energies, grid, width, degeneracy, self.shares[..., n]) for n in range(len(self.names))]
        )


def orbital_sets(snapshot: Snapshot, by: str) -> dict[str, np.ndarray]:
    """Name -> the rows of H(k), spin included, of each element, of each l of an element, or of each
    spin.

    Args:
        snapshot: the structure.
        by: ``element``, ``shell`` or ``spin``.

    Raises:
        HamfastError: ``by`` is none of these, or there is no spin.
    """
    if by not in ("element", "shell", "spin"):
        raise HamfastError(f"shares of levels: expected element, shell or spin, found {by!r}")
    if by == "spin" and not snapshot.spinful:
        raise HamfastError(
            f"shares of levels by spin: expected a Hamiltonian with spin, found none in {snapshot.label}"
        )
    spins, start = 2 if snapshot.spinful else 1, 0
    found: dict[str, list[int]] = {}
    for z in snapshot.numbers.tolist():
        symbol, size = chemical_symbols[z], sum(2 * l + 1 for l in snapshot.shells[z])
        own = [l for l in snapshot.shells[z] for _ in range(2 * l + 1)]
        for spin in range(spins):
            for n, l in enumerate(own):
                name = {"element": symbol, "shell": f"{symbol} {LETTERS[l]}", "spin": ("up", "down")[spin]}[by]
                found.setdefault(name, []).append(start + spin * size + n)
        start += spins * size
    return {name: np.array(rows) for name, rows in sorted(found.items(), key=lambda item: min(item[1]))}


def populations(
    problem: EigenProblem, kpoints: np.ndarray, sets: dict[str, np.ndarray], report: Callable[[], None] = lambda: None
) -> Populations:
    """Shares of all levels at some k-points.

    Args:
        problem: H(k) and S(k).
        kpoints: ``[kpoints, 3]``, in fractions of the reciprocal lattice vectors.
        sets: of :func:`orbital_sets`.
        report: called after every k-point.

    Raises:
        HamfastError: there are too many orbitals for all levels; S(k) is not positive definite.
    """
    problem.check_all_levels("shares of levels")
    kpoints = np.asarray(kpoints, dtype=np.float64).reshape(-1, 3)
    energies = np.full((len(kpoints), problem.size), np.nan)
    shares = np.zeros((len(kpoints), problem.size, len(sets)))
    for n, k in enumerate(kpoints):
        found, states = problem.states(k)
        energies[n, : len(found)] = found
        share = (states.conj() * (problem.overlap.at(k) @ states)).real
        parts = np.stack([share[rows].sum(axis=0) for rows in sets.values()], axis=1)
        shares[n, : len(found)] = _of_multiplets(found, parts)
        report()
    return Populations(list(sets), energies, shares)


def _of_multiplets(energies: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The mean over levels of one energy: which states they are split into is arbitrary."""
    begins = np.flatnonzero(np.diff(energies, prepend=-np.inf) > SAME_ENERGY)
    counts = np.diff(np.append(begins, len(energies)))
    means = np.add.reduceat(shares, begins, axis=0) / counts[:, None]
    return np.repeat(means, counts, axis=0)
