"""Errors of a predicted Hamiltonian against DFT, in meV."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from hamfast.analysis.eigen import DENSE_LIMIT, eigen_problem
from hamfast.data.blocks import BlockMatrix
from hamfast.data.build_graph import species_groups
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

MEV = 1e3
LETTERS = "spdfghi"


@dataclass
class ErrorSums:
    """Sums of |dH| that add up over structures; every mean is over matrix elements."""

    structures: list[tuple[str, float]] = field(default_factory=list)
    """Label and MAE of each structure."""
    gauge: list[float] = field(default_factory=list)
    """MAE of each structure after the best mu S is removed; only where S is known."""
    mu: list[float] = field(default_factory=list)
    onsite: list[float] = field(default_factory=lambda: [0.0, 0])
    by_distance: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    by_shells: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    eigenvalues: list[float] = field(default_factory=list)

    def add(self, snapshot: Snapshot, predicted: BlockMatrix) -> None:
        """Adds one structure.

        Raises:
            HamfastError: the two matrices have different pairs.
        """
        reference = snapshot.hamiltonian
        if reference is None:
            raise HamfastError(f"{snapshot.label}: there is no DFT Hamiltonian to compare with")
        if not np.array_equal(predicted.pairs, reference.pairs):
            if set(predicted.index) != set(reference.index):
                raise HamfastError(f"{snapshot.label}: the prediction has other atom pairs than the DFT Hamiltonian")
            predicted = reordered(predicted, reference.pairs)
        difference = predicted.entries - reference.entries
        error = np.abs(difference) * MEV
        self.structures.append((snapshot.label, float(error.mean())))
        if snapshot.overlap is not None:
            mu, rest = remove_gauge(difference, reference, snapshot)
            self.mu.append(mu * MEV)
            self.gauge.append(float(np.abs(rest).mean()) * MEV)
        sums = np.add.reduceat(error, reference.boundaries[:-1])
        counts = np.diff(reference.boundaries)
        length = np.linalg.norm(snapshot.pair_vectors(reference.pairs), axis=1)
        home = length < 1e-6
        self.onsite[0] += float(sums[home].sum())
        self.onsite[1] += int(counts[home].sum())
        for shell in np.unique(np.floor(length[~home]).astype(int)):
            which = ~home & (np.floor(length).astype(int) == shell)
            self.by_distance[int(shell)][0] += float(sums[which].sum())
            self.by_distance[int(shell)][1] += int(counts[which].sum())
        self._add_shells(snapshot, reference, error)

    def _add_shells(self, snapshot, reference, error):
        spins = 2 if snapshot.spinful else 1
        for first, second, which in species_groups(snapshot.numbers, reference.pairs):
            shape = reference.shapes[which[0]]
            index = reference.boundaries[which][:, None] + np.arange(shape[0] * shape[1])
            mean = error[index].sum(axis=0).reshape(spins, shape[0] // spins, spins, shape[1] // spins).sum(axis=(0, 2))
            row = 0
            for a, l1 in enumerate(snapshot.shells[first]):
                column = 0
                for b, l2 in enumerate(snapshot.shells[second]):
                    part = mean[row : row + 2 * l1 + 1, column : column + 2 * l2 + 1]
                    name = f"{chemical_symbols[first]}{_shell(snapshot.shells[first], a)}-{chemical_symbols[second]}{_shell(snapshot.shells[second], b)}"
                    self.by_shells[name][0] += float(part.sum())
                    self.by_shells[name][1] += part.size * spins**2 * len(which)
                    column += 2 * l2 + 1
                row += 2 * l1 + 1

    def add_eigenvalues(self, snapshot: Snapshot, predicted: BlockMatrix, window: float = 3.0) -> None:
        """Adds |dE| of the levels within ``window`` eV of the Fermi level at four k-points, constant shift removed."""
        if snapshot.overlap is None:
            return
        exact, ours = eigen_problem(snapshot), eigen_problem(snapshot, predicted)
        if exact.size > DENSE_LIMIT or (snapshot.fermi_energy is None and snapshot.occupation is None):
            return
        kpoints = [(0, 0, 0), (1 / 3, 1 / 3, 0), (0.5, 0, 0), (0.13, 0.27, 0)]
        reference, found = exact.bands(kpoints), ours.bands(kpoints)
        fermi = snapshot.fermi_energy
        if fermi is None:
            fermi = exact.fermi_energy(kpoints)
        near = np.abs(reference - fermi) < window
        if near.any():
            difference = (found - reference)[near]
            self.eigenvalues.append(float(np.abs(difference - difference.mean()).mean()) * MEV)

    def summary(self) -> dict[str, Any]:
        """All metrics in meV as plain numbers."""
        maes = [mae for _, mae in self.structures]
        worst_block = max(self.by_shells.items(), key=lambda item: item[1][0] / item[1][1])
        return {
            "MAE_all": float(np.mean(maes)),
            "MAE_cha_s": float(np.max(maes)),
            "MAE_cha_b": worst_block[1][0] / worst_block[1][1],
            "worst_shell_pair": worst_block[0],
            "MAE_gauge_removed": float(np.mean(self.gauge)) if self.gauge else None,
            "mu_removed": float(np.mean(self.mu)) if self.mu else None,
            "MAE_onsite": self.onsite[0] / max(1, self.onsite[1]),
            "MAE_by_distance": {f"{d}-{d + 1} A": s / n for d, (s, n) in sorted(self.by_distance.items())},
            "MAE_by_shell_pair": {name: s / n for name, (s, n) in sorted(self.by_shells.items())},
            "eigenvalue_MAE": float(np.mean(self.eigenvalues)) if self.eigenvalues else None,
            "MAE_by_structure": dict(self.structures),
        }


def _shell(shells, n):
    """``2p`` for the second p shell, ``p`` when there is one."""
    same = [k for k, l in enumerate(shells) if l == shells[n]]
    letter = LETTERS[shells[n]]
    return letter if len(same) == 1 else f"{same.index(n) + 1}{letter}"


def remove_gauge(difference: np.ndarray, reference: BlockMatrix, snapshot: Snapshot) -> tuple[float, np.ndarray]:
    """H is defined up to mu S, a shift of the energy zero. Returns the mu (eV) that fits best, and dH - mu S."""
    assert snapshot.overlap is not None
    overlap = reordered(snapshot.overlap, reference.pairs, spins=2 if snapshot.spinful else 1, shapes=reference.shapes)
    s = overlap.entries.astype(np.float64)
    mu = float(np.real(np.vdot(s, difference)) / np.vdot(s, s))
    return mu, difference - mu * s


def reordered(matrix: BlockMatrix, pairs: np.ndarray, spins: int = 1, shapes: np.ndarray | None = None) -> BlockMatrix:
    """The blocks of ``matrix`` in the order of ``pairs``; pairs it lacks are zero; ``spins`` = 2 puts a copy on each spin."""
    blocks = []
    for n, pair in enumerate(map(tuple, pairs.tolist())):
        found = matrix.index.get(pair)
        if found is None:
            assert shapes is not None
            blocks.append(np.zeros(shapes[n]))
        else:
            block = matrix.block(found)
            blocks.append(np.kron(np.eye(2), block) if spins == 2 else block)
    return BlockMatrix.from_blocks(pairs, blocks)
