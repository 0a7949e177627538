"""Errors of a Hamiltonian in the basis of the DFT calculation's own eigenvectors.

Bands are what a Hamiltonian is predicted for, and its matrix elements do not tell how good they
are. Atomic orbitals of good basis sets are nearly dependent: some combinations of them have a norm
of 1e-3. An error of 1 meV there moves a level by 1 eV, and may bring a state that lies far above
the Fermi level into the gap.

With the eigenvectors c_n of H(k) c = E S(k) c, c_m^+ S c_n = 1 or 0, the error dH(k) moves the
level n by e_nn to first order, e_mn = c_m^+ dH c_n, and mixes m and n by e_mn / (E_m - E_n). So

    e_mn / sqrt(d_m d_n),   d_n = 1 + max(0, E_n - E_F) / 5 eV

is small where all levels are right, each to a fraction of its height above the Fermi level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from hamfast.analysis.eigen import EigenProblem, eigen_problem
from hamfast.data.formats import read_snapshot
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError
from hamfast.graph import CrystalGraph
from hamfast.targets import TargetSpec

HEIGHT = 5.0
"""eV above the Fermi level over which errors count half."""
KPOINTS = 2
"""Of each structure. Each sums all cells with other phases, so few of them tell all blocks."""
MOST_KEPT = 2**30
"""Bytes of eigenvectors that are kept; those of further structures are made in each epoch."""


class EigenbasisError:
    """The error of predicted blocks in the basis of the DFT's eigenvectors.

    Args:
        folders: of the structures, each with a Hamiltonian and an overlap.
        spec: elements and orbitals.
    """

    def __init__(self, folders: Sequence[Path], spec: TargetSpec):
        self.folders, self.spec = list(folders), spec
        self.kept: dict[int, tuple[np.ndarray, Tensor]] = {}
        self.bytes = 0

    def of(self, graph: CrystalGraph, difference: Tensor, structures: Sequence[int], power: int) -> Tensor:
        """``[structures]`` eV^power: the mean of (|e_mn| / sqrt(d_m d_n))^power over all m, n and
        k-points.

        Args:
            graph: of the structures, and of any number of further ones.
            difference: ``[edges, spec.dim]`` eV, predicted minus DFT, as irreps.
            structures: the number in ``folders`` of each of the graph's first structures.
            power: 1 or 2.

        Raises:
            HamfastError: a structure has no overlap, or one that is not positive definite.
        """
        means = [
            torch.stack([m.abs().pow(power).mean() for m in self.matrices(graph, difference, n, structure)]).mean()
            for n, structure in enumerate(structures)
        ]
        return torch.stack(means)

    def matrices(self, graph: CrystalGraph, difference: Tensor, n: int, structure: int) -> list[Tensor]:
        """e_mn / sqrt(d_m d_n) in eV, ``[states, states]``, at each k-point of one structure.

        Args:
            graph, difference: as in :meth:`of`.
            n: the structure's number in the graph.
            structure: its number in ``folders``.

        Raises:
            HamfastError: as :meth:`of`.
        """
        kpoints, basis = self._basis(structure)
        basis = basis.to(difference.device, torch.complex128 if difference.dtype == torch.float64 else torch.complex64)
        which = torch.nonzero(graph.edge_graph == n).flatten()
        atoms = torch.nonzero(graph.atom_graph == n).flatten()
        found = []
        for k, vectors in zip(kpoints, basis, strict=True):
            matrix = self._bloch(graph, difference, which, atoms, k, len(vectors))
            found.append(vectors.mH @ (matrix @ vectors))
        return found

    def _bloch(self, graph, difference, which, atoms, k, size) -> Tensor:
        """dH(k), ``[size, size]``, of the edges ``which``."""
        spec, count = self.spec, self.spec.num_species
        rows_of = torch.tensor([spec.block_shape(s, s)[0] for s in range(count)], device=difference.device)
        starts = torch.zeros(graph.num_atoms, dtype=torch.int64, device=difference.device)
        starts[atoms[1:]] = rows_of[graph.species[atoms]].cumsum(0)[:-1]
        angle = 2 * math.pi * (graph.shift[which].to(difference) @ torch.as_tensor(k).to(difference))
        phase = torch.complex(angle.cos(), angle.sin())
        pair = graph.pair_species(count)[which]
        matrix = torch.zeros(size * size, dtype=phase.dtype, device=difference.device)
        for p in pair.unique().tolist():
            own = torch.nonzero(pair == p).flatten()
            edges = which[own]
            blocks = spec.to_blocks(difference[edges], p // count, p % count)
            rows = starts[graph.i[edges]][:, None] + torch.arange(blocks.shape[1], device=edges.device)
            columns = starts[graph.j[edges]][:, None] + torch.arange(blocks.shape[2], device=edges.device)
            index = (rows[:, :, None] * size + columns[:, None, :]).flatten()
            matrix = matrix.index_add(0, index, (blocks * phase[own][:, None, None]).flatten())
        return matrix.view(size, size)

    def _basis(self, structure: int) -> tuple[np.ndarray, Tensor]:
        """The k-points ``[kpoints, 3]`` of a structure, and c_n / sqrt(d_n), ``[kpoints, size,
        size]``."""
        if structure not in self.kept:
            made = self._make(structure)
            size = made[1].numel() * made[1].element_size()
            if self.bytes + size > MOST_KEPT:
                return made
            self.kept[structure], self.bytes = made, self.bytes + size
        return self.kept[structure]

    def _make(self, structure: int) -> tuple[np.ndarray, Tensor]:
        folder = self.folders[structure]
        snapshot = read_snapshot(folder)
        if snapshot.overlap is None:
            raise HamfastError(
                f"{folder}: has no overlap, without which there are no eigenvectors; set eigenbasis_weight to 0"
            )
        problem = eigen_problem(snapshot, snapshot.hamiltonian)
        # Not at points of symmetry, where phases are real. The same in every run.
        kpoints = np.random.default_rng(structure).uniform(-0.5, 0.5, (KPOINTS, 3))
        made = []
        for k in kpoints:
            try:
                energies, vectors = scipy.linalg.eigh(
                    problem.hamiltonian.at(k).toarray(), problem.overlap.at(k).toarray()
                )
            except np.linalg.LinAlgError as error:
                raise HamfastError(
                    f"{folder}: the overlap is not positive definite at k = ({', '.join(f'{x:.3f}' for x in k)}); "
                    "set eigenbasis_weight to 0"
                ) from error
            height = np.maximum(0.0, energies - _fermi_energy(snapshot, energies, problem)) / HEIGHT
            made.append(vectors / np.sqrt(1 + height))
        double = torch.get_default_dtype() == torch.float64
        return kpoints, torch.from_numpy(np.stack(made)).to(torch.complex128 if double else torch.complex64)


def _fermi_energy(snapshot: Snapshot, energies: np.ndarray, problem: EigenProblem) -> float:
    """eV; the highest occupied level where DFT's is not known, or else the lowest level."""
    if snapshot.fermi_energy is not None:
        return snapshot.fermi_energy
    if snapshot.occupation is None:
        return float(energies[0])
    return float(energies[min(len(energies), math.ceil(snapshot.occupation / problem.degeneracy)) - 1])
