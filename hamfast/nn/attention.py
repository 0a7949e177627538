"""PyG's attention layers on the fused op.

Arguments, results and ``state_dict`` are the same.
No tensor per edge, head and channel is made.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hamfast.nn.attention_call import RunsAttention, RunsGATv2, RunsTransformer, pair
from hamfast.nn.checks import NotScripted
from hamfast.ops.checks import check_count, check_probability, found

SUMS = ("add", "sum", "mean")
"""What ``aggr`` may be: how PyG calls the sum over incoming edges, and their mean."""
LAZY = -1
"""PyG's word for a size that the first call tells."""


class _AttentionConv(RunsAttention, NotScripted):
    """What both layers have. Parameters are each layer's own, in PyG's order: optimizers count on
    it.
    """

    def __init__(
        self, in_channels, out_channels: int, heads: int, concat: bool, dropout: float, edge_dim: int | None, aggr: str
    ):
        super().__init__()
        name = type(self).__name__
        for end in pair(in_channels):
            if end != LAZY:
                check_count(name, "in_channels", end)
        check_count(name, "out_channels", out_channels, 1)
        check_count(name, "heads", heads, 1)
        check_probability(name, "dropout", dropout)
        if edge_dim is not None and edge_dim != LAZY:
            check_count(name, "edge_dim", edge_dim)
        if aggr not in SUMS:
            raise ValueError(f"{name}: aggr: expected one of {', '.join(SUMS)}, found {found(aggr)}")
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.concat, self.dropout, self.edge_dim, self.aggr = concat, dropout, edge_dim, aggr

    @property
    def total_channels(self) -> int:
        """Channels of a row of the output."""
        return self.heads * self.out_channels if self.concat else self.out_channels

    def averages(self) -> bool:
        """Is ``aggr`` the mean?"""
        return self.aggr == "mean"

    def linears(self) -> list[tuple[nn.Linear | None, int]]:
        """All linear layers in the order in which PyG draws them, each with what it is for:
        senders (0), receivers (1), edges (2)."""
        raise NotImplementedError

    def edge_linear(self) -> nn.Linear | None:
        """The projection of the edges' features; None without ``edge_dim``."""
        return None if self.edge_dim is None else _linear(self.edge_dim, self.heads * self.out_channels, False)

    def draw(self, linear: nn.Linear) -> None:
        """Draws the parameters of one of the linear layers anew."""
        linear.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters anew, from PyG's distributions and in PyG's order.

        Those whose size the first call tells are drawn then.
        """
        for linear, _ in self.linears():
            if linear is not None and not _is_lazy(linear):
                self.draw(linear)

    def _tell(self, rows: Any, place: int) -> None:
        """Makes the parameters whose size these rows tell."""
        for linear, own in self.linears():
            if linear is not None and own == place and _is_lazy(linear) and isinstance(rows, Tensor):
                linear(rows[:0])
                self.draw(linear)

    def ends(self, x: Any, *linears: Any) -> tuple[Tensor, Tensor]:
        """The features of senders and of receivers."""
        for place, rows in enumerate(pair(x)[:2]):
            self._tell(rows, place)
        return super().ends(x, *linears)

    def edge_features(self, edge_attr: Any, graph: Any, adjacency: Any) -> Tensor | None:
        """``[edges given, edge_dim]``"""
        given = adjacency.features if edge_attr is None and adjacency is not None else edge_attr
        self._tell(given.unsqueeze(-1) if isinstance(given, Tensor) and given.dim() == 1 else given, 2)
        return super().edge_features(edge_attr, graph, adjacency)

    def extra_repr(self) -> str:
        """What ``print`` of the layer says in its brackets."""
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"


def _linear(channels: int, width: int, bias: bool) -> nn.Linear:
    return nn.LazyLinear(width, bias=bias) if channels == LAZY else nn.Linear(channels, width, bias=bias)


def _is_lazy(linear: nn.Linear) -> bool:
    return isinstance(linear, nn.LazyLinear) and linear.has_uninitialized_params()


def _glorot(tensor: Tensor) -> None:
    """PyG's initialisation: uniform, of the variance 2 / (sum of the last two sizes)."""
    bound = math.sqrt(6.0 / (tensor.shape[-2] + tensor.shape[-1]))
    nn.init.uniform_(tensor, -bound, bound)


class GraphTransformerConv(RunsTransformer, _AttentionConv):
    """``torch_geometric.nn.TransformerConv``: multi-head dot-product attention.

    Edge features e take part in the key and in the value.
    With the sender s and the receiver r of an edge, each head weighs ``W_v x_s + W_e e`` by

        softmax_s(<W_q x_r, W_k x_s + W_e e> / sqrt(C)),

    where C is ``out_channels``. A skip connection ``W_s x_r`` is added, gated with ``beta``.
    ``W_e e`` is never made for edges, see :func:`hamfast.ops.graph_attention`.

    Args:
        in_channels: of the nodes, or (senders, receivers). -1: the first call tells, as of
            ``edge_dim``.
        out_channels: per head.
        concat: heads side by side, ``[nodes, heads * out_channels]``; else their mean.
        beta, dropout, edge_dim, bias, root_weight: as in PyG. Dropout draws its own random
            values.
        aggr: ``add`` and ``sum`` are the sum over incoming edges, ``mean`` is their mean.

    Raises:
        TypeError, ValueError: an argument that no layer can have; the message names it.
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
        aggr: str = "add",
    ):
        super().__init__(in_channels, out_channels, heads, concat, dropout, edge_dim, aggr)
        self.beta, self.root_weight = beta and root_weight, root_weight
        senders, receivers = pair(in_channels)
        width, total = heads * out_channels, self.total_channels
        self.lin_key = _linear(senders, width, bias)
        self.lin_query = _linear(receivers, width, bias)
        self.lin_value = _linear(senders, width, bias)
        self.lin_edge = self.edge_linear()
        self.lin_skip = _linear(receivers, total, bias)
        self.lin_beta = nn.Linear(3 * total, 1, bias=False) if self.beta else None
        self.reset_parameters()

    def linears(self) -> list[tuple[nn.Linear | None, int]]:
        """As PyG draws them."""
        ends = [(self.lin_key, 0), (self.lin_query, 1), (self.lin_value, 0), (self.lin_edge, 2), (self.lin_skip, 1)]
        return [*ends, (self.lin_beta, 1)]


class GATv2Conv(RunsGATv2, _AttentionConv):
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
        aggr: str = "add",
    ):
        super().__init__(in_channels, out_channels, heads, concat, dropout, edge_dim, aggr)
        self.negative_slope, self.add_self_loops, self.fill_value = negative_slope, add_self_loops, fill_value
        self.share_weights, self.residual = share_weights, residual
        senders, receivers = pair(in_channels)
        width, total = heads * out_channels, self.total_channels
        self.lin_l = _linear(senders, width, bias)
        self.lin_r = self.lin_l if share_weights else _linear(receivers, width, bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self.lin_edge = self.edge_linear()
        self.res = _linear(receivers, total, False) if residual else None
        self.bias = nn.Parameter(torch.zeros(total)) if bias else None
        self.reset_parameters()

    def linears(self) -> list[tuple[nn.Linear | None, int]]:
        """As PyG draws them."""
        return [(self.lin_l, 0), (self.lin_r, 1), (self.lin_edge, 2), (self.res, 1)]

    def draw(self, linear: nn.Linear) -> None:
        """Weights by Glorot's rule, biases as torch's linear layers."""
        _glorot(linear.weight)
        if linear.bias is not None:
            bound = 1 / math.sqrt(linear.in_features) if linear.in_features else 0.0
            nn.init.uniform_(linear.bias, -bound, bound)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, from PyG's distributions and in PyG's order.

        Those whose size the first call tells are drawn then.
        """
        super().reset_parameters()
        _glorot(self.att)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
