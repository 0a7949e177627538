"""A crystal with its matrices as an object of sisl, for SIESTA, TBtrans and Wannier tools."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from hamfast.data.blocks import BlockMatrix
from hamfast.data.codes.native import Orbitals
from hamfast.data.codes.sparse import by_cell
from hamfast.data.orbitals import SIESTA_ORDER
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError


def to_sisl(snapshot: Snapshot) -> Any:
    """``sisl.Hamiltonian``, eV: H as it is, not counted from the Fermi level.

    Orbitals have SIESTA's order and signs, with quantum numbers n = l + 1 and zeta as numbered.

    Raises:
        HamfastError: sisl is not installed; there is spin; H or S is not there.
    """
    try:
        import sisl
    except ImportError as error:
        raise HamfastError("the package sisl is not there: pip install sisl") from error
    if snapshot.spinful:
        raise HamfastError(f"{snapshot.label}: expected a Hamiltonian without spin, found one with; not written yet")
    if snapshot.hamiltonian is None or snapshot.overlap is None:
        raise HamfastError(f"{snapshot.label}: expected H and S, found only one of them")
    atoms = []
    for z in snapshot.numbers.tolist():
        orbitals: list[Any] = []
        zetas: dict[int, int] = {}
        for l in snapshot.shells[z]:
            zetas[l] = zetas.get(l, 0) + 1
            orbitals += [sisl.AtomicOrbital(n=l + 1, l=l, m=m, zeta=zetas[l]) for m in range(-l, l + 1)]
        atoms.append(sisl.Atom(z, orbitals))
    reach = 2 * np.abs(snapshot.hamiltonian.pairs[:, :3]).max(axis=0) + 1
    geometry = sisl.Geometry(snapshot.positions, atoms, lattice=sisl.Lattice(snapshot.cell, nsc=reach))
    order = Orbitals.of_shells([snapshot.shells[z] for z in snapshot.numbers.tolist()], SIESTA_ORDER)
    h, s = (_sparse(m, order, geometry) for m in (snapshot.hamiltonian, snapshot.overlap))
    return sisl.Hamiltonian.fromsp(geometry, h, s)


def _sparse(matrix: BlockMatrix, order: Orbitals, geometry: Any) -> scipy.sparse.csr_matrix:
    """``[orbitals, orbitals x cells]``, as sisl numbers them."""
    cells = by_cell(matrix, order)
    empty = scipy.sparse.csr_matrix((geometry.no, geometry.no))
    offsets = [(int(a), int(b), int(c)) for a, b, c in geometry.lattice.sc_off]
    return scipy.sparse.hstack([cells.get(cell, empty) for cell in offsets], format="csr")
