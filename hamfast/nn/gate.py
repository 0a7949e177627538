"""Gated non-linearity and channel-wise scaling."""

import torch
from e3nn.math import normalize2mom
from e3nn.o3 import Irreps
from torch import Tensor

from hamfast.nn.checks import NotScripted, check_last
from hamfast.nn.irreps_layout import check_layout


def second_moment_scale(activation) -> float:
    """e3nn's factor that gives ``activation(N(0, 1))`` a second moment of 1."""
    return float(normalize2mom(activation).cst)


class Gate(NotScripted):
    """``e3nn.nn.Gate`` with SiLU (even) and tanh (odd) scalars, sigmoid (even) or tanh (odd) gates.

    Every channel with l > 0 is multiplied by one gate. The input irreps are the sorted, simplified
    sum of scalars,
    gates and gated, as e3nn orders them; the output is scalars, then gated.
    """

    def __init__(self, irreps_scalars, irreps_gates, irreps_gated, layout: str = "mul_ir"):
        super().__init__()
        scalars, gates, gated = (Irreps(i).simplify() for i in (irreps_scalars, irreps_gates, irreps_gated))
        for name, irreps in (("irreps_scalars", scalars), ("irreps_gates", gates)):
            if any(ir.l > 0 for _, ir in irreps):
                raise ValueError(f"Gate: {name}: expected scalars alone, found {irreps}")
        if gates.num_irreps != gated.num_irreps:
            raise ValueError(f"Gate: {gated.num_irreps} channels to gate, but {gates.num_irreps} gates")
        self.layout = check_layout(layout)
        self.irreps_out = scalars + _gated(gates, gated, self.layout)
        self.irreps_gated = gated
        blocks = list(scalars) + list(gates) + list(gated)
        order = Irreps(blocks).sort()
        self.irreps_in = order.irreps.simplify()
        # The sorted input is split once; block n of [scalars | gates | gated] is piece
        # `order.p[n]`.
        self.sizes = [mul_ir.dim for mul_ir in order.irreps]
        # Plain numbers, as torch.compile cannot read irreps: piece, channels, parity, 2 l + 1.
        pieces = [(n, mul, ir.p, ir.dim) for n, (mul, ir) in zip(order.p, blocks, strict=True)]
        self.scalar_pieces = pieces[: len(scalars)]
        self.gate_pieces = pieces[len(scalars) : len(scalars) + len(gates)]
        self.gated_pieces = pieces[len(scalars) + len(gates) :]
        self.channels_out = self.irreps_out.num_irreps
        self.silu, self.tanh = second_moment_scale(torch.nn.functional.silu), second_moment_scale(torch.tanh)
        self.sigmoid = second_moment_scale(torch.sigmoid)

    def forward(self, x: Tensor, channel_scale: Tensor | None = None) -> Tensor:
        """``[rows, irreps_in.dim]`` -> ``[rows, irreps_out.dim]``.

        ``channel_scale``: ``[rows, irreps_out.num_irreps]``, multiplies each output channel; done
        here, a pass over the rows is saved.
        """
        check_last("Gate", "x", x, sum(self.sizes))
        if channel_scale is not None:
            check_last("Gate", "channel_scale", channel_scale, self.channels_out)
        pieces = torch.split(x, self.sizes, dim=-1)
        out = [self._scalar(pieces[n], parity) for n, _, parity, _ in self.scalar_pieces]
        gates = [self._gate(pieces[n], parity) for n, _, parity, _ in self.gate_pieces]
        factors = torch.cat(out + gates, dim=-1)
        if channel_scale is not None:
            factors = factors * channel_scale
        if not self.gated_pieces:
            return factors
        gated = [mul for _, mul, _, _ in self.gated_pieces]
        scalar, *per_block = torch.split(factors, [factors.shape[-1] - sum(gated), *gated], dim=-1)
        blocks = [
            scale_channels(pieces[n], gate, mul, dim, self.layout)
            for (n, mul, _, dim), gate in zip(self.gated_pieces, per_block, strict=True)
        ]
        return torch.cat([scalar, *blocks], dim=-1)

    def _scalar(self, x, parity):
        return torch.nn.functional.silu(x) * self.silu if parity == 1 else torch.tanh(x) * self.tanh

    def _gate(self, x, parity):
        return torch.sigmoid(x) * self.sigmoid if parity == 1 else torch.tanh(x) * self.tanh


def _gated(gates: Irreps, gated: Irreps, layout: str) -> Irreps:
    """The irreps of gated channels: an odd gate changes the parity of its channel."""
    parities = [ir.p for mul, ir in gates for _ in range(mul)]
    blocks, start = [], 0
    for mul, ir in gated:
        own = parities[start : start + mul]
        if layout == "ir_mul" and len(set(own)) > 1:
            raise ValueError(f"Gate: ir_mul: expected gates of one parity for {mul}x{ir}, found both")
        blocks += [(1, (ir.l, ir.p * p)) for p in own]
        start += mul
    return Irreps(blocks).simplify()


def scale_channels(block: Tensor, scale: Tensor, mul: int, dim: int, layout: str) -> Tensor:
    """Multiplies each channel of a block ``[rows, mul * dim]`` by its own factor, ``[rows, mul]``
    or ``[mul]``.
    """
    if layout == "ir_mul":
        return (block.unflatten(-1, (dim, mul)) * scale.unsqueeze(-2)).flatten(-2)
    return (block.unflatten(-1, (mul, dim)) * scale.unsqueeze(-1)).flatten(-2)
