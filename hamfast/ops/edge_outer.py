"""Outer products of two rows of each edge, summed over the edges of a node.

``sum over edges e of <node[n(e)], factor[e] x channels[e]>`` is linear in all three, so every
derivative of the op is the op with another of the three made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.transforms import differentiable, gradients_of_three
from hamfast.records.choices import OuterSlot
from hamfast.records.ops import EDGE_OUTER

_NODE, _FACTOR, _CHANNELS = OuterSlot.NODE, OuterSlot.FACTOR, OuterSlot.CHANNELS
_OTHERS = {_NODE: (_FACTOR, _CHANNELS), _FACTOR: (_NODE, _CHANNELS), _CHANNELS: (_NODE, _FACTOR)}
"""What each is made of, in the order of the op's operands."""

Ends = tuple[Tensor, Tensor]
"""The edges in the order of the nodes they belong to, and where each node's begin."""


def outer_by_node(factor: Tensor, channels: Tensor, ends: Ends, blocks: Sequence[tuple[int, int]]) -> Tensor:
    """``out[n, m, h, c] = sum over the edges e of n of factor[e, h] channels[e, m, c]``.

    Args:
        factor: ``[edges, width]``, float32 or float64.
        channels: flat; block after block ``[edges, d, n]``, for each ``(d, n)`` of ``blocks``.

    Returns:
        Flat, block after block ``[nodes, d, width, n]``. Differentiable in both to any order.
    """
    return _op(factor, channels, *ends, _NODE, factor.shape[1], [n for block in blocks for n in block])


def node_times_factor(node: Tensor, factor: Tensor, ends: Ends, blocks: Sequence[tuple[int, int]]) -> Tensor:
    """``out[e, m, c] = sum over h of factor[e, h] node[n(e), m, h, c]``: the adjoint of
    :func:`outer_by_node`, which has the shapes."""
    return _op(node, factor, *ends, _CHANNELS, factor.shape[1], [n for block in blocks for n in block])


@torch.library.register_fake("hamfast::edge_outer")
def _(left, right, order, ptr, slot, width, shapes):
    edges, numel = order.shape[0], sum(d * n for d, n in _blocks(shapes))
    if slot == _FACTOR:
        return left.new_empty(edges, width)
    return left.new_empty(edges * numel if slot == _CHANNELS else (ptr.shape[0] - 1) * width * numel)


def _blocks(shapes):
    return [(shapes[n], shapes[n + 1]) for n in range(0, len(shapes), 2)]


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: EDGE_OUTER.tensors])
    _, _, _, _, ctx.slot, ctx.width, ctx.shapes = inputs


def _backward(ctx, grad):
    left, right, *ends = ctx.saved_tensors

    def op(left, right, slot):
        return _op(left, right, *ends, slot, ctx.width, ctx.shapes)

    grads = gradients_of_three(op, _OTHERS, ctx.slot, (left, right), grad, ctx.needs_input_grad)
    return (*grads, *(None,) * 5)


_op = differentiable("edge_outer", _backward, _setup_context, multilinear=True)


def by_torch(
    left: Tensor, right: Tensor, order: Tensor, ptr: Tensor, slot: int, width: int, shapes: list[int]
) -> Tensor:
    """The op in torch's operations, of which each edge's outer product is stored: what GPUs run."""
    edges, nodes = order.shape[0], ptr.shape[0] - 1
    node_of = torch.empty_like(order)
    node_of[order] = torch.repeat_interleave(torch.arange(nodes, device=ptr.device), ptr.diff(), output_size=edges)
    given = dict(zip(_OTHERS[slot], (left, right), strict=True))
    factor, made, at = given[_FACTOR].view(edges, 1, width, 1) if _FACTOR in given else left, [], 0
    for d, n in _blocks(shapes):
        if _CHANNELS in given:
            channels = given[_CHANNELS].reshape(-1)[edges * at : edges * (at + d * n)].view(edges, d, 1, n)
        if _NODE in given:
            part = given[_NODE].reshape(-1)[nodes * width * at : nodes * width * (at + d * n)]
            of_edges = part.view(nodes, d, width, n)[node_of]
        if slot == _NODE:
            outer = factor * channels
            made.append(outer.new_zeros(nodes, d, width, n).index_add(0, node_of, outer).flatten())
        elif slot == _CHANNELS:
            made.append((of_edges * factor).sum(2).flatten())
        else:
            made.append((of_edges * channels).sum((1, 3)))
        at += d * n
    if slot == _FACTOR:
        return sum(made[1:], made[0]) if made else left.new_zeros(edges, width)
    return torch.cat(made) if made else left.new_zeros(0)


for _device in ("CUDA", "XPU"):
    torch.library.impl("hamfast::edge_outer", _device)(by_torch)
