"""Radial basis and the networks on top of it."""

import torch
from torch import Tensor, nn

from hamfast.ops.checks import check_count, check_tensor


class GaussianBasis(nn.Module):
    """``exp(-(r - r_n)^2 / (2 width^2))`` on evenly spaced centres r_n from ``start`` to ``stop``.

    The width is the spacing. ``number`` is how many there are, two or more.
    """

    centers: Tensor

    def __init__(self, start: float, stop: float, number: int):
        check_count("GaussianBasis", "number", number, 2)
        super().__init__()
        centers = torch.linspace(start, stop, number)
        self.register_buffer("centers", centers, persistent=False)
        self.coefficient = -0.5 / float(centers[1] - centers[0]) ** 2

    def forward(self, length: Tensor) -> Tensor:
        """``[edges]`` (angstrom) -> ``[edges, number]``."""
        return torch.exp(self.coefficient * (length.unsqueeze(-1) - self.centers).square())


class RadialMLP(nn.Sequential):
    """Linear - SiLU - Linear - SiLU - Linear, with biases."""

    def __init__(self, num_in: int, hidden: int, num_out: int):
        for name, value in (("num_in", num_in), ("hidden", hidden), ("num_out", num_out)):
            check_count("RadialMLP", name, value)
        super().__init__(
            nn.Linear(num_in, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, num_out),
        )


def polynomial_envelope(length: Tensor, cutoff: float, p: int = 6) -> Tensor:
    """A smooth step from 1 at 0 to 0 at ``cutoff``, with p - 1 continuous derivatives.

    Source: Gasteiger et al., arXiv 2003.03123.
    ``length`` and ``cutoff`` are in the same unit; the result has the shape of ``length``.

    Raises:
        ValueError: the cutoff is not positive.
    """
    check_tensor("polynomial_envelope", "length", length)
    if not cutoff > 0:
        raise ValueError(f"polynomial_envelope: cutoff: expected a positive length, found {cutoff}")
    x = length / cutoff
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    return torch.where(x < 1, 1 - a * x**p + b * x ** (p + 1) - c * x ** (p + 2), torch.zeros_like(x))
