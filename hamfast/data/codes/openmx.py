"""OpenMX: ``NAME.scfout`` of version 3.8, 3.9 or 4.0 (``HS.fileout on``).

The file is a stream of int32 and float64 numbers without marks between them. It holds the
structure, H, S, the density matrix, the Fermi level and, at its end, the input file. The shells
come from the names of the basis sets there. Energies are in hartree, lengths in bohr.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from ase.data import atomic_numbers

from hamfast.data.codes.native import (
    Orbitals,
    block_matrix,
    element_symbol,
    on_pairs_of,
    one_of,
    opened,
    shells_of_elements,
    two_channels,
)
from hamfast.data.orbitals import OPENMX_ORDER
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

NAME, FILE = "openmx", "*.scfout"
HARTREE, BOHR = 27.2113845, 0.529177249
"""eV and angstrom, as OpenMX has them."""
SPINS = {0: 1, 1: 2, 3: 4}
"""SpinP of the file -> number of its matrices H."""


def main_file(folder: Path) -> Path | None:
    """The ``*.scfout`` of a folder, or a compressed one."""
    return one_of(sorted([*folder.glob("*.scfout"), *folder.glob("*.scfout.xz")]), folder, FILE)


class _Stream:
    """Numbers, one after the other."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.order = "<"

    def _bytes(self, size: int) -> bytes:
        content = self.file.read(size)
        if len(content) != size:
            raise HamfastError(
                f"{self.path}: ends in the middle; expected {size} more bytes, found {len(content)}: "
                "the calculation or the copy was not finished"
            )
        return content

    def _read(self, letter: str, count: int) -> np.ndarray:
        return np.frombuffer(self._bytes(count * int(letter[1])), self.order + letter)

    def line(self) -> str:
        return self._bytes(256).split(b"\0")[0].decode(errors="replace")

    def integers(self, count: int) -> np.ndarray:
        return self._read("i4", count).astype(np.int64)

    def reals(self, *shape: int) -> np.ndarray:
        return self._read("f8", int(np.prod(shape))).reshape(shape).astype(np.float64)

    def skip(self, reals: int) -> None:
        self.file.seek(8 * reals, 1)


def read(path: Path, matrices: bool) -> Snapshot:
    """Reads a calculation; see :class:`hamfast.data.codes.native.Code`."""
    with opened(path) as file:
        stream = _Stream(file, path)
        return _read(stream, path, matrices)


def _read(stream: _Stream, path: Path, matrices: bool) -> Snapshot:
    header = stream.integers(6)
    if not 0 <= header[1] <= 15:
        stream.order = ">"
        header = header.astype("<i4").view(">i4").astype(np.int64)
    atoms, code, *_, copies = header.tolist()
    version, spin = divmod(code, 4)
    if version not in (0, 3) or spin not in SPINS or not 0 < atoms < 10**7 or not 0 <= copies < 10**7:
        raise HamfastError(
            f"{path}: expected a scfout file of OpenMX 3.8, 3.9 or 4.0, found another version or other content "
            f"(format {version}, spin {spin}, {atoms} atoms)"
        )
    order = int(stream.integers(1)[0]) if version == 3 else 1
    stream.skip(4 * (copies + 1))
    cells = stream.integers(4 * (copies + 1)).reshape(-1, 4)[:, 1:]
    counts, neighbors = stream.integers(atoms), stream.integers(atoms) + 1
    if counts.min() < 1 or neighbors.min() < 1:
        raise HamfastError(f"{path}: damaged: an atom has {counts.min()} orbitals and {neighbors.min() - 1} neighbours")
    senders = np.concatenate([stream.integers(n) for n in neighbors]) - 1
    cell_of = np.concatenate([stream.integers(n) for n in neighbors])
    cell = stream.reals(3, 4)[:, 1:] * BOHR
    stream.skip(12)
    positions = stream.reals(atoms, 4)[:, 1:] * BOHR
    receivers = np.repeat(np.arange(atoms), neighbors)
    sizes = counts[receivers] * counts[senders]
    total = int(sizes.sum())
    real, imaginary = SPINS[spin], 3 if spin == 3 else 0
    if matrices:
        *energies, overlap = (stream.reals(total) for _ in range(real + imaginary + 1))
    else:
        stream.skip(total * (real + imaginary + 1))
    densities = real + (2 if version == 3 else 0)
    stream.skip(total * (3 * order + (3 if version == 3 else 0) + densities))
    stream.integers(1)
    numbers = stream.reals(10)
    lines = int(stream.integers(1)[0])
    if not 0 < lines < 10**6:
        raise HamfastError(f"{path}: expected the lines of the input file at its end, found {lines}")
    text = "\n".join(stream.line() for _ in range(lines))
    symbols, shells = _basis(text, counts, path)
    snapshot = Snapshot(
        label=path.parent.name,
        cell=cell,
        positions=positions,
        numbers=np.array([atomic_numbers[symbol] for symbol in symbols]),
        shells=shells_of_elements(symbols, shells, path),
        spinful=spin != 0,
        fermi_energy=float(numbers[0]) * HARTREE,
        occupation=float(numbers[8]),
        info={"code": "OpenMX"} | ({"collinear": True} if spin == 1 else {}),
    )
    if not matrices:
        return snapshot
    orbitals = Orbitals.of_shells(shells, OPENMX_ORDER)
    # The orbitals of the elements in a row: atom pairs one after the other, their blocks row-major.
    starts = np.concatenate([[0], np.cumsum(counts)])
    index = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    width = np.repeat(counts[senders], sizes)
    rows = np.repeat(starts[receivers], sizes) + index // width
    columns = np.repeat(starts[senders], sizes) + index % width
    R = np.repeat(cells[cell_of], sizes, axis=0)

    def matrix(values):
        return block_matrix(orbitals, R, rows, columns, values)

    s = matrix(overlap)
    if spin == 0:
        h = matrix(energies[0] * HARTREE)
    elif spin == 1:
        h = two_channels(*(matrix(values * HARTREE) for values in energies))
    else:
        spinor = np.empty((total, 2, 2), dtype=np.complex128)
        up, down, mixed, mixed_imaginary, up_imaginary, down_imaginary, mixed_spin_orbit = energies
        spinor[:, 0, 0] = up + 1j * up_imaginary
        spinor[:, 1, 1] = down + 1j * down_imaginary
        spinor[:, 0, 1] = mixed + 1j * (mixed_imaginary + mixed_spin_orbit)
        spinor[:, 1, 0] = _reversed(spinor[:, 0, 1], receivers, senders, cells[cell_of], sizes, counts, path).conj()
        h = matrix(spinor * HARTREE)
    snapshot.hamiltonian, snapshot.overlap = on_pairs_of(s, h, orbitals)
    return snapshot


def _reversed(values, receivers, senders, cells, sizes, counts, path):
    """The elements of the blocks (-R, j, i), transposed, in the place of those of (R, i, j)."""
    starts = np.cumsum(sizes) - sizes
    pairs = np.column_stack([cells, receivers, senders]).tolist()
    index = {tuple(pair): n for n, pair in enumerate(pairs)}
    found = np.empty_like(values)
    for n, (a, b, c, i, j) in enumerate(pairs):
        m = index.get((-a, -b, -c, j, i))
        if m is None:
            raise HamfastError(f"{path}: damaged: atom {j} has no neighbour {i} in cell ({-a}, {-b}, {-c})")
        block = values[starts[m] : starts[m] + sizes[m]].reshape(counts[j], counts[i])
        found[starts[n] : starts[n] + sizes[n]] = block.T.ravel()
    return found


def _basis(text: str, counts: np.ndarray, path: Path) -> tuple[list[str], list[tuple[int, ...]]]:
    """The element and the shells of each atom, from the input file."""
    species: dict[str, tuple[str, tuple[int, ...]]] = {}
    for line in _block(text, "Definition.of.Atomic.Species", path):
        name, basis, *potential = line.split()
        shells = re.search(r"-((?:[spdfg]\d+)+)", basis)
        if shells is None:
            raise HamfastError(f"{path}: expected a basis like C6.0-s2p2d1 for {name}, found {basis!r}")
        counted = re.findall(r"([spdfg])(\d+)", shells[1])
        ls = [l for letter, count in counted for l in ["spdfg".index(letter)] * int(count)]
        species[name] = (element_symbol(potential[0] if potential else basis, path), tuple(ls))
    names = [line.split()[1] for line in _block(text, "Atoms.SpeciesAndCoordinates", path)]
    if len(names) != len(counts):
        raise HamfastError(f"{path}: expected {len(counts)} atoms in the input at its end, found {len(names)}")
    unknown = [name for name in names if name not in species]
    if unknown:
        raise HamfastError(f"{path}: the input has atoms of {unknown[0]!r}, which Definition.of.Atomic.Species lacks")
    symbols, shells_of = [species[n][0] for n in names], [species[n][1] for n in names]
    for atom, own in enumerate(shells_of):
        expected = sum(2 * l + 1 for l in own)
        if expected != counts[atom]:
            raise HamfastError(
                f"{path}: atom {atom} ({names[atom]}) has {counts[atom]} orbitals, but its basis {list(own)} has {expected}"
            )
    return symbols, shells_of


def _block(text: str, name: str, path: Path) -> list[str]:
    """The lines of a block of the input, without comments."""
    found = re.search(rf"<{re.escape(name)}\s*\n(.*?)\n\s*{re.escape(name)}>", text, re.DOTALL | re.IGNORECASE)
    if found is None:
        raise HamfastError(f"{path}: expected the block {name} in the input at its end, found none")
    lines = (line.split("#")[0].strip() for line in found[1].splitlines())
    return [line for line in lines if line]
