"""Stage 1 from e3nn's own modules: the published network, edge by edge as e3nn computes it. Slow,
and the truth for ours.

Layout ``mul_ir`` throughout; the weights are those of a :class:`hamfast.models.CovariantNetwork`.
"""

from __future__ import annotations

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn

from hamfast.reference.tensor_product import separate_weights


class E3nnNetwork(nn.Module):
    """Embedding, node and edge updates, output; made to the measure of ``network`` and holding its
    weights.
    """

    def __init__(self, network):
        super().__init__()
        self.num_species = network.spec.num_species
        self.irreps_sh = o3.Irreps.spherical_harmonics(network.config.l_max)
        self.embedding = _linear(network.embedding)
        self.node_updates = nn.ModuleList(_Update(u, self.irreps_sh, self.num_species) for u in network.node_updates)
        self.edge_updates = nn.ModuleList(_Update(u, self.irreps_sh, self.num_species**2) for u in network.edge_updates)
        self.output = _linear(network.output)
        self.edge_basis, self.radial_basis = network.edge_basis, network.radial_basis

    def forward(self, graph) -> Tensor:
        """The graph's target irreps in the layout ``mul_ir``, ``[edges, spec.dim]``.

        Args:
            graph: a :class:`hamfast.graph.CrystalGraph`. In it i is the receiver of an edge and j
                the sender.

        """
        node_hot = nn.functional.one_hot(graph.species, self.num_species).to(graph.vector)
        edge_hot = nn.functional.one_hot(graph.pair_species(self.num_species), self.num_species**2).to(graph.vector)
        harmonics = o3.spherical_harmonics(self.irreps_sh, graph.vector[:, [1, 2, 0]], True, "component")
        onsite = graph.onsite
        harmonics = torch.where(onsite[:, None], torch.eye(self.irreps_sh.dim).to(harmonics)[0], harmonics)
        radial = self.radial_basis(graph.length)
        node, edge = self.embedding(node_hot), self.edge_basis(graph.length)
        node_update: _Update
        edge_update: _Update
        for node_update, edge_update in zip(self.node_updates, self.edge_updates, strict=True):  # type: ignore[assignment]
            pre = node_update.linear_pre(node)
            message = node_update.convolve(
                torch.cat([pre[graph.receivers], pre[graph.senders], edge], 1), harmonics, radial
            )
            total = torch.zeros(node.shape[0], message.shape[1]).to(message).index_add(0, graph.receivers, message)
            node = node_update.finish(node, total, node_hot, graph.atom_graph)
            pre = edge_update.linear_pre(edge)
            message = edge_update.convolve(
                torch.cat([node[graph.receivers], node[graph.senders], pre], 1), harmonics, radial
            )
            edge = edge_update.finish(edge, message, edge_hot, graph.edge_graph)
        return self.output(edge)


class _Update(nn.Module):
    """An update of nodes or of edges from e3nn's modules, with the weights of ``ours``."""

    def __init__(self, ours, irreps_sh, num_species):
        super().__init__()
        convolution = ours.convolution
        product = convolution.product
        instructions = [(i.i_in1, i.i_in2, i.i_out, "uvw", True, 1.0) for i in product.plan.plan.instructions]
        self.product = o3.TensorProduct(
            product.irreps_in1, irreps_sh, product.irreps_out, instructions, internal_weights=False, shared_weights=True
        )
        self.register_buffer("weight", separate_weights(product.weight1, product.weight2, product.plan.plan).detach())
        gated = convolution.gate.irreps_gated
        scalars = o3.Irreps([m for m in convolution.gate.irreps_out if m.ir.l == 0])
        self.gate = e3nn_nn.Gate(
            scalars,
            [nn.functional.silu if ir.p == 1 else torch.tanh for _, ir in scalars],
            o3.Irreps([(mul, "0e") for mul, _ in gated]).simplify(),
            [torch.sigmoid] if len(gated) else [],
            gated,
        )
        self.radial = convolution.radial
        self.scale = o3.ElementwiseTensorProduct(self.gate.irreps_out, f"{self.gate.irreps_out.num_irreps}x0e")
        self.linear_pre, self.linear_post = _linear(ours.linear_pre), _linear(ours.linear_post)
        self.species = o3.FullyConnectedTensorProduct(
            ours.species.irreps_in, f"{num_species}x0e", ours.species.irreps_out
        )
        self.species.weight.data.copy_(ours.species.weight.data)
        self.skip = None if ours.skip is None else _linear(ours.skip)
        self.norm_weight, self.norm_bias, self.irreps = ours.norm.weight, ours.norm.bias, ours.norm.irreps

    def convolve(self, x, harmonics, radial):
        """Product with the harmonics, gate, and scale by the radial network: ``[edges,
        irreps_out.dim]``.
        """
        return self.scale(self.gate(self.product(x, harmonics, self.weight)), self.radial(radial))

    def finish(self, old, new, one_hot, graph):
        """Linear map, species product, norm and skip connection: ``[rows, irreps.dim]``."""
        new = self._norm(self.linear_post(new) + self.species(old, one_hot), graph)
        return new + (old if self.skip is None else self.skip(old))

    def _norm(self, x, graph):
        out, start, channel, scalar = torch.empty_like(x), 0, 0, 0
        for mul, ir in self.irreps:
            block = x[:, start : start + mul * ir.dim].reshape(-1, mul, ir.dim)
            result = torch.empty_like(block)
            for g in graph.unique():
                field = block[graph == g]
                field = field - field.mean(dim=(0, 1))
                if ir.l == 0:
                    field = field / (field.square().mean().sqrt() + 1e-5)
                result[graph == g] = field * self.norm_weight[channel : channel + mul, None]
            if ir.is_scalar():
                result = result + self.norm_bias[scalar : scalar + mul, None]
                scalar += mul
            out[:, start : start + mul * ir.dim] = result.flatten(1)
            start += mul * ir.dim
            channel += mul
        return out


def _linear(ours):
    theirs = o3.Linear(ours.irreps_in, ours.irreps_out, biases=ours.bias.numel() > 0)
    theirs.weight.data.copy_(ours.weight.data)
    if ours.bias.numel():
        theirs.bias.data.copy_(ours.bias.data)
    return theirs
