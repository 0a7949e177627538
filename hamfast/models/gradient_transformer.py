"""Stage 2 of kind ``gradients``: non-linear covariant features as gradients of invariant networks.

The idea is TraceGrad's (Yin et al., arXiv 2405.05722). Inner products of features of one irrep are
invariants, so any network may act on them. What it makes are invariants, too, and the gradient of
an invariant with respect to covariant features is covariant. One step, for an edge with features e
and scalars s that runs from a sender with features n_s to a receiver with features n_r:

    f = P [ n_r | n_s | e | s ]
    z = [ f of 0e | <A f, B f> / (2l + 1) of every channel ]
    h = SiLU(W1 asinh z + W2 LN [ s | g ])
    s = s + W3 h
    v = d<w, W3 h> / df

P is a product with the harmonics of the edge's direction. A, B, W1, W2, W3, w are parameters, g are
Gaussians of the edge's length, LN is a layer norm. The gradient holds LN [ s | g ] fixed. It is
written out, so that no graph of a graph is differentiated and predictions need no graph:

    v = (A^T (dz o B f) + B^T (dz o A f)) / (2l + 1),   and for 0e its own dz besides
    dz = W1^T (SiLU' o W3^T w) / sqrt(1 + z^2)

A block has two steps. The first is for the edges of the environment. Its s goes into the attention
weights a of :mod:`hamfast.models.frame_transformer`, and its v to the atom. The second is for all
edges, whose s and v stay with the edge:

    n_r = n_r + L1 sum_e a v + L2 sum_e a W s
    e = e + L3 v + L4 SiLU(s)
"""

from __future__ import annotations

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from hamfast.models.covariant import LAYOUT, operands_of_edges
from hamfast.models.frame_transformer import Around, Attention, FrameTransformer, heads_of_channels, scaled
from hamfast.models.settings import TransformerConfig
from hamfast.nn import EdgeTensorProduct, Linear, ScalarLayerNorm
from hamfast.nn.irreps_layout import split_blocks
from hamfast.ops import EdgeFrames, EdgeSources


class InnerProducts(nn.Module):
    """``z_c = <(A f)_c, (B f)_c> / (2l + 1)`` for every channel c of every irrep, and its gradient.

    Args:
        irreps: of f.
    """

    def __init__(self, irreps: Irreps):
        super().__init__()
        self.irreps = irreps
        self.both = nn.ParameterList(torch.randn(mul, 2 * mul) / mul**0.5 for mul, _ in irreps)

    def forward(self, f: Tensor) -> tuple[Tensor, list[Tensor]]:
        """z ``[rows, irreps.num_irreps]``, and ``[B f | A f]`` of every irrep for :meth:`gradient`.

        ``f``: ``[rows, irreps.dim]``, in the layout ``ir_mul``.
        """
        products, swapped = [], []
        for block, both, (mul, ir) in zip(split_blocks(f, self.irreps), self.both, self.irreps, strict=True):
            left, right = (block.unflatten(-1, (ir.dim, mul)) @ both).chunk(2, dim=-1)
            products.append((left * right).mean(-2))
            swapped.append(torch.cat([right, left], dim=-1))
        return torch.cat(products, dim=-1), swapped

    def gradient(self, of_z: Tensor, swapped: list[Tensor]) -> Tensor:
        """``[rows, irreps.dim]``: the gradient with respect to f of what has the gradient ``of_z``.

        Args:
            of_z: ``[rows, irreps.num_irreps]``.
            swapped: from :meth:`forward`.
        """
        factors = torch.split(of_z, [mul for mul, _ in self.irreps], dim=-1)
        blocks = [
            ((torch.cat([factor, factor], dim=-1) / ir.dim).unsqueeze(-2) * pair) @ both.T
            for factor, pair, both, (_, ir) in zip(factors, swapped, self.both, self.irreps, strict=True)
        ]
        return torch.cat([block.flatten(-2) for block in blocks], dim=-1)


class GradientStep(nn.Module):
    """New scalars of edges, and the gradient of a weighted sum of them.

    Args:
        config: of stage 2.
        irreps_in: of the operands of an edge, one after the other.
        irreps: of f and of the gradient; ``0e`` comes first.
    """

    def __init__(self, config: TransformerConfig, irreps_in: Irreps, irreps: Irreps):
        super().__init__()
        h, wide = config.hidden, config.ffn_factor * config.hidden
        self.num_scalars = irreps.count("0e")
        self.mix = EdgeTensorProduct(irreps_in, config.l_max, irreps, layout=LAYOUT)
        self.products = InnerProducts(irreps)
        self.context_norm = nn.LayerNorm(h + config.num_basis)
        self.context_in = nn.Linear(h + config.num_basis, wide)
        self.invariants_in = nn.Linear(self.num_scalars + irreps.num_irreps, wide, bias=False)
        self.out = nn.Linear(wide, h)
        self.weight = nn.Parameter(torch.randn(h))

    def forward(
        self, sources: EdgeSources, frames: EdgeFrames, scalars: Tensor, gaussians: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is added to the scalars, and the gradient, both for each edge.

        Args:
            sources: the operands.
            frames: of the edges.
            scalars: ``[edges, hidden]``.
            gaussians: ``[edges, num_basis]``, of the edges' lengths.
        """
        context = self.context_in(self.context_norm(torch.cat([scalars, gaussians], dim=-1)))
        return self.of_features(self.mix(sources, frames), context)

    def of_features(self, f: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The invariants ``[edges, hidden]``, and ``[edges, irreps.dim]``: the gradient with
        respect to f of their product with ``weight``.

        Args:
            f: ``[edges, irreps.dim]``, in the layout ``ir_mul``.
            context: ``[edges, ffn_factor * hidden]``, invariants that the gradient holds fixed.
        """
        products, swapped = self.products(f)
        z = torch.cat([f[:, : self.num_scalars], products], dim=-1)
        x = self.invariants_in(torch.asinh(z)) + context  # asinh: z is quadratic in f
        sigmoid = torch.sigmoid(x)
        hidden = x * sigmoid
        slope = sigmoid + hidden * (1 - sigmoid)  # the derivative of SiLU
        of_z = (slope * (self.weight @ self.out.weight)) @ self.invariants_in.weight / (1 + z.square()).sqrt()
        of_scalars, of_products = of_z.tensor_split([self.num_scalars], dim=-1)
        gradient = self.products.gradient(of_products, swapped)
        return self.out(hidden), gradient + padded(of_scalars, f.shape[1])


class GradientBlock(nn.Module):
    """A step within the environment for the atoms, with attention, and one for all edges.

    Args:
        config: of stage 2.
        irreps_node, irreps_edge: of the features; ``0e`` comes first.
    """

    head_of: Tensor

    def __init__(self, config: TransformerConfig, irreps_node: Irreps, irreps_edge: Irreps):
        super().__init__()
        h = config.hidden
        self.irreps_node, self.num_scalars = irreps_node, irreps_node.count("0e")
        operands = irreps_node + irreps_node + irreps_edge + Irreps([(h, (0, 1))])
        self.node_norm, self.edge_norm = ScalarLayerNorm(irreps_node), ScalarLayerNorm(irreps_edge)
        self.to_node = GradientStep(config, operands, irreps_node)
        self.attention = Attention(config, self.num_scalars)
        self.to_edge = GradientStep(config, operands, irreps_edge)
        self.node_out = Linear(irreps_node, irreps_node, layout=LAYOUT)
        self.attended_out = nn.Linear(h, self.num_scalars)
        self.edge_out = Linear(irreps_edge, irreps_edge, layout=LAYOUT)
        self.scalars_out = nn.Linear(h, irreps_edge.count("0e"))
        self.register_buffer("head_of", heads_of_channels(irreps_node, config.num_heads), persistent=False)

    def atoms(self, node: Tensor, edge: Tensor, own: Tensor, scalars: Tensor, around: Around) -> tuple[Tensor, Tensor]:
        """As :meth:`hamfast.models.frame_transformer.FrameBlock.atoms`; the scalars stay."""
        _, near, kept, envelope = around
        normed, of_near = self.node_norm(node), scalars[kept]
        operands = torch.cat([own[kept], nn.functional.silu(of_near)], dim=-1)
        sources = operands_of_edges(normed, operands, near.edges)
        gained, gradient = self.to_node(sources, near.frames, of_near, near.gaussians)
        of_near = nn.functional.silu(of_near + gained)
        attended, weights = self.attention(normed[:, : self.num_scalars], of_near, near, envelope)
        message = scaled(gradient, weights[:, self.head_of], self.irreps_node)
        total = message.new_zeros(node.shape).index_add(0, near.edges.receivers, message)
        return node + self.node_out(total) + padded(self.attended_out(attended), node.shape[1]), scalars

    def edges(self, node: Tensor, edge: Tensor, own: Tensor, scalars: Tensor, around: Around) -> tuple[Tensor, Tensor]:
        """As :meth:`hamfast.models.frame_transformer.FrameBlock.edges`."""
        pairs, operands = around.pairs, torch.cat([own, nn.functional.silu(scalars)], dim=-1)
        sources = operands_of_edges(self.node_norm(node), operands, pairs.edges)
        gained, gradient = self.to_edge(sources, pairs.frames, scalars, pairs.gaussians)
        scalars = scalars + gained
        added = padded(self.scalars_out(nn.functional.silu(scalars)), edge.shape[1])
        return edge + self.edge_out(gradient) + added, scalars


def padded(of_scalars: Tensor, dim: int) -> Tensor:
    """``[rows, dim]``: the first columns, then zeros."""
    return nn.functional.pad(of_scalars, (0, dim - of_scalars.shape[1]))


class GradientTransformer(FrameTransformer):
    """A :class:`hamfast.models.frame_transformer.FrameTransformer` of other blocks."""

    block = GradientBlock
