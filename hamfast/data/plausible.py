"""Signs that a structure's matrices are another structure's, or in another order than its atoms.

A matrix with pairs, signs or atoms exchanged is still Hermitian and has the right shapes. But the
overlap of two atomic orbitals depends on where they are: the norm of a block of S is a function of
the two elements and of their distance alone, and falls with the distance.

Each check below looks for one such sign, and says in a sentence what looks wrong.
"""

from __future__ import annotations

import re
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
"""In units of the largest norm of the two elements: smaller blocks are not compared."""
MAIN_GROUPS = ((5, 6, 7, 8, 9), (13, 14, 15, 16, 17), (31, 32, 33, 34, 35), (49, 50, 51, 52, 53))
"""Atomic numbers of groups 13 to 17, a row for each period. Along a row the valence s level falls.
In earlier groups the deepest s level may be one of the core."""
SHORTEST, LONGEST = 0.65, 1.5
"""In units of the sum of two covalent radii: no bond is shorter than the first, and the shortest
bond of a crystal is not longer than the second."""
OFF_AXIS = 0.02
"""The s-p elements of an overlap block are a vector along the bond: so much may point across."""
NARROWEST = 2.5
"""eV: s, p and d orbitals of an atom differ by more."""
CUTOFF_KEY = re.compile(r"cutoff(_radius)?(_(A|angstrom))?")
CLEARLY = 1.1
"""Ratio of covalent radii from which on orbitals differ in width."""


def warn_of_mix_ups(snapshot: Snapshot, where: str) -> None:
    """Warns of the first sign that something is exchanged, and of its likely cause.

    It is a :class:`DataWarning`, never an error, because the cause is a guess.

    Args:
        snapshot: the structure with its matrices, which have passed their checks.
        where: its folder, for the message.
    """
    checks = (
        _bonds,
        _longer_than_cutoff,
        _norms_against_distance,
        _directions,
        _onsite_overlap,
        _levels_of_elements,
        _units_of_energy,
    )
    for check in checks:
        sentence = check(snapshot)
        if sentence is not None:
            warnings.warn(f"{where}: {sentence}", DataWarning, stacklevel=2)
            return


def _bonds(snapshot: Snapshot) -> str | None:
    """Are lengths in another unit?"""
    matrix = snapshot.first_matrix
    if matrix is None or np.linalg.norm(snapshot.pair_vectors(matrix.pairs), axis=1).max() < 1e-6:
        return None  # atoms that are alone
    radii = covalent_radii[snapshot.numbers]
    i, j, d = snapshot.neighbors("ijd", 2 * float(radii.max()) * LONGEST)
    ratio = d / (radii[i] + radii[j])
    if len(ratio) and SHORTEST < ratio.min() < LONGEST:
        return None
    if not len(ratio) or ratio.min() >= LONGEST:
        return (
            f"no two atoms are nearer than {LONGEST} times the sum of their covalent radii, but the matrix couples atoms: are "
            "lengths in bohr, not in angstrom?"
        )
    n = int(np.argmin(ratio))
    return (
        f"atoms {i[n]} ({chemical_symbols[snapshot.numbers[i[n]]]}) and {j[n]} ({chemical_symbols[snapshot.numbers[j[n]]]}) "
        f"are {d[n]:.2f} angstrom apart, {ratio[n]:.0%} of the sum of their covalent radii: are lengths in another unit, or "
        "coordinates in another order?"
    )


def _longer_than_cutoff(snapshot: Snapshot) -> str | None:
    """Is a pair longer than the cutoff that some programs write into info.json?"""
    for key, cutoff in snapshot.info.items():
        if not CUTOFF_KEY.fullmatch(key) or isinstance(cutoff, bool) or not isinstance(cutoff, (int, float)):
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
    """Have blocks of pairs of almost the same length almost the same norm?"""
    # The norms of H depend on the surroundings, too: they differ threefold between bonds within a
    # layer and across it.
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
    """``[pairs]``: Frobenius norm of each block; a rotation of the crystal does not change it."""
    squares = np.abs(matrix.entries.astype(np.complex128 if np.iscomplexobj(matrix.entries) else np.float64)) ** 2
    return np.sqrt(np.add.reduceat(squares, matrix.boundaries[:-1]))


def _directions(snapshot: Snapshot) -> str | None:
    """Do the overlaps of an s orbital with another atom's three p orbitals point along the bond?"""
    s = snapshot.overlap
    if s is None:
        return None
    vectors = snapshot.pair_vectors(s.pairs)
    length = np.linalg.norm(vectors, axis=1)
    for first, second, which in species_groups(snapshot.numbers, s.pairs):
        which = which[length[which] > 1e-6]
        if not len(which):
            continue
        blocks = s.group(which)
        along = vectors[which] / length[which, None]
        for row in _starts(snapshot.shells[first], 0):
            for column in _starts(snapshot.shells[second], 1):
                # m = -1, 0, 1 are y, z, x.
                found = blocks[:, row, column : column + 3][:, [2, 0, 1]].real
                norm = np.linalg.norm(found, axis=1)
                across = np.linalg.norm(found - np.sum(found * along, axis=1, keepdims=True) * along, axis=1)
                wrong = (norm > NOT_SMALL * max(norm.max(), 0.05)) & (across > OFF_AXIS * norm)
                if wrong.any():
                    n = int(np.argmax(np.where(wrong, across / np.maximum(norm, 1e-12), 0)))
                    angle = np.degrees(np.arcsin(min(1.0, across[n] / norm[n])))
                    return (
                        f"the s-p elements of the overlap at {pair_name(s.pairs[which[n]])} point {angle:.0f} degrees away from "
                        "the bond: are these the matrices of another structure, or axes, or the p orbitals (y, z, x) in "
                        "another order?"
                    )
    return None


def _starts(shells: tuple[int, ...], l: int) -> list[int]:
    """The first orbital of each shell of this l."""
    return [sum(2 * k + 1 for k in shells[:n]) for n, found in enumerate(shells) if found == l]


def _onsite_overlap(snapshot: Snapshot) -> str | None:
    """Are orbitals normalised, and do atoms of one element have the same ones?"""
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
        ls = np.repeat(snapshot.shells[z], [2 * l + 1 for l in snapshot.shells[z]])
        mixed = np.abs(np.where(ls[:, None] != ls[None, :], block, 0.0))
        if mixed.max() > 0.02:
            a, b = np.unravel_index(np.argmax(mixed), mixed.shape)
            return (
                f"orbitals {a} (l = {ls[a]}) and {b} (l = {ls[b]}) of atom {atom} overlap by {mixed[a, b]:.3g}, expected 0: are "
                f"the shells of {chemical_symbols[z]} in another order than {list(snapshot.shells[z])}?"
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
    """Are two elements exchanged that have the same shells?

    Elements with different shells do not fit the blocks once they are exchanged. Of two main-group
    elements of one period the heavier has the lower levels. Of two elements whose covalent radii
    differ clearly the larger has the wider orbitals.
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
    orbitals = _starts(snapshot.shells[light], 0)
    if h is None or not orbitals:
        return None
    level = {}
    for z in (light, heavy):
        atoms = np.flatnonzero(snapshot.numbers == z)
        blocks = [_spatial(snapshot, h.block(h.index[0, 0, 0, a, a])) for a in atoms]
        level[z] = np.mean([np.linalg.eigvalsh(block[np.ix_(orbitals, orbitals)])[0] for block in blocks])
    if level[heavy] <= level[light] + 1.0:
        return None
    return (
        f"the lowest on-site level of {chemical_symbols[heavy]} is {level[heavy]:.1f} eV, above {level[light]:.1f} eV of "
        f"{chemical_symbols[light]}, expected below"
    )


def _spatial(snapshot: Snapshot, block: np.ndarray) -> np.ndarray:
    """The block of spin up."""
    return block[: len(block) // 2, : len(block) // 2] if snapshot.spinful else block


def _units_of_energy(snapshot: Snapshot) -> str | None:
    """Are energies in another unit? The s, p and d levels of one atom span many electronvolts."""
    h, s = snapshot.hamiltonian, snapshot.overlap
    if h is None:
        return None
    if np.abs(h.entries).max() < 1e-9:
        return "all elements of the Hamiltonian are 0: is the calculation finished?"
    same = s is not None and np.array_equal(h.pairs, s.pairs) and h.entries.shape == s.entries.shape
    if same and s is not None and np.abs(h.entries - s.entries).max() < 1e-9:
        return "the Hamiltonian is the overlap matrix: was the file copied under the wrong name?"
    spans = []
    for z in snapshot.elements:
        if len(set(snapshot.shells[z])) > 1:
            atom = int(np.flatnonzero(snapshot.numbers == z)[0])
            spans.append(float(np.ptp(np.diag(_spatial(snapshot, h.block(h.index[0, 0, 0, atom, atom]))).real)))
    if spans and max(spans) < NARROWEST:
        return (
            f"the on-site levels of an atom span {max(spans):.2f} eV at most, expected several: are energies in hartree or "
            "rydberg?"
        )
    return None


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
