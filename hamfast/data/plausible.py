"""Signs that a structure's matrices are another structure's, or in another order than its atoms.

A matrix with pairs, signs or atoms exchanged is Hermitian and has the right shapes. But overlaps of atomic orbitals know
their distance: the norm of a block of S is a function of the two elements and of the distance alone, and falls with it.
"""

from __future__ import annotations

import warnings

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from hamfast.data.blocks import BlockMatrix, pair_name, species_groups
from hamfast.data.snapshot import Snapshot
from hamfast.errors import DataWarning

STEEPEST = 4.0
"""1/angstrom: no norm falls faster than exp(-4 r) where it is not small."""
NEAR = 0.5
"""Angstrom: pairs are compared whose lengths differ by less."""
NOT_SMALL = 0.1
"""Of the largest norm of the two elements."""
MAIN_GROUPS = ((3, 4, 5, 6, 7, 8, 9), (11, 12, 13, 14, 15, 16, 17), (31, 32, 33, 34, 35), (49, 50, 51, 52, 53))
"""Periods of main-group elements: along each, the s level falls."""
SHORTEST = 0.55
"""Of the sum of two covalent radii: bonds are not shorter."""
CLEARLY = 1.1
"""Ratio of covalent radii from which on orbitals differ in width."""


def warn_of_mix_ups(snapshot: Snapshot, where: str) -> None:
    """Warns (:class:`DataWarning`) of what looks exchanged, with its likely cause; never an error, as it is a guess."""
    checks = (_short_bonds, _longer_than_cutoff, _norms_against_distance, _onsite_overlap, _levels_of_elements)
    for check in checks:
        sentence = check(snapshot)
        if sentence is not None:
            warnings.warn(f"{where}: {sentence}", DataWarning, stacklevel=2)
            return


def _short_bonds(snapshot: Snapshot) -> str | None:
    """Lengths in another unit."""
    i, j, d = snapshot.neighbors("ijd", 2 * float(covalent_radii[snapshot.numbers].max()) * SHORTEST)
    ratio = d / (covalent_radii[snapshot.numbers[i]] + covalent_radii[snapshot.numbers[j]])
    if not len(ratio) or ratio.min() > SHORTEST:
        return None
    n = int(np.argmin(ratio))
    return (
        f"atoms {i[n]} ({chemical_symbols[snapshot.numbers[i[n]]]}) and {j[n]} ({chemical_symbols[snapshot.numbers[j[n]]]}) "
        f"are {d[n]:.2f} angstrom apart, {ratio[n]:.0%} of the sum of their covalent radii: are lengths in another unit, or "
        "coordinates in another order?"
    )


def _longer_than_cutoff(snapshot: Snapshot) -> str | None:
    """Some programs write the cutoff of their pairs into info.json."""
    for key, cutoff in snapshot.info.items():
        if not key.startswith("cutoff") or isinstance(cutoff, bool) or not isinstance(cutoff, (int, float)):
            continue
        for name, matrix in (("Hamiltonian", snapshot.hamiltonian), ("overlap", snapshot.overlap)):
            if matrix is None:
                continue
            length = np.linalg.norm(snapshot.pair_vectors(matrix.pairs), axis=1)
            if length.max() > cutoff + 0.05:
                return (
                    f"pairs of the {name} are up to {length.max():.2f} angstrom long, but {key} in info.json is {cutoff:g}: "
                    "are i and j exchanged, is R reversed, or are atoms in another order than in the structure file?"
                )
    return None


def _norms_against_distance(snapshot: Snapshot) -> str | None:
    """Blocks of pairs of almost the same length must have almost the same norm."""
    # The norms of H depend on the surroundings, too: threefold between bonds within a layer and across it.
    for name, matrix, slack in (("overlap", snapshot.overlap, 1.3), ("Hamiltonian", snapshot.hamiltonian, 6.0)):
        if matrix is None:
            continue
        length = np.linalg.norm(snapshot.pair_vectors(matrix.pairs), axis=1)
        norms = _norms(matrix)
        for _, _, which in species_groups(snapshot.numbers, matrix.pairs):
            which = which[length[which] > 1e-6]
            order = which[np.argsort(length[which])]
            if len(order) < 2:
                continue
            large = np.maximum(norms[order][:-1], norms[order][1:])
            small = np.minimum(norms[order][:-1], norms[order][1:])
            allowed = slack * np.exp(STEEPEST * np.diff(length[order]))
            wrong = (
                (np.diff(length[order]) < NEAR)
                & (large > NOT_SMALL * norms[order].max())
                & (large > allowed * np.maximum(small, 1e-12))
            )
            if wrong.any():
                n = int(np.argmax(np.where(wrong, large / np.maximum(small, 1e-12) / allowed, 0)))
                first, second = order[n], order[n + 1]
                return (
                    f"the {name} does not follow the distances: {pair_name(matrix.pairs[first])} is "
                    f"{length[first]:.2f} angstrom long and its block has norm {norms[first]:.3g}, "
                    f"{pair_name(matrix.pairs[second])} {length[second]:.2f} and {norms[second]:.3g}: are i and j "
                    "exchanged, is R reversed, or are atoms or coordinates in another order than in the structure file?"
                )
    return None


def _norms(matrix: BlockMatrix) -> np.ndarray:
    """``[pairs]``: Frobenius norm of each block; the same however the crystal is turned."""
    squares = np.abs(matrix.entries.astype(np.complex128 if np.iscomplexobj(matrix.entries) else np.float64)) ** 2
    return np.sqrt(np.add.reduceat(squares, matrix.boundaries[:-1]))


def _onsite_overlap(snapshot: Snapshot) -> str | None:
    """Orbitals are normalised, and atoms of one element have the same."""
    if snapshot.overlap is None:
        return None
    first: dict[int, tuple[int, np.ndarray]] = {}
    for atom, z in enumerate(snapshot.numbers.tolist()):
        block = snapshot.overlap.block(snapshot.overlap.index[0, 0, 0, atom, atom]).real
        if np.abs(np.diag(block) - 1).max() > 0.02:
            n = int(np.argmax(np.abs(np.diag(block) - 1)))
            return (
                f"the overlap of orbital {n} of atom {atom} with itself is {block[n, n]:.3g}, expected 1: is this an overlap "
                "matrix, and are the orbitals normalised?"
            )
        known, expected = first.setdefault(z, (atom, block))
        if np.abs(block - expected).max() > 0.02:
            return (
                f"atoms {known} and {atom} are both {chemical_symbols[z]}, but their on-site overlaps differ by "
                f"{np.abs(block - expected).max():.3g}: are elements exchanged, or atoms in another order than in the "
                "structure file?"
            )
    return None


def _levels_of_elements(snapshot: Snapshot) -> str | None:
    """Only of elements with the same shells: others, exchanged, do not fit the blocks.

    Of two main-group elements of one period the heavier has the lower levels. Of two elements of clearly different
    covalent radius the larger has the wider orbitals.
    """
    elements = sorted(snapshot.elements)
    for n, light in enumerate(elements):
        for heavy in elements[n + 1 :]:
            if snapshot.shells[light] != snapshot.shells[heavy]:
                continue
            sentence = None
            if any(light in period and heavy in period for period in MAIN_GROUPS):
                sentence = _deeper(snapshot, light, heavy)
            ratio = covalent_radii[light] / covalent_radii[heavy]
            if sentence is None and not 1 / CLEARLY < ratio < CLEARLY:
                sentence = _wider(snapshot, *((light, heavy) if ratio > 1 else (heavy, light)))
            if sentence is not None:
                return f"{sentence}: are the two elements exchanged?"
    return None


def _deeper(snapshot, light, heavy) -> str | None:
    h = snapshot.hamiltonian
    if h is None:
        return None
    level = {}
    for z in (light, heavy):
        atoms = np.flatnonzero(snapshot.numbers == z)
        level[z] = np.mean([np.linalg.eigvalsh(h.block(h.index[0, 0, 0, a, a]))[0] for a in atoms])
    if level[heavy] <= level[light] + 1.0:
        return None
    return (
        f"the lowest on-site level of {chemical_symbols[heavy]} is {level[heavy]:.1f} eV, above {level[light]:.1f} eV of "
        f"{chemical_symbols[light]}, expected below"
    )


def _wider(snapshot, large, small) -> str | None:
    s = snapshot.overlap
    if s is None:
        return None
    length, norms = np.linalg.norm(snapshot.pair_vectors(s.pairs), axis=1), _norms(s)
    curves = {}
    for z in (large, small):
        which = np.flatnonzero(np.all(snapshot.numbers[s.pairs[:, 3:]] == z, axis=1) & (length > 1e-6))
        which = which[np.argsort(length[which])]
        which = which[norms[which] > NOT_SMALL * norms[which].max(initial=0.0)]
        if len(which) < 2:
            return None
        curves[z] = length[which], np.log(norms[which])
    low, high = max(c[0][0] for c in curves.values()), min(c[0][-1] for c in curves.values())
    if high < low:
        return None
    at = np.linspace(low, high, 20)
    excess = float(np.mean(np.interp(at, *curves[small]) - np.interp(at, *curves[large])))
    if excess < 0.1:
        return None
    return (
        f"overlaps between {chemical_symbols[small]} atoms are {np.exp(excess):.2f} times those between the larger "
        f"{chemical_symbols[large]} atoms at the same distance, expected smaller"
    )
