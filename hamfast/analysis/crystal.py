"""From a crystal's atoms alone to its Hamiltonian, overlap and bands: the interface for Python.

    model = hamfast.load("model.ckpt")
    crystal = model.predict(atoms)
    crystal.bands("GKMG").plot("bands.png")

The overlap is the one that training has fitted (:mod:`hamfast.data.two_centre_overlap`), and so is
the number of electrons.
"""

from __future__ import annotations

import codecs
import io
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from ase.data import chemical_symbols

from hamfast.analysis.band_uncertainty import band_half_width
from hamfast.analysis.bands import BandStructure, band_structures
from hamfast.analysis.eigen import EigenProblem, eigen_problem
from hamfast.analysis.in_pieces import Limits
from hamfast.analysis.prediction import (
    Prediction,
    Written,
    at_once,
    check_alone,
    graph_of,
    predict_batch,
    predicted_parts,
    rounded,
    scratch_of,
    write_parts,
    write_uncertainty,
)
from hamfast.analysis.uncertainty import LEVEL, Uncertainty
from hamfast.data import deeph, read_snapshot
from hamfast.data.graphs import species_index
from hamfast.data.snapshot import Snapshot, check_structure, difference
from hamfast.errors import DataWarning, HamfastError
from hamfast.training import LoadedModel, load_model

if TYPE_CHECKING:
    from ase import Atoms
    from ase.io.cif import CIFBlock

    from hamfast.analysis.figure import StandaloneFigure

    Structure = Atoms | Snapshot | Path | str

BATCH_ATOMS = 100
"""Of several structures, about so many atoms go through the network at once."""


@dataclass(frozen=True, repr=False)
class Model:
    """A trained model."""

    loaded: LoadedModel

    def __repr__(self) -> str:
        elements = ", ".join(chemical_symbols[z] for z in self.loaded.spec.elements)
        return f"Model({elements}; looks {self.loaded.model.receptive_field:.1f} angstrom far)"

    @overload
    def predict(self, atoms: Structure, *, uncertainty: bool = ..., level: float = ...) -> Crystal: ...

    @overload
    def predict(
        self, atoms: list[Structure] | tuple[Structure, ...], *, uncertainty: bool = ..., level: float = ...
    ) -> list[Crystal]: ...

    def predict(self, atoms, *, uncertainty=False, level=LEVEL):
        """The Hamiltonian and the overlap of a crystal, or of each of several.

        Several go through the network together, in batches of about ``BATCH_ATOMS`` atoms.

        Args:
            atoms: of ASE, with a cell; or a structure folder, whose overlap and Fermi level are
                taken where it has them; or what was read from one; or a file with one structure
                that ASE reads; or a list of these.
            uncertainty: how far the blocks and the bands may be from those of DFT, too.
            level: the share of blocks that their intervals are to hold.

        Raises:
            HamfastError: an element is unknown to the model, there are no three lattice vectors, or
                the training does not tell the overlap of such atoms; the uncertainty is asked for
                and not calibrated.
        """
        if not isinstance(atoms, (list, tuple)):
            return self.predict([atoms], uncertainty=uncertainty, level=level)[0]
        return predict_crystals(self.loaded, [self._read(one) for one in atoms], level if uncertainty else None)

    def _read(self, atoms: Structure) -> Snapshot:
        from ase import Atoms

        if isinstance(atoms, (str, Path)) and Path(atoms).is_file():
            found = read_atoms(self.loaded, Path(atoms))
            if len(found) > 1:
                raise HamfastError(f"{atoms}: expected one structure, found {len(found)}; read it with ASE")
            return found[0]
        if isinstance(atoms, (str, Path)):
            return read_snapshot(atoms)
        if isinstance(atoms, Atoms):
            return snapshot_of(self.loaded, atoms)
        if isinstance(atoms, Snapshot):
            return atoms
        raise HamfastError(f"expected ASE's atoms, a folder or a file of a structure, found {type(atoms).__name__}")


@dataclass(frozen=True, repr=False)
class Bands:
    """Bands along a path: ``structure.energies``, ``structure.fermi_energy``, ``structure.gap``."""

    structure: BandStructure
    """Energies in eV, path and Fermi level."""
    label: str
    half_width: np.ndarray | None = None
    """``[kpoints, columns]`` eV, of ``structure.energies``; None without an uncertainty."""

    def __repr__(self) -> str:
        points, bands = self.structure.energies.shape
        gap = "not known" if self.structure.gap is None else f"{self.structure.gap:.3f} eV"
        return f"Bands({self.label}: {points} k-points, {bands} bands, E_F {self.structure.fermi_energy:.3f} eV, gap {gap})"

    def plot(self, path: Path | str | None = None, window: tuple[float, float] = (-4.0, 4.0)) -> StandaloneFigure:
        """Draws the bands, E_F at 0; a notebook shows the figure.

        Args:
            path: of a PNG, a PDF or another format of matplotlib, which is written if it is given.
            window: eV around the Fermi level.

        Raises:
            HamfastError: the file cannot be written.
        """
        from hamfast.analysis.plot import plot_bands

        figure = plot_bands({"predicted": self.structure}, window=window, title=self.label, half_width=self.half_width)
        if path is not None:
            figure.write(Path(path))
        return figure


@dataclass(frozen=True, repr=False)
class Crystal:
    """A crystal with its predicted Hamiltonian, and an overlap if one is known."""

    snapshot: Snapshot
    """In the field ``hamiltonian`` it has the predicted one, eV."""
    uncertainty: Uncertainty | None = None
    """Of the Hamiltonian, where it was asked for."""

    def __repr__(self) -> str:
        atoms = self.snapshot.atoms.get_chemical_formula()
        size = sum(self.snapshot.num_orbitals(n) for n in range(self.snapshot.num_atoms))
        return f"Crystal({self.snapshot.label}: {atoms}, {size} orbitals)"

    @property
    def problem(self) -> EigenProblem:
        """H(k) and S(k) as an eigenvalue problem."""
        return eigen_problem(self.snapshot)

    def H(self, k: Any) -> np.ndarray:  # the field's name for it
        """``[orbitals, orbitals]`` complex, eV: ``sum_R exp(2 pi i k R) H(R)``.

        Args:
            k: three numbers, in fractions of the reciprocal lattice vectors.
        """
        return self.problem.hamiltonian.at(np.asarray(k, dtype=np.float64)).toarray()

    def S(self, k: Any) -> np.ndarray:
        """``[orbitals, orbitals]`` complex: the overlap, as :meth:`H`."""
        return self.problem.overlap.at(np.asarray(k, dtype=np.float64)).toarray()

    def bands(self, kpath: str | None = None, points: int = 90, **options: Any) -> Bands:
        """Bands along a path.

        Args:
            kpath: such as ``GKMG``; by default ASE's for the lattice.
            points: k-points along the path.
            options: of :func:`hamfast.analysis.bands.band_structures`.
        """
        matrix = self.snapshot.hamiltonian
        assert matrix is not None
        found = band_structures(self.snapshot, {"predicted": matrix}, kpath, points=points, **options)["predicted"]
        width = None if self.uncertainty is None else band_half_width(self.snapshot, matrix, self.uncertainty, found)
        return Bands(found, self.snapshot.label, width)

    def to_deeph(self, folder: Path | str) -> Path:
        """Writes the new DeepH layout, the prediction as Hamiltonian; returns the folder."""
        deeph.write(self.snapshot, Path(folder))
        return Path(folder)

    def to_sisl(self) -> Any:
        """A ``sisl.Hamiltonian``, for what sisl does and writes.

        Orbitals get the order and the signs of SIESTA, which sisl expects.

        Raises:
            HamfastError: sisl is not installed, or there is spin or no overlap.
        """
        from hamfast.data.codes.to_sisl import to_sisl

        return to_sisl(self.snapshot)


def load(path: Path | str, device: str | torch.device = "cpu") -> Model:
    """Loads ``model.ckpt`` of a training run; see :func:`hamfast.training.load_model`."""
    return Model(load_model(path, device))


def snapshot_of(loaded: LoadedModel, atoms: Atoms, label: str | None = None) -> Snapshot:
    """Atoms as a structure with the orbitals that a model knows.

    Raises:
        HamfastError: an element is unknown to the model, or there are no three lattice vectors.
    """
    label = label or atoms.get_chemical_formula()
    cell = np.asarray(atoms.cell.array, dtype=np.float64)
    if abs(np.linalg.det(cell)) < 1e-6:
        raise HamfastError(
            f"{label}: expected three lattice vectors, found the cell {cell.tolist()}; a layer needs vacuum, "
            "as by atoms.center(vacuum=8, axis=2)"
        )
    shells = dict(loaded.spec.shells)
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    empty = heights * (1 - np.ptp(atoms.positions @ np.linalg.inv(cell), axis=0)) if len(atoms) else heights
    reach = 0.0 if loaded.pair_cutoffs is None else float(loaded.pair_cutoffs.max())
    if (~atoms.pbc & (empty < reach)).any():
        warnings.warn(
            f"{label}: not periodic in every direction, but its cell leaves only {empty[~atoms.pbc].min():.1f} angstrom between "
            f"images, and the model's pairs reach {reach:.1f}; it is taken as a crystal",
            DataWarning,
            stacklevel=2,
        )
    numbers = np.asarray(atoms.numbers, dtype=np.int64)
    snapshot = Snapshot(
        label=label,
        cell=cell,
        positions=np.asarray(atoms.positions, dtype=np.float64),
        numbers=numbers,
        shells={z: shells.get(z, ()) for z in dict.fromkeys(numbers.tolist())},
        spinful=loaded.spec.spinful,
    )
    species_index(snapshot, loaded.spec)  # refuses elements that the model does not know
    return check_structure(snapshot, label)


def _frames(path: Path) -> list[Atoms]:
    """The structures in a file; raises whatever ASE's parsers raise."""
    from ase.io import read as ase_read
    from ase.io.cif import parse_cif

    if path.suffix.lower() != ".cif":
        return ase_read(path, index=":")  # type: ignore[return-value]
    # ASE compares each atom of a CIF with all others, for copies that symmetry makes: 50,000 atoms
    # would take an hour. Without symmetry there are none.
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # ASE finds out the encoding, but not this mark
    blocks = [block for block in parse_cif(io.BytesIO(content)) if block.has_structure()]
    by_ase = partial(ase_read, index=":", format="cif")
    if not all(_is_plain(block) for block in blocks):
        return by_ase(io.BytesIO(content))  # type: ignore[return-value]
    frames = [block.get_unsymmetrized_structure() for block in blocks]
    for atoms in frames:
        atoms.pbc = True
        scaled = atoms.get_scaled_positions(wrap=False) % 1.0  # as ASE otherwise does
        atoms.set_scaled_positions(scaled)
        if len(np.unique(np.round(scaled, 3) % 1.0, axis=0)) < len(atoms):  # one may be named twice
            return by_ase(io.BytesIO(content))  # type: ignore[return-value]
    return frames


_OPERATIONS = (
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
)
"""A CIF's names for the list of symmetry operations."""


def _is_plain(block: CIFBlock) -> bool:
    """Does a CIF's block name all atoms of a periodic cell, each of them once and whole?"""
    whole = all(occupancy == 1 for occupancy in block.get("_atom_site_occupancy") or [])
    if not whole or block.get_cell().rank < 3:
        return False
    listed: Any = next((block[name] for name in _OPERATIONS if block.get(name)), [])
    # The identity alone needs no name of a group, without which ASE raises.
    listed = [listed] if isinstance(listed, str) else listed
    if len(listed) == 1 and listed[0].replace(" ", "").lower() == "x,y,z":
        return True
    return len(block.get_spacegroup(True).get_symop()) == 1


def _check_occupancies(atoms: Atoms, path: Path) -> None:
    """Raises HamfastError if a site of a CIF is a mean over atoms, of which ASE takes one."""
    found = atoms.info.get("occupancy")
    for site in found.values() if isinstance(found, dict) else []:
        if any(isinstance(share, int | float) and share < 1 for share in site.values()):  # it may be "?"
            words = ", ".join(f"{element} {share}" for element, share in site.items())
            raise HamfastError(
                f"{path}: expected one whole atom on each site, found the occupancies {words}; choose which atoms are there"
            )


def read_atoms(loaded: LoadedModel, path: Path) -> list[Snapshot]:
    """The structures in a file that ASE reads: CIF, POSCAR, xyz, a trajectory.

    Raises:
        HamfastError: ASE cannot read it, a site is not occupied by one whole atom, or as
            :func:`snapshot_of`.
    """
    try:
        frames = _frames(path)
    except Exception as error:  # ASE raises whatever its parsers stumble on
        words = " ".join(str(error).split())
        raise HamfastError(f"{path}: ASE cannot read a structure in it ({type(error).__name__}: {words})") from error
    if not frames:
        raise HamfastError(f"{path}: expected a structure, found none")
    for atoms in frames:
        _check_occupancies(atoms, path)
    names = (
        [path.stem] if len(frames) == 1 else [f"{path.stem}_{n:0{len(str(len(frames)))}d}" for n in range(len(frames))]
    )
    try:
        return [snapshot_of(loaded, atoms, name) for atoms, name in zip(frames, names, strict=True)]
    except HamfastError as error:
        raise HamfastError(f"{path}: {error}") from error


def predict_crystals(loaded: LoadedModel, snapshots: Sequence[Snapshot], level: float | None = None) -> list[Crystal]:
    """Crystals with their predicted Hamiltonians; what else they lack comes from the model, too.

    With a ``level``, see :func:`hamfast.analysis.prediction.predict`, they have an uncertainty.
    """
    crystals, batch, atoms = [], [], 0
    for n, snapshot in enumerate(snapshots):
        batch.append(snapshot)
        atoms += snapshot.num_atoms
        if atoms >= BATCH_ATOMS or n + 1 == len(snapshots):
            for one, prediction in zip(batch, predict_batch(loaded, batch, level), strict=True):
                crystals.append(_crystal(loaded, one, prediction))
            batch, atoms = [], 0
    return crystals


def _crystal(loaded: LoadedModel, snapshot: Snapshot, prediction: Prediction) -> Crystal:
    matrix = prediction.refined
    overlap, electrons = snapshot.overlap, snapshot.occupation
    fitted = loaded.model.overlap
    if overlap is None and fitted is not None:
        overlap = fitted.matrix(snapshot, matrix.pairs)
    if electrons is None and fitted is not None:
        electrons = fitted.num_electrons(snapshot)
    found = Snapshot(**{**snapshot.__dict__, "hamiltonian": matrix, "overlap": overlap, "occupation": electrons})
    return Crystal(found, prediction.uncertainty)


def _check_same(snapshot: Snapshot, target: Path) -> None:
    """Raises HamfastError unless ``target`` is an earlier prediction of the structure, or one that
    was stopped before its matrices were there."""
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    unfinished = {name for name in names if not name.startswith(".")} == {"POSCAR", "info.json"}
    there = deeph.read_structure(target) if unfinished or deeph.PREDICTION in names else None
    if there is None or difference(snapshot, there, np.zeros((0, 5), dtype=np.int64)) is not None:
        raise HamfastError(
            f"{target}: expected a new folder, or an earlier prediction of {snapshot.label}, found something else; choose "
            "another --output"
        )


def write_crystal(
    loaded: LoadedModel,
    snapshot: Snapshot,
    target: Path,
    precision: str,
    compress: bool,
    level: float | None = None,
    limits: Limits | None = None,
) -> Written | None:
    """Predicts a structure that came without matrices, and writes it with H and S.

    Args:
        loaded: the model.
        snapshot: the structure.
        target: a new folder.
        precision: ``float64`` or ``float32``, of the Hamiltonian.
        compress: the file of the Hamiltonian, by gzip.
        level: see :func:`hamfast.analysis.prediction.predict`.
        limits: see :func:`hamfast.analysis.prediction.write_prediction`.

    Returns:
        None on all processes but the first.

    Raises:
        HamfastError: as :meth:`Model.predict`; the target holds something else than an earlier
            prediction of this structure; the checkpoint has no fitted overlap.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        _check_same(snapshot, target)
    if loaded.model.overlap is None:
        raise HamfastError(
            f"{snapshot.label}: it comes without an overlap, and the model has none: its training set had no overlaps; "
            "give a structure folder with one"
        )
    limits = limits or Limits()
    graph = graph_of(loaded, snapshot)
    check_alone(level, limits)
    if level is None:
        parts = predicted_parts(loaded, snapshot, graph, scratch_of(target), limits)
        if parts is not None and not limits.processes.is_first:
            deque(parts, maxlen=0)
            return None
        if parts is not None:
            electrons = loaded.model.overlap.num_electrons(snapshot)
            deeph.write(replace(snapshot, occupation=snapshot.occupation or electrons), target)
            return Written(write_parts(parts, snapshot, target, precision, compress, loaded.model.overlap))
    crystal = _crystal(loaded, snapshot, at_once(loaded, [snapshot], [graph], level)[0])
    matrix = crystal.snapshot.hamiltonian
    assert matrix is not None
    crystal.snapshot.hamiltonian = None
    deeph.write(replace(crystal.snapshot, overlap=None), target)
    path = deeph.write_prediction(crystal.snapshot, rounded(matrix, precision), target, compress)
    assert crystal.snapshot.overlap is not None
    deeph.write_matrix(crystal.snapshot.overlap, target / deeph.OVERLAP)  # last: see _check_same
    return Written(path, *write_uncertainty(crystal.uncertainty, snapshot, target, compress))
