"""Errors of a predicted Hamiltonian against DFT, in meV."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from scipy.optimize import minimize_scalar

from hamfast.analysis.band_errors import BandErrors, band_errors
from hamfast.analysis.eigen import EigenProblem, eigen_problem
from hamfast.analysis.fermi import default_mesh, monkhorst_pack, occupied_bands, whole_electrons
from hamfast.analysis.ghosts import leave_out_ghosts
from hamfast.analysis.solvers import DENSE_LIMIT
from hamfast.data.blocks import BlockMatrix, pair_name, species_groups
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

MEV = 1e3
LETTERS = "spdfghi"
SPECIAL_KPOINTS = ((0, 0, 0), (1 / 3, 1 / 3, 0), (0.5, 0, 0), (0.13, 0.27, 0))


@dataclass(frozen=True)
class ReferenceBands:
    """Levels of the DFT Hamiltonian, which all predictions of a structure are compared with."""

    problem: EigenProblem
    """With the number of electrons: where the files lack it, levels below the Fermi level are
    counted."""
    kpoints: np.ndarray
    """``[kpoints, 3]``, in fractions of the reciprocal lattice vectors."""
    mesh: int
    """How many of the k-points, the first ones, are a mesh."""
    energies: np.ndarray
    """``[kpoints, bands]`` eV."""


def reference_bands(snapshot: Snapshot) -> ReferenceBands | None:
    """The levels of a structure's DFT Hamiltonian on a mesh and at ``SPECIAL_KPOINTS``.

    None without S, without both electrons and Fermi level, or with more than ``DENSE_LIMIT``
    orbitals.

    Raises:
        HamfastError: the Fermi level lies below all levels.
    """
    if snapshot.overlap is None or (snapshot.fermi_energy is None and snapshot.occupation is None):
        return None
    problem = eigen_problem(snapshot)
    if problem.size > DENSE_LIMIT:
        return None
    mesh = monkhorst_pack(default_mesh(snapshot.cell))
    kpoints = np.concatenate([mesh, SPECIAL_KPOINTS])
    energies = problem.bands(kpoints)
    if problem.occupation is None:
        assert snapshot.fermi_energy is not None
        below = np.sum(energies[: len(mesh)] <= snapshot.fermi_energy, axis=1)
        if not below.any():
            raise HamfastError(
                f"{snapshot.label}: the Fermi level of the DFT code, {snapshot.fermi_energy:g} eV, lies below all levels, the "
                f"lowest is {energies.min():.3f} eV: are they of the same calculation?"
            )
        problem.occupation = float(problem.degeneracy * below.mean())
    return ReferenceBands(problem, kpoints, len(mesh), energies)


@dataclass
class ErrorSums:
    """Sums of |dH| that add up over structures; every mean is over matrix elements."""

    structures: list[tuple[str, float]] = field(default_factory=list)
    """Label and MAE of each structure."""
    gauge: list[float] = field(default_factory=list)
    """MAE of each structure after the best mu S is removed; only where S is known."""
    mu: list[float] = field(default_factory=list)
    """These mu, in meV."""
    onsite: list[float] = field(default_factory=lambda: [0.0, 0])
    """Sum of |dH| and number of matrix elements, of on-site blocks; the same in the two below."""
    by_distance: dict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    """By whole angstroms of the pair's length, rounded down."""
    by_shells: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    """By shells as ``C2s-Cp``."""
    bands: dict[str, BandErrors] = field(default_factory=dict)
    """Of each structure that has S, electrons or a Fermi level, and few enough orbitals."""
    projections: dict[str, float | None] = field(default_factory=dict)
    """Of each of these: directions in which S(k) is below this were left out to remove ghosts
    (:mod:`hamfast.analysis.ghosts`); None: there were no ghosts."""

    def add(self, snapshot: Snapshot, predicted: BlockMatrix) -> None:
        """Adds one structure.

        The prediction may have more pairs than DFT; these are left out.

        Raises:
            HamfastError: the prediction lacks a pair.
        """
        reference = snapshot.hamiltonian
        if reference is None:
            raise HamfastError(f"{snapshot.label}: there is no DFT Hamiltonian to compare with")
        if not np.array_equal(predicted.pairs, reference.pairs):
            lacking = [pair for pair in reference.index if pair not in predicted.index]
            if lacking:
                raise HamfastError(
                    f"{snapshot.label}: the prediction has other atom pairs than the DFT Hamiltonian: it lacks "
                    f"{len(lacking)}, the first is {pair_name(lacking[0])}"
                )
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
                    piece = mean[row : row + 2 * l1 + 1, column : column + 2 * l2 + 1]
                    name = f"{chemical_symbols[first]}{_shell(snapshot.shells[first], a)}-{chemical_symbols[second]}{_shell(snapshot.shells[second], b)}"
                    self.by_shells[name][0] += float(piece.sum())
                    self.by_shells[name][1] += piece.size * spins**2 * len(which)
                    column += 2 * l2 + 1
                row += 2 * l1 + 1

    def add_eigenvalues(
        self,
        snapshot: Snapshot,
        predicted: BlockMatrix,
        window: float = 3.0,
        reference: ReferenceBands | None = None,
    ) -> None:
        """Adds the errors of band energies, gap and band edges on a k-mesh and four more k-points.

        See :func:`hamfast.analysis.band_errors.band_errors` for which levels count. Nothing is
        added where there are no reference bands.

        Args:
            snapshot: the structure.
            predicted: its Hamiltonian.
            window: eV on both sides of the Fermi level.
            reference: :func:`reference_bands` of the structure, if it is known already.
        """
        reference = reference if reference is not None else reference_bands(snapshot)
        if reference is None:
            return
        exact, ours = reference.problem, eigen_problem(snapshot, predicted)
        ours.occupation = exact.occupation
        leave_out_ghosts(ours, reference.kpoints, f"{snapshot.label}, predicted")
        found = ours.bands(reference.kpoints)
        error = band_errors(
            reference.energies,
            found,
            fermi=exact.fermi_energy_of(reference.energies[: reference.mesh]),
            predicted_fermi=ours.fermi_energy_of(found[: reference.mesh]),
            window=(-window, window),
            occupied=occupied_bands(whole_electrons(exact.electrons()), exact.degeneracy),
        )
        if error is not None:
            self.bands[snapshot.label] = error
            self.projections[snapshot.label] = ours.projection

    def summary(self) -> dict[str, Any]:
        """All metrics in meV, for JSON."""
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
            "eigenvalue_MAE": self._band_mean("levels_MAE"),
            "eigenvalue_shift": self._band_mean("shift", np.abs),
            "gap_error": self._band_mean("gap_error", np.abs),
            "valence_edge_error": self._band_mean("valence_edge_error", np.abs),
            "conduction_edge_error": self._band_mean("conduction_edge_error", np.abs),
            "structures_with_ghosts": sum(p is not None for p in self.projections.values()) if self.bands else None,
            "MAE_by_structure": dict(self.structures),
            "bands_by_structure": {
                label: errors.as_dict() | {"projection": self.projections[label]}
                for label, errors in self.bands.items()
            },
        }

    def _band_mean(self, name: str, of: Callable = float) -> float | None:
        values = [of(v) for v in (getattr(errors, name) for errors in self.bands.values()) if v is not None]
        return float(np.mean(values)) if values else None


def _shell(shells, n):
    """``2p`` for the second p shell, ``p`` when there is one."""
    same = [k for k, l in enumerate(shells) if l == shells[n]]
    letter = LETTERS[shells[n]]
    return letter if len(same) == 1 else f"{same.index(n) + 1}{letter}"


def remove_gauge(difference: np.ndarray, reference: BlockMatrix, snapshot: Snapshot) -> tuple[float, np.ndarray]:
    """Removes the multiple of S that makes an error of H smallest.

    H is defined up to mu S, which shifts the zero of energy. For real matrices the best mu is the
    median of dH / S, weighted with |S|. For complex ones it is searched; the mean is convex in mu.

    Args:
        difference: dH, the entries of the predicted matrix minus those of ``reference``, eV.
        reference: the Hamiltonian.
        snapshot: the structure, with its overlap.

    Returns:
        The mu (eV) for which the mean |dH - mu S| is smallest, and dH - mu S.
    """
    assert snapshot.overlap is not None
    overlap = reordered(snapshot.overlap, reference.pairs, spins=2 if snapshot.spinful else 1, shapes=reference.shapes)
    s = overlap.entries.real.astype(np.float64)

    def mean(mu: float) -> float:
        return float(np.abs(difference - mu * s).mean())

    candidates = [0.0, _weighted_median(difference.real, s)]
    if np.iscomplexobj(difference):
        width = max(1e-12, 2 * float(np.abs(difference).max()))
        found = minimize_scalar(mean, bounds=(candidates[1] - width, candidates[1] + width), method="bounded")
        candidates.append(float(found.x))
    mu = min(candidates, key=mean)
    return mu, difference - mu * s


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The mu for which sum |values - mu weights| is smallest."""
    used = np.abs(weights) > 1e-12
    if not used.any():
        return 0.0
    ratio, weight = values[used] / weights[used], np.abs(weights[used])
    order = np.argsort(ratio)
    total = np.cumsum(weight[order])
    return float(ratio[order][np.searchsorted(total, total[-1] / 2)])


def reordered(matrix: BlockMatrix, pairs: np.ndarray, spins: int = 1, shapes: np.ndarray | None = None) -> BlockMatrix:
    """The blocks of a matrix in the order of other pairs.

    Args:
        matrix: the blocks.
        pairs: ``[pairs, 5]``, the new order.
        spins: 2 puts a copy of each block on each spin.
        shapes: ``[pairs, 2]``, of the blocks that ``matrix`` lacks, which become zero.
    """
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
