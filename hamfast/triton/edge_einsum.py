"""``hamfast::edge_einsum`` on tensors, for the kernel of kernels/edge_einsum.py."""

from __future__ import annotations

from hamfast.kernels.edge_einsum import edge_einsum as kernel
from hamfast.triton.configurations import EINSUM
from hamfast.triton.launch import launch, pieces, real_of


def edge_einsum(a, b, c, places, shape, senders, sender_order, sender_ptr, receivers, receiver_order, receiver_ptr):
    """See csrc/library.cpp."""
    given = [t for t in (a, b, c) if t is not None]
    given = [t.contiguous() if t.shape[3] > 1 and t.stride(3) != 1 else t for t in given]
    edges = senders.shape[0]
    axes = [max(size) if 0 not in size else 0 for size in zip(*(t.shape[1:] for t in given), shape, strict=True)]
    rows = (edges, sender_ptr.shape[0] - 1, receiver_ptr.shape[0] - 1)[places[0]]
    out = a.new_empty(rows, *shape)
    order, ptr = ((None, None), (sender_order, sender_ptr), (receiver_order, receiver_ptr))[places[0]]
    out_wide = shape[2] > 1
    tile_edges, columns = EINSUM.cut(axes[2])
    absent = [None] * (3 - len(given))
    strides = [0 if t.shape[d] == 1 else t.stride(d) for t in given for d in (0, 1, 2)]
    for n, t in enumerate(given):
        strides[3 * n] = t.stride(0)
    summed = [axes[d] // shape[d] if shape[d] else 0 for d in (0, 1)]
    arguments = (
        *given, *absent, out, senders, receivers, order, ptr, edges, axes[2], shape[0], shape[1], *summed,
        *strides, *[0] * (3 * len(absent)),
    )  # fmt: skip
    constants = {
        "PLACES": (*places[1:], *[0] * len(absent)),
        "WIDE": (*(t.shape[3] > 1 for t in given), *[False] * len(absent)),
        "OUT_WIDE": out_wide,
        "REAL": real_of(a),
        "EDGES": tile_edges,
        "COLUMNS": columns,
    }
    turns = rows if ptr is not None else pieces(edges, tile_edges)
    grid = (turns, shape[0] * shape[1], pieces(axes[2], columns) if out_wide else min(1, shape[2]))
    launch(kernel, grid, arguments, constants, out, EINSUM.num_warps)
    return out
