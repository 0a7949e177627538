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


def by_field(x, irreps, change):
    """Rows ``[rows, irreps.dim]``, each block of irreps changed by itself, as networks of e3nn do.

    Args:
        change: from a block ``[rows, mul, dim]``, its irrep, which channels of the row it has and,
            if it is one of scalars (0e), which of the row's scalars.
    """
    import torch

    out, start, channel, scalar = [], 0, 0, 0
    for mul, ir in irreps:
        field = x[:, start : start + mul * ir.dim].reshape(-1, mul, ir.dim)
        changed = change(field, ir, slice(channel, channel + mul), slice(scalar, scalar + mul))
        out.append(changed.reshape(-1, mul * ir.dim))
        start, channel = start + mul * ir.dim, channel + mul
        scalar += mul if ir.is_scalar() else 0
    return torch.cat(out, dim=-1)
