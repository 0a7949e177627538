"""Products of irreps, coupled to chosen irreps: what linear models have as features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor

from hamfast.plan.coupling import wigner_3j


def coupling_matrix(first: int, second: Sequence[int], targets: Sequence[tuple[int, o3.Irrep]]) -> Tensor:
    """Wigner's 3j symbols of one l with several, side by side.

    Args:
        first: the first l.
        second: the second l's, each once.
        targets: an l of ``second``, and an irrep that it is coupled to, for each result.

    Returns:
        ``[first components, second components, result components]`` float64.
    """
    sizes = [2 * l + 1 for l in second]
    starts = {l: sum(sizes[:n]) for n, l in enumerate(second)}
    matrix = torch.zeros(2 * first + 1, sum(sizes), sum(ir.dim for _, ir in targets), dtype=torch.float64)
    column = 0
    for l, ir in targets:
        matrix[:, starts[l] : starts[l] + 2 * l + 1, column : column + ir.dim] = torch.tensor(wigner_3j(first, l, ir.l))
        column += ir.dim
    return matrix


class FeatureList:
    """Where the features of each irrep stand in a row of numbers, and their degrees."""

    def __init__(self):
        self.width = 0
        self.positions: dict[o3.Irrep, list[list[int]]] = {}
        self.degrees: dict[o3.Irrep, list[int]] = {}

    def add(self, targets: Sequence[o3.Irrep], degrees: Tensor, kept: Sequence[Tensor]) -> None:
        """Adds channels, each of which has the components of all targets side by side.

        Args:
            targets: the irreps of a channel.
            degrees: ``[channels]`` int64; features of low degree are taken first.
            kept: for each target ``[channels]`` bool, is it a feature of its own?
        """
        size = sum(ir.dim for ir in targets)
        offset = 0
        for ir, own in zip(targets, kept, strict=True):
            for channel in torch.nonzero(own).flatten().tolist():
                begin = self.width + channel * size + offset
                self.positions.setdefault(ir, []).append(list(range(begin, begin + ir.dim)))
                self.degrees.setdefault(ir, []).append(int(degrees[channel]))
            offset += ir.dim
        self.width += size * len(degrees)

    def index(self, ir: o3.Irrep, most: int) -> Tensor:
        """``[features, 2 l + 1]`` int64: at most ``most`` features of an irrep, in a row."""
        degrees = self.degrees.get(ir, [])
        order = sorted(range(len(degrees)), key=lambda n: degrees[n])[:most]
        return torch.tensor([self.positions[ir][n] for n in order], dtype=torch.int64).view(-1, ir.dim)
