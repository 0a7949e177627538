"""Stage 2: the non-linear 3D graph Transformer that refines stage 1's Hamiltonian.

It reads covariant inputs as plain components, so any non-linearity is allowed. Covariance is not
built in: the network learns it. One block, for an edge with features e that runs from a sender with
features n_s to a receiver with features n_r:

    e = SiLU LN W [ SiLU LN W1 e | SiLU LN W2 Y | SiLU LN W3 g ]
    x = [ n_s | e | n_r ]
    a = softmax of clip(<Wq x, Wk x> / sqrt(d), +-score_clip)
    n = LN(Wo sum_e a Wv x + n),   then n = n + FFN(LN n)
    e = e + W5 SiLU LN W4 [ n_s | e | n_r ]

LN is a layer norm, Y are harmonics of the edge's direction, g Gaussians of its length. The softmax,
one for each head, and the sum run over a receiver's incoming edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from hamfast.graph import CrystalGraph
from hamfast.models.data_axes import DataAxis
from hamfast.models.settings import TransformerConfig, check_heads
from hamfast.models.sweeps import Piece, Sweeps, Whole
from hamfast.nn import GaussianBasis
from hamfast.ops import EdgeIndex, edge_einsum, edge_index, edge_update, graph_attention
from hamfast.targets import TargetSpec


class NormAct(nn.Module):
    """A linear map, layer norm and SiLU for rows of edges."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.norm = nn.LayerNorm(width_out)

    def forward(self, x: Tensor, edges: EdgeIndex) -> Tensor:
        """``[edges, width_in]`` -> ``[edges, width_out]``."""
        return edge_update(edges, self.linear(x), weight=self.norm.weight, bias=self.norm.bias, epsilon=self.norm.eps)


class EdgeSplitLinear(nn.Module):
    """``W [sender | edge | receiver]`` as three matrices: the tensor of all three is never made.

    The sender's matrix is called ``source`` and the receiver's ``target`` in checkpoints.
    """

    def __init__(self, hidden: int, width_out: int):
        super().__init__()
        self.source = nn.Linear(hidden, width_out, bias=False)
        self.edge = nn.Linear(hidden, width_out)
        self.target = nn.Linear(hidden, width_out, bias=False)

    @property
    def sender(self) -> nn.Module:
        """The matrix that meets the sender's features."""
        return self.source

    @property
    def receiver(self) -> nn.Module:
        """The matrix that meets the receiver's features."""
        return self.target

    def forward(self, node: Tensor, edge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of (edge, sender, receiver), before those of nodes are gathered and all added.

        Returns:
            ``[edges, width_out]``, and twice ``[atoms, width_out]``.
        """
        return self.edge(edge), self.sender(node), self.receiver(node)


class Geometry(NamedTuple):
    """Edges with their directions and lengths."""

    edges: EdgeIndex
    harmonics: Tensor
    """``[edges, (l_max + 1)^2]``."""
    gaussians: Tensor
    """``[edges, num_basis]``."""


class TransformerBlock(nn.Module):
    """Edge merge, attention over a node's incoming edges, feed-forward network, edge update."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        h = config.hidden
        self.config = config
        self.merge_edge = NormAct(h, h)
        self.merge_harmonics = NormAct((config.l_max + 1) ** 2, h)
        self.merge_length = NormAct(config.num_basis, h)
        self.merge = NormAct(3 * h, h)
        self.query, self.key, self.value = (EdgeSplitLinear(h, h) for _ in range(3))
        self.attention_out = nn.Linear(h, h)
        self.attention_norm = nn.LayerNorm(h)
        self.ffn = nn.Sequential(
            nn.LayerNorm(h),
            nn.Linear(h, config.ffn_factor * h),
            nn.SiLU(),
            nn.Linear(config.ffn_factor * h, h),
        )
        self.edge_in = EdgeSplitLinear(h, h)
        self.edge_norm = nn.LayerNorm(h)
        self.edge_out = nn.Linear(h, h)

    def merged(self, edge: Tensor, geometry: Geometry) -> Tensor:
        """``[edges, hidden]``: the edges' features with their directions and lengths."""
        edges = geometry.edges
        inputs = (
            self.merge_edge(edge, edges),
            self.merge_harmonics(geometry.harmonics, edges),
            self.merge_length(geometry.gaussians, edges),
        )
        return self.merge(torch.cat(inputs, dim=-1), edges)

    @staticmethod
    def first(merged: Tensor, edges: EdgeIndex) -> Tensor:
        """``[atoms, hidden]``: nodes start as the mean of their incoming edges."""
        degree = (edges.receiver_ptr[1:] - edges.receiver_ptr[:-1]).clamp(min=1).to(merged).unsqueeze(-1)
        shape = (1, 1, merged.shape[1])
        return edge_einsum(edges, "receiver", shape, (merged[:, None, None], "edge"))[:, 0, 0] / degree

    def atoms(self, node: Tensor, merged: Tensor, edges: EdgeIndex) -> Tensor:
        """The new features of nodes, ``[atoms, hidden]``; ``merged``: see :meth:`merged`."""
        heads = (self.config.num_heads, self.config.hidden // self.config.num_heads)
        operands = {}
        for name, linear in (("query", self.query), ("key", self.key)):
            for part, tensor in zip(("edge", "sender", "receiver"), linear(node, merged), strict=True):
                operands[f"{name}_{part}"] = tensor.unflatten(-1, heads)
        # The weights of a receiver's edges add up to 1, so what all its edges share goes with it.
        operands["value_sender"] = self.value.sender(node).unflatten(-1, heads)
        operands["value_receiver"] = (self.value.receiver(node) + self.value.edge.bias).unflatten(-1, heads)
        operands |= {"edge": merged, "edge_value_weight": self.value.edge.weight.unflatten(0, heads)}
        attended = graph_attention(edges, **operands, clip=self.config.score_clip).flatten(1)
        node = self.attention_norm(self.attention_out(attended) + node)
        return node + self.ffn(node)

    def update(self, node: Tensor, edge: Tensor, merged: Tensor, edges: EdgeIndex) -> Tensor:
        """The new features of edges, ``[edges, hidden]``, of those of nodes that are new."""
        own, sender, receiver = self.edge_in(node, merged)
        norm = self.edge_norm
        update = edge_update(edges, own, sender, receiver, norm.weight, norm.bias, epsilon=norm.eps)
        return edge + self.edge_out(update)


class RefinementTransformer(nn.Module):
    """Predicts the correction to stage 1, in the same units of the target normalisation.

    Args:
        config: settings of stage 2.
        spec: the targets.
        irreps_node, irreps_edge: of stage 1's features.

    Raises:
        ValueError: the heads do not divide the width.
    """

    data_axes = {
        "pair_embedding": DataAxis.PAIR_ROWS,
        "edge_in": DataAxis.COMPONENT_INPUTS,
        "output": DataAxis.COMPONENT_OUTPUTS,
    }

    def __init__(self, config: TransformerConfig, spec: TargetSpec, irreps_node: o3.Irreps, irreps_edge: o3.Irreps):
        super().__init__()
        check_heads(config)
        self.config, self.spec = config, spec
        self.gaussians = GaussianBasis(0.0, config.cutoff, config.num_basis)
        self.pair_embedding = nn.Embedding(spec.num_species**2, config.hidden)
        self.feature_norm = nn.LayerNorm(irreps_edge.dim)
        self.node_norm = nn.LayerNorm(irreps_node.dim)
        self.edge_in = nn.Linear(irreps_edge.dim + spec.dim, config.hidden)
        self.source_in = nn.Linear(irreps_node.dim, config.hidden, bias=False)
        self.target_in = nn.Linear(irreps_node.dim, config.hidden, bias=False)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_blocks))
        self.output_norm = nn.LayerNorm(config.hidden)
        self.output = nn.Linear(config.hidden, spec.dim)
        # The cascade starts as stage 1 exactly.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def receptive_field(self, longest_pair: float) -> float:
        """Angstrom: how much further than stage 1 it looks; ``longest_pair``: of the data."""
        return self.config.num_blocks * longest_pair

    def forward(self, graph: CrystalGraph, baseline: Tensor, node_features: Tensor, edge_features: Tensor) -> Tensor:
        """The correction ``[edges, spec.dim]``.

        Args:
            graph: the crystal.
            baseline: stage 1's output ``[edges, spec.dim]``.
            node_features, edge_features: of stage 1, in the layout ``mul_ir``.
        """
        return self.sweep(Whole(graph), baseline, node_features, edge_features)

    def sweep(self, sweeps: Sweeps, baseline: Any, node_features: Tensor, edge_features: Any) -> Any:
        """What :meth:`forward` returns, by sweeps: what is of edges is a field."""
        normed = self.node_norm(node_features)
        sender, receiver = self.source_in(normed), self.target_in(normed)

        def start(piece: Piece) -> tuple[Tensor]:
            edges = self._geometry(piece).edges
            inputs = torch.cat([self.feature_norm(piece.edges(edge_features)), piece.edges(baseline)], dim=-1)
            ends = piece.nodes(sender), piece.nodes(receiver)
            edge = edge_update(edges, self.edge_in(inputs), *ends, activation="identity")
            return (edge + self.pair_embedding(piece.graph.pair_species(self.spec.num_species)),)

        (edge,) = sweeps.edges(start)
        node = None
        for block in self.blocks:
            node, edge = self._block(block, sweeps, node, edge)
        return sweeps.edges(lambda p: (self.output(self.output_norm(p.edges(edge))),))[0]

    def _block(self, block: Any, sweeps: Sweeps, node: Tensor | None, edge: Any) -> tuple[Tensor, Any]:
        def merged(piece: Piece) -> Tensor:
            return piece.once("merged", lambda: block.merged(piece.edges(edge), self._geometry(piece)), block)

        if node is None:
            node = sweeps.nodes(lambda p: block.first(merged(p), self._geometry(p).edges))
        old = node
        new = sweeps.nodes(lambda p: block.atoms(p.nodes(old), merged(p), self._geometry(p).edges))

        def update(piece: Piece) -> tuple[Tensor]:
            edges = self._geometry(piece).edges
            return (block.update(piece.nodes(new), piece.edges(edge), merged(piece), edges),)

        return new, sweeps.edges(update)[0]

    def _geometry(self, piece: Piece) -> Geometry:
        return piece.once("geometry", lambda: self._edges(piece.graph))

    def _edges(self, graph: CrystalGraph) -> Geometry:
        edges = edge_index(graph.senders, graph.receivers, graph.num_atoms)
        harmonics = o3.spherical_harmonics(list(range(self.config.l_max + 1)), graph.e3nn_vector, True, "component")
        return Geometry(edges, harmonics, self.gaussians(graph.length))
