"""Arrays as bytes, with a header and a checksum.

The bytes begin with a sign, a checksum (CRC-32) of all that follows, and the length of a header in
JSON. It names the type and the shape of each array, and holds whatever else belongs to them. The
arrays follow, in little-endian order, whole numbers in the smallest type that holds them.

They may be compressed by zlib. Of each array the first bytes of all numbers come first then, and
the second ones next: those of floating-point numbers are alike at the same place.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

SIGN = b"hamfast1"
HEAD, COUNTED = struct.Struct("<8sII"), 12
"""Sign, checksum, length of the header; the checksum is of all from the length on."""
PAYS = 0.9
"""Compressed bytes are kept if they are fewer by this factor."""
LEVEL = 1
"""Of zlib: 4 saves 5 % of the bytes and takes 1.5 times as long."""


def pack_arrays(header: dict[str, Any], arrays: Mapping[str, np.ndarray], compress: bool = False) -> bytes:
    """The bytes of arrays.

    Args:
        header: plain numbers, texts, lists and dictionaries; not with the keys ``arrays`` and
            ``compressed``.
        arrays: by name.
        compress: by zlib, if that pays.
    """
    small = {name: smallest(array) for name, array in arrays.items()}
    header = header | {"arrays": [[name, array.dtype.str, list(array.shape)] for name, array in small.items()]}
    if compress:
        body = zlib.compress(b"".join(_by_place(array) for array in small.values()), LEVEL)
        if len(body) < PAYS * sum(array.nbytes for array in small.values()):
            return with_header(header | {"compressed": True}, body)
    return with_header(header, *(array.tobytes() for array in small.values()))


def unpack_arrays(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays in bytes of :func:`pack_arrays`.

    Whole numbers are in the type that they were written in. The arrays may be read-only.

    Raises:
        ValueError: the bytes are damaged.
    """
    header, start = header_of(content)
    body, compressed = memoryview(content)[start:], header.pop("compressed", False)
    types = {name: (np.dtype(letters), shape) for name, letters, shape in header.pop("arrays")}
    size = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in types.values())
    if compressed:
        try:
            body = memoryview(zlib.decompressobj().decompress(body, size + 1))
        except zlib.error as error:
            raise ValueError(str(error)) from error
    if len(body) != size:
        raise ValueError(f"{len(body)} bytes of arrays, expected {size}")
    found, begin = {}, 0
    for name, (dtype, shape) in types.items():
        count = int(np.prod(shape))
        part = body[begin : begin + count * dtype.itemsize]
        begin += len(part)
        if compressed:
            planes = np.frombuffer(part, np.uint8).reshape(dtype.itemsize, count)
            found[name] = np.ascontiguousarray(planes.T).view(dtype).reshape(shape)
        else:
            found[name] = np.frombuffer(part, dtype).reshape(shape)
    return header, found


def _by_place(array: np.ndarray) -> bytes:
    """The first bytes of all numbers, then the second ones, and so on."""
    return array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T.tobytes()


def with_header(header: dict[str, Any], *content: bytes) -> bytes:
    """Sign, checksum and header, then the content."""
    text = json.dumps(header).encode()
    rest = b"".join([struct.pack("<I", len(text)), text, *content])
    return SIGN + struct.pack("<I", zlib.crc32(rest)) + rest


def header_of(content: bytes) -> tuple[dict[str, Any], int]:
    """What is in the header, and where it ends.

    Raises:
        ValueError: the bytes are damaged.
    """
    if len(content) < HEAD.size:
        raise ValueError(f"{len(content)} bytes, expected a header")
    sign, checksum, length = HEAD.unpack_from(content)
    if sign != SIGN or zlib.crc32(memoryview(content)[COUNTED:]) != checksum:
        raise ValueError("a wrong checksum")
    return json.loads(content[HEAD.size : HEAD.size + length]), HEAD.size + length


def smallest(array: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them; little-endian."""
    if array.dtype.kind == "i" and array.size:
        array = array.astype(np.promote_types(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
