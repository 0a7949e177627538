"""A crystal graph as bytes, without what only a data set knows.

The species of a graph are indices into the elements of its data set, and so are the columns of its
target. Both are known only once all structures have been read. So the bytes hold the graph of a
data set that has this structure alone; reading puts species and columns where the real one has
them, which changes no number.

They are arrays with a header and a checksum (:mod:`hamfast.data.array_bytes`). The header names
elements and orbitals, too.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hamfast.data.array_bytes import header_of, pack_arrays, unpack_arrays, with_header
from hamfast.graph import CrystalGraph
from hamfast.targets import TargetSpec

_ARRAYS = ("species", "i", "j", "shift", "vector", "reverse", "target")


def pack(graph: CrystalGraph, spec: TargetSpec) -> bytes:
    """The bytes of one structure's graph.

    Args:
        graph: of one structure, on the CPU.
        spec: by which it was made: the elements of this structure alone.
    """
    tensors = {name: getattr(graph, name) for name in _ARRAYS}
    header = {"shells": [[z, list(ls)] for z, ls in spec.shells], "spinful": spec.spinful}
    return pack_arrays(header, {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None})


def unpack(content: bytes, spec: TargetSpec, label: str) -> CrystalGraph:
    """The graph in bytes of :func:`pack`, as one of a data set.

    Args:
        content: the bytes.
        spec: elements and orbitals of the data set.
        label: the name of the structure.

    Raises:
        ValueError: the bytes are damaged, or the data set lacks elements or orbitals.
    """
    header, arrays = unpack_arrays(content)
    found = {
        name: torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else array.dtype))
        for name, array in arrays.items()
    }
    own = TargetSpec(tuple((z, tuple(ls)) for z, ls in header["shells"]), header["spinful"])
    if own.shells != spec.shells or own.spinful != spec.spinful:
        species, columns = _places(own, spec)
        found["species"] = species[found["species"]]
        if "target" in found:
            narrow = found["target"]
            found["target"] = narrow.new_zeros(len(narrow), spec.dim)
            found["target"][:, columns] = narrow
    return CrystalGraph(
        species=found["species"],
        i=found["i"],
        j=found["j"],
        shift=found["shift"],
        vector=found["vector"],
        reverse=found["reverse"],
        target=found.get("target"),
        atom_graph=torch.zeros(len(found["species"]), dtype=torch.int64),
        edge_graph=torch.zeros(len(found["i"]), dtype=torch.int64),
        labels=(label,),
    )


def pack_shift(shift: np.ndarray) -> bytes:
    """The bytes of a shift ``[edges, columns]``: of the columns in which something is not zero.

    They begin as those of a graph, and numbers of columns follow the header.
    """
    columns = np.flatnonzero((shift != 0).any(axis=0)).astype("<u4")
    content = np.ascontiguousarray(shift[:, columns], dtype=shift.dtype.newbyteorder("<"))
    header = {"type": content.dtype.str, "shape": shift.shape, "columns": len(columns)}
    return with_header(header, columns.tobytes(), content.tobytes())


def unpack_shift(content: bytes) -> Tensor:
    """The shift in bytes of :func:`pack_shift`.

    Raises:
        ValueError: the bytes are damaged.
    """
    header, start = header_of(content)
    columns = np.frombuffer(content, "<u4", header["columns"], start)
    edges, width = header["shape"]
    narrow = np.frombuffer(content, header["type"], edges * len(columns), start + columns.nbytes)
    found = np.zeros((edges, width), narrow.dtype.newbyteorder("="))
    found[:, columns] = narrow.reshape(edges, len(columns))
    return torch.from_numpy(found)


@lru_cache(maxsize=1000)
def _places(own: TargetSpec, spec: TargetSpec) -> tuple[Tensor, Tensor]:
    """Where species and columns of one data set are in another, which has more."""
    if own.spinful != spec.spinful or any(pair not in spec.shells for pair in own.shells):
        raise ValueError("elements or orbitals that the data set does not have")
    factor = 4 if spec.spinful else 1
    starts, start = {}, 0
    for l1, n1, l2, n2 in spec.channels:
        starts[l1, n1, l2, n2] = start
        start += factor * (2 * l1 + 1) * (2 * l2 + 1)
    columns = [
        starts[l1, n1, l2, n2] + n
        for l1, n1, l2, n2 in own.channels
        for n in range(factor * (2 * l1 + 1) * (2 * l2 + 1))
    ]
    if spec.spinful:  # the imaginary halves come last
        columns += [start + n for n in columns]
    return torch.tensor([spec.shells.index(pair) for pair in own.shells]), torch.tensor(columns)
