"""Factors of weights, exact in whatever dtype a module is moved to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """A module with a buffer ``scale``, ``[weight_numel]``, which no ``state_dict`` has.

    A module of float32 that becomes one of float64 gets the factors anew: rounded ones would be
    wrong by 1e-8.
    """

    if TYPE_CHECKING:  # TorchScript would take the annotation for one that it does not know
        scale: Tensor

    def keep_scale(self, factors: Sequence[tuple[int, float]], like: Tensor) -> None:
        """Makes the buffer of (how many weights, their factor), with the dtype of a tensor."""
        self.factors = list(factors)
        self.register_buffer("scale", self._made(like), persistent=False)

    def _made(self, like: Tensor) -> Tensor:
        scales = [torch.full((count,), factor, dtype=torch.float64) for count, factor in self.factors]
        return torch.cat([torch.zeros(0, dtype=torch.float64), *scales]).to(like)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.register_buffer("scale", self._made(self.scale), persistent=False)
        return self
