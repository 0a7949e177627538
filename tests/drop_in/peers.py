"""Packages that are compared with, from where tools/setup_peers.sh puts them."""

import sys
from pathlib import Path

from hamfast import environment

PEERS = Path(environment.text("HAMFAST_PEERS") or Path(sys.prefix) / "peers")


def available(package: str) -> bool:
    return (PEERS / package).is_dir()


def use() -> None:
    """Makes them importable, in place of other versions of theirs that may be installed."""
    sys.path.insert(0, str(PEERS))


def crystal(cells=(2, 2, 2)):
    """Rattled silicon carbide, 8 atoms per cell."""
    from ase.build import bulk

    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True) * cells
    atoms.rattle(0.1, seed=1)
    return atoms


def edges(atoms, cutoff):
    """Senders, receivers and shifts of all pairs within the cutoff, as tensors.

    A shift is the vector of the cell that the receiver stands in: what is to be added to the
    difference of positions.
    """
    import torch
    from ase.neighborlist import neighbor_list

    i, j, cells = neighbor_list("ijS", atoms, cutoff)
    return torch.tensor(i), torch.tensor(j), torch.tensor(cells @ atoms.cell.array)
