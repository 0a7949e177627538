"""PyG's attention layers on the fused op.

Arguments, results and ``state_dict`` are the same.
No tensor per edge, head and channel is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hamfast.nn.adjacency import Adjacency, is_adjacency, read_adjacency
from hamfast.nn.checks import NotScripted, check_rows
from hamfast.nn.pair_graph import PairGraph, pair_graph
from hamfast.ops import EdgeIndex, graph_attention
from hamfast.ops.checks import check_count, check_probability, found


def _pair(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


class _AttentionConv(NotScripted):
    """What both layers have. Parameters are each layer's own, in PyG's order: optimizers count on
    it.
    """

    lin_edge: nn.Linear | None

    def __init__(self, in_channels, out_channels: int, heads: int, concat: bool, dropout: float, edge_dim: int | None):
        super().__init__()
        name = type(self).__name__
        for end in _pair(in_channels):
            check_count(name, "in_channels", end)
        check_count(name, "out_channels", out_channels, 1)
        check_count(name, "heads", heads, 1)
        check_probability(name, "dropout", dropout)
        if edge_dim is not None:
            check_count(name, "edge_dim", edge_dim)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.concat, self.dropout, self.edge_dim = concat, dropout, edge_dim

    @property
    def total_channels(self) -> int:
        """Channels of a row of the output."""
        return self.heads * self.out_channels if self.concat else self.out_channels

    def by_head(self, x: Tensor) -> Tensor:
        """``[rows, heads * out_channels]`` -> ``[rows, heads, out_channels]``."""
        return x.unflatten(-1, (self.heads, self.out_channels))

    def joined(self, out: Tensor) -> Tensor:
        """``[receivers, heads, out_channels]`` -> ``[receivers, total_channels]``: side by side, or
        the mean.
        """
        return out.flatten(1) if self.concat else out.mean(1)

    def edge_linear(self) -> nn.Linear | None:
        """The projection of the edges' features; None without ``edge_dim``."""
        return (
            nn.Linear(self.edge_dim, self.heads * self.out_channels, bias=False) if self.edge_dim is not None else None
        )

    def edge_weight(self) -> Tensor:
        """``[heads, out_channels, edge_dim]``"""
        assert self.lin_edge is not None
        return self.lin_edge.weight.unflatten(0, (self.heads, self.out_channels))

    def ends(self, x: Any) -> tuple[Tensor, Tensor]:
        """The features of senders and of receivers."""
        if isinstance(x, (tuple, list)) and len(x) != 2:
            raise ValueError(
                f"{type(self).__name__}: x: expected a tensor or (senders, receivers), found {len(x)} parts"
            )
        senders, receivers = _pair(x)
        for name, rows, channels in zip(
            ("senders", "receivers"), (senders, receivers), _pair(self.in_channels), strict=True
        ):
            check_rows(type(self).__name__, "x" if senders is receivers else f"x ({name})", rows, channels)
        return senders, receivers

    def graph_of(self, edge_index: Any, ends: tuple[Tensor, Tensor], add_self_loops: bool = False):
        """The graph, and the adjacency that it came from, or None."""
        num_senders, num_receivers = (rows.shape[0] for rows in ends)
        if not is_adjacency(edge_index):
            return pair_graph(edge_index, num_senders, num_receivers, add_self_loops), None
        adjacency = read_adjacency(edge_index, num_senders, num_receivers)
        return pair_graph(adjacency.pairs, num_senders, num_receivers, add_self_loops, edge_index), adjacency

    def edge_features(self, edge_attr: Any, graph: PairGraph, adjacency: Adjacency | None) -> Tensor | None:
        """``[edges given, edge_dim]``: the argument, or the rows that an adjacency holds as
        values."""
        name = type(self).__name__
        if edge_attr is None and adjacency is not None:
            edge_attr = adjacency.features
        if self.lin_edge is None:
            if edge_attr is not None:
                raise ValueError(
                    f"{name}: edge_attr: expected None, as the layer was made without edge_dim, found {found(edge_attr)}"
                )
            return None
        if edge_attr is None:
            return None
        if isinstance(edge_attr, Tensor) and edge_attr.dim() == 1:
            edge_attr = edge_attr.unsqueeze(-1)
        edges = graph.edges.num_edges if graph.kept is None else graph.kept.shape[0]
        check_rows(name, "edge_attr", edge_attr, self.lin_edge.in_features, edges)
        return edge_attr

    def seed(self, x: Tensor) -> Tensor | None:
        """From torch's generator; None where nothing is dropped."""
        if not self.training or self.dropout == 0:
            return None
        return torch.randint(2**62, (), device=x.device)

    def extra_repr(self) -> str:
        """What ``print`` of the layer says in its brackets."""
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"


class GraphTransformerConv(_AttentionConv):
    """``torch_geometric.nn.TransformerConv``: multi-head dot-product attention.

    Edge features e take part in the key and in the value.
    With the sender s and the receiver r of an edge, each head weighs ``W_v x_s + W_e e`` by

        softmax_s(<W_q x_r, W_k x_s + W_e e> / sqrt(C)),

    where C is ``out_channels``. A skip connection ``W_s x_r`` is added, gated with ``beta``.
    ``W_e e`` is never made for edges, see :func:`hamfast.ops.graph_attention`.

    Args:
        in_channels: of the nodes, or (senders, receivers).
        out_channels: per head.
        concat: heads side by side, ``[nodes, heads * out_channels]``; else their mean.
        beta, dropout, edge_dim, bias, root_weight: as in PyG. Dropout draws its own random
            values.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
    ):
        super().__init__(in_channels, out_channels, heads, concat, dropout, edge_dim)
        self.beta, self.root_weight = beta and root_weight, root_weight
        senders, receivers = _pair(in_channels)
        width, total = heads * out_channels, self.total_channels
        self.lin_key = nn.Linear(senders, width, bias=bias)
        self.lin_query = nn.Linear(receivers, width, bias=bias)
        self.lin_value = nn.Linear(senders, width, bias=bias)
        self.lin_edge = self.edge_linear()
        self.lin_skip = nn.Linear(receivers, total, bias=bias)
        self.lin_beta = nn.Linear(3 * total, 1, bias=False) if self.beta else None

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ):
        """``[receivers, heads * out_channels]``; with ``return_attention_weights`` also
        ``(edge_index, [edges, heads])``.

        Args:
            x: ``[nodes, in_channels]``, or (senders, receivers).
            edge_index: ``[2, edges]`` integers, senders first, or a prepared
                :class:`hamfast.ops.EdgeIndex`; or a sparse matrix ``[receivers, senders]`` of torch
                or torch_sparse, whose values may be the edges' features. What is given is sorted
                once and remembered while it lives and its entries stay.
            edge_attr: ``[edges, edge_dim]``; None for a layer without edge_dim.
            return_attention_weights: as in PyG, also for sparse matrices.

        Raises:
            TypeError: an argument has another type.
            ValueError: a shape or dtype does not fit, or edge_attr is missing or has no use; the
                message names the argument.
        """
        senders, receivers = self.ends(x)
        graph, adjacency = self.graph_of(edge_index, (senders, receivers))
        features, weight = self.edge_features(edge_attr, graph, adjacency), None
        if self.lin_edge is not None:
            if features is None:
                raise ValueError(f"GraphTransformerConv: edge_attr: expected [edges, {self.edge_dim}], found None")
            weight = self.edge_weight()
        out, weights, _, _ = graph_attention(
            graph.edges,
            query_receiver=self.by_head(self.lin_query(receivers)),
            key_sender=self.by_head(self.lin_key(senders)),
            value_sender=self.by_head(self.lin_value(senders)),
            edge=features,
            edge_key_weight=weight,
            edge_value_weight=weight,
            dropout=self.dropout,
            seed=self.seed(senders),
            return_weights=return_attention_weights is not None,
            return_lse=True,
        )
        out = self.joined(out)
        if self.root_weight:
            skip = self.lin_skip(receivers)
            if self.lin_beta is not None:
                beta = self.lin_beta(torch.cat([out, skip, out - skip], dim=-1)).sigmoid()
                out = beta * skip + (1 - beta) * out
            else:
                out = out + skip
        if return_attention_weights is None:
            return out
        if adjacency is None:
            return out, (graph.pairs if isinstance(edge_index, EdgeIndex) else edge_index, weights)
        if isinstance(edge_index, Tensor):
            return out, (edge_index, weights)
        return out, adjacency.with_weights(weights, graph.pairs)


class GATv2Conv(_AttentionConv):
    """``torch_geometric.nn.GATv2Conv``: additive attention.

    With the sender s and the receiver r of an edge, the score of ``W_l x_s`` is
    ``<att, LeakyReLU(W_l x_s + W_r x_r + W_e e)>``.
    Arguments are those of PyG.
    ``fill_value`` gives the edge features of the self-loops that are added.
    It is a float, a tensor ``[edge_dim]``, or one of ``mean``, ``add``, ``min``, ``max`` and
    ``mul`` over
    the incoming edges.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        share_weights: bool = False,
        residual: bool = False,
    ):
        super().__init__(in_channels, out_channels, heads, concat, dropout, edge_dim)
        self.negative_slope, self.add_self_loops, self.fill_value = negative_slope, add_self_loops, fill_value
        self.share_weights, self.residual = share_weights, residual
        senders, receivers = _pair(in_channels)
        width, total = heads * out_channels, self.total_channels
        self.lin_l = nn.Linear(senders, width, bias=bias)
        self.lin_r = self.lin_l if share_weights else nn.Linear(receivers, width, bias=bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self.lin_edge = self.edge_linear()
        self.res = nn.Linear(receivers, total, bias=False) if residual else None
        self.bias = nn.Parameter(torch.zeros(total)) if bias else None
        nn.init.xavier_uniform_(self.att)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ):
        """As :meth:`GraphTransformerConv.forward`, but edge features may be left out.

        The edges that are returned with the weights include the self-loops.
        A sparse matrix is returned with the weights as its values.
        """
        senders, receivers = self.ends(x)
        graph, adjacency = self.graph_of(edge_index, (senders, receivers), self.add_self_loops)
        if adjacency is not None and edge_attr is not None and self.add_self_loops:
            raise ValueError(
                "GATv2Conv: edge_attr: expected None with self-loops added to a sparse matrix, whose values take its place"
            )
        left = self.by_head(self.lin_l(senders))
        right = left if self.share_weights and not isinstance(x, (tuple, list)) else self.by_head(self.lin_r(receivers))
        features, weight = self.edge_features(edge_attr, graph, adjacency), None
        if features is not None:
            weight = self.edge_weight()
            if graph.kept is not None:
                features = _with_self_loops(features, graph, self.fill_value)
        out, weights, _, _ = graph_attention(
            graph.edges,
            query_receiver=right,
            key_sender=left,
            value_sender=left,
            edge=features,
            edge_key_weight=weight,
            score="additive",
            vector=self.att[0],
            negative_slope=self.negative_slope,
            dropout=self.dropout,
            seed=self.seed(senders),
            return_weights=bool(return_attention_weights),
            return_lse=True,
        )
        out = self.joined(out)
        if self.res is not None:
            out = out + self.res(receivers)
        if self.bias is not None:
            out = out + self.bias
        if not return_attention_weights:
            return out
        if adjacency is None:
            keeps = graph.kept is None and not isinstance(edge_index, EdgeIndex)
            return out, (edge_index if keeps else graph.pairs, weights)
        made = adjacency.with_weights(weights, graph.pairs)
        return out, (
            (made, made.values() if graph.kept is not None else weights) if isinstance(edge_index, Tensor) else made
        )


def _with_self_loops(features: Tensor, graph: PairGraph, fill_value: float | Tensor | str) -> Tensor:
    """Features of the edges that are kept, then those of the added loops: one per node."""
    assert graph.kept is not None
    kept = features[graph.kept]
    loops = graph.edges.num_edges - kept.shape[0]
    if isinstance(fill_value, str):
        names = {"mean": "mean", "add": "sum", "sum": "sum", "min": "amin", "max": "amax", "mul": "prod"}
        if fill_value not in names:
            raise ValueError(f"GATv2Conv: fill_value: expected one of {', '.join(names)}, found {fill_value!r}")
        index = graph.edges.receivers[: kept.shape[0]]
        filled = features.new_zeros(loops, features.shape[1])
        inside = index < loops
        filled = filled.scatter_reduce(
            0, index[inside, None].expand(-1, features.shape[1]), kept[inside], names[fill_value], include_self=False
        )
    else:
        value = torch.as_tensor(fill_value, dtype=features.dtype, device=features.device)
        filled = value.expand(loops, features.shape[1])
    return torch.cat([kept, filled])
