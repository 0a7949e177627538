"""Every on-disk format, and which one a folder has. A new format is a module with the functions below and a line here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from hamfast.data import deeph, deeph_legacy
from hamfast.data.plausible import warn_of_mix_ups
from hamfast.data.snapshot import Snapshot, check_snapshot, check_structure
from hamfast.errors import DataWarning, HamfastError
from hamfast.shells import ShellSpec

FORMATS: tuple[ModuleType, ...] = (deeph, deeph_legacy)
"""Each has NAME, HAMILTONIAN, PREDICTION, FILES, is_this_layout(folder), read_structure(folder), read(folder),
write(snapshot, folder), write_prediction(snapshot, matrix, folder, compress)."""


def detect(folder: Path) -> ModuleType | None:
    return next((f for f in FORMATS if f.is_this_layout(folder)), None)


def by_name(name: str) -> ModuleType:
    for f in FORMATS:
        if name == f.NAME:
            return f
    raise HamfastError(f"format: expected one of {', '.join(f.NAME for f in FORMATS)}, found {name!r}")


def format_of(folder: Path) -> ModuleType:
    found = detect(folder)
    if found is None:
        raise HamfastError(
            f"{folder}: not a structure folder; expected POSCAR and info.json (new DeepH layout) or lat.dat and "
            "element.dat (legacy DeepH layout)"
        )
    return found


def read_snapshot(folder: Path | str, *, hamiltonian: str | None = "dft") -> Snapshot:
    """Reads and checks one structure folder, whatever its layout.

    Args:
        folder: of one structure.
        hamiltonian: ``dft``, ``prediction`` (what ``hamfast predict`` wrote) or None to leave it out.

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


def find_structures(root: Path | str) -> list[Path]:
    """Structure folders at ``root``: itself, or those in it, or in its sub-folder ``dft``; sorted by name.

    Raises:
        HamfastError: there is none.
    """
    root = Path(root)
    if not root.is_dir():
        raise HamfastError(f"{root}: folder not found")
    if detect(root):
        return [root]
    for parent in (root / "dft", root):
        if parent.is_dir():
            folders = sorted(p for p in parent.iterdir() if p.is_dir())
            found = [p for p in folders if detect(p)]
            if found:
                _warn_of_incomplete([p for p in folders if p not in found])
                return found
    raise HamfastError(
        f"{root}: no structure folders found; expected {root}/dft/<label>/ or {root}/<label>/ with POSCAR and info.json "
        "(new DeepH layout) or lat.dat and element.dat (legacy)"
    )


def dataset_shells(folders: Sequence[Path]) -> ShellSpec:
    """Elements (in order of first appearance over all folders) and orbitals of a data set.

    Raises:
        HamfastError: two folders give one element different orbitals, or differ in spin.
    """
    shells: dict[int, tuple[int, ...]] = {}
    owner: dict[int, str] = {}
    spinful = None
    for folder in folders:
        snapshot = read_structure(folder)
        if spinful is None:
            spinful = snapshot.spinful
        if snapshot.spinful != spinful:
            raise HamfastError(f"{folder}: spinful is {snapshot.spinful}, in {folders[0]} it is {spinful}")
        for z in snapshot.elements:
            if shells.setdefault(z, snapshot.shells[z]) != snapshot.shells[z]:
                raise HamfastError(
                    f"{folder}: atomic number {z} has shells {list(snapshot.shells[z])}, in {owner[z]} {list(shells[z])}"
                )
            owner.setdefault(z, str(folder))
    return ShellSpec.from_mapping(shells, bool(spinful))


def _warn_of_incomplete(folders: Sequence[Path]) -> None:
    """Folders that hold files of a layout, but not those that make a structure."""
    for folder in folders:
        there = sorted(name for f in FORMATS for name in f.FILES if (folder / name).exists())
        if there:
            warnings.warn(
                f"{folder}: passed over; it has {', '.join(there)}, but a structure needs POSCAR and info.json, or lat.dat and "
                "element.dat",
                DataWarning,
                stacklevel=3,
            )


def label_of(folder: Path) -> str:
    """The name of a structure's folder, also of ``.`` and ``..``."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def names_apart(folders: Sequence[Path]) -> list[str]:
    """A name for each structure folder: its own, or with those above it where two have the same: ``a__s``, ``b__s``."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]  # links keep their names
    depth = [1] * len(paths)
    while True:
        names = ["__".join(parts[-d:]).replace("/", "") for parts, d in zip(paths, depth, strict=True)]
        clash = [
            n for n, name in enumerate(names)
            if depth[n] < len(paths[n]) and any(names[m] == name and paths[m] != paths[n] for m in range(len(names)))
        ]  # fmt: skip
        if not clash:
            return names
        for n in clash:
            depth[n] += 1
