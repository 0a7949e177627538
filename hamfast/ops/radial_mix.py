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
from hamfast.ops.multilinear import make_tables, mix_blocks, multilinear, pairs_to_x
from hamfast.ops.radial import RadialWeights
from hamfast.plan import Plan
from hamfast.plan.channel import MixBlock, reversed_plan


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
    mixed = block_matmul(outer, _matrices(matrix, plan, mixes, False), edges.num_receivers, _shapes(hidden, mixes))
    return rows_of_blocks(mixed, edges.num_receivers, mixes, plan.irreps_out, layout)


def radial_mix_at_senders(
    x: Tensor, y: Tensor, weight: RadialWeights, plan: Plan, edges: EdgeIndex, layout: str
) -> Tensor:
    """The product of each edge, ``[edges, plan.dim_out]``, with ``x`` of its sender."""
    hidden, matrix = weight.with_bias_as_column()
    back = reversed_plan(plan)
    tables, mixes = make_tables(back, "pairs", x.dtype, x.device), mix_blocks(back)
    blocks = blocks_of_rows(x, mixes, plan.irreps_in1, layout)
    matrices = _matrices(matrix, plan, mixes, True)
    nodes = block_matmul_transposed(blocks, matrices, edges.num_senders, _shapes(hidden, mixes))
    _, order, ptr = edges.by_sender
    pairs = node_times_factor(nodes, hidden, (order, ptr), [(2 * mix.l + 1, mix.pairs) for mix in mixes])
    return pairs_to_x(pairs.view(edges.num_edges, -1), y, tables, layout)


def _shapes(hidden: Tensor, mixes: Sequence[MixBlock]) -> list[tuple[int, int, int]]:
    return [(2 * mix.l + 1, hidden.shape[1] * mix.pairs, mix.mul) for mix in mixes]


def _matrices(matrix: Tensor, plan: Plan, mixes: Sequence[MixBlock], reverse: bool) -> Tensor:
    """Flat, block after block ``[width x pairs, channels]``, pairs in the order of ``mix_tables``; of
    the reversed plan if asked."""
    parts = matrix.split([ins.weight_numel for ins in plan.instructions], dim=1)
    made = []
    for mix in mixes:
        of_paths = [_as_pairs(parts[n], plan.instructions[n].weight_shape, reverse) for n in mix.instructions]
        made.append(torch.cat(of_paths, dim=1).flatten())
    return torch.cat(made)


def _as_pairs(part: Tensor, shape: tuple[int, ...], reverse: bool) -> Tensor:
    """``[width, u v w]`` -> ``[width, v u, w]``, or ``[width, v w, u]``."""
    part = part.unflatten(1, shape)
    return part.permute(0, 2, 3, 1).flatten(1, 2) if reverse else part.transpose(1, 2).flatten(1, 2)
