"""Orders of the orbitals inside a shell, and conversion of blocks between them.

Inside hamfast, and in the new DeepH layout, the order is m = -l ... l:

- p: y, z, x;
- d: xy, yz, z2, xz, x2-y2.

OpenMX and the legacy DeepH layout have another order:

- p: x, y, z;
- d: z2, x2-y2, xy, xz, yz;
- f: z3, xz2, yz2, z(x2-y2), xyz, x(x2-3y2), y(3x2-y2).
"""

from functools import cache

import numpy as np

from hamfast.errors import HamfastError

OPENMX = {0: (0,), 1: (1, 2, 0), 2: (2, 4, 0, 3, 1), 3: (6, 4, 2, 0, 1, 3, 5)}
"""l -> for each m from -l on, the position of that orbital in OpenMX's order."""


@cache
def from_openmx(shells: tuple[int, ...], spinful: bool) -> np.ndarray:
    """The index with which ``block[index]``, of a block in OpenMX's order, has its rows in the
    order m = -l ... l.

    With spin all orbitals with spin up come first, then all with spin down.

    Raises:
        HamfastError: a shell has an l above 3.
    """
    index: list[int] = []
    for l in shells:
        if l not in OPENMX:
            raise HamfastError(f"the legacy layout defines s, p, d and f orbitals; found a shell with l = {l}")
        start = len(index)
        index += [start + m for m in OPENMX[l]]
    if spinful:
        index += [len(index) + m for m in index]
    array = np.array(index)
    array.setflags(write=False)
    return array


@cache
def to_openmx(shells: tuple[int, ...], spinful: bool) -> np.ndarray:
    """The inverse of :func:`from_openmx`."""
    return np.argsort(from_openmx(shells, spinful))
