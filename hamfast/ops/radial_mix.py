"""Products that mix channels (``uvw``), with weights of a radial layer that are never made.

With ``w[e] = sum over h of hidden[e, h] matrix[h]`` and the coupled pairs z of an edge, the result
of an edge is ``sum over h, p of hidden[e, h] z[e, p] matrix[h, p]``. So the outer products of
``hidden[e]`` and ``z[e]`` can be summed over a receiver's edges first, and meet the matrix once for
each node. An edge's work is then width x pairs in place of width x weights.
Where the result is wanted for each edge, the same is done at the other end: the matrix meets the
nodes' features before they are read by their edges. That is the adjoint of the first with the roles
of features and result exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hamfast.ops.block_matmul import block_matmul, block_matmul_transposed
from hamfast.ops.edge_index import EdgeIndex
from hamfast.ops.edge_outer import node_times_factor, outer_by_node
from hamfast.ops.irreps_blocks import blocks_of_rows, rows_of_blocks
from hamfast.ops.multilinear import Tables, make_tables, mix_blocks, multilinear, pairs_to_x
from hamfast.ops.radial import RadialWeights
from hamfast.plan import Plan
from hamfast.plan.channel import Merged, MixBlock, merged_outputs, reversed_plan


def radial_mix_at_receivers(
    x: Tensor, y: Tensor, weight: RadialWeights, plan: Plan, edges: EdgeIndex, gather: bool, layout: str
) -> Tensor:
    """The sum of each receiver's edges, ``[num_receivers, plan.dim_out]``; arguments as
    :func:`hamfast.ops.tensor_product` has checked them."""
    hidden, matrix = weight.with_bias_as_column()
    tables, mixes = make_tables(plan, "pairs", x.dtype, x.device), mix_blocks(plan)
    pairs = multilinear(x, y, None, tables, edges, gather, False, (layout, "blocks"))
    _, order, ptr = edges.by_receiver
    outer = outer_by_node(hidden, pairs.flatten(), (order, ptr), [(2 * mix.l + 1, mix.pairs) for mix in mixes])
    parts = matrix.split([ins.weight_numel for ins in plan.instructions], dim=1)
    # [width, v u, w]: pairs in the order of mix_tables.
    as_pairs = [
        part.unflatten(1, ins.weight_shape).transpose(1, 2).flatten(1, 2)
        for part, ins in zip(parts, plan.instructions, strict=True)
    ]
    mixed = block_matmul(outer, _matrices(as_pairs, mixes), edges.num_receivers, _shapes(hidden, mixes))
    return rows_of_blocks(mixed, edges.num_receivers, mixes, plan.irreps_out, layout)


def radial_mix_at_senders(
    x: Tensor, y: Tensor, weight: RadialWeights, plan: Plan, edges: EdgeIndex, layout: str
) -> Tensor:
    """The product of each edge, ``[edges, plan.dim_out]``, with ``x`` of its sender."""
    hidden, matrix = weight.with_bias_as_column()
    merged, tables, mixes = _from_results(plan, x.dtype, x.device)
    blocks = blocks_of_rows(x, mixes, plan.irreps_in1, layout)
    parts = matrix.split([ins.weight_numel for ins in plan.instructions], dim=1)
    joined = [
        _joined([parts[n] for n in path], [plan.instructions[n].weight_shape for n in path]) for path in merged.paths
    ]
    # [width, v w, u]: pairs in the order of mix_tables.
    as_pairs = [part.permute(0, 2, 3, 1).flatten(1, 2) for part in joined]
    nodes = block_matmul_transposed(blocks, _matrices(as_pairs, mixes), edges.num_senders, _shapes(hidden, mixes))
    _, order, ptr = edges.by_sender
    pairs = node_times_factor(nodes, hidden, (order, ptr), [(2 * mix.l + 1, mix.pairs) for mix in mixes])
    out = pairs_to_x(pairs.view(edges.num_edges, tables.dims.g), y, tables, layout)
    return _apart(out, plan, merged, layout)


@torch.compiler.assume_constant_result
def _from_results(plan: Plan, dtype: torch.dtype, device: torch.device) -> tuple[Merged, Tables, tuple[MixBlock, ...]]:
    """The plan with equal irreps of the result merged; of that with features and result exchanged,
    what makes pairs, and their blocks."""
    merged = merged_outputs(plan)
    back = reversed_plan(merged.plan)
    return merged, make_tables(back, "pairs", dtype, device), mix_blocks(back)


def _joined(parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """``[width, u, v, w]`` of the paths whose channels w follow each other."""
    made = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
    return made[0] if len(made) == 1 else torch.cat(made, dim=3)


def _apart(out: Tensor, plan: Plan, merged: Merged, layout: str) -> Tensor:
    """Rows of the plan's irreps from rows of the merged ones."""
    if all(len(members) == 1 for members in merged.blocks):
        return out
    columns: dict[int, Tensor] = {}
    sizes = [mul * (2 * l + 1) for mul, l, _ in merged.plan.irreps_out]
    for block, members, (mul, l, _) in zip(out.split(sizes, dim=1), merged.blocks, merged.plan.irreps_out, strict=True):
        by_channel = block.unflatten(1, (mul, 2 * l + 1) if layout == "mul_ir" else (2 * l + 1, mul))
        channels = [plan.irreps_out[i][0] for i in members]
        for i, part in zip(members, by_channel.split(channels, dim=1 if layout == "mul_ir" else 2), strict=True):
            columns[i] = part.flatten(1)
    return torch.cat([columns[i] for i in range(len(plan.irreps_out))], dim=1)


def _shapes(hidden: Tensor, mixes: Sequence[MixBlock]) -> list[tuple[int, int, int]]:
    return [(2 * mix.l + 1, hidden.shape[1] * mix.pairs, mix.mul) for mix in mixes]


def _matrices(of_paths: Sequence[Tensor], mixes: Sequence[MixBlock]) -> Tensor:
    """Flat, block after block ``[width x pairs, channels]``, from ``[width, pairs, channels]`` of
    each path."""
    return torch.cat([torch.cat([of_paths[n] for n in mix.instructions], dim=1).flatten() for mix in mixes])
