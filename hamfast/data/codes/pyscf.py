"""PySCF: H(R) and S(R) of a periodic mean field, from its Python object.

A checkpoint of PySCF does not say of which functional it is, so the object is made by the user's
own script, as for a calculation, and gets the checkpoint's orbitals:

    mf = dft.KRKS(cell, cell.make_kpts([6, 6, 1]), xc="pbe")
    mf.__dict__.update(pyscf.lib.chkfile.load("graphene.chk", "scf"))
    snapshot = from_mean_field(mf, mesh=[9, 9, 1])

Matrices at k points of a mesh become those of lattice vectors by Fourier transform:
H(R) = 1/N sum_k exp(-2 pi i k R) H(k). PySCF's energies are in hartree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hamfast.data.blocks import BlockMatrix
from hamfast.data.codes.native import Orbitals, block_matrix, on_pairs_of, shells_of_elements, two_channels
from hamfast.data.orbitals import PYSCF_ORDER
from hamfast.data.snapshot import Snapshot, check_snapshot
from hamfast.errors import HamfastError

HARTREE, BOHR = 27.211386245988, 0.529177210903
"""eV and angstrom (CODATA 2018)."""
SMALLEST = 1e-8
"""Hartree, and plain numbers for S: blocks below this are left out."""
UNREAL = 1e-3
"""Hartree, and plain numbers for S: a larger imaginary part is no rounding of the grid."""
REACH = 1e-4
"""Hartree: elements at the border of the mesh above this say that the mesh is too coarse."""


def from_mean_field(mean_field: Any, mesh: Sequence[int], label: str = "pyscf") -> Snapshot:
    """The crystal of a converged mean field with its matrices.

    Args:
        mean_field: of ``pyscf.pbc``, with k points, restricted or unrestricted.
        mesh: three odd numbers: lattice vectors from ``-(n // 2)`` to ``n // 2`` in each direction.
            They must reach as far as the matrix does.
        label: the name of the structure.

    Raises:
        HamfastError: it is no such object, it did not converge, or the mesh does not reach.
    """
    cell = getattr(mean_field, "cell", None)
    if cell is None or not hasattr(mean_field, "kpts"):
        raise HamfastError(f"expected a periodic mean field of PySCF with k points, found {type(mean_field).__name__}")
    if not getattr(mean_field, "converged", True):
        raise HamfastError("the mean field of PySCF did not converge; its matrices are not those of DFT")
    mesh = [int(n) for n in mesh]
    if len(mesh) != 3 or any(n < 1 or n % 2 == 0 for n in mesh):
        raise HamfastError(f"mesh: expected three odd numbers, found {mesh}")
    shells = _shells(cell)
    orbitals = Orbitals.of_shells(shells, PYSCF_ORDER)
    points = cell.make_kpts(mesh)
    density = mean_field.make_rdm1()
    fock = np.asarray(mean_field.get_hcore(cell, points)) + np.asarray(
        mean_field.get_veff(cell, density, kpts=mean_field.kpts, kpts_band=points)
    )
    overlap = np.asarray(mean_field.get_ovlp(cell, points))
    channels = [fock] if fock.ndim == 3 else list(fock)
    fractions = cell.get_scaled_kpts(points)

    def real_space(matrices: np.ndarray, what: str, unit: float) -> BlockMatrix:
        ranges = [np.arange(-(n // 2), n // 2 + 1) for n in mesh]
        R = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
        phases = np.exp(-2j * np.pi * R @ fractions.T) / len(points)
        values = np.einsum("rk,kij->rij", phases, matrices)
        imaginary = float(np.abs(values.imag).max())
        if imaginary > UNREAL:
            raise HamfastError(
                f"{what}(R) has an imaginary part of {imaginary:.1e}, expected below {UNREAL:g}: with spin-orbit coupling "
                "it is not read yet; else the density is not symmetric under time reversal, or ke_cutoff is too low"
            )
        border = np.any((np.abs(R) == [n // 2 for n in mesh]) & (np.array(mesh) > 1), axis=1)
        reach = float(np.abs(values[border]).max(initial=0.0))
        if reach > REACH:
            raise HamfastError(
                f"mesh: {mesh} lattice vectors do not reach as far as {what}: elements at the border are still {reach:.1e}, "
                f"expected below {REACH:g}; take more"
            )
        n, row, column = np.nonzero(np.abs(values) > SMALLEST)
        return block_matrix(orbitals, R[n], row, column, values.real[n, row, column] * unit)

    matrices = [real_space(channel, "H", HARTREE) for channel in channels]
    h = matrices[0] if len(matrices) == 1 else two_channels(*matrices)
    s = real_space(overlap, "S", 1.0)
    h, s = on_pairs_of(s, h, orbitals)
    try:
        fermi = float(np.max(mean_field.get_fermi())) * HARTREE
    except Exception:  # an older PySCF has no such function, a molecule-like object fails in it
        fermi = None
    symbols = [cell.atom_pure_symbol(n) for n in range(cell.natm)]
    from ase.data import atomic_numbers

    snapshot = Snapshot(
        label=label,
        cell=np.asarray(cell.lattice_vectors()) * BOHR,
        positions=np.asarray(cell.atom_coords()) * BOHR,
        numbers=np.array([atomic_numbers[symbol] for symbol in symbols]),
        shells=shells_of_elements(symbols, shells, Path(label)),
        spinful=len(channels) > 1,
        hamiltonian=h,
        overlap=s,
        fermi_energy=fermi,
        occupation=float(cell.tot_electrons()),
        info={"code": "PySCF"} | ({"collinear": True} if len(channels) > 1 else {}),
    )
    return check_snapshot(snapshot, label)


def _shells(cell: Any) -> list[tuple[int, ...]]:
    """The l of the shells of each atom; contracted functions of one shell count each.

    Raises:
        HamfastError: the orbitals are Cartesian.
    """
    if cell.cart:
        raise HamfastError("expected spherical orbitals, found Cartesian ones (cell.cart)")
    shells: list[list[int]] = [[] for _ in range(cell.natm)]
    for n in range(cell.nbas):
        shells[cell.bas_atom(n)] += [cell.bas_angular(n)] * cell.bas_nctr(n)
    return [tuple(ls) for ls in shells]
