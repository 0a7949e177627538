"""What PyG's attention layers compute, on the fused op.

The classes here own no parameters.
They are for layers that have PyG's parameters by PyG's names: those of :mod:`hamfast.nn.attention`,
and PyG's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hamfast.nn.adjacency import Adjacency, is_adjacency, read_adjacency
from hamfast.nn.checks import check_rows
from hamfast.nn.pair_graph import PairGraph, pair_graph
from hamfast.ops import EdgeIndex, graph_attention
from hamfast.ops.checks import found


def pair(value: Any) -> tuple:
    """One value for both ends of an edge, or (that of senders, that of receivers)."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


class RunsAttention:
    """What both layers have."""

    in_channels: Any
    heads: int
    out_channels: int
    concat: bool
    dropout: float
    edge_dim: int | None
    training: bool
    lin_edge: Any

    def averages(self) -> bool:
        """Is the mean over incoming edges wanted, in place of their sum?"""
        raise NotImplementedError

    def by_head(self, x: Tensor) -> Tensor:
        """``[rows, heads * out_channels]`` -> ``[rows, heads, out_channels]``."""
        return x.unflatten(-1, (self.heads, self.out_channels))

    def joined(self, out: Tensor, graph: PairGraph) -> Tensor:
        """``[receivers, heads, out_channels]``, the sums over incoming edges -> the heads side by
        side, or their mean."""
        if self.averages():
            degree = graph.edges.receiver_ptr.diff().clamp(min=1)
            out = out / degree[:, None, None].to(out.dtype)
        return out.flatten(1) if self.concat else out.mean(1)

    def edge_weight(self) -> Tensor:
        """``[heads, out_channels, edge_dim]``"""
        return self.lin_edge.weight.unflatten(0, (self.heads, self.out_channels))

    def ends(self, x: Any, *linears: Any) -> tuple[Tensor, Tensor]:
        """The features of senders and of receivers, which must fit these linear layers."""
        if isinstance(x, (tuple, list)) and len(x) != 2:
            raise ValueError(
                f"{type(self).__name__}: x: expected a tensor or (senders, receivers), found {len(x)} parts"
            )
        senders, receivers = pair(x)
        for name, rows, linear in zip(("senders", "receivers"), (senders, receivers), linears, strict=True):
            channels = linear.weight.shape[1]
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
        check_rows(name, "edge_attr", edge_attr, self.lin_edge.weight.shape[1], edges)
        return edge_attr

    def seed(self, x: Tensor) -> Tensor | None:
        """From torch's generator; None where nothing is dropped."""
        if not self.training or self.dropout == 0:
            return None
        return torch.randint(2**62, (), device=x.device)


class RunsTransformer(RunsAttention):
    """The call of PyG's ``TransformerConv``."""

    root_weight: bool
    lin_key: Any
    lin_query: Any
    lin_value: Any
    lin_skip: Any
    lin_beta: Any

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
        senders, receivers = self.ends(x, self.lin_key, self.lin_query)
        graph, adjacency = self.graph_of(edge_index, (senders, receivers))
        features, weight = self.edge_features(edge_attr, graph, adjacency), None
        if self.lin_edge is not None:
            if features is None:
                raise ValueError(f"{type(self).__name__}: edge_attr: expected [edges, {self.edge_dim}], found None")
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
        out = self.joined(out, graph)
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


class RunsGATv2(RunsAttention):
    """The call of PyG's ``GATv2Conv``."""

    negative_slope: float
    add_self_loops: bool
    fill_value: float | Tensor | str
    share_weights: bool
    lin_l: Any
    lin_r: Any
    att: Tensor
    res: Any
    bias: Tensor | None

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ):
        """As :meth:`RunsTransformer.forward`, but edge features may be left out.

        The edges that are returned with the weights include the self-loops.
        A sparse matrix is returned with the weights as its values.
        """
        senders, receivers = self.ends(x, self.lin_l, self.lin_r)
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
        out = self.joined(out, graph)
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
