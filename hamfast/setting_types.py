"""The types of settings that both the models and the training configuration use. Needs no torch.

Pydantic takes ``true`` for 1 and 1 for ``true``. In a configuration that is a slip of the pen, so
these types refuse it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

HIGHEST_L = 11
"""The D matrices and harmonics of higher irreps are not there."""
WIDEST = 65_536
"""Beyond this number of components a width is a slip of the pen, and sizes overflow."""


def shortened(value: Any, quoted: bool = True) -> str:
    """What was found, as text of at most 80 characters or so; ``quoted`` as Python writes it."""
    try:
        text = (repr(value) if quoted else str(value)).replace("\n", " ")
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list in itself
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {str(value).lower()}")
    return value


def _switch(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {shortened(value)}")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
"""A whole number."""
Real = Annotated[float, BeforeValidator(_number)]
"""A number."""
Switch = Annotated[bool, BeforeValidator(_switch)]
"""``true`` or ``false``."""


def parse_irreps(text: str) -> list[tuple[int, int, int]]:
    """(multiplicity, l, parity) of each term of ``64x0e+32x1o``, as e3nn reads it.

    Raises:
        ValueError: it is written otherwise, or an l is too high.
    """
    found = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d{1,9})\s*x\s*)?(\d{1,9})\s*([eo])\s*", term, re.ASCII)
        if match is None:
            raise ValueError(f"not irreps like 64x0e+32x1o: {shortened(text)}")
        mul, l, parity = match.groups()
        if int(l) > HIGHEST_L:
            raise ValueError(f"expected l up to {HIGHEST_L}, found {shortened(text)}")
        found.append((int(mul or 1), int(l), 1 if parity == "e" else -1))
    return found


def _hidden_irreps(value: str) -> str:
    irreps = parse_irreps(value)
    if not any(mul and (l, p) == (0, 1) for mul, l, p in irreps):
        raise ValueError(f"needs scalar channels (0e) for the gates, found {value!r}")
    if sum(mul * (2 * l + 1) for mul, l, _ in irreps) > WIDEST:
        raise ValueError(f"expected at most {WIDEST:,} components in all, found {value!r}")
    return value


HiddenIrreps = Annotated[str, AfterValidator(_hidden_irreps)]
"""Irreps in e3nn's notation, with scalars among them."""
