"""Models that come with hamfast, one file each; `hamfast model info NAME` prints what one is."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from hamfast.errors import HamfastError


def names() -> list[str]:
    """Of the models, sorted."""
    files = (f.name for f in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".ckpt") for name in files if name.endswith(".ckpt"))


def checkpoint_path(path: Path) -> Path:
    """The file of a checkpoint, or of a model of this name that comes with hamfast.

    Raises:
        HamfastError: there is neither.
    """
    if path.exists():
        return path
    if str(path) in names():
        return Path(str(resources.files(__name__) / f"{path}.ckpt"))
    shipped = f"; the models that come with hamfast: {', '.join(names())}" if names() else ""
    raise HamfastError(f"{path}: checkpoint not found{shipped}")
