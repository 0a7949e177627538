"""A figure that belongs to no window: for files, notebooks and reports."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hamfast.data.h5 import write_bytes
from hamfast.errors import HamfastError


class StandaloneFigure(Figure):
    """A figure that a notebook shows when it is the last value of a cell; pyplot knows nothing of
    it."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        FigureCanvasAgg(self)

    def image(self, ending: str) -> bytes:
        """The file's content in a format, such as ``png`` or ``pdf``."""
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a letter of a name that the font lacks
            self.savefig(content, dpi=160, format=ending)
        return content.getvalue()

    def _repr_png_(self) -> bytes:
        return self.image("png")

    def write(self, path: Path) -> None:
        """Writes it in the format that the path's ending names.

        Raises:
            HamfastError: it cannot be written, or there is no such format.
        """
        ending = path.suffix.lstrip(".") or "png"
        known = FigureCanvasAgg.get_supported_filetypes()
        if ending not in known:
            raise HamfastError(f"{path}: expected an ending of {', '.join(sorted(known))}, found {path.suffix}")
        write_bytes(path, self.image(ending))
