"""PySCF: H(R) and S(R) of a periodic mean field, from its checkpoint or its Python object.

A checkpoint (``*.chk``) has orbitals C and their energies e at the k points of the calculation, of
which ``H(k) = S C e C^dagger S``. It does not say of which functional they are. For H on a finer
mesh the user's own script makes the object, as for a calculation:

    mf = dft.KRKS(cell, cell.make_kpts([6, 6, 1]), xc="pbe")
    mf.__dict__.update(pyscf.lib.chkfile.load("graphene.chk", "scf"))
    snapshot = from_mean_field(mf, mesh=[9, 9, 1])

Matrices at k points of a mesh become those of lattice vectors by Fourier transform:
H(R) = 1/N sum_k exp(-2 pi i k R) H(k). PySCF's energies are in hartree.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.data import atomic_numbers

from hamfast.data.blocks import BlockMatrix
from hamfast.data.codes.native import Orbitals, block_matrix, on_pairs_of, shells_of_elements, two_channels
from hamfast.data.h5 import open_h5
from hamfast.data.orbitals import PYSCF_ORDER
from hamfast.data.snapshot import Snapshot, check_snapshot
from hamfast.errors import DataWarning, HamfastError

NAME, FILE = "pyscf", "*.chk"
HARTREE, BOHR = 27.211386245988, 0.529177210903
"""eV and angstrom (CODATA 2018)."""
SMALLEST = 1e-8
"""Hartree, and plain numbers for S: blocks below this are left out."""
UNREAL = 1e-3
"""Hartree, and plain numbers for S: a larger imaginary part is no rounding of the grid."""
APART = 1e-3
"""Overlaps below this are those of a molecule or a layer in a box that is wide enough."""
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
    points = cell.make_kpts(mesh)
    density = mean_field.make_rdm1()
    fock = np.asarray(mean_field.get_hcore(cell, points)) + np.asarray(
        mean_field.get_veff(cell, density, kpts=mean_field.kpts, kpts_band=points)
    )
    try:
        fermi = float(np.max(mean_field.get_fermi())) * HARTREE
    except Exception:  # an older PySCF has no such function, a molecule-like object fails in it
        fermi = None
    overlap = np.asarray(mean_field.get_ovlp(cell, points))
    return _snapshot(cell, cell.get_scaled_kpts(points), mesh, fock, overlap, fermi, label)


def _snapshot(cell, fractions, mesh, fock, overlap, fermi: float | None, label: str) -> Snapshot:
    """The crystal of matrices ``[points, n, n]`` (H: also ``[2, points, n, n]``) on a mesh."""
    shells = _shells(cell)
    orbitals = Orbitals.of_shells(shells, PYSCF_ORDER)
    ranges = [np.arange(-(n // 2), n // 2 + 1) for n in mesh]
    R = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    phases = np.exp(-2j * np.pi * R @ fractions.T) / len(fractions)

    def real_space(matrices: np.ndarray, what: str, unit: float) -> BlockMatrix:
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
                f"expected below {REACH:g}; take more, by hamfast.data.codes.pyscf.from_mean_field"
            )
        n, row, column = np.nonzero(np.abs(values) > SMALLEST)
        return block_matrix(orbitals, R[n], row, column, values.real[n, row, column] * unit)

    channels = [fock] if fock.ndim == 3 else list(fock)
    matrices = [real_space(channel, "H", HARTREE) for channel in channels]
    h = matrices[0] if len(matrices) == 1 else two_channels(*matrices)
    _check_single_points(cell, mesh)
    h_and_s = on_pairs_of(real_space(overlap, "S", 1.0), h, orbitals)
    found = _structure(cell, len(channels), label)
    found.hamiltonian, found.overlap = h_and_s
    found.fermi_energy = fermi
    return check_snapshot(found, label)


def _check_single_points(cell: Any, mesh: Sequence[int]) -> None:
    """Raises HamfastError if cells touch along an axis that has one k point: matrices of all cells
    would be added up."""
    for axis in range(3):
        if mesh[axis] != 1:
            continue
        border = np.zeros((2, 3))
        border[1, axis] = 0.5
        at = np.asarray(cell.pbc_intor("int1e_ovlp", hermi=1, kpts=cell.get_abs_kpts(border)))
        change = float(np.abs(at[1] - at[0]).max())
        if change > APART:
            raise HamfastError(
                f"mesh: axis {axis + 1} has one k point, but cells overlap along it by {change:.1e}, expected below {APART:g}; "
                "take more points there, by hamfast.data.codes.pyscf.from_mean_field"
            )


def _structure(cell: Any, channels: int, label: str) -> Snapshot:
    """All but the matrices and the Fermi level."""
    symbols = [cell.atom_pure_symbol(n) for n in range(cell.natm)]
    return Snapshot(
        label=label,
        cell=np.asarray(cell.lattice_vectors()) * BOHR,
        positions=np.asarray(cell.atom_coords()) * BOHR,
        numbers=np.array([atomic_numbers[symbol] for symbol in symbols]),
        shells=shells_of_elements(symbols, _shells(cell), Path(label)),
        spinful=channels > 1,
        occupation=float(cell.tot_electrons()),
        info={"code": "PySCF"} | ({"collinear": True} if channels > 1 else {}),
    )


def main_file(folder: Path) -> Path | None:
    """The checkpoint ``*.chk``, with orbitals at k points."""
    found = [path for path in sorted(folder.glob("*.chk")) if _is_checkpoint(path)]
    if len(found) > 1:
        raise HamfastError(f"{folder}: expected one checkpoint of PySCF, found {', '.join(p.name for p in found)}")
    return found[0] if found else None


def _is_checkpoint(path: Path) -> bool:
    try:
        with h5py.File(path) as file:
            return "mol" in file
    except OSError:  # a truncated file is one; other programs have files of this ending, too
        with path.open("rb") as raw:
            return raw.read(8) == b"\x89HDF\r\n\x1a\n"


def read(path: Path, matrices: bool) -> Snapshot:
    """Reads a checkpoint; see :class:`hamfast.data.codes.native.Code`.

    H is that of the calculation's own k points, which must be a full mesh of odd numbers.
    """
    try:
        from pyscf.pbc.lib.chkfile import load_cell
    except ImportError as error:
        raise HamfastError(f"{path}: a checkpoint of PySCF needs PySCF: pip install pyscf ({error})") from error
    with open_h5(path) as file:
        if "scf/mo_coeff" not in file or "scf/kpts" not in file:
            raise HamfastError(
                f"{path}: expected a calculation with a mesh of k points, as of KRKS, found one of a molecule, of one k point, or "
                "without orbitals"
            )
    cell = load_cell(str(path))
    cell.verbose = 0
    with open_h5(path) as file:
        if not all(isinstance(file[f"scf/{name}"], h5py.Dataset) for name in ("mo_coeff", "mo_energy", "kpts")):
            raise HamfastError(
                f"{path}: expected as many orbitals as basis functions at every k point, found fewer: near-dependent "
                "functions were left out, so H is not known"
            )
        coefficients, energies = file["scf/mo_coeff"][()], file["scf/mo_energy"][()]
        fractions = cell.get_scaled_kpts(file["scf/kpts"][()].reshape(-1, 3))
    channels = 1 if coefficients.ndim == 3 else 2
    if not matrices:
        return _structure(cell, channels, path.stem)
    if coefficients.shape[-1] != coefficients.shape[-2] or coefficients.shape[-1] != cell.nao:
        raise HamfastError(
            f"{path}: expected as many orbitals as basis functions, found {coefficients.shape[-1]} and {cell.nao}: H is not "
            "known, or it has spinors, which are not read yet"
        )
    mesh = _mesh_of(fractions, path)
    overlap = np.asarray(cell.pbc_intor("int1e_ovlp", hermi=1, kpts=cell.get_abs_kpts(fractions)))
    turned = overlap @ coefficients
    deviation = float(np.abs(coefficients.conj().swapaxes(-1, -2) @ turned - np.eye(cell.nao)).max())
    if deviation > UNREAL:
        raise HamfastError(
            f"{path}: the orbitals are not orthonormal in the overlap of its cell (off by {deviation:.1e}): of two calculations?"
        )
    warnings.warn(f"{path}: a checkpoint of PySCF does not say whether the SCF converged", DataWarning, stacklevel=2)
    fock = (turned * energies[..., None, :]) @ turned.conj().swapaxes(-1, -2)
    return _snapshot(cell, fractions, mesh, fock, overlap, None, path.stem)


def _mesh_of(fractions: np.ndarray, path: Path) -> list[int]:
    """The mesh that the k points are; raises HamfastError unless it is full and of odd numbers."""
    folded = fractions - np.round(fractions)
    mesh = [len(np.unique(np.round(np.abs(axis), 6))) * 2 - 1 for axis in folded.T]
    whole = folded * mesh
    steps = np.round(whole)
    if (
        len(np.unique(steps, axis=0)) != len(fractions)
        or len(fractions) != np.prod(mesh)
        or not np.allclose(whole, steps, atol=1e-4)
    ):
        raise HamfastError(
            f"{path}: expected a full mesh of k points around Gamma with odd numbers, found {len(fractions)} points; make H "
            "on such a mesh by hamfast.data.codes.pyscf.from_mean_field"
        )
    return mesh


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
