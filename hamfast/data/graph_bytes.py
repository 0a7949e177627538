"""A crystal graph as bytes, without what only a data set knows.

The species of a graph are indices into the elements of its data set, and so are the columns of its
target. Both are known only once all structures have been read. So the bytes hold the graph of a
data set that has this structure alone; reading puts species and columns where the real one has
them, which changes no number.

The bytes begin with a sign, a checksum (CRC-32) of all that follows, and the length of a header in
JSON. It names elements, orbitals, and the type and shape of each array. The arrays follow, in
little-endian order, whole numbers in the smallest type that holds them.
"""

from __future__ import annotations

import json
import struct
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hamfast.graph import CrystalGraph
from hamfast.targets import TargetSpec

SIGN = b"hamfast1"
_HEAD, _COUNTED = struct.Struct("<8sII"), 12
"""Sign, checksum, length of the header; the checksum is of all from the length on."""
_ARRAYS = ("species", "i", "j", "shift", "vector", "reverse", "target")


def pack(graph: CrystalGraph, spec: TargetSpec) -> bytes:
    """The bytes of one structure's graph.

    Args:
        graph: of one structure, on the CPU.
        spec: by which it was made: the elements of this structure alone.
    """
    arrays = {name: getattr(graph, name) for name in _ARRAYS}
    contents = {name: _smallest(tensor.numpy()) for name, tensor in arrays.items() if tensor is not None}
    header = {
        "shells": [[z, list(ls)] for z, ls in spec.shells],
        "spinful": spec.spinful,
        "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in contents.items()],
    }
    return _with_header(header, *contents.values())


def unpack(content: bytes, spec: TargetSpec, label: str) -> CrystalGraph:
    """The graph in bytes of :func:`pack`, as one of a data set.

    Args:
        content: the bytes.
        spec: elements and orbitals of the data set.
        label: the name of the structure.

    Raises:
        ValueError: the bytes are damaged, or the data set lacks elements or orbitals.
    """
    header, start = _header(content)
    found = {}
    for name, letters, shape in header["arrays"]:
        array = np.frombuffer(content, letters, int(np.prod(shape)), start).reshape(shape)
        start += array.nbytes
        found[name] = torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else array.dtype))
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
    return _with_header({"type": content.dtype.str, "shape": shift.shape, "columns": len(columns)}, columns, content)


def unpack_shift(content: bytes) -> Tensor:
    """The shift in bytes of :func:`pack_shift`.

    Raises:
        ValueError: the bytes are damaged.
    """
    header, start = _header(content)
    columns = np.frombuffer(content, "<u4", header["columns"], start)
    edges, width = header["shape"]
    narrow = np.frombuffer(content, header["type"], edges * len(columns), start + columns.nbytes)
    found = np.zeros((edges, width), narrow.dtype.newbyteorder("="))
    found[:, columns] = narrow.reshape(edges, len(columns))
    return torch.from_numpy(found)


def _with_header(header: dict[str, Any], *arrays: np.ndarray) -> bytes:
    """Sign, checksum and header, then the arrays."""
    text = json.dumps(header).encode()
    rest = b"".join([struct.pack("<I", len(text)), text, *(array.tobytes() for array in arrays)])
    return SIGN + struct.pack("<I", zlib.crc32(rest)) + rest


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """What is in the header, and where it ends.

    Raises:
        ValueError: the bytes are damaged.
    """
    if len(content) < _HEAD.size:
        raise ValueError(f"{len(content)} bytes, expected a graph")
    sign, checksum, length = _HEAD.unpack_from(content)
    if sign != SIGN or zlib.crc32(memoryview(content)[_COUNTED:]) != checksum:
        raise ValueError("a wrong checksum")
    return json.loads(content[_HEAD.size : _HEAD.size + length]), _HEAD.size + length


def _smallest(array: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them; little-endian."""
    if array.dtype.kind == "i" and array.size:
        array = array.astype(np.promote_types(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


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
