"""What spoils a training, looked for in a whole data set."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from scipy.spatial import cKDTree

from hamfast.data.copies import copy_of, disagreement
from hamfast.data.formats import find_structures, folder_of, names_apart, read_snapshot, read_structure
from hamfast.data.snapshot import Snapshot
from hamfast.data.split import SPLIT_FILE, read_split
from hamfast.errors import DataWarning, HamfastError

FADED = 0.3
"""eV: a Hamiltonian whose elements are larger than this at its longest pairs was cut off. Orbitals
of finite range end at elements below 0.1 eV (bismuthene of OpenMX). Readers refuse an H that is
shorter than its S."""
SHELL = 0.3
"""Angstrom: pairs that are shorter than the longest by less count as the longest."""
JUMP = 0.3
"""eV: by less than this levels differ among structures."""
SPREADS = 8.0
"""A level that is so many times as far from the median as the others are is an outlier."""
REACH = 5.0
"""Angstrom up to which structures are compared by their distances."""
QUANTILES = np.linspace(0, 1, 17)
SAME = 1e-3
"""Angstrom: distances of copies differ by less."""
MOST_PAIRS = 200
"""So many pairs of copies are compared by their matrices."""
NOTES = ("no overlap", "pairs of H beyond S")
"""Kinds of findings that spoil nothing: some structures with an overlap are enough."""


class Finding(NamedTuple):
    """Something that may spoil a training."""

    kind: str
    labels: tuple[str, ...]
    """Of the structures."""
    text: str


@dataclass
class _Summary:
    """What is kept of each structure."""

    folder: Path
    label: str
    numbers: tuple[int, ...]
    distances: np.ndarray
    """Quantiles of the distances of neighbours, angstrom."""
    onsite: dict[int, float]
    """Atomic number -> eV, the mean of the diagonal elements of its atoms."""
    fermi_energy: float | None
    occupation: float | None


@dataclass
class CheckReport:
    """What :func:`check_set` found."""

    structures: int
    findings: list[Finding] = field(default_factory=list)
    compared: int = 0
    """Pairs of copies whose matrices were compared."""
    turned: int = 0
    """Those of them in different orientations."""

    def together(self) -> list[Finding]:
        """Findings of one kind and text as one, with all their structures."""
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for kind, labels, text in self.findings:
            groups[kind, text] += labels
        return [Finding(kind, tuple(labels), text) for (kind, text), labels in groups.items()]

    def add(self, kind: str, labels: Sequence[str], text: str) -> None:
        """Adds a finding."""
        self.findings.append(Finding(kind, tuple(labels), text))


def check_set(root: Path, report: Callable[[], None] = lambda: None) -> CheckReport:
    """Looks through a data set.

    - Each structure is read with all checks of its format: Hermitian blocks, positive overlaps,
      signs of exchanged atoms, orders and units.
    - Orbital lists and spin must agree, and electrons of structures with the same atoms.
    - H must have faded where its pairs end, and no pairs beyond those of S.
    - Levels of atoms and Fermi levels that jump from one structure to another tell of different
      zeros of energy.
    - Copies of one structure are found. Those that are turned test the data's equivariance; those
      in training and test set make the test worthless.

    Args:
        root: of the data set.
        report: called after each structure.

    Raises:
        HamfastError: there are no structures.
    """
    folders = find_structures(root)
    found, summaries = CheckReport(len(folders)), []
    shells: dict[int, tuple[str, tuple[int, ...]]] = {}
    spins: dict[bool, str] = {}
    for folder, label in zip(folders, names_apart(folders), strict=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DataWarning)
            try:
                snapshot = read_snapshot(folder)
            except HamfastError as error:
                found.add("cannot be read", [label], str(error))
                report()
                continue
        for warning in caught:
            if issubclass(warning.category, DataWarning):
                found.add("looks wrong", [label], str(warning.message).removeprefix(f"{folder}: "))
        for z in snapshot.elements:
            there, own = shells.setdefault(z, (label, tuple(snapshot.shells[z])))
            if own != tuple(snapshot.shells[z]):
                text = f"{chemical_symbols[z]} has shells {list(snapshot.shells[z])}, in {there} {list(own)}"
                found.add("orbitals differ", [label], text)
        spins.setdefault(snapshot.spinful, label)
        _check_matrices(snapshot, label, found)
        summaries.append(_summary(folder, label, snapshot))
        report()
    if len(spins) == 2:
        found.add("spin differs", [spins[True], spins[False]], "one is with spin-orbit coupling, one without")
    _check_levels(summaries, found)
    _check_copies(root, summaries, found)
    return found


def _check_matrices(snapshot: Snapshot, label: str, found: CheckReport) -> None:
    h, s = snapshot.hamiltonian, snapshot.overlap
    if h is None:
        found.add("no Hamiltonian", [label], "there is nothing to learn from it")
        return
    if s is None:
        found.add("no overlap", [label], "it has no bands; the fit of the overlap needs others that have one")
    else:
        extra = len([pair for pair in h.index if pair not in s.index])
        if extra:
            found.add(
                "pairs of H beyond S",
                [label],
                f"{extra} of {len(h)} pairs of H have no overlap, as SIESTA writes them: nothing to do",
            )
    length = np.linalg.norm(snapshot.pair_vectors(h.pairs), axis=1)
    last = length > length.max() - SHELL
    largest = np.maximum.reduceat(np.abs(h.entries), h.boundaries[:-1])[last].max()
    if largest > FADED and length.max() > SHELL:
        text = f"at its longest pairs, {length.max():.2f} angstrom, H still has elements of {1e3 * largest:.0f} meV"
        found.add("H is cut off", [label], text)


def _summary(folder: Path, label: str, snapshot: Snapshot) -> _Summary:
    _, distance = snapshot.neighbors("id", REACH)
    quantiles = np.quantile(distance, QUANTILES) if len(distance) else np.zeros(len(QUANTILES))
    onsite: dict[int, list[float]] = defaultdict(list)
    h = snapshot.hamiltonian
    if h is not None:
        for atom in range(snapshot.num_atoms):
            n = h.index.get((0, 0, 0, atom, atom))
            if n is not None:
                onsite[int(snapshot.numbers[atom])].append(float(np.trace(h.block(n)).real / h.shapes[n][0]))
    return _Summary(
        folder,
        label,
        tuple(sorted(snapshot.numbers.tolist())),
        quantiles,
        {z: float(np.mean(values)) for z, values in onsite.items()},
        snapshot.fermi_energy,
        snapshot.occupation,
    )


def _check_levels(summaries: list[_Summary], found: CheckReport) -> None:
    """Levels and electrons that jump."""
    elements = sorted({z for summary in summaries for z in summary.onsite})
    for z in elements:
        own = [s for s in summaries if z in s.onsite]
        _outliers(own, [s.onsite[z] for s in own], f"the mean level of {chemical_symbols[z]} orbitals", found)
    own = [s for s in summaries if s.fermi_energy is not None]
    _outliers(own, [s.fermi_energy or 0.0 for s in own], "the Fermi level", found)
    electrons: dict[tuple[int, ...], dict[float, str]] = defaultdict(dict)
    for summary in summaries:
        if summary.occupation is not None:
            electrons[summary.numbers].setdefault(round(summary.occupation, 3), summary.label)
    for counts in electrons.values():
        if len(counts) > 1:
            text = f"the same atoms have {' and '.join(f'{count:g}' for count in counts)} electrons"
            found.add("electrons differ", list(counts.values()), text)


def _outliers(summaries: list[_Summary], values: list[float], what: str, found: CheckReport) -> None:
    if len(values) < 3:
        return
    array = np.array(values)
    middle = float(np.median(array))
    away = np.abs(array - middle)
    spread = float(np.median(away))
    for n in np.flatnonzero(away > max(JUMP, SPREADS * spread)):
        text = f"{what} is {array[n]:.3f} eV, of the others {middle:.3f} eV: is its zero of energy another one?"
        found.add("levels jump", [summaries[n].label], text)


def _check_copies(root: Path, summaries: list[_Summary], found: CheckReport) -> None:
    subsets = _subsets(root)
    by_atoms: dict[tuple[int, ...], list[_Summary]] = defaultdict(list)
    for summary in summaries:
        by_atoms[summary.numbers].append(summary)
    for group in by_atoms.values():
        if len(group) < 2:
            continue
        tree = cKDTree(np.array([summary.distances for summary in group]))
        for a, b in sorted(tree.query_pairs(SAME * len(QUANTILES) ** 0.5)):
            if found.compared < MOST_PAIRS:
                _compare(group[a], group[b], subsets, found)


def _compare(one: _Summary, other: _Summary, subsets: dict[Path, str], found: CheckReport) -> None:
    copy = copy_of(read_structure(one.folder), read_structure(other.folder))
    if copy is None:
        return
    labels = [one.label, other.label]
    found.compared += 1
    found.turned += copy.is_turned
    first, second = read_snapshot(one.folder), read_snapshot(other.folder)
    why = disagreement(first, second, copy)
    if why is not None:
        error, cause = why
        kind = "H does not turn with the structure" if copy.is_turned else "copies with different H"
        found.add(
            kind, labels, f"H of the one is not that of the other, by {error:.1f} meV (root mean square): {cause}"
        )
    elif not copy.is_turned:
        found.add("duplicates", labels, "the same structure twice, with the same H")
    where = {subsets.get(one.folder), subsets.get(other.folder)} - {None}
    if len(where) == 2:
        text = f"copies of one structure are in {' and '.join(sorted(map(str, where)))}: errors there say nothing"
        found.add("copies in two subsets", labels, text)


def _subsets(root: Path) -> dict[Path, str]:
    """Structure folder -> its subset; empty without a split."""
    if not (folder_of(root) / SPLIT_FILE).exists():
        return {}
    try:
        split = read_split(root)
    except HamfastError:
        return {}
    return {folder: subset for subset, folders in split.items() for folder in folders}
