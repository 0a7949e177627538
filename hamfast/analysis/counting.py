"""The Fermi level of systems too large to diagonalise, from counts of levels.

The factors L D L^H of H(k) - E S(k) have as many negative pivots as there are levels below E
(Sylvester's law of inertia, see :mod:`hamfast.analysis.shift_invert`). Bisection finds the energy
below which the levels of a k-mesh hold the electrons, at zero temperature.
"""

from __future__ import annotations

import numpy as np

from hamfast.analysis.direct import Unstable, factorized_by
from hamfast.analysis.eigen import EigenProblem, in_words
from hamfast.analysis.fermi import whole_electrons
from hamfast.analysis.shift_invert import STEPS, ShiftedFactor, levels_near, near_null
from hamfast.errors import HamfastError

WIDTH = 1e-3
"""eV: the Fermi level of a metal is found to this."""
FURTHEST = 1e4
"""eV: no level is searched for beyond."""


def fermi_level_by_counting(problem: EigenProblem, kpoints: np.ndarray) -> float:
    """The Fermi level, eV.

    In an insulator it is the middle of the gap on these k-points.

    Args:
        problem: H(k) and S(k), sparse.
        kpoints: ``[kpoints, 3]`` of a whole mesh, in fractions of the reciprocal lattice vectors.

    Raises:
        HamfastError: the number of electrons is not known, or they do not fit into the levels;
            levels cannot be counted.
    """
    with factorized_by(problem.choice().direct):
        return _fermi_level(problem, kpoints)


def _fermi_level(problem: EigenProblem, kpoints: np.ndarray) -> float:
    points, weights = _half_of(problem, kpoints)
    wanted = whole_electrons(problem.electrons()) / problem.degeneracy * len(kpoints)
    if wanted > problem.size * len(kpoints):
        raise HamfastError(
            f"{problem.electrons():g} electrons do not fit into {problem.size} bands of {problem.degeneracy}"
        )
    nulls: list[np.ndarray | None] = [None] * len(points)
    if problem.projection is not None:
        nulls = [near_null(problem.overlap.at(k), problem.projection) for k in points]

    def below(energy: float) -> int:
        counts = [_levels_below(problem, k, energy, null) for k, null in zip(points, nulls, strict=True)]
        return int(np.dot(weights, counts))

    middle = _mean_level(problem, points[0])
    low, high, step = middle, middle, 4.0
    while below(low) >= wanted:
        low, step = low - step, 2 * step
        _check_reach(low, wanted)
    step = 4.0
    while (count := below(high)) < wanted:
        low, high, step = max(low, high), high + step, 2 * step
        _check_reach(high, wanted)
    while high - low > WIDTH and count != wanted:
        middle = (low + high) / 2
        count = below(middle)
        low, high = (middle, high) if count < wanted else (low, middle)
    if count != wanted:
        return (low + high) / 2
    return _middle_of_gap(problem, points, nulls, high)


def _middle_of_gap(problem, points, nulls, inside: float) -> float:
    """Of an energy with the wanted count: the middle between the levels next to it."""
    edges = []
    for k, null in zip(points, nulls, strict=True):
        near = levels_near(problem.hamiltonian.at(k), problem.overlap.at(k), inside, 2, in_words(k), null)
        edges.append((near.energies[near.energies < inside].max(), near.energies[near.energies > inside].min()))
    valence, conduction = np.array(edges).T
    return float(valence.max() + conduction.min()) / 2


def _half_of(problem: EigenProblem, kpoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights. Of real H(R) and S(R), k and -k have the same levels: one is enough."""
    kpoints = np.asarray(kpoints, dtype=np.float64).reshape(-1, 3)
    if problem.hamiltonian.is_complex:
        return kpoints, np.ones(len(kpoints), dtype=np.int64)
    folded = np.round(kpoints % 1.0, 9) % 1.0
    opposite = np.round(-kpoints % 1.0, 9) % 1.0
    smaller = np.array([min(a, b) for a, b in zip(map(tuple, folded), map(tuple, opposite), strict=True)])
    _, chosen, weights = np.unique(smaller, axis=0, return_index=True, return_counts=True)
    return kpoints[chosen], weights


def _levels_below(problem: EigenProblem, k: np.ndarray, energy: float, null) -> int:
    h, s = problem.hamiltonian.at(k), problem.overlap.at(k)
    for step in (0.0, *STEPS):
        try:
            count = ShiftedFactor(h, s, energy + step, null).negative
        except Unstable:
            continue
        if count is not None:
            return count
    raise HamfastError(f"levels below {energy:.3f} eV could not be counted at {in_words(k)}; give --fermi")


def _mean_level(problem: EigenProblem, k: np.ndarray) -> float:
    """eV: somewhere among the levels."""
    h, s = problem.hamiltonian.at(k).diagonal().real, problem.overlap.at(k).diagonal().real
    return float(np.median(h / np.where(s > 0, s, 1.0)))


def _check_reach(energy: float, wanted: float) -> None:
    if abs(energy) > FURTHEST:
        raise HamfastError(
            f"no Fermi level: {wanted:g} levels were not found between -{FURTHEST:g} and {FURTHEST:g} eV"
        )
