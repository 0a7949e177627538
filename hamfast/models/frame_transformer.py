"""Stage 2 of kind ``frames``: a non-linear graph Transformer that is exactly covariant.

Seen in its own frame, with the z axis along the bond, an edge's features are components m = -l ...
l. Rotating the crystal only turns them about the bond. Those with m = 0 of natural parity do not
turn: they are invariants, and any function of them is allowed. So a block has two streams. The
scalars s of an edge go through networks without restriction. The irreps of atoms and edges go
through linear maps in the edge's frame, and are scaled by functions of s. For an edge with features
e that runs from a sender with features n_s to a receiver with features n_r:

    z = all components with m = 0 of [ n_r | n_s | e ], mixed
    s = s + FFN(LN [ z | s | g | |e| ])
    a = softmax of clip(<Wq s_r, Wk s_s + We s> / sqrt(d)), times the environment's envelope
    n_r = n_r + sum_e a W1(s) o P1 [ n_r | n_s | e | s ]
    e = e + W2(s) o P2 [ n_r | n_s | e | s ]

P1 and P2 are products with the harmonics of the edge's direction, which are those linear maps; with
s among their operands they make components with m = 0 that are any function of the invariants.
``W(s) o`` scales each channel. g are Gaussians of the length, |e| the norms of the channels of e,
s_r and s_s the scalars of the atoms. LN is a layer norm. The softmax, one for each head, and the
sums run over a receiver's edges within the environment.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from hamfast.graph import CrystalGraph
from hamfast.models.covariant import LAYOUT, add_to_onsite, operands_of_edges, path_exists
from hamfast.models.data_axes import DataAxis
from hamfast.models.settings import TransformerConfig, check_heads
from hamfast.models.sweeps import Piece, Sweeps, Whole
from hamfast.nn import (
    EdgeTensorProduct,
    GaussianBasis,
    Linear,
    ScalarLayerNorm,
    convert_layout,
    polynomial_envelope,
)
from hamfast.nn.gate import scale_channels
from hamfast.nn.irreps_layout import split_blocks
from hamfast.ops import EdgeFrames, EdgeIndex, edge_frames, edge_index, graph_attention
from hamfast.targets import TargetSpec


class Bonds:
    """A set of edges of a graph, prepared once for all blocks.

    Args:
        graph: the crystal, with these edges alone.
        l_max: highest l that is rotated.
        gaussians: of the length.
    """

    def __init__(self, graph: CrystalGraph, l_max: int, gaussians: GaussianBasis):
        self.edges: EdgeIndex = edge_index(graph.senders, graph.receivers, graph.num_atoms)
        self.frames: EdgeFrames = edge_frames(graph.e3nn_vector, l_max)
        self.gaussians = gaussians(graph.length)


class Around(NamedTuple):
    """The edges that a block sees."""

    pairs: Bonds
    """All."""
    near: Bonds
    """Those of the environment."""
    kept: Tensor
    """``[edges of the environment]`` int64, which of all edges they are."""
    envelope: Tensor
    """``[edges of the environment]``, 0 at its radius."""


class Attention(nn.Module):
    """Attention of atoms over the edges of their environment, which reads and sums invariants.

    Args:
        config: of stage 2.
        num_scalars: of an atom.
    """

    def __init__(self, config: TransformerConfig, num_scalars: int):
        super().__init__()
        h = config.hidden
        self.heads, self.clip = (config.num_heads, h // config.num_heads), config.score_clip
        self.query, self.key = nn.Linear(num_scalars, h), nn.Linear(num_scalars, h, bias=False)
        self.edge_key, self.value = nn.Linear(h, h, bias=False), nn.Linear(h, h)

    def forward(self, of_atoms: Tensor, of_edges: Tensor, near: Bonds, envelope: Tensor) -> tuple[Tensor, Tensor]:
        """The sums ``[atoms, hidden]`` and the edges' weights ``[edges, heads]``.

        Args:
            of_atoms: ``[atoms, num_scalars]``.
            of_edges: ``[edges, hidden]``.
            near: the edges of the environment.
            envelope: ``[edges]``, 0 at its radius.
        """
        attended = graph_attention(
            near.edges,
            query_receiver=self.query(of_atoms).unflatten(-1, self.heads),
            key_sender=self.key(of_atoms).unflatten(-1, self.heads),
            key_edge=self.edge_key(of_edges).unflatten(-1, self.heads),
            value_edge=self.value(of_edges).unflatten(-1, self.heads),
            clip=self.clip,
            envelope=envelope,
            epsilon=1e-2,
            return_weights=True,
        )
        return attended.out.flatten(1), attended.weights


def heads_of_channels(irreps: Irreps, heads: int) -> Tensor:
    """``[irreps.num_irreps]`` int64: the head whose weights each channel is multiplied with."""
    return torch.cat([torch.arange(mul) * heads // mul for mul, _ in irreps])


class FrameBlock(nn.Module):
    """Invariants in the frames, attention over the environment, update of atoms and edges.

    Args:
        config: of stage 2.
        irreps_node, irreps_edge: of the features.
    """

    head_of: Tensor

    def __init__(self, config: TransformerConfig, irreps_node: Irreps, irreps_edge: Irreps):
        super().__init__()
        h = config.hidden
        self.irreps_node, self.irreps_edge = irreps_node, irreps_edge
        self.num_scalars = irreps_node.count("0e")
        own = irreps_node + irreps_node + irreps_edge
        self.node_norm, self.edge_norm = ScalarLayerNorm(irreps_node), ScalarLayerNorm(irreps_edge)
        self.invariants = EdgeTensorProduct(own, config.l_max, Irreps([(h, (0, 1))]), layout=LAYOUT)
        self.scalar_norm = nn.LayerNorm(2 * h + config.num_basis + irreps_edge.num_irreps)
        self.scalar_ffn = nn.Sequential(
            nn.Linear(2 * h + config.num_basis + irreps_edge.num_irreps, config.ffn_factor * h),
            nn.SiLU(),
            nn.Linear(config.ffn_factor * h, h),
        )
        self.attention = Attention(config, self.num_scalars)
        with_scalars = own + Irreps([(h, (0, 1))])
        self.to_node = EdgeTensorProduct(with_scalars, config.l_max, irreps_node, layout=LAYOUT)
        self.to_edge = EdgeTensorProduct(with_scalars, config.l_max, irreps_edge, layout=LAYOUT)
        self.node_scale, self.edge_scale = nn.Linear(h, irreps_node.num_irreps), nn.Linear(h, irreps_edge.num_irreps)
        self.node_out = Linear(irreps_node, irreps_node, layout=LAYOUT)
        self.edge_out = Linear(irreps_edge, irreps_edge, layout=LAYOUT)
        self.attended_out = nn.Linear(h, self.num_scalars)
        self.register_buffer("head_of", heads_of_channels(irreps_node, config.num_heads), persistent=False)

    def atoms(self, node: Tensor, edge: Tensor, own: Tensor, scalars: Tensor, around: Around) -> tuple[Tensor, Tensor]:
        """The new features of atoms, and the new scalars of edges.

        Args:
            node: ``[atoms, irreps_node.dim]``.
            edge: ``[edges, irreps_edge.dim]``; both in the layout ``ir_mul``.
            own: ``edge_norm`` of ``edge``.
            scalars: ``[edges, hidden]``.
            around: the edges.
        """
        pairs, near, kept, envelope = around
        normed = self.node_norm(node)
        z = self.invariants(operands_of_edges(normed, own, pairs.edges), pairs.frames)
        inputs = torch.cat([z, scalars, pairs.gaussians, norms(edge, self.irreps_edge)], dim=-1)
        scalars = scalars + self.scalar_ffn(self.scalar_norm(inputs))

        of_near = torch.nn.functional.silu(scalars[kept])
        attended, weights = self.attention(normed[:, : self.num_scalars], of_near, near, envelope)
        sources = operands_of_edges(normed, torch.cat([own[kept], of_near], dim=-1), near.edges)
        message = self.to_node(sources, near.frames)
        scale = self.node_scale(of_near) * weights[:, self.head_of]
        message = scaled(message, scale, self.irreps_node)
        total = message.new_zeros(node.shape).index_add(0, near.edges.receivers, message)
        gained = torch.nn.functional.pad(self.attended_out(attended), (0, node.shape[1] - self.num_scalars))
        return node + self.node_out(total) + gained, scalars

    def edges(self, node: Tensor, edge: Tensor, own: Tensor, scalars: Tensor, around: Around) -> tuple[Tensor, Tensor]:
        """The new features of edges, and the scalars that go with them to the next block.

        The arguments are those of :meth:`atoms`, the features of atoms and the scalars its results.
        """
        pairs, active = around.pairs, torch.nn.functional.silu(scalars)
        sources = operands_of_edges(self.node_norm(node), torch.cat([own, active], dim=-1), pairs.edges)
        update = scaled(self.to_edge(sources, pairs.frames), self.edge_scale(active), self.irreps_edge)
        return edge + self.edge_out(update), scalars


def norms(x: Tensor, irreps: Irreps) -> Tensor:
    """``[rows, irreps.num_irreps]``: a smooth measure of each channel's length.

    ``x``: ``[rows, irreps.dim]``, in the layout ``ir_mul``.
    """
    parts = [
        block.unflatten(-1, (ir.dim, mul)).square().mean(-2)
        for block, (mul, ir) in zip(split_blocks(x, irreps), irreps, strict=True)
    ]
    return torch.log1p(torch.cat(parts, dim=-1))


def scaled(x: Tensor, scale: Tensor, irreps: Irreps) -> Tensor:
    """Each channel of ``x`` times its factor in ``scale`` ``[rows, irreps.num_irreps]``."""
    factors = torch.split(scale, [mul for mul, _ in irreps], dim=-1)
    blocks = zip(split_blocks(x, irreps), factors, irreps, strict=True)
    return torch.cat([scale_channels(block, f, mul, ir.dim, LAYOUT) for block, f, (mul, ir) in blocks], dim=-1)


class FrameTransformer(nn.Module):
    """Predicts the correction to stage 1, in the same units of the target normalisation.

    Rotating, inverting or relabelling the crystal does to the correction what it does to the
    Hamiltonian, up to rounding.

    Args:
        config: settings of stage 2.
        spec: the targets.
        irreps_node, irreps_edge: of stage 1's features. Its prediction is a linear map of them, so
            it is not an operand of its own.

    Raises:
        ValueError: the heads do not divide the width.
    """

    block: type[nn.Module] = FrameBlock
    data_axes = {
        "pair_embedding": DataAxis.PAIR_ROWS,
        "output": DataAxis.ENTRY_OUTPUTS,
        "onsite_output": DataAxis.ENTRY_OUTPUTS,
    }

    def __init__(self, config: TransformerConfig, spec: TargetSpec, irreps_node: Irreps, irreps_edge: Irreps):
        super().__init__()
        check_heads(config)
        self.config, self.spec = config, spec
        self.stage1_node, self.stage1_edge = irreps_node, irreps_edge
        hidden = Irreps(config.irreps).sort().irreps.simplify()
        # What the targets have beyond the hidden irreps, such as 1e.
        wanted = {ir for _, ir in spec.irreps if ir not in hidden and path_exists(hidden, config.l_max, ir)}
        fewest = min(mul for mul, _ in hidden)
        blocks = (hidden + Irreps([(fewest, ir) for ir in wanted])).sort().irreps.simplify()
        self.irreps = Irreps(sorted(blocks, key=lambda block: not block.ir.is_scalar()))  # scalars come first
        self.l_max = max(ir.l for _, ir in self.irreps)
        self.gaussians = GaussianBasis(0.0, config.cutoff, config.num_basis)
        self.pair_embedding = nn.Embedding(spec.num_species**2, config.hidden)
        self.length_in = nn.Linear(config.num_basis, config.hidden)
        self.node_in = Linear(irreps_node, self.irreps, layout=LAYOUT)
        self.edge_in = Linear(irreps_edge, self.irreps, layout=LAYOUT)
        self.blocks = nn.ModuleList(self.block(config, self.irreps, self.irreps) for _ in range(config.num_blocks))
        self.output = Linear(self.irreps, spec.irreps, layout=LAYOUT)
        self.onsite_output = Linear(self.irreps, spec.irreps, layout=LAYOUT)
        # The cascade starts as stage 1 exactly.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.onsite_output.weight)

    def receptive_field(self, longest_pair: float) -> float:
        """Angstrom: how much further than stage 1 it looks; ``longest_pair``: of the data."""
        return self.config.num_blocks * (longest_pair if self.config.environment is None else self.config.environment)

    def forward(self, graph: CrystalGraph, baseline: Tensor, node_features: Tensor, edge_features: Tensor) -> Tensor:
        """The correction ``[edges, spec.dim]``.

        Args:
            graph: the crystal.
            baseline: stage 1's output ``[edges, spec.dim]``; not read.
            node_features, edge_features: of stage 1, in the layout ``mul_ir``.
        """
        return self.sweep(Whole(graph), baseline, node_features, edge_features)

    def sweep(self, sweeps: Sweeps, baseline: Any, node_features: Tensor, edge_features: Any) -> Any:
        """What :meth:`forward` returns, by sweeps: what is of edges is a field."""
        node = self.node_in(convert_layout(node_features, self.stage1_node, "mul_ir", LAYOUT))

        def first(piece: Piece) -> tuple[Tensor, Tensor]:
            edge = convert_layout(piece.edges(edge_features), self.stage1_edge, "mul_ir", LAYOUT)
            scalars = self.pair_embedding(piece.graph.pair_species(self.spec.num_species))
            return self.edge_in(edge), scalars + self.length_in(self._around(piece).pairs.gaussians)

        edge, scalars = sweeps.edges(first)
        for block in self.blocks:
            node, edge, scalars = self._block(block, sweeps, node, edge, scalars)

        def output(piece: Piece) -> tuple[Tensor]:
            of_atoms, onsite = self.onsite_output(piece.nodes(node)), self._around(piece).pairs.frames.onsite
            return (add_to_onsite(self.output(piece.edges(edge)), of_atoms, onsite, piece.graph.receivers),)

        return sweeps.edges(output)[0]

    def _block(self, block, sweeps: Sweeps, node: Tensor, edge: Any, scalars: Any) -> tuple[Tensor, Any, Any]:
        def own(piece: Piece) -> Tensor:
            return piece.once("own", lambda: block.edge_norm(piece.edges(edge)), block)

        def atoms(piece: Piece) -> tuple[Tensor, Tensor]:
            rows = piece.edges(edge)
            return block.atoms(piece.nodes(node), rows, own(piece), piece.edges(scalars), self._around(piece))

        new, of_edges = sweeps.both(atoms)

        def edges(piece: Piece) -> tuple[Tensor, Tensor]:
            rows = piece.edges(edge)
            return block.edges(piece.nodes(new), rows, own(piece), piece.edges(of_edges), self._around(piece))

        return new, *sweeps.edges(edges)

    def _around(self, piece: Piece) -> Around:
        return piece.once("around", lambda: self._edges(piece.graph))

    def _edges(self, graph: CrystalGraph) -> Around:
        radius = self.config.environment
        pairs = Bonds(graph, self.l_max, self.gaussians)
        if radius is None:
            every = torch.arange(graph.num_edges, device=graph.vector.device)
            return Around(pairs, pairs, every, torch.ones_like(graph.length))
        kept = graph.shorter_than(radius)
        near = graph.with_edges(kept)
        return Around(pairs, Bonds(near, self.l_max, self.gaussians), kept, polynomial_envelope(near.length, radius))
