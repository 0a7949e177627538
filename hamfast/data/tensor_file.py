"""Files of tensors, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from hamfast.data.h5 import write_bytes


def save_tensors(content: Any, path: Path) -> None:
    """``torch.save``; if it fails, the file that was there before stays.

    Raises:
        HamfastError: the file cannot be written.
    """
    # In memory first: on a full disk torch's own writer raises an error that does not say so, or
    # ends the process.
    image = io.BytesIO()
    torch.save(content, image)
    write_bytes(path, image.getbuffer())
