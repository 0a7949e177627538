"""Values of foreign files: taken as what they are, or refused with a sentence; never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from hamfast.errors import HamfastError

HIGHEST_L = 6
"""Of a shell: the letters s, p, d, f, g, h, i, by which tables name shells, end there."""
LARGEST = 1e15
"""No energy in eV, and no number of electrons, is larger."""
HIGHEST_Z = len(chemical_symbols) - 1


def boolean(info: Mapping[str, Any], key: str, path: Path) -> bool:
    """``true`` or ``false``; False if the key is not there.

    Raises:
        HamfastError: it is something else, as the text ``"false"``.
    """
    value = info.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise HamfastError(f"{path}: {key}: expected true or false, found {value!r}")
    return value


def number(info: Mapping[str, Any], key: str, path: Path) -> float | None:
    """A finite number; None if the key is not there or null.

    Raises:
        HamfastError: it is something else, or too large to be meant.
    """
    value = info.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        found = repr(value)
        raise HamfastError(
            f"{path}: {key}: expected a number, found {found if len(found) < 60 else found[:60] + '...'}"
        )
    return float(value)


def check_count(info: Mapping[str, Any], key: str, path: Path, expected: int, what: str) -> None:
    """Raises HamfastError if the key is there and its value is not ``expected``.

    ``what`` says in words what is counted, and where.
    """
    found = number(info, key, path)
    if found is not None and found != expected:
        raise HamfastError(f"{path}: {key} is {info[key]}, but {what} {expected}")


def shells(value: Any, where: str) -> tuple[int, ...]:
    """l of each shell, from a list of whole numbers.

    Raises:
        HamfastError: it is something else, or an l is higher than ``HIGHEST_L``.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise HamfastError(f"{where}: expected the l of each shell, as [0, 0, 1, 1, 2] for s2p2d1, found {value!r}")
    for l in value:
        if isinstance(l, bool) or not isinstance(l, int) or not 0 <= l <= HIGHEST_L:
            raise HamfastError(
                f"{where}: expected whole numbers l from 0 to {HIGHEST_L}, found {l!r} in {list(value)!r}"
            )
    return tuple(value)


def shells_by_element(value: Any, where: str) -> dict[int, tuple[int, ...]]:
    """``{"C": [0, 0, 1, 1, 2]}`` -> shells by atomic number.

    Raises:
        HamfastError: it is something else, or a name is no element.
    """
    if not isinstance(value, dict):
        raise HamfastError(
            f'{where}: expected elements with their shells, as {{"C": [0, 0, 1, 1, 2]}}, found {value!r}'
        )
    found = {}
    for symbol, ls in value.items():
        if symbol not in atomic_numbers or not atomic_numbers[symbol]:
            raise HamfastError(f"{where}: {symbol!r} is not an element")
        found[atomic_numbers[symbol]] = shells(ls, f"{where}: {symbol}")
    return found


def usual_precision(entries: np.ndarray) -> np.ndarray:
    """The same values in single or double precision and in the machine's byte order.

    Only long doubles are rounded.
    """
    is_complex = entries.dtype.kind == "c"
    single = entries.dtype.itemsize <= (8 if is_complex else 4)
    wanted = {
        (False, True): np.float32,
        (False, False): np.float64,
        (True, True): np.complex64,
        (True, False): np.complex128,
    }
    return entries.astype(wanted[is_complex, single], copy=False)
