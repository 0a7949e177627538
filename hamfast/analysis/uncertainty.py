"""How far the blocks of one prediction may be from those of DFT: the file that says so.

:mod:`hamfast.analysis.expected_error` makes it. Here nothing needs torch, as drawing bands does
not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from hamfast.data.blocks import BlockMatrix, pair_name
from hamfast.data.h5 import compression, open_h5, read_array, write_h5
from hamfast.data.snapshot import Snapshot
from hamfast.errors import HamfastError

FILE = "uncertainty_pred.h5"
"""Beside the predicted Hamiltonian, in every layout."""
LEVEL = 0.9
"""The share of blocks that an interval is to hold, unless another one is asked for."""
MEV = 1e3
SAME = 1.01


@dataclass(frozen=True)
class Uncertainty:
    """Of the blocks of one predicted Hamiltonian."""

    level: float
    """The share of blocks that an interval is to hold."""
    pairs: np.ndarray
    """``[pairs, 5]`` int64, as in :class:`hamfast.data.blocks.BlockMatrix`."""
    half_width: np.ndarray
    """``[pairs]`` eV: the root mean square error of a block's elements is at most this, for this
    share of blocks."""
    independent: np.ndarray
    """``[pairs]`` eV: the expected size of errors of a block's own, root mean square of an
    element."""
    shared: tuple[BlockMatrix, ...]
    """eV: errors that blocks have together. The expected square of an error is the mean of theirs,
    and the square of ``independent``."""
    band_factor: float | None
    """The half-width of an energy over its expected error; None: it was not calibrated."""

    @property
    def is_onsite(self) -> np.ndarray:
        """``[pairs]``: is it an atom's own block?"""
        return (self.pairs[:, 3] == self.pairs[:, 4]) & ~self.pairs[:, :3].any(axis=1)

    def of_atoms(self) -> np.ndarray:
        """``[atoms]`` eV: the half-width of each atom's own block."""
        onsite = self.is_onsite
        found = np.zeros(int(self.pairs[:, 3].max()) + 1)
        found[self.pairs[onsite, 3]] = self.half_width[onsite]
        return found

    def lines(self, snapshot: Snapshot, most: int = 3) -> list[str]:
        """Mean and largest half-width, on-site and not, and the blocks that are most uncertain.

        Args:
            snapshot: the structure.
            most: so many of the blocks of each kind are named.
        """
        length = np.linalg.norm(snapshot.pair_vectors(self.pairs), axis=1)
        words = []
        for what, which in (("on-site", self.is_onsite), ("hoppings", ~self.is_onsite)):
            own = np.flatnonzero(which)
            if not len(own):
                continue
            width = MEV * self.half_width[own]
            words.append(
                f"{what}: {self.level:.0%} half-width {width.mean():.2f} meV on average, at most {width.max():.2f} (root mean "
                "square of a block's elements)"
            )
            if width.max() < SAME * width.min():  # no block stands out
                continue
            once = own[self.pairs[own, 3] <= self.pairs[own, 4]]
            order = once[np.argsort(-self.half_width[once], kind="stable")]
            for n in order[:most]:
                i, j = self.pairs[n, 3:]
                a, b = (chemical_symbols[snapshot.numbers[atom]] for atom in (i, j))
                name = (
                    f"atom {i} ({a})"
                    if what == "on-site"
                    else f"{a}-{b}, {length[n]:.2f} angstrom, {pair_name(self.pairs[n])}"
                )
                words.append(f"  {MEV * self.half_width[n]:.2f} meV: {name}")
        return words

    def write(self, folder: Path, compress: bool = True) -> Path:
        """Writes ``uncertainty_pred.h5`` (docs/uncertainty.md); returns its path."""
        options = compression(compress)
        first = self.shared[0] if self.shared else None

        def fill(file):
            file.attrs["level"] = self.level
            file.attrs["unit"] = "eV"
            file.attrs["band_factor"] = np.nan if self.band_factor is None else self.band_factor
            file.create_dataset("atom_pairs", data=self.pairs.astype(np.int32), **options)
            file.create_dataset("half_width", data=self.half_width, **options)
            file.create_dataset("independent", data=self.independent, **options)
            if first is not None:
                file.create_dataset("chunk_boundaries", data=first.boundaries, **options)
                file.create_dataset("chunk_shapes", data=first.shapes.astype(np.int32), **options)
                entries = np.stack([matrix.entries for matrix in self.shared])
                small = np.complex64 if np.iscomplexobj(entries) else np.float32
                file.create_dataset("shared", data=entries.astype(small), **options)

        write_h5(folder / FILE, fill)
        return folder / FILE

    @staticmethod
    def read(folder: Path) -> Uncertainty | None:
        """What :meth:`write` has written to a folder; None if there is no such file.

        Raises:
            HamfastError: the file is damaged, or something else.
        """
        path = folder / FILE
        if not path.exists():
            return None
        with open_h5(path) as file:
            if not {"level", "band_factor"} <= set(file.attrs):
                raise HamfastError(f"{path}: expected the attributes level and band_factor, found {sorted(file.attrs)}")
            level, factor = (float(file.attrs[name]) for name in ("level", "band_factor"))
            pairs = read_array(file, "atom_pairs", "iu", "whole numbers").astype(np.int64)
            half_width, independent = (read_array(file, name, "f", "numbers") for name in ("half_width", "independent"))
            shared: tuple[BlockMatrix, ...] = ()
            if "shared" in file:
                shapes, boundaries = (
                    read_array(file, name, "iu", "whole numbers").astype(np.int64)
                    for name in ("chunk_shapes", "chunk_boundaries")
                )
                entries = read_array(file, "shared", "fc", "numbers")
                shared = tuple(BlockMatrix(pairs, shapes, boundaries, row) for row in entries)
        if not len(pairs) == len(half_width) == len(independent):
            raise HamfastError(
                f"{path}: expected as many half-widths as pairs, found {len(half_width)} and {len(independent)} for {len(pairs)}"
            )
        return Uncertainty(level, pairs, half_width, independent, shared, None if np.isnan(factor) else factor)
