"""Equivariant linear maps: one matrix per irrep, and one per irrep and species."""

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from hamfast.nn.checks import check_index, check_last
from hamfast.nn.irreps_layout import LoadsE3nnState, check_layout, split_blocks
from hamfast.ops.checks import check_count


class _ChannelMixing(LoadsE3nnState):
    """The pairs (block in, block out) of one irrep each, e3nn's normalisation, and the order of the
    flat weight.
    """

    def __init__(self, irreps_in, irreps_out, copies: int, layout: str):
        super().__init__()
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        self.layout = check_layout(layout)
        self.pairs = []
        for i, (mul_in, ir_in) in enumerate(self.irreps_in):
            for o, (mul_out, ir_out) in enumerate(self.irreps_out):
                if ir_in == ir_out and mul_in > 0 and mul_out > 0:
                    self.pairs.append((i, o, mul_in, mul_out))
        fan_in = [0] * len(self.irreps_out)
        for _, o, mul_in, _ in self.pairs:
            fan_in[o] += mul_in * copies
        self.scales = [fan_in[o] ** -0.5 for _, o, _, _ in self.pairs]
        self.sizes = [p[2] * p[3] * copies for p in self.pairs]
        self.weight = nn.Parameter(torch.randn(sum(self.sizes)))

    def mix(self, x: Tensor, apply) -> list[Tensor]:
        """One ``[rows, dim, mul_out]`` tensor per output block; ``apply(block, pair number, flat
        weight)`` does a pair.
        """
        blocks = split_blocks(x, self.irreps_in)
        weights = torch.split(self.weight, self.sizes)
        out: list[Tensor | None] = [None] * len(self.irreps_out)
        for n, (i, o, mul_in, _) in enumerate(self.pairs):
            dim = self.irreps_in[i].ir.dim
            if self.layout == "ir_mul":
                block = blocks[i].unflatten(-1, (dim, mul_in))
            else:
                block = blocks[i].unflatten(-1, (mul_in, dim)).transpose(-1, -2)
            term = apply(block, n, weights[n]) * self.scales[n]
            out[o] = term if out[o] is None else out[o] + term
        return [
            x.new_zeros(x.shape[0], ir.dim, mul) if block is None else block
            for block, (mul, ir) in zip(out, self.irreps_out, strict=True)
        ]

    def join(self, blocks: list[Tensor]) -> Tensor:
        """The output row from its blocks, in this module's layout."""
        if self.layout == "mul_ir":
            blocks = [block.transpose(-1, -2) for block in blocks]
        return torch.cat([block.flatten(-2) for block in blocks], dim=-1)


class Linear(_ChannelMixing):
    """``e3nn.o3.Linear``: same weights, normalisation and ``state_dict`` (``weight``, ``bias``).

    Args:
        irreps_in, irreps_out: as in e3nn.
        biases: a bias for every ``0e`` channel of the output.
        layout: of input and output, ``mul_ir`` (e3nn's) or ``ir_mul``.
    """

    def __init__(self, irreps_in, irreps_out, biases: bool = False, layout: str = "mul_ir"):
        super().__init__(irreps_in, irreps_out, 1, layout)
        self.bias = nn.Parameter(
            torch.zeros(sum(mul for mul, ir in self.irreps_out if ir.is_scalar()) if biases else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, irreps_in.dim]`` -> ``[rows, irreps_out.dim]``."""
        check_last("Linear", "x", x, self.irreps_in.dim)

        def apply(block, n, weight):
            return block @ weight.view(self.pairs[n][2:])

        out, start = self.mix(x, apply), 0
        if self.bias.numel():
            for o, (mul, ir) in enumerate(self.irreps_out):
                if ir.is_scalar():
                    out[o] = out[o] + self.bias[start : start + mul]
                    start += mul
        return self.join(out)


class SpeciesLinear(_ChannelMixing):
    """``e3nn.o3.FullyConnectedTensorProduct(irreps_in, f"{species}x0e", irreps_out)`` applied to a
    one-hot species.

    The product with a one-hot vector selects one matrix per row; rows of one species are multiplied
    together.
    Same weights (``weight``, order u, v, w) and normalisation as e3nn's module.
    """

    def __init__(self, irreps_in, species: int, irreps_out, layout: str = "mul_ir"):
        check_count("SpeciesLinear", "species", species, 1)
        super().__init__(irreps_in, irreps_out, species, layout)
        self.species = species

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        """``[rows, irreps_in.dim]``, ``[rows]`` int64 -> ``[rows, irreps_out.dim]``."""
        check_last("SpeciesLinear", "x", x, self.irreps_in.dim)
        check_index("SpeciesLinear", "species", species, x.shape[0])
        if self.species == 1:
            return self.join(self.mix(x, lambda block, n, weight: block @ weight.view(self.pairs[n][2:])))
        order = torch.argsort(species, stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        counts = torch.bincount(species, minlength=self.species).tolist()

        def apply(block, n, weight):
            matrices = weight.view(self.pairs[n][2], self.species, self.pairs[n][3])
            groups = torch.split(block, counts)
            return torch.cat([group @ matrices[:, v] for v, group in enumerate(groups)])

        return self.join(self.mix(x[order], apply))[inverse]
