"""A graph in one piece of memory, as it goes from one process to another.

Each tensor that is sent costs a request to the process that made it. A busy machine answers each of
them late, and a graph has ten tensors.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.graph import CrystalGraph

ALIGNMENT = 64
"""Bytes: where a tensor begins is a multiple of it."""


class Parcel(NamedTuple):
    """The tensors of a graph, one after the other."""

    content: Tensor
    """Bytes."""
    places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]
    """Where each tensor begins, its type and its shape."""
    rest: dict[str, Any]
    """The fields that are no tensors."""

    @classmethod
    def of(cls, graph: CrystalGraph) -> Parcel:
        """That of a graph on the CPU."""
        values = {field.name: getattr(graph, field.name) for field in fields(graph)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        places, end = {}, 0
        for name, value in tensors.items():
            places[name] = end, value.dtype, tuple(value.shape)
            end += -(-value.numel() * value.element_size() // ALIGNMENT) * ALIGNMENT
        # In memory that processes share from the beginning: it would be copied there to be sent.
        content = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(end))
        parcel = cls(content, places, {name: value for name, value in values.items() if name not in tensors})
        for name, value in parcel.tensors().items():
            value.copy_(tensors[name])
        return parcel

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, in the memory of the parcel."""
        found = {}
        for name, (start, dtype, shape) in self.places.items():
            size = math.prod(shape) * dtype.itemsize
            found[name] = self.content[start : start + size].view(dtype).view(shape)
        return found

    def graph(self) -> CrystalGraph:
        """The graph, in the memory of the parcel."""
        values: dict[str, Any] = {**self.tensors(), **self.rest}
        return CrystalGraph(**values)
