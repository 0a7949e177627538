"""Which weights have an axis that runs over a data set's elements or targets.

All other weights have shapes that the configuration alone fixes. A class whose children have such
an axis names them in its attribute ``data_axes``, as child -> :class:`DataAxis`. With it weights
are taken from a model of another data set, see :mod:`hamfast.training.initial`.
"""

from __future__ import annotations

from enum import Enum

from torch import nn


class DataAxis(Enum):
    """What such an axis of a module runs over.

    A target entry is one irrep of :attr:`hamfast.targets.TargetSpec.irreps`; a target component is
    one of its 2 l + 1 numbers.
    """

    SPECIES_INPUTS = "the inputs of a linear map are species, one-hot"
    SPECIES_MATRICES = "one matrix for each species"
    PAIR_MATRICES = "one matrix for each ordered pair of species"
    PAIR_ROWS = "one row for each ordered pair of species"
    ENTRY_OUTPUTS = "the outputs of a linear map of irreps are target entries"
    COMPONENT_OUTPUTS = "the outputs of a linear map are target components"
    COMPONENT_INPUTS = "the last inputs of a linear map are target components"


def data_axis(model: nn.Module, name: str) -> DataAxis | None:
    """The axis of the submodule with this dotted name; None if it has no such axis."""
    parent, _, child = name.rpartition(".")
    return getattr(model.get_submodule(parent), "data_axes", {}).get(child)
