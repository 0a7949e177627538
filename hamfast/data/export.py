"""A structure's H and S for other programs: ABACUS, whatever sisl writes, or one HDF5 file."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import scipy.sparse
from ase.data import atomic_masses, chemical_symbols

from hamfast.data.blocks import BlockMatrix
from hamfast.data.codes.abacus import BOHR, RYDBERG
from hamfast.data.codes.native import Orbitals
from hamfast.data.codes.sparse import by_cell
from hamfast.data.codes.to_sisl import to_sisl
from hamfast.data.h5 import replacing, write_h5, write_text
from hamfast.data.orbitals import ABACUS_ORDER
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

HDF5 = (".h5", ".hdf5")
LETTERS = "spdfghi"


def export(snapshot: Snapshot, target: Path) -> list[Path]:
    """Writes H and S.

    Args:
        snapshot: with H, and with S where the form needs it.
        target: what is written goes by its name. ``x.h5``, ``x.hdf5``: one file, see
            :func:`write_hdf5`. Another ending: what sisl makes of it (``x.TSHS``, ``x.nc``). No
            ending: a folder for ABACUS, see :func:`write_abacus`.

    Returns:
        The files.

    Raises:
        HamfastError: the target is there already, or cannot be written; a matrix is missing; sisl
            is not installed or does not write this.
    """
    if target.exists():
        raise HamfastError(f"{target}: exists already")
    if snapshot.hamiltonian is None:
        raise HamfastError(f"{snapshot.label}: there is no Hamiltonian")
    if not target.suffix:
        return write_abacus(snapshot, target)
    if target.suffix.lower() in HDF5:
        return write_hdf5(snapshot, target)
    return _write_sisl(snapshot, target)


def _write_sisl(snapshot: Snapshot, target: Path) -> list[Path]:
    made = to_sisl(snapshot)
    with replacing(target) as temporary:
        # sisl goes by the ending, which a temporary name has not.
        named = temporary.with_name(temporary.name + target.suffix)
        try:
            made.write(str(named))
            named.replace(temporary)
        except Exception as error:  # sisl raises whatever its writers stumble on
            named.unlink(missing_ok=True)
            words = " ".join(str(error).split())[:200]
            raise HamfastError(f"{target}: sisl does not write a Hamiltonian as {target.suffix} ({words})") from error
    return [target]


def write_hdf5(snapshot: Snapshot, target: Path) -> list[Path]:
    """One HDF5 file with the matrices of all cells in the sparse row format (CSR).

    ``cell`` ``[3, 3]`` and ``positions`` ``[atoms, 3]`` in angstrom, ``numbers`` ``[atoms]``,
    ``orbital_atom`` and ``orbital_l``, ``orbital_m`` ``[orbitals]``, ``R`` ``[cells, 3]``; in the
    groups ``H`` (eV) and ``S``, for the n-th cell, ``n/data``, ``n/indices``, ``n/indptr``: the
    element of a row in the home cell and a column in the cell R. H(k) is the sum of
    ``exp(2 pi i k.R) H(R)``. With spin rows of H go orbital by orbital, up and down one after the
    other.
    """
    hamiltonian, overlap = snapshot.hamiltonian, snapshot.overlap
    assert hamiltonian is not None
    shells = [snapshot.shells[z] for z in snapshot.numbers.tolist()]
    order = _own_order(shells)
    spins = 2 if snapshot.spinful else 1
    matrices = {"H": by_cell(hamiltonian, order, spins)} | ({} if overlap is None else {"S": by_cell(overlap, order)})
    cells = sorted(set().union(*(m.keys() for m in matrices.values())))
    orbitals = [(atom, l, m) for atom, ls in enumerate(shells) for l in ls for m in range(-l, l + 1)]
    arrays = {
        "cell": snapshot.cell,
        "positions": snapshot.positions,
        "numbers": snapshot.numbers,
        "R": np.array(cells),
        **{
            name: np.array([o[n] for o in orbitals])
            for n, name in enumerate(("orbital_atom", "orbital_l", "orbital_m"))
        },
    }

    def fill(file: h5py.File) -> None:
        for name, array in arrays.items():
            file[name] = array
        file.attrs["units"] = "angstrom, eV"
        file.attrs["spinful"] = snapshot.spinful
        for key in ("fermi_energy", "occupation"):
            if getattr(snapshot, key) is not None:
                file.attrs[key] = getattr(snapshot, key)
        for name, by_R in matrices.items():
            size = next(iter(by_R.values())).shape
            for n, cell in enumerate(cells):
                own = by_R.get(cell, scipy.sparse.csr_matrix(size))
                for part in ("data", "indices", "indptr"):
                    file[f"{name}/{n}/{part}"] = getattr(own, part)

    write_h5(target, partial(fill))
    return [target]


def _own_order(shells: list[tuple[int, ...]]) -> Orbitals:
    counts = [sum(2 * l + 1 for l in ls) for ls in shells]
    atoms = np.repeat(np.arange(len(shells)), counts)
    positions = np.concatenate([np.arange(n) for n in counts])
    return Orbitals(atoms, positions, np.ones(len(atoms)), shells)


def write_abacus(snapshot: Snapshot, target: Path) -> list[Path]:
    """A folder for ABACUS: ``STRU``, and ``hrs1_nao.csr`` and ``srs1_nao.csr`` with H(R) in rydberg
    and S(R).

    An SCF starts from H(R) with ``init_chg hr`` and ``read_file_dir`` of this folder. The files of
    pseudopotentials and orbitals are the user's: ``STRU`` names them ``Si.upf`` and
    ``Si_2s2p1d.orb``. Atoms are sorted by element, as ABACUS numbers them.
    """
    for z in snapshot.elements:
        if list(snapshot.shells[z]) != sorted(snapshot.shells[z]):
            raise HamfastError(
                f"{snapshot.label}: ABACUS has the shells of an atom sorted by l, {chemical_symbols[z]} has "
                f"{list(snapshot.shells[z])}"
            )
    ordered = np.argsort([snapshot.elements.index(int(z)) for z in snapshot.numbers], kind="stable")
    number = np.argsort(ordered)
    numbers, positions = snapshot.numbers[ordered], snapshot.positions[ordered]

    def moved(matrix: BlockMatrix) -> BlockMatrix:
        pairs = matrix.pairs.copy()
        pairs[:, 3:] = number[pairs[:, 3:]]
        return replace(matrix, pairs=pairs)

    order = Orbitals.of_shells([snapshot.shells[z] for z in numbers.tolist()], ABACUS_ORDER)
    spins = 2 if snapshot.spinful else 1
    if snapshot.overlap is None or snapshot.hamiltonian is None:
        raise HamfastError(f"{snapshot.label}: expected H and S, found only one of them")
    h = by_cell(moved(snapshot.hamiltonian), order, spins)
    s = by_cell(moved(snapshot.overlap), order)
    if spins == 2:
        s = {cell: scipy.sparse.kron(m, np.eye(2), format="csr").astype(complex) for cell, m in s.items()}
    written = [target / "hrs1_nao.csr", target / "srs1_nao.csr", target / "STRU"]
    write_text(written[0], _csr("H", {cell: m / RYDBERG for cell, m in h.items()}))
    write_text(written[1], _csr("S", s))
    write_text(written[2], _stru(snapshot, numbers, positions))
    return written


def _csr(name: str, cells: dict[tuple[int, int, int], scipy.sparse.csr_matrix]) -> str:
    size = next(iter(cells.values())).shape[0]
    lines = ["STEP: 0", f"Matrix Dimension of {name}(R): {size}", f"Matrix number of {name}(R): {len(cells)}"]
    for cell in sorted(cells):
        matrix = cells[cell]
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        lines.append(f"{cell[0]} {cell[1]} {cell[2]} {matrix.nnz}")
        if matrix.nnz:
            values = matrix.data
            words = (f"({v.real:.12e},{v.imag:.12e})" if np.iscomplexobj(values) else f"{v:.12e}" for v in values)
            lines += [" ".join(words), " ".join(map(str, matrix.indices)), " ".join(map(str, matrix.indptr))]
    return "\n".join(lines) + "\n"


def _stru(snapshot: Snapshot, numbers: np.ndarray, positions: np.ndarray) -> str:
    lines = ["ATOMIC_SPECIES"]
    lines += [f"{chemical_symbols[z]} {atomic_masses[z]:.4f} {chemical_symbols[z]}.upf" for z in snapshot.elements]
    lines += ["", "NUMERICAL_ORBITAL"]
    for z in snapshot.elements:
        ls = snapshot.shells[z]
        counted = "".join(f"{ls.count(l)}{LETTERS[l]}" for l in sorted(set(ls)))
        lines.append(f"{chemical_symbols[z]}_{counted}.orb")
    lines += ["", "LATTICE_CONSTANT", f"{1 / BOHR:.12f}", "", "LATTICE_VECTORS"]
    lines += [" ".join(f"{x:.12f}" for x in vector) for vector in snapshot.cell]
    lines += ["", "ATOMIC_POSITIONS", "Direct"]
    fractions = positions @ np.linalg.inv(snapshot.cell)
    for z in snapshot.elements:
        own = fractions[numbers == z]
        lines += ["", chemical_symbols[z], "0.0", str(len(own))]
        lines += [" ".join(f"{x:.12f}" for x in f) + " 1 1 1" for f in own]
    return "\n".join(lines) + "\n"
