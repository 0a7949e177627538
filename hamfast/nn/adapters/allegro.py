"""nequip-allegro: its ``Contracter``, a product of like channels of an edge and of its node."""

from __future__ import annotations

import torch
from allegro.nn._strided import Contracter
from torch import Tensor, nn

from hamfast.nn.adapters import Adapted, change_class


class MatrixContracter(Contracter):
    """Allegro's contracter as one matrix product per channel.

    Allegro's own makes a tensor of edges x channels x components of all three irreps, and sums it.
    """

    def _contract_conv(self, x1: Tensor, x2: Tensor, idxs: Tensor) -> Tensor:
        x1, x2 = x1.transpose(0, 1), torch.index_select(x2, 0, idxs).transpose(0, 1)  # channels first
        matrix = torch.einsum(self._weight_w3j_einstr, self.weights, self.w3j)
        if self.w3j_is_ij_diagonal:
            outer = x1 * x2
        else:
            outer = (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(2)
        if self.path_channel_coupling:
            return torch.bmm(outer, matrix.flatten(1, -2)).transpose(0, 1)
        return (outer @ matrix.flatten(0, -2)).transpose(0, 1)


def adapt(module: nn.Module) -> Adapted | None:
    """Exchanges the code of a ``Contracter``."""
    if isinstance(module, torch.jit.ScriptModule) or not isinstance(module, Contracter):
        return None
    if type(module) is not Contracter:
        return (
            None
            if isinstance(module, MatrixContracter)
            else Adapted(False, f"{type(module).__name__} is a subclass, whose changes would be lost")
        )
    return Adapted(True, "a matrix product per channel", (), change_class(module, MatrixContracter))
