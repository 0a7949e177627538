"""Equivariant layer normalisation."""

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from hamfast.nn.irreps_layout import check_layout, split_blocks


class EquivariantLayerNorm(nn.Module):
    """DeepH-E3's layer norm: statistics over all rows of a graph and all channels of an irreps block.

    Per block: subtract the mean of each component; for l = 0 divide by (root mean square + eps); multiply each channel by
    ``weight``; add ``bias`` to ``0e`` channels.
    """

    def __init__(self, irreps, eps: float = 1e-5, layout: str = "mul_ir"):
        super().__init__()
        self.irreps, self.eps, self.layout = Irreps(irreps), eps, check_layout(layout)
        self.weight = nn.Parameter(torch.ones(self.irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(sum(mul for mul, ir in self.irreps if ir.is_scalar())))

    def forward(self, x: Tensor, graph: Tensor, num_graphs: int) -> Tensor:
        """``[rows, irreps.dim]``; ``graph``: ``[rows]`` int64, the graph of each row -> ``[rows, irreps.dim]``."""
        count = x.new_zeros(num_graphs).index_add_(0, graph, x.new_ones(x.shape[0])).clamp_(min=1.0)
        out, weight_start, bias_start = [], 0, 0
        for block, (mul, ir) in zip(split_blocks(x, self.irreps), self.irreps, strict=True):
            shape, channel = ((ir.dim, mul), -1) if self.layout == "ir_mul" else ((mul, ir.dim), -2)
            field = block.unflatten(-1, shape)  # [rows, dim, mul] or [rows, mul, dim]
            field = field - self._mean(field.mean(channel, keepdim=True), graph, num_graphs, count)
            if ir.l == 0:
                variance = self._mean(field.square().mean((-1, -2), keepdim=True), graph, num_graphs, count)
                # 1e-30 changes no digit, and keeps the gradient of a constant field finite.
                field = field / ((variance + 1e-30).sqrt() + self.eps)
            weight = self.weight[weight_start : weight_start + mul]
            field = field * (weight if channel == -1 else weight.unsqueeze(-1))
            weight_start += mul
            if ir.is_scalar():
                bias = self.bias[bias_start : bias_start + mul]
                field = field + (bias if channel == -1 else bias.unsqueeze(-1))
                bias_start += mul
            out.append(field.flatten(-2))
        return torch.cat(out, dim=-1)

    @staticmethod
    def _mean(rows: Tensor, graph: Tensor, num_graphs: int, count: Tensor) -> Tensor:
        """Mean of rows over each graph, given back to each row."""
        if num_graphs == 1:
            return rows.mean(0, keepdim=True)
        total = rows.new_zeros((num_graphs, *rows.shape[1:])).index_add(0, graph, rows)
        return (total / count.view(-1, *[1] * (rows.dim() - 1)))[graph]
