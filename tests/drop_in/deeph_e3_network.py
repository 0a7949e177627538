"""DeepH-E3's network from e3nn's modules, operation by operation as the published code runs it:
``network(dtype)`` and ``graph(dtype)``; ``evaluate`` has a loss in the place of an energy, and no
forces.

Written here after the paper (Gong et al., Nature Communications 14, 2848, 2023) and its code,
which is no package that could be installed.
"""

from itertools import pairwise, product
from pathlib import Path

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from peers import by_field
from torch import nn

from hamfast.data import GraphDataset, dataset_spec

GRAPHENE = Path(__file__).parents[2] / "examples" / "graphene" / "dft" / "3x3_000"

SMALL = {"hidden": "8x0e+4x1o+4x2e", "l_max": 2, "blocks": 2}
"""Of the tests."""


def network(dtype, hidden="64x0e+32x1o+16x2e+8x3o+8x4e+4x5o", l_max=5, blocks=3):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    return Network(1, hidden, l_max, blocks, dataset_spec([GRAPHENE]).irreps)


def graph(dtype, cells=(1, 1, 1)):
    torch.set_default_dtype(dtype)
    return GraphDataset([GRAPHENE], dataset_spec([GRAPHENE]), None, dtype)[0]


def evaluate(model, data, training=False):
    return (model(data) - data.target).square().sum(), None


def gate_of(irreps_in, irreps_sh, irreps_out):
    """e3nn's gate for those irreps of ``irreps_out`` that the product can make."""
    made = {ir for (_, a), (_, b) in product(irreps_in, irreps_sh) for ir in a * b}
    scalars = o3.Irreps([(m, ir) for m, ir in irreps_out if ir.l == 0 and ir in made]).simplify()
    gated = o3.Irreps([(m, ir) for m, ir in irreps_out if ir.l > 0 and ir in made]).simplify()
    gates = o3.Irreps([(m, "0e") for m, _ in gated]).simplify()
    activations = [nn.functional.silu if ir.p == 1 else torch.tanh for _, ir in scalars]
    return e3nn_nn.Gate(scalars, activations, gates, [torch.sigmoid for _ in gates], gated)


class SeparateProduct(nn.Module):
    """A product with the weights ``left[u, w] right[v, w]``, path by path."""

    def __init__(self, irreps_in1, irreps_in2, irreps_out):
        super().__init__()
        paths = [
            (i, j, k)
            for (i, (_, a)), (j, (_, b)), (k, (_, c)) in product(
                enumerate(irreps_in1), enumerate(irreps_in2), enumerate(irreps_out)
            )
            if c in a * b
        ]
        self.left = nn.ParameterList(torch.randn(irreps_in1[i].mul, irreps_out[k].mul) for i, _, k in paths)
        self.right = nn.ParameterList(torch.randn(irreps_in2[j].mul, irreps_out[k].mul) for _, j, k in paths)
        instructions = [(*path, "uvw", True, 1.0) for path in paths]
        self.tp = o3.TensorProduct(
            irreps_in1, irreps_in2, irreps_out, instructions, internal_weights=False, shared_weights=True
        )

    def forward(self, x, y):
        pairs = zip(self.left, self.right, strict=True)
        return self.tp(x, y, torch.cat([(left[:, None, :] * right[None, :, :]).view(-1) for left, right in pairs]))


def times_channels(x, factors, irreps):
    """Each channel of ``x`` times its factor."""
    return by_field(x, irreps, lambda field, ir, channels, _: field * factors[:, channels, None])


class Norm(nn.Module):
    """Over all rows of a graph: means subtracted, scalars divided by their size."""

    def __init__(self, irreps):
        super().__init__()
        self.irreps = irreps
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(irreps.count("0e")))

    def forward(self, x, batch):
        graphs = int(batch.max()) + 1
        rows = torch.zeros(graphs, dtype=x.dtype).index_add(0, batch, torch.ones_like(batch, dtype=x.dtype))

        def normed(field, ir, channels, scalars):
            total = torch.zeros(graphs, *field.shape[1:], dtype=x.dtype)
            mean = total.index_add(0, batch, field).mean(dim=1, keepdim=True) / rows[:, None, None]
            field = field - mean[batch]
            if ir.l == 0:
                square = total.index_add(0, batch, field.abs().pow(2)) / rows[:, None, None]
                field = field / (square.mean(dim=[1, 2], keepdim=True).sqrt()[batch] + 1e-5)
            field = field * self.weight[None, channels, None]
            return field + self.bias[None, scalars, None] if ir.is_scalar() else field

        return by_field(x, self.irreps, normed)


class Update(nn.Module):
    """An update of atoms or of pairs."""

    def __init__(self, irreps_old, irreps_x, irreps_sh, irreps_out, species):
        super().__init__()
        self.pre = o3.Linear(irreps_old, irreps_old, biases=True)
        self.gate = gate_of(irreps_x, irreps_sh, irreps_out)
        self.product = SeparateProduct(irreps_x, irreps_sh, self.gate.irreps_in)
        self.irreps_out = self.gate.irreps_out
        widths = [128, 64, 64, self.irreps_out.num_irreps]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.radial = nn.Sequential(*layers[:-1])
        self.post = o3.Linear(self.irreps_out, self.irreps_out, biases=True)
        self.species = o3.FullyConnectedTensorProduct(irreps_old, f"{species}x0e", self.irreps_out)
        self.norm = Norm(self.irreps_out)
        self.skip = None if irreps_old == self.irreps_out else o3.Linear(irreps_old, self.irreps_out)

    def convolve(self, x, harmonics, radial):
        return times_channels(self.gate(self.product(x, harmonics)), self.radial(radial), self.irreps_out)

    def finish(self, old, new, one_hot, batch):
        new = self.norm(self.post(new) + self.species(old, one_hot), batch)
        return new + (old if self.skip is None else self.skip(old))


class Network(nn.Module):
    """Updates of atoms and of pairs in turn, then a linear layer to the blocks' irreps."""

    def __init__(self, species, hidden, l_max, blocks, irreps_out):
        super().__init__()
        self.irreps_sh, hidden = o3.Irreps.spherical_harmonics(l_max), o3.Irreps(hidden)
        self.num_species = species
        atom = pair = o3.Irreps("64x0e")
        self.embedding = o3.Linear(f"{species}x0e", atom)
        self.atoms, self.pairs = nn.ModuleList(), nn.ModuleList()
        for _ in range(blocks):
            self.atoms.append(Update(atom, atom + atom + pair, self.irreps_sh, hidden, species))
            atom = self.atoms[-1].irreps_out
            self.pairs.append(Update(pair, atom + atom + pair, self.irreps_sh, hidden, species**2))
            pair = self.pairs[-1].irreps_out
        self.output = o3.Linear(pair, irreps_out, biases=True)

    def forward(self, graph):
        i, j, hot = graph.receivers, graph.senders, nn.functional.one_hot
        one_hot = hot(graph.species, self.num_species).to(graph.vector)
        pair_hot = hot(graph.pair_species(self.num_species), self.num_species**2).to(graph.vector)
        harmonics = o3.spherical_harmonics(self.irreps_sh, graph.vector[:, [1, 2, 0]], True, "component")
        basis = self.gaussians(graph.length, 128, 8.0)
        atom, pair = self.embedding(one_hot), self.gaussians(graph.length, 64, 6.0)
        for on_atoms, on_pairs in zip(self.atoms, self.pairs, strict=True):
            old, atom = atom, on_atoms.pre(atom)
            messages = on_atoms.convolve(torch.cat([atom[i], atom[j], pair], dim=-1), harmonics, basis)
            total = messages.new_zeros(len(atom), messages.shape[1]).index_add(0, i, messages)
            atom = on_atoms.finish(old, total, one_hot, graph.atom_graph)
            old, pair = pair, on_pairs.pre(pair)
            pair = on_pairs.convolve(torch.cat([atom[i], atom[j], pair], dim=-1), harmonics, basis)
            pair = on_pairs.finish(old, pair, pair_hot, graph.edge_graph)
        return self.output(pair)

    @staticmethod
    def gaussians(length, count, stop):
        centres = torch.linspace(0, stop, count, dtype=length.dtype)
        return torch.exp(-0.5 * ((length[:, None] - centres) / (centres[1] - centres[0])) ** 2)
