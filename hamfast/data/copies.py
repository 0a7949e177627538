"""Two structures that are copies of each other, perhaps turned: do their matrices turn with them?

The Hamiltonian of a turned crystal is the turned Hamiltonian. Where a data set has a structure and
a turned copy of it, this tests the data themselves: their units, axes, and the order and the signs
of their orbitals.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from hamfast.data.blocks import BlockMatrix
from hamfast.data.graphs import blocks_from_irreps, build_graph
from hamfast.data.orbitals import (
    ABACUS_ORDER,
    AIMS_ORDER,
    OPENMX_ORDER,
    PYSCF_ORDER,
    SIESTA_ORDER,
    OrbitalOrder,
)
from hamfast.data.snapshot import Snapshot
from hamfast.ops import rotate_irreps
from hamfast.targets import TargetSpec

CLOSE = 2e-3
"""Angstrom by which atoms of copies may differ."""
ALIKE = 0.02
"""Copies agree if H differs by less than this fraction of its size, in the root mean square."""
CLEARLY = 0.2
"""A cause explains a difference if it lowers it to this fraction."""
CONVENTIONS: dict[str, OrbitalOrder] = {
    "OpenMX (p: x, y, z)": OPENMX_ORDER,
    "SIESTA": SIESTA_ORDER,
    "ABACUS": ABACUS_ORDER,
    "FHI-aims": AIMS_ORDER,
    "PySCF": PYSCF_ORDER,
}
UNITS = {"hartree": 27.211386, "rydberg": 13.605693}


class Copy(NamedTuple):
    """How one structure is a copy of another."""

    rotation: np.ndarray
    """``[3, 3]`` orthogonal: from the first to the second, acting on Cartesian vectors."""
    cells: np.ndarray
    """``[atoms, 3]`` int64: the cell of the second in which the image of each atom lies."""

    @property
    def is_turned(self) -> bool:
        """Is it in another orientation?"""
        return not np.allclose(self.rotation, np.eye(3), atol=1e-4)


def copy_of(first: Snapshot, second: Snapshot) -> Copy | None:
    """How the second is a copy of the first, with the same lattice vectors and order of atoms; None
    if it is none."""
    if first.num_atoms != second.num_atoms or np.any(first.numbers != second.numbers):
        return None
    rotation = np.linalg.solve(first.cell, second.cell).T
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
        return None
    u, _, v = np.linalg.svd(rotation)
    rotation = u @ v
    inverse = np.linalg.inv(second.cell)
    moved = (second.positions - first.positions @ rotation.T) @ inverse
    moved = moved - moved[0]
    cells = np.round(moved).astype(np.int64)
    away = (moved - cells) @ second.cell
    return Copy(rotation, cells) if np.abs(away).max() < CLOSE else None


def turned(matrix: BlockMatrix, snapshot: Snapshot, copy: Copy, spinful: bool) -> BlockMatrix:
    """A matrix of the first structure as the second has it.

    Args:
        matrix: of ``snapshot``.
        snapshot: the first structure.
        copy: of :func:`copy_of`.
        spinful: do the blocks carry spin?
    """
    spec = TargetSpec.from_mapping(snapshot.shells, spinful)
    graph = build_graph(replace(snapshot, hamiltonian=matrix, spinful=spinful), spec)
    irreps = rotate_irreps(graph.known_target(), spec.irreps, torch.from_numpy(copy.rotation))
    found = blocks_from_irreps(irreps, graph, spec)
    pairs = found.pairs.copy()
    # r_j + R - r_i of the first is r_j + c_j + R' - r_i - c_i of the second.
    pairs[:, :3] += copy.cells[pairs[:, 3]] - copy.cells[pairs[:, 4]]
    return BlockMatrix(pairs, found.shapes, found.boundaries, found.entries)


def disagreement(first: Snapshot, second: Snapshot, copy: Copy) -> tuple[float, str] | None:
    """By how much H of a copy is not the turned H, and the likely cause.

    Returns:
        meV, the root mean square of the difference, and a sentence; None if the two agree, or a
        matrix is missing.
    """
    if first.hamiltonian is None or second.hamiltonian is None or first.spinful != second.spinful:
        return None
    ours, theirs = _common(turned(first.hamiltonian, first, copy, first.spinful), second.hamiltonian)
    size, error = _rms(theirs.entries), _rms(ours.entries - theirs.entries)
    if error <= ALIKE * size:
        return None
    return 1e3 * error, _cause(first, second, copy, error) or "no cause was found among units, axes and orbitals"


def _cause(first: Snapshot, second: Snapshot, copy: Copy, error: float) -> str | None:
    assert first.hamiltonian is not None and second.hamiltonian is not None
    limit = CLEARLY * error
    ours, theirs = _common(turned(first.hamiltonian, first, copy, first.spinful), second.hamiltonian)
    for name, factor in UNITS.items():
        for mine, its, which in ((factor, 1.0, "first"), (1.0, factor, "second")):
            if _rms(mine * ours.entries - its * theirs.entries) < limit:
                return f"the energies of the {which} are in {name}, not in eV"
    if first.overlap is not None:
        overlap, _ = _common(turned(first.overlap, first, copy, False), second.hamiltonian)
        if not first.spinful and len(overlap) == len(theirs):
            mu = float(overlap.entries @ (theirs.entries - ours.entries) / (overlap.entries @ overlap.entries))
            if _rms(theirs.entries - ours.entries - mu * overlap.entries) < limit:
                return f"their zeros of energy differ by {mu:.3f} eV: H -> H + mu S"
    if copy.is_turned:
        still = Copy(np.eye(3), copy.cells)
        unturned, _ = _common(turned(first.hamiltonian, first, still, first.spinful), second.hamiltonian)
        if _rms(unturned.entries - theirs.entries) < limit:
            return "the matrices were not turned with the structure"
    for name, order in CONVENTIONS.items():
        for of_first, of_second in ((True, True), (True, False), (False, True)):
            one = reordered(first, order) if of_first else first
            other = reordered(second, order) if of_second else second
            assert one.hamiltonian is not None and other.hamiltonian is not None
            left, right = _common(turned(one.hamiltonian, one, copy, one.spinful), other.hamiltonian)
            if _rms(left.entries - right.entries) < limit:
                whose = "both" if of_first and of_second else "the first" if of_first else "the second"
                return f"the orbitals of {whose} have the order and the signs of {name}"
    for axes in product((1, -1), repeat=3):
        mirrored = Copy(copy.rotation @ np.diag(axes).astype(float), copy.cells)
        left, right = _common(turned(first.hamiltonian, first, mirrored, first.spinful), second.hamiltonian)
        if _rms(left.entries - right.entries) < limit:
            return f"axes of the orbitals have another sign than those of the structure: {axes} for x, y, z"
    return None


def reordered(snapshot: Snapshot, order: OrbitalOrder) -> Snapshot:
    """The structure, whose orbitals were in a code's order, in hamfast's."""
    index, sign = {}, {}
    for z, shells in snapshot.shells.items():
        places, signs, start = [], [], 0
        for l in shells:
            position, own = order.of(l)
            places.append(start + position)
            signs.append(own)
            start += 2 * l + 1
        index[z], sign[z] = np.concatenate(places), np.concatenate(signs)
        if snapshot.spinful:
            index[z] = np.concatenate([index[z], index[z] + start])
            sign[z] = np.tile(sign[z], 2)
    matrix = snapshot.hamiltonian
    assert matrix is not None
    blocks = []
    for n, (i, j) in enumerate(matrix.pairs[:, 3:].tolist()):
        a, b = int(snapshot.numbers[i]), int(snapshot.numbers[j])
        block = matrix.block(n)[np.ix_(index[a], index[b])]
        blocks.append(block * np.outer(sign[a], sign[b]))
    return replace(snapshot, hamiltonian=BlockMatrix.from_blocks(matrix.pairs, blocks))


def _common(first: BlockMatrix, second: BlockMatrix) -> tuple[BlockMatrix, BlockMatrix]:
    """Both matrices on the pairs that both have, in one order."""
    shared = [pair for pair in first.index if pair in second.index]
    found = []
    for matrix in (first, second):
        blocks = [matrix.block(matrix.index[pair]) for pair in shared]
        found.append(BlockMatrix.from_blocks(np.array(shared, dtype=np.int64).reshape(-1, 5), blocks))
    return found[0], found[1]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(values) ** 2))) if len(values) else 0.0
