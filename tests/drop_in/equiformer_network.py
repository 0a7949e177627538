"""Equiformer (Liao & Smidt, arXiv 2206.11990) from e3nn's modules, operation by operation as the
published code runs it: ``network(dtype)`` and ``graph(dtype)``, energies and forces by
``evaluate``.

Written here after the paper and its code, which is no package that could be installed. The settings
are those for MD17 with l up to 2, without dropout. ``graph`` and ``evaluate`` are those of
own_network.py.
"""

from itertools import product

import own_network
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from peers import by_field
from torch import nn
from torch_geometric.utils import softmax

evaluate, graph = own_network.evaluate, own_network.graph

HARMONICS = o3.Irreps("1x0e+1x1e+1x2e")
RADIAL = 128
SMALL = {"hidden": "16x0e+8x1e+4x2e", "head": "4x0e+2x1e+1x2e", "wide": "24x0e+12x1e+6x2e", "layers": 2}
SMALL_GRAPH = {"cells": (2, 1, 1)}
"""Of the tests."""


def network(dtype, hidden="128x0e+64x1e+32x2e", head="32x0e+16x1e+8x2e", wide="384x0e+192x1e+96x2e", layers=6):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    return Network(*map(o3.Irreps, (hidden, head, wide)), layers)


class Product(nn.Module):
    """``o3.TensorProduct`` without path normalisation, and a bias on scalars."""

    def __init__(self, irreps1, irreps2, irreps_out, instructions, bias=True, **options):
        super().__init__()
        self.tp = o3.TensorProduct(irreps1, irreps2, irreps_out, instructions, path_normalization="none", **options)
        self.irreps_out = irreps_out
        terms = [sum(i[2] == out[2] for i in instructions) for out in instructions]
        self.fan_in = [irreps1[i[0]].mul * n if i[3] == "uvw" else n for i, n in zip(instructions, terms, strict=True)]
        if self.tp.internal_weights:
            with torch.no_grad():
                for weight, fan_in in zip(self.tp.weight_views(), self.fan_in, strict=True):
                    weight.mul_(fan_in**-0.5)
        scalars = [s for s, (_, ir) in zip(irreps_out.slices(), irreps_out, strict=True) if ir.is_scalar() and bias]
        self.slices = scalars
        self.bias = nn.ParameterList(torch.zeros(s.stop - s.start) for s in scalars)

    def forward(self, x, y, weight=None):
        out = self.tp(x, y, weight)
        for where, bias in zip(self.slices, self.bias, strict=True):
            out.narrow(1, where.start, where.stop - where.start).add_(bias)
        return out


class Linear(Product):
    """A product with a one, which is how Equiformer writes a linear layer."""

    def __init__(self, irreps_in, irreps_out, bias=True):
        paths = product(enumerate(irreps_in), enumerate(irreps_out))
        instructions = [(i, 0, k, "uvw", True) for (i, (_, a)), (k, (_, b)) in paths if a == b]
        super().__init__(irreps_in, o3.Irreps("1x0e"), irreps_out, instructions, bias)

    def forward(self, x):
        return super().forward(x, torch.ones_like(x[:, :1]))


class Depthwise(nn.Module):
    """A product of each channel with the harmonics; a radial network makes the weights."""

    def __init__(self, irreps_in, irreps_out):
        super().__init__()
        made = [
            (i, j, mul, ir)
            for (i, (mul, a)), (j, (_, b)) in product(enumerate(irreps_in), enumerate(HARMONICS))
            for ir in a * b
            if ir in irreps_out or ir.is_scalar()
        ]
        irreps, order, _ = o3.Irreps([(mul, ir) for _, _, mul, ir in made]).sort()
        instructions = [(i, j, order[n], "uvu", True) for n, (i, j, _, _) in enumerate(made)]
        self.dtp = Product(
            irreps_in, HARMONICS, irreps, instructions, bias=False, internal_weights=False, shared_weights=False
        )
        self.irreps_out = irreps.simplify()
        layers = []
        for width in (RADIAL, 64):
            layers += [nn.Linear(width, 64), nn.LayerNorm(64), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(64, self.dtp.tp.weight_numel, bias=False))
        self.offset = nn.Parameter(torch.rand(self.dtp.tp.weight_numel) / 8)

    def forward(self, x, harmonics, radial):
        return self.dtp(x, harmonics, self.net(radial) + self.offset.reshape(1, -1))


class Norm(nn.Module):
    """Of each row by itself."""

    def __init__(self, irreps):
        super().__init__()
        self.irreps = irreps
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(irreps.count("0e")))

    def forward(self, x):
        def normed(field, ir, channels, scalars):
            if ir.is_scalar():
                field = field - field.mean(dim=1, keepdim=True)
            size = field.pow(2).mean(-1).mean(dim=1, keepdim=True)
            scale = (size + 1e-5).pow(-0.5) * self.weight[None, channels]
            field = field * scale.reshape(*scale.shape, 1)
            return field + self.bias[scalars, None] if ir.is_scalar() else field

        return by_field(x, self.irreps, normed)


class Attention(nn.Module):
    """Of messages made of both ends, with scores from their scalars."""

    def __init__(self, irreps, head, heads=4):
        super().__init__()
        self.heads, self.head = heads, head
        values = o3.Irreps([(heads * mul, ir) for mul, ir in head])
        self.scores = head.count("0e")
        self.of_sender, self.of_receiver = Linear(irreps, irreps), Linear(irreps, irreps, bias=False)
        self.depthwise = Depthwise(irreps, irreps)
        self.linear = Linear(self.depthwise.irreps_out, (o3.Irreps(f"{heads * self.scores}x0e") + values).simplify())
        self.dot = nn.Parameter(torch.randn(1, heads, self.scores))
        self.proj = Linear(values, irreps)

    def forward(self, x, senders, receivers, harmonics, radial):
        message = self.of_sender(x)[senders] + self.of_receiver(x)[receivers]
        message = self.by_head(self.linear(self.depthwise(message, harmonics, radial)))
        scores, values = message[:, :, : self.scores], message[:, :, self.scores :]
        scores = 0.6 * scores + 0.4 * scores * (2 * torch.sigmoid(scores) - 1)
        scores = softmax(torch.einsum("bik,aik->bi", scores, self.dot), receivers)
        weighted = values * scores.unsqueeze(-1)
        total = weighted.new_zeros(len(x), *weighted.shape[1:]).index_add(0, receivers, weighted)
        return self.proj(self.by_irreps(total))

    def by_head(self, x):
        out, start = [], 0
        for mul, ir in self.linear.irreps_out:
            out.append(x.narrow(1, start, mul * ir.dim).reshape(len(x), self.heads, -1))
            start += mul * ir.dim
        return torch.cat(out, dim=2)

    def by_irreps(self, x):
        out, start = [], 0
        for mul, ir in self.head:
            out.append(x.narrow(2, start, mul * ir.dim).reshape(len(x), -1))
            start += mul * ir.dim
        return torch.cat(out, dim=1)


class Block(nn.Module):
    """Attention, then two linear layers with a gate between them, each behind a norm."""

    def __init__(self, irreps, head, wide, irreps_out):
        super().__init__()
        self.norms = nn.ModuleList([Norm(irreps), Norm(irreps)])
        self.attention = Attention(irreps, head)
        scalars = o3.Irreps([(mul, ir) for mul, ir in wide if ir.is_scalar()])
        gated = o3.Irreps([(mul, ir) for mul, ir in wide if not ir.is_scalar()])
        gates = o3.Irreps([(mul, "0e") for mul, _ in gated]).simplify()
        self.gate = e3nn_nn.Gate(scalars, [nn.functional.silu], gates, [torch.sigmoid], gated)
        self.first, self.second = Linear(irreps, self.gate.irreps_in), Linear(wide, irreps_out)
        self.shortcut = Linear(irreps, irreps_out) if irreps_out != irreps else None

    def forward(self, x, *edges):
        x = x + self.attention(self.norms[0](x), *edges)
        change = self.second(self.gate(self.first(self.norms[1](x))))
        return change + (x if self.shortcut is None else self.shortcut(x))


class Network(nn.Module):
    """An embedding with the atoms' surroundings, blocks, and a sum over atoms."""

    def __init__(self, irreps, head, wide, layers):
        super().__init__()
        features = o3.Irreps("512x0e")
        self.embedding = Linear(o3.Irreps("64x0e"), irreps)
        self.one = Linear(o3.Irreps("1x0e"), irreps)
        self.surroundings = Depthwise(irreps, irreps)
        self.project = Linear(self.surroundings.irreps_out, irreps)
        self.blocks = nn.ModuleList(
            Block(irreps, head, wide, features if n == layers - 1 else irreps) for n in range(layers)
        )
        self.norm, self.first, self.second = (
            Norm(features),
            Linear(features, features),
            Linear(features, o3.Irreps("1x0e")),
        )

    def forward(self, species, positions, edge_index, shifts):
        senders, receivers = edge_index
        vectors = positions[senders] - positions[receivers] - shifts
        harmonics = o3.spherical_harmonics(HARMONICS, vectors, True, "component")
        centres = torch.linspace(0.5, own_network.CUTOFF, RADIAL, device=vectors.device, dtype=vectors.dtype)
        radial = torch.exp(-4 * (vectors.norm(dim=1)[:, None] - centres) ** 2)
        x = self.embedding(nn.functional.one_hot(species, 64).to(vectors.dtype))
        around = self.surroundings(self.one(torch.ones_like(x[:, :1]))[senders], harmonics, radial)
        x = x + torch.zeros_like(x).index_add(0, receivers, self.project(around)) / 4
        for block in self.blocks:
            x = block(x, senders, receivers, harmonics, radial)
        return self.second(nn.functional.silu(self.first(self.norm(x)))).sum() / 32
