"""Equivariant layer normalisation."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from hamfast.nn.checks import NotScripted, check_index, check_rows
from hamfast.nn.irreps_layout import check_layout
from hamfast.ops.checks import check_count


class Statistics(NamedTuple):
    """Of all rows of each graph."""

    rows: Tensor
    """``[graphs]``: how many there are, at least 1."""
    mean: Tensor
    """``[graphs, components]``: over the rows and the channels of a block."""
    variance: Tensor
    """``[graphs, components]``: of the same; 0 for components that are no scalars."""


def _as_it_is(part: Tensor) -> Tensor:
    return part


class EquivariantLayerNorm(NotScripted):
    """DeepH-E3's layer norm: statistics over all rows of a graph and all channels of an irreps
    block.

    Per block: subtract the mean of each component; for l = 0 divide by (root mean square + eps);
    multiply each channel by
    ``weight``; add ``bias`` to ``0e`` channels.
    """

    component: Tensor
    channel: Tensor
    per_component: Tensor
    scalar: Tensor
    scalar_block: Tensor
    biased: Tensor

    def __init__(self, irreps, eps: float = 1e-5, layout: str = "mul_ir"):
        super().__init__()
        self.irreps, self.eps, self.layout = Irreps(irreps), eps, check_layout(layout)
        self.weight = nn.Parameter(torch.ones(self.irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(sum(mul for mul, ir in self.irreps if ir.is_scalar())))
        # Index tables over the elements of a row, so that all blocks are normalised in a few passes
        # over the rows.
        component, channel, scalar, scalar_block, biased = [], [], [], [], []
        counts: list[float] = []
        start = 0
        for n, (mul, ir) in enumerate(self.irreps):
            shape = (ir.dim, mul) if self.layout == "ir_mul" else (mul, ir.dim)
            m = torch.arange(ir.dim).view(-1, 1) if self.layout == "ir_mul" else torch.arange(ir.dim)
            u = torch.arange(mul) if self.layout == "ir_mul" else torch.arange(mul).view(-1, 1)
            component.append((len(counts) + m).expand(shape).flatten())
            channel.append((sum(c for c, _ in self.irreps[:n]) + u).expand(shape).flatten())
            counts += [float(mul)] * ir.dim
            if ir.l == 0:
                scalar.append(torch.arange(start, start + mul))
                scalar_block.append(torch.full((mul,), len(counts) - 1))
            if ir.is_scalar():
                biased.append(torch.arange(start, start + mul))
            start += mul * ir.dim

        def table(name, pieces):
            self.register_buffer(
                name, torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64), persistent=False
            )

        table("component", component)  # [dim]: which component of which block
        table("channel", channel)  # [dim]: which channel of the row
        table("scalar", scalar)  # elements with l = 0
        table("scalar_block", scalar_block)  # and their component
        table("biased", biased)  # elements with a bias
        self.register_buffer("per_component", torch.tensor(counts), persistent=False)

    def forward(self, x: Tensor, graph: Tensor, num_graphs: int) -> Tensor:
        """``[rows, irreps.dim]``; ``graph``: ``[rows]`` int64, the graph of each row -> ``[rows,
        irreps.dim]``.
        """
        check_rows("EquivariantLayerNorm", "x", x, self.component.shape[0])
        check_index("EquivariantLayerNorm", "graph", graph, x.shape[0])
        check_count("EquivariantLayerNorm", "num_graphs", num_graphs, 1)
        return self._normalized(*self._statistics(x, graph, num_graphs, None, _as_it_is), graph)

    def statistics(
        self,
        x: Tensor,
        graph: Tensor,
        num_graphs: int,
        rows: Tensor | None = None,
        add_up: Callable[[Tensor], Tensor] = _as_it_is,
    ) -> Statistics:
        """What :meth:`normalized` needs to know of all rows; the first arguments are those of the
        call.

        Args:
            rows: ``[graphs]``, how many there are, where ``x`` holds only some of them.
            add_up: what a tensor is, added up over all parts of the rows.
        """
        return self._statistics(x, graph, num_graphs, rows, add_up)[0]

    def normalized(self, x: Tensor, statistics: Statistics, graph: Tensor) -> Tensor:
        """Some rows, with the statistics of all.

        ``graph``: ``[rows]`` int64, the graph of each.
        """
        centred = x - self._to_rows(statistics.mean[:, self.component], graph)
        return self._normalized(statistics, centred, graph)

    def _statistics(
        self, x: Tensor, graph: Tensor, num_graphs: int, rows: Tensor | None, add_up: Callable[[Tensor], Tensor]
    ) -> tuple[Statistics, Tensor]:
        """Those of all rows, and the rows less their means."""
        if rows is None:
            rows = x.new_zeros(num_graphs).index_add_(0, graph, x.new_ones(x.shape[0])).clamp_(min=1.0)
        mean = add_up(self._component_mean(x, self.component, graph, rows))
        centred = x - self._to_rows(mean[:, self.component], graph)
        variance = torch.zeros_like(mean)
        if self.scalar.numel():
            squares = centred.index_select(1, self.scalar).square()
            variance = add_up(self._component_mean(squares, self.scalar_block, graph, rows))
        return Statistics(rows, mean, variance), centred

    def _normalized(self, statistics: Statistics, centred: Tensor, graph: Tensor) -> Tensor:
        factor = self.weight[self.channel]
        if self.scalar.numel():
            # 1e-30 changes no digit, and keeps the gradient of a constant field finite.
            inverse = 1 / ((statistics.variance[:, self.scalar_block] + 1e-30).sqrt() + self.eps)
            graphs = statistics.rows.shape[0]
            scale = factor.expand(graphs, -1).index_copy(1, self.scalar, inverse * factor[self.scalar])
            out = centred * self._to_rows(scale, graph)
        else:
            out = centred * factor
        if self.biased.numel():
            out = out + torch.zeros_like(factor).index_copy(0, self.biased, self.bias)
        return out

    def _component_mean(self, x: Tensor, component: Tensor, graph: Tensor, rows: Tensor) -> Tensor:
        """``[graphs, components]``: mean over the rows of each graph and the channels of each
        block.
        """
        if rows.shape[0] == 1:
            total = x.sum(0, keepdim=True)
        else:
            total = x.new_zeros(rows.shape[0], x.shape[1]).index_add(0, graph, x)
        sums = total.new_zeros(rows.shape[0], self.per_component.shape[0]).index_add(1, component, total)
        return sums / (rows[:, None] * self.per_component.to(x.dtype))

    @staticmethod
    def _to_rows(per_graph: Tensor, graph: Tensor) -> Tensor:
        """Gives each row the values of its graph."""
        return per_graph if per_graph.shape[0] == 1 else per_graph.index_select(0, graph)


class ScalarLayerNorm(NotScripted):
    """Layer norm of each row by itself: what a row becomes depends on no other one.

    The scalars (0e) of a row are shifted and scaled to mean 0 and variance 1 over the channels,
    then get a weight and a bias per channel. Everything else is multiplied with a weight per
    channel. In the layout ``ir_mul``.
    """

    channel: Tensor
    scalar: Tensor

    def __init__(self, irreps, eps: float = 1e-5):
        super().__init__()
        self.irreps, self.eps = Irreps(irreps), eps
        self.weight = nn.Parameter(torch.ones(self.irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(self.irreps.count("0e")))
        channel, scalar, start, first = [], [], 0, 0
        for mul, ir in self.irreps:
            channel.append((first + torch.arange(mul)).repeat(ir.dim))
            if ir.is_scalar():
                scalar.append(torch.arange(start, start + mul))
            start, first = start + mul * ir.dim, first + mul
        empty = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("channel", torch.cat(channel or [empty]), persistent=False)
        self.register_buffer("scalar", torch.cat(scalar or [empty]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, irreps.dim]`` -> ``[rows, irreps.dim]``."""
        check_rows("ScalarLayerNorm", "x", x, self.channel.shape[0])
        out = x * self.weight[self.channel]
        if not self.scalar.numel():
            return out
        weight = self.weight[self.channel[self.scalar]]
        scalars = torch.nn.functional.layer_norm(x[:, self.scalar], (len(self.scalar),), weight, self.bias, self.eps)
        return out.index_copy(1, self.scalar, scalars)
