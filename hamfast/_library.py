"""Loads the compiled kernels, ``hamfast/lib/libhamfast.so``, and says plainly if it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from hamfast import environment

MINIMUM_TORCH = (2, 11)
PATH = Path(environment.text("HAMFAST_LIBRARY") or Path(__file__).parent / "lib" / "libhamfast.so")
"""The library; ``HAMFAST_LIBRARY`` names another build of it."""


def torch_version() -> tuple[int, int]:
    """(major, minor) of the torch that is installed; (0, 0) if it does not say so."""
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def load() -> None:
    """Loads the library, which registers its ops with torch.

    Raises:
        ImportError: torch is too old, or the library is missing or does not load.
        HamfastError: an environment variable that it reads has a wrong value.
    """
    environment.check("csrc")
    if torch_version() < MINIMUM_TORCH:
        raise ImportError(
            f"hamfast needs torch {MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]} or newer, found {torch.__version__}; "
            "install a newer torch"
        )
    if not PATH.exists():
        raise ImportError(
            f"hamfast's compiled library is missing: expected {PATH}. "
            "Build it with `pip install .` (or `pip install --no-build-isolation -e .`) in the source folder"
        )
    try:
        torch.ops.load_library(PATH)
    except OSError as error:
        raise ImportError(
            f"hamfast's compiled library {PATH} does not load into torch {torch.__version__}: {error}. "
            "Rebuild it with `pip install --force-reinstall --no-deps .` in the source folder"
        ) from error


load()
