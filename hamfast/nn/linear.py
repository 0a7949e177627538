"""Equivariant linear maps: one matrix per irrep, and one per irrep and species."""

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from hamfast.nn.checks import check_index, check_last
from hamfast.nn.irreps_layout import LoadsE3nnState, check_layout
from hamfast.nn.scale import Scaled
from hamfast.ops.checks import check_count
from hamfast.ops.irreps_linear import SpeciesRows, irreps_linear, rows_of_species
from hamfast.plan.linear import LinearPlan
from hamfast.plan.plan import as_blocks


class _ChannelMixing(LoadsE3nnState, Scaled):
    """The pairs (block in, block out) of one irrep each, e3nn's normalisation, and the order of the
    flat weight.
    """

    def __init__(self, irreps_in, irreps_out, species: int, layout: str):
        super().__init__()
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        # Plain numbers, as torch.compile cannot read e3nn's irreps.
        self.dim_in, self.dim_out = self.irreps_in.dim, self.irreps_out.dim
        self.layout = check_layout(layout)
        pairs = [
            (i, o)
            for i, (mul_in, ir_in) in enumerate(self.irreps_in)
            for o, (mul_out, ir_out) in enumerate(self.irreps_out)
            if ir_in == ir_out and mul_in > 0 and mul_out > 0
        ]
        self.plan = LinearPlan(as_blocks(self.irreps_in), as_blocks(self.irreps_out), tuple(pairs), species)
        fan_in = [0] * len(self.irreps_out)
        for i, o in pairs:
            fan_in[o] += self.irreps_in[i].mul * species
        self.sizes = [self.irreps_in[i].mul * species * self.irreps_out[o].mul for i, o in pairs]
        self.weight = nn.Parameter(torch.randn(self.plan.weight_numel))
        self.keep_scale([(n, fan_in[o] ** -0.5) for n, (_, o) in zip(self.sizes, pairs, strict=True)], self.weight)

    def mix(self, x: Tensor, species: SpeciesRows | None = None) -> Tensor:
        """``[..., irreps_in.dim]`` -> ``[..., irreps_out.dim]``."""
        return irreps_linear(x, self.weight * self.scale, self.plan, self.layout, species)


class Linear(_ChannelMixing):
    """``e3nn.o3.Linear``: same weights, normalisation and ``state_dict`` (``weight``, ``bias``).

    Args:
        irreps_in, irreps_out: as in e3nn.
        biases: a bias for every ``0e`` channel of the output.
        layout: of input and output, ``mul_ir`` (e3nn's) or ``ir_mul``.
    """

    scalar: Tensor

    def __init__(self, irreps_in, irreps_out, biases: bool = False, layout: str = "mul_ir"):
        super().__init__(irreps_in, irreps_out, 1, layout)
        scalars = zip(self.irreps_out.slices(), self.irreps_out, strict=True)
        where = [torch.arange(s.start, s.stop) for s, (_, ir) in scalars if ir.is_scalar() and biases]
        self.register_buffer("scalar", torch.cat([torch.zeros(0, dtype=torch.int64), *where]), persistent=False)
        self.bias = nn.Parameter(torch.zeros(self.scalar.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, irreps_in.dim]`` -> ``[rows, irreps_out.dim]``."""
        check_last("Linear", "x", x, self.dim_in)
        out = self.mix(x)
        if not self.scalar.numel():
            return out
        bias = self.bias.to(out.dtype)
        return out + bias.new_zeros(self.dim_out).index_copy(0, self.scalar, bias)


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
        check_last("SpeciesLinear", "x", x, self.dim_in)
        check_index("SpeciesLinear", "species", species, x.shape[0])
        return self.mix(x, rows_of_species(species, self.species) if self.species > 1 else None)
