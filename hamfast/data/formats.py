"""What an on-disk format has to provide, the formats there are, and which one a folder has."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from hamfast.data import deeph, deeph_legacy, packed
from hamfast.data.blocks import BlockMatrix
from hamfast.data.codes import CODES
from hamfast.data.plausible import warn_of_mix_ups
from hamfast.data.snapshot import Snapshot, check_atoms, check_snapshot, check_structure
from hamfast.errors import DataWarning, HamfastError


@runtime_checkable
class Format(Protocol):
    """One on-disk layout of structures: a module with these names.

    ``folder`` is the path of a structure. In :mod:`hamfast.data.packed` it is none that the file
    system knows.

    A new format is such a module, and its name in :data:`WRITTEN`; a DFT code's own files have a
    smaller interface, see :class:`hamfast.data.codes.native.Code`. All of its functions raise
    :class:`hamfast.errors.HamfastError` where a file is missing, damaged or wrong. What they read
    is in the units and the orbital order of :class:`hamfast.data.snapshot.Snapshot`.
    """

    NAME: str
    """What ``hamfast data convert --to`` calls it."""
    FILE: str
    """In words, the files by which such a folder is known."""
    HAMILTONIAN: str
    PREDICTION: str
    """The files, or parts, of the Hamiltonians of DFT, and of ``hamfast predict``."""
    FILES: tuple[str, ...]
    """All files, or parts, of a structure in this layout, also those that need not be there."""

    def is_this_layout(self, folder: Path) -> bool:
        """Does a folder hold a structure of this layout?"""

    def has_prediction(self, folder: Path) -> bool:
        """Is there a Hamiltonian of ``hamfast predict``?"""

    def read_structure(self, folder: Path) -> Snapshot:
        """Reads all but the matrices."""

    def read_pairs(self, folder: Path) -> np.ndarray | None:
        """``[pairs, 5]`` int64: the atom pairs of the Hamiltonian, or of the overlap if there is no
        Hamiltonian, without the blocks; None if there is no matrix."""

    def read(self, folder: Path, hamiltonian: str | None = ...) -> Snapshot:
        """Reads a structure with its matrices; those that are not there are None.

        Args:
            folder: of the structure.
            hamiltonian: the name of the Hamiltonian's file; None to leave it out.
        """

    def write(self, snapshot: Snapshot, folder: Path) -> None:
        """Writes a structure with the matrices that it has."""

    def write_prediction(self, snapshot: Snapshot, matrix: BlockMatrix, folder: Path, compress: bool = ...) -> Path:
        """Writes a predicted Hamiltonian beside the structure's files; returns the path."""


IN_FOLDERS: tuple[Format, ...] = (deeph, deeph_legacy)
"""The formats of folders that hamfast reads and writes."""

WRITTEN: tuple[Format, ...] = (packed, *IN_FOLDERS)
"""The formats that hamfast reads and writes."""

FORMATS: tuple[Format, ...] = (*WRITTEN, *CODES)
"""All formats; a structure has the first one that knows it."""


def copied_as(layout: Format) -> Format:
    """The format of a copy in a folder of its own, of a structure of this format: that one, or the
    new DeepH layout if it is none of folders, or a DFT code's own."""
    return layout if layout in IN_FOLDERS else deeph


def _expected() -> str:
    return ", or ".join(f"{f.FILE} ({f.NAME})" for f in FORMATS if f is not packed)


def detect(folder: Path) -> Format | None:
    """The format of a folder; None if it holds no structure."""
    return next((f for f in FORMATS if f.is_this_layout(folder)), None)


def by_name(name: str) -> Format:
    """The written format with this ``NAME``.

    Raises:
        HamfastError: there is none.
    """
    for f in WRITTEN:
        if name == f.NAME:
            return f
    raise HamfastError(f"format: expected one of {', '.join(f.NAME for f in WRITTEN)}, found {name!r}")


def format_of(folder: Path) -> Format:
    """The format of a folder.

    Raises:
        HamfastError: it holds no structure.
    """
    found = detect(folder)
    if found is None:
        raise HamfastError(f"{folder}: not a structure folder; expected {_expected()}")
    return found


def read_snapshot(folder: Path | str, *, hamiltonian: str | None = "dft") -> Snapshot:
    """Reads and checks one structure, whatever its layout.

    Args:
        folder: of one structure, or its path in a file of structures.
        hamiltonian: ``dft``; ``prediction``, which ``hamfast predict`` wrote; None for neither.

    Raises:
        HamfastError: something is missing, unreadable or wrong.
    """
    folder = Path(folder)
    layout = format_of(folder)
    name = {"dft": layout.HAMILTONIAN, "prediction": layout.PREDICTION, None: None}[hamiltonian]
    snapshot = check_snapshot(layout.read(folder, name), str(folder))
    snapshot.label = label_of(folder)
    warn_of_mix_ups(snapshot, str(folder))
    return snapshot


def read_structure(folder: Path | str) -> Snapshot:
    """Reads and checks all but the matrices; raises as :func:`read_snapshot`."""
    folder = Path(folder)
    snapshot = check_structure(format_of(folder).read_structure(folder), str(folder))
    snapshot.label = label_of(folder)
    return snapshot


def read_pairs(folder: Path | str, snapshot: Snapshot) -> np.ndarray | None:
    """The atom pairs of a structure's Hamiltonian, or of its overlap if it has no Hamiltonian.

    Args:
        folder: of the structure.
        snapshot: what :func:`read_structure` has read from it.

    Returns:
        ``[pairs, 5]`` int64: R1, R2, R3, i, j; None if there is no matrix.

    Raises:
        HamfastError: the file is damaged, or names atoms that the structure does not have.
    """
    folder = Path(folder)
    pairs = format_of(folder).read_pairs(folder)
    if pairs is not None:
        check_atoms(snapshot, "matrix", pairs, str(folder))
    return pairs


def has_prediction(folder: Path) -> bool:
    """Does a structure have a Hamiltonian of ``hamfast predict``?"""
    return format_of(folder).has_prediction(folder)


def folder_of(root: Path) -> Path:
    """The folder of a data set, which may be named by its file of structures."""
    return root.parent if packed.is_packed(root) else root


def find_structures(root: Path | str) -> list[Path]:
    """The structures at ``root``, sorted by name: folders, and those in one file.

    Folders are ``root`` itself, or those in its sub-folder ``dft``, or those in ``root``. The file
    is ``root``, or ``structures.sqlite`` in it; of its structures ``root`` may be one.

    Raises:
        HamfastError: there is none, or one is in the file and in a folder.
    """
    root = Path(root)
    if packed.is_this_layout(root):
        return [root]
    if packed.is_packed(root):
        found = packed.structures(root)
        if not found:
            raise HamfastError(f"{root}: expected structures, found none")
        return found
    if not root.is_dir():
        raise HamfastError(f"{root}: folder not found")
    if detect(root):
        return [root]
    file = root / packed.STRUCTURES
    inside = packed.structures(file) if packed.is_packed(file) else []
    outside = next(filter(None, map(_folders, (root / "dft", root))), [])
    if not inside and not outside:
        raise HamfastError(
            f"{root}: no structure folders found; expected {file}, or {root}/dft/<label>/ or "
            f"{root}/<label>/ with {_expected()}"
        )
    twice = {p.name: p for p in outside}
    for path in inside:
        if path.name in twice:
            raise HamfastError(f"{path}: the same label as {twice[path.name]}; expected each structure once")
    return sorted([*inside, *outside], key=lambda p: p.name)


def _folders(parent: Path) -> list[Path]:
    """Those of a folder that are structures; warns of others that should be."""
    folders = (
        sorted(p for p in parent.iterdir() if not p.name.startswith(".") and p.is_dir()) if parent.is_dir() else []
    )
    found = [p for p in folders if detect(p)]
    if found:
        known = set(found)
        _warn_of_incomplete([p for p in folders if p not in known])
    return found


def _warn_of_incomplete(folders: Sequence[Path]) -> None:
    """Folders that hold files of a layout, but not those that make a structure."""
    for folder in folders:
        there = sorted(name for f in IN_FOLDERS for name in f.FILES if (folder / name).exists())
        if there:
            warnings.warn(
                f"{folder}: passed over; it has {', '.join(there)}, but a structure needs POSCAR and info.json, or lat.dat and "
                "element.dat",
                DataWarning,
                stacklevel=4,
            )


def label_of(folder: Path) -> str:
    """The name of a structure's folder, also of ``.`` and ``..``."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def names_apart(folders: Sequence[Path]) -> list[str]:
    """A name for each structure folder, all of them different.

    It is the folder's own name. Where two have the same, the folders above them go before it, as
    ``a__s`` and ``b__s``.
    """
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]  # links keep their names
    depth = [1] * len(paths)
    while True:
        names = ["__".join(parts[-d:]).replace("/", "") for parts, d in zip(paths, depth, strict=True)]
        named: dict[str, set[tuple[str, ...]]] = {}
        for name, path in zip(names, paths, strict=True):
            named.setdefault(name, set()).add(path)
        clash = [n for n, name in enumerate(names) if depth[n] < len(paths[n]) and len(named[name]) > 1]
        if not clash:
            return names
        for n in clash:
            depth[n] += 1
