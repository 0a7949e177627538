"""How far a network may look in the cells that it is trained on.

In a periodic cell an atom and its images move together. A network that looks further than half the
way to the nearest image sees both, and what it learns there need not hold in a larger cell, where
the two move apart (docs/cell_size.md).
"""

from __future__ import annotations

import math

import numpy as np
from ase.geometry.minkowski_reduction import minkowski_reduce

TOLERANCE = 0.1
"""Angstrom by which cells may differ, by strain, before they count as different in size."""

FADING = 1.4
"""Neighbours fade to zero at the radius of an environment; up to the radius over this, 40 % are
left."""

SECOND = 2.4
"""Radius of an environment over the distance of the nearest neighbours at which the second ones, at
1.73 of that distance in a honeycomb, fade by no more than the nearest at ``FADING``."""


def half_cell(cell: np.ndarray) -> float:
    """Half the distance between an atom and its nearest periodic image, angstrom.

    Args:
        cell: ``[3, 3]`` angstrom, the lattice vectors as rows.
    """
    reduced, _ = minkowski_reduce(cell)
    return float(np.linalg.norm(reduced, axis=1).min()) / 2


def fitting_environment(smallest: float, longest: float, nearest: float) -> float | None:
    """Angstrom: the radius of an environment that the cells determine, in steps of 0.1.

    Twice the radius, which is what both stages see, lies below half of the smallest cell by at
    least 0.1 angstrom. Where an atom would hardly see its second neighbours then (:data:`SECOND`),
    the radius alone does. None where it would hardly see its nearest neighbour even so
    (:data:`FADING`).

    Args:
        smallest: angstrom, the smallest :func:`half_cell` of the training set.
        longest: angstrom, the longest pair of H.
        nearest: angstrom, the longest way from an atom to its nearest neighbour.
    """
    for part, least in ((0.5, SECOND), (1.0, FADING)):
        radius = math.floor(10 * min(part * (smallest - TOLERANCE), longest) + 1e-6) / 10
        if radius >= least * nearest:
            return radius
    return None


def training_warning(receptive_field: float, largest: float) -> list[str]:
    """Lines of up to 80 columns about a network that looks further than its training cells
    determine; none for another.

    Args:
        receptive_field: angstrom, of the network.
        largest: angstrom, the largest :func:`half_cell` of the training set.
    """
    if receptive_field <= largest + TOLERANCE:
        return []
    return [
        f"cell size:  the model looks {receptive_field:.1f} A far; up to {largest:.1f} A the cells determine it.",
        "            Beyond, atoms and their periodic images move together, and larger",
        "            cells may be predicted worse. A few larger cells in the training",
        "            set, or a smaller environment, cure that (docs/cell_size.md).",
    ]


def prediction_warning(receptive_field: float, largest: float | None, own: float) -> str | None:
    """A sentence for a structure that is larger than what the training could teach; else None.

    Args:
        receptive_field: angstrom, of the network.
        largest: angstrom, the largest :func:`half_cell` of the training set; None if unknown.
        own: angstrom, that of the structure.
    """
    if largest is None or own <= largest + TOLERANCE or receptive_field <= largest + TOLERANCE:
        return None
    return (
        f"its cell (half the shortest period: {own:.1f} A) is larger than those of the training ({largest:.1f} A), and the "
        f"network looks {receptive_field:.1f} A far: what it knows of atoms beyond {largest:.1f} A it learnt from periodic "
        "images; errors may be larger than on the test set (docs/cell_size.md)"
    )
