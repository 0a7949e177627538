"""Orders of the orbitals inside a shell, and conversion of blocks between them.

Inside hamfast, and in the new DeepH layout, the order is m = -l ... l:

- p: y, z, x;
- d: xy, yz, z2, xz, x2-y2.

OpenMX and the legacy DeepH layout have another order:

- p: x, y, z;
- d: z2, x2-y2, xy, xz, yz;
- f: z3, xz2, yz2, z(x2-y2), xyz, x(x2-3y2), y(3x2-y2).

Other codes (`hamfast/data/codes/`) have orders and signs of their own, see :class:`OrbitalOrder`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from hamfast.errors import HamfastError

OPENMX = {0: (0,), 1: (1, 2, 0), 2: (2, 4, 0, 3, 1), 3: (6, 4, 2, 0, 1, 3, 5)}
"""l -> for each m from -l on, the position of that orbital in OpenMX's order."""


@dataclass(frozen=True)
class OrbitalOrder:
    """Order and signs of the orbitals of a shell in a code's matrices.

    Args:
        position: l -> for each m from -l on, the position of that orbital in the code's order.
        sign: m -> +1, or -1 where the code's orbital is the negative of hamfast's.
        highest: the largest l that is defined.
    """

    position: Callable[[int], tuple[int, ...]]
    sign: Callable[[int], int]
    highest: int = 6

    def of(self, l: int) -> tuple[np.ndarray, np.ndarray]:
        """``[2 l + 1]`` positions in the code's order and signs, for each m from -l on.

        Raises:
            HamfastError: the code's order is not known for this l.
        """
        if not 0 <= l <= self.highest:
            raise HamfastError(f"expected shells up to l = {self.highest}, found l = {l}")
        return np.array(self.position(l)), np.array([self.sign(m) for m in range(-l, l + 1)])


def _plus(m: int) -> int:
    return 1


def _alternating(m: int) -> int:
    return -1 if m % 2 else 1


def _in_order(l: int) -> tuple[int, ...]:
    return tuple(range(2 * l + 1))


OPENMX_ORDER = OrbitalOrder(OPENMX.__getitem__, _plus, 3)
"""p: x, y, z; d: z2, x2-y2, xy, xz, yz; f as above."""
CP2K_ORDER = OrbitalOrder(_in_order, _plus)
"""m = -l ... l, as inside hamfast."""
SIESTA_ORDER = OrbitalOrder(_in_order, _alternating)
"""m = -l ... l, with the sign (-1)^m: p: -y, z, -x."""
ABACUS_ORDER = OrbitalOrder(lambda l: tuple(2 * m - 1 if m > 0 else -2 * m for m in range(-l, l + 1)), _alternating)
"""m = 0, 1, -1, 2, -2 ..., with the sign (-1)^m: p: z, -x, -y."""
AIMS_ORDER = OrbitalOrder(_in_order, lambda m: -1 if m > 0 and m % 2 else 1)
"""m = -l ... l; the sign is -1 where m is positive and odd: p: y, z, -x."""
PYSCF_ORDER = OrbitalOrder(lambda l: (1, 2, 0) if l == 1 else _in_order(l), _plus)
"""p: x, y, z; from d on m = -l ... l."""


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
