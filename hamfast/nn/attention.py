"""PyG's attention layers on the fused op: the same arguments, numbers and ``state_dict``, without a tensor per edge, head and channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hamfast.nn.pair_graph import PairGraph, pair_graph
from hamfast.ops import EdgeIndex, graph_attention


def _pair(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _seed(module: nn.Module, x: Tensor) -> Tensor | None:
    """From torch's generator; None where nothing is dropped."""
    if not module.training or module.dropout == 0:
        return None
    return torch.randint(2**62, (), device=x.device)


class GraphTransformerConv(nn.Module):
    """``torch_geometric.nn.TransformerConv``: multi-head dot-product attention with edge features in key and value.

    Per head, with sender j and receiver i: ``softmax_j(<W_q x_i, W_k x_j + W_e e> / sqrt(C))`` weighs ``W_v x_j + W_e e``; then a skip
    connection ``W_s x_i`` (gated with ``beta``). ``W_e e`` is never made for edges, see :func:`hamfast.ops.graph_attention`.

    Args:
        in_channels: of the nodes, or (senders, receivers).
        out_channels: per head.
        concat: heads side by side, ``[nodes, heads * out_channels]``; else their mean.
        beta, dropout, edge_dim, bias, root_weight: as in PyG. Dropout has its own random numbers.
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
        super().__init__()
        self.in_channels, self.out_channels, self.heads, self.edge_dim = in_channels, out_channels, heads, edge_dim
        self.concat, self.beta, self.dropout, self.root_weight = concat, beta and root_weight, dropout, root_weight
        senders, receivers = _pair(in_channels)
        width, total = heads * out_channels, heads * out_channels if concat else out_channels
        self.lin_key = nn.Linear(senders, width, bias=bias)
        self.lin_query = nn.Linear(receivers, width, bias=bias)
        self.lin_value = nn.Linear(senders, width, bias=bias)
        self.lin_edge = nn.Linear(edge_dim, width, bias=False) if edge_dim is not None else None
        self.lin_skip = nn.Linear(receivers, total, bias=bias)
        self.lin_beta = nn.Linear(3 * total, 1, bias=False) if self.beta else None

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Tensor | EdgeIndex,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ):
        """``[receivers, heads * out_channels]``; with ``return_attention_weights`` also ``(edge_index, [edges, heads])``.

        Args:
            x: ``[nodes, in_channels]``, or (senders, receivers).
            edge_index: ``[2, edges]``, senders first, or a prepared :class:`hamfast.ops.EdgeIndex`. A tensor is sorted once and
                remembered while it lives and is not written to.
            edge_attr: ``[edges, edge_dim]``.
        """
        senders, receivers = _pair(x)
        graph = pair_graph(edge_index, senders.shape[0], receivers.shape[0])
        heads = (self.heads, self.out_channels)
        edges = {}
        if self.lin_edge is not None:
            weight = self.lin_edge.weight.unflatten(0, heads)
            edges = {
                "edge": _edge_features(self, edge_attr),
                "edge_key_weight": weight,
                "edge_value_weight": weight,
            }
        out, weights, _, _ = graph_attention(
            graph.edges,
            query_receiver=self.lin_query(receivers).unflatten(-1, heads),
            key_sender=self.lin_key(senders).unflatten(-1, heads),
            value_sender=self.lin_value(senders).unflatten(-1, heads),
            **edges,
            dropout=self.dropout,
            seed=_seed(self, senders),
            return_weights=return_attention_weights is not None,
            return_lse=True,
        )
        out = out.flatten(1) if self.concat else out.mean(1)
        if self.root_weight:
            skip = self.lin_skip(receivers)
            if self.lin_beta is not None:
                beta = self.lin_beta(torch.cat([out, skip, out - skip], dim=-1)).sigmoid()
                out = beta * skip + (1 - beta) * out
            else:
                out = out + skip
        return out if return_attention_weights is None else (out, (graph.pairs, weights))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"


class GATv2Conv(nn.Module):
    """``torch_geometric.nn.GATv2Conv``: additive attention ``<att, LeakyReLU(W_l x_j + W_r x_i + W_e e)>`` over ``W_l x_j``.

    Arguments as in PyG; ``fill_value`` (for the edge features of added self-loops) is a number, a tensor ``[edge_dim]``, or ``mean``,
    ``add``, ``min``, ``max`` or ``mul`` of the edges that arrive.
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
        super().__init__()
        self.in_channels, self.out_channels, self.heads, self.edge_dim = in_channels, out_channels, heads, edge_dim
        self.concat, self.negative_slope, self.dropout = concat, negative_slope, dropout
        self.add_self_loops, self.fill_value = add_self_loops, fill_value
        self.share_weights, self.residual = share_weights, residual
        senders, receivers = _pair(in_channels)
        width, total = heads * out_channels, heads * out_channels if concat else out_channels
        self.lin_l = nn.Linear(senders, width, bias=bias)
        self.lin_r = self.lin_l if share_weights else nn.Linear(receivers, width, bias=bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self.lin_edge = nn.Linear(edge_dim, width, bias=False) if edge_dim is not None else None
        self.res = nn.Linear(receivers, total, bias=False) if residual else None
        self.bias = nn.Parameter(torch.zeros(total)) if bias else None
        nn.init.xavier_uniform_(self.att)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Tensor | EdgeIndex,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ):
        """As :meth:`GraphTransformerConv.forward`; the edges returned with the weights include the self-loops."""
        senders, receivers = _pair(x)
        graph = pair_graph(edge_index, senders.shape[0], receivers.shape[0], self.add_self_loops)
        heads = (self.heads, self.out_channels)
        left = self.lin_l(senders).unflatten(-1, heads)
        right = (
            left
            if self.share_weights and not isinstance(x, (tuple, list))
            else self.lin_r(receivers).unflatten(-1, heads)
        )
        edges = {}
        if self.lin_edge is not None:
            features = _edge_features(self, edge_attr)
            if graph.kept is not None:
                features = _with_self_loops(features, graph, self.fill_value)
            edges = {"edge": features, "edge_key_weight": self.lin_edge.weight.unflatten(0, heads)}
        out, weights, _, _ = graph_attention(
            graph.edges,
            query_receiver=right,
            key_sender=left,
            value_sender=left,
            **edges,
            score="additive",
            vector=self.att[0],
            negative_slope=self.negative_slope,
            dropout=self.dropout,
            seed=_seed(self, senders),
            return_weights=bool(return_attention_weights),
            return_lse=True,
        )
        out = out.flatten(1) if self.concat else out.mean(1)
        if self.res is not None:
            out = out + self.res(receivers)
        if self.bias is not None:
            out = out + self.bias
        return (out, (graph.pairs, weights)) if return_attention_weights else out

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"


def _edge_features(layer: nn.Module, edge_attr: Tensor | None) -> Tensor:
    if edge_attr is None:
        raise ValueError(f"{type(layer).__name__}: edge_attr: expected [edges, {layer.edge_dim}], found None")
    return edge_attr.unsqueeze(-1) if edge_attr.dim() == 1 else edge_attr


def _with_self_loops(features: Tensor, graph: PairGraph, fill_value: float | Tensor | str) -> Tensor:
    """Features of the edges that are kept, then those of the added loops: one per node."""
    assert graph.kept is not None
    loops = graph.pairs.shape[1] - int(graph.kept.sum())
    kept = features[graph.kept]
    if isinstance(fill_value, str):
        names = {"mean": "mean", "add": "sum", "sum": "sum", "min": "amin", "max": "amax", "mul": "prod"}
        if fill_value not in names:
            raise ValueError(f"GATv2Conv: fill_value: expected one of {', '.join(names)}, found {fill_value!r}")
        index = graph.pairs[1, : kept.shape[0]]
        filled = features.new_zeros(loops, features.shape[1])
        inside = index < loops
        filled = filled.scatter_reduce(
            0, index[inside, None].expand(-1, features.shape[1]), kept[inside], names[fill_value], include_self=False
        )
    else:
        value = torch.as_tensor(fill_value, dtype=features.dtype, device=features.device)
        filled = value.expand(loops, features.shape[1])
    return torch.cat([kept, filled])
