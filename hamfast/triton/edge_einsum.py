"""``hamfast::edge_einsum`` on tensors, for the kernel of kernels/edge_einsum.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hamfast.kernels.edge_einsum import Graph, Operand, Sizes
from hamfast.kernels.edge_einsum import edge_einsum as kernel
from hamfast.ops.edge_einsum import order_by_end, rows_by_end
from hamfast.records.ops import EDGE_EINSUM
from hamfast.triton.configurations import EINSUM
from hamfast.triton.launch import launch, pieces, real_of


def edge_einsum(*flat: Any) -> Tensor:
    """The op, with its arguments as its record has them."""
    arguments = EDGE_EINSUM.read(flat)
    graph, shape, (row_of, *rows_of) = arguments.graph, arguments.shape, arguments.rows_of
    given = [t for t in arguments.operands if t is not None]
    given = [t.contiguous() if t.shape[3] > 1 and t.stride(3) != 1 else t for t in given]
    axes = [max(size) if 0 not in size else 0 for size in zip(*(t.shape[1:] for t in given), shape, strict=True)]
    heads, components, width = shape
    edges = graph.senders.shape[0]
    rows = rows_by_end(graph)[row_of]
    out = given[0].new_empty(rows, *shape)
    order, ptr = order_by_end(graph)[row_of]
    tile_edges, columns = EINSUM.cut(axes[2])
    operands = tuple(Operand(t, t.stride(0), *(0 if t.shape[d] == 1 else t.stride(d) for d in (1, 2))) for t in given)
    summed = [axis // size if size else 0 for axis, size in zip(axes, (heads, components), strict=False)]
    sizes = Sizes(axes[2], heads, components, *summed)
    lists = Graph(graph.senders, graph.receivers, order, ptr, edges)
    constants = {
        "ROWS_OF": tuple(rows_of),
        "WIDE": tuple(t.shape[3] > 1 for t in given),
        "OUT_WIDE": width > 1,
        "REAL": real_of(out),
        "EDGES": tile_edges,
        "COLUMNS": columns,
    }
    steps = rows if ptr is not None else pieces(edges, tile_edges)
    grid = (steps, heads * components, pieces(axes[2], columns) if width > 1 else min(1, width))
    launch(kernel, grid, (operands, out, lists, sizes), constants, out, EINSUM.num_warps)
    return out
