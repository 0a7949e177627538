"""Sums over the edges of a graph of products of operands on its edges and nodes: any derivative of them is one more such sum.

The building block of what no fused kernel covers: sampled products (`q_i . k_j` per edge), weighted sums over neighbours, and
mixtures of both with further factors. Differentiable to any order, in reverse and in forward mode, and under ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import check_same, found
from hamfast.ops.edge_index import EdgeIndex, check_graph
from hamfast.ops.transforms import differentiable

PLACES = {"edge": 0, "sender": 1, "receiver": 2}


def edge_einsum(
    edges: EdgeIndex, out: str, shape: Sequence[int], *operands: tuple[Tensor, str], name: str = "edge_einsum"
) -> Tensor:
    """``out[r, h, m, c] = sum of prod_i operand_i[row_i(e), h, m, c]`` over the edges e that belong to row r of out.

    Args:
        edges: from :func:`hamfast.ops.edge_index`.
        out: ``"edge"`` (a row per edge, no sum over edges), ``"sender"`` or ``"receiver"``.
        shape: ``(heads, components, width)`` of out. An axis of length 1 that an operand has is summed over.
        operands: one to three pairs (tensor ``[rows, heads, components, width]``, place); place is as ``out`` and says which
            row an edge reads. An axis of length 1 is the same for all of that axis. float32 or float64.
        name: for error messages.

    Returns:
        ``[rows, *shape]``, contiguous. Summed in a fixed order: deterministic.

    Raises:
        ValueError: a shape, place, dtype or device does not fit; the message names the operand.
    """
    check_graph(name, edges)
    rows = {"edge": edges.num_edges, "sender": edges.num_senders, "receiver": edges.num_receivers}
    if out not in rows:
        raise ValueError(f"{name}: out: expected edge, sender or receiver, found {out!r}")
    if not 1 <= len(operands) <= 3:
        raise ValueError(f"{name}: expected one to three operands, found {len(operands)}")
    for n, operand in enumerate(operands):
        if not isinstance(operand, (tuple, list)) or len(operand) != 2:
            raise TypeError(f"{name}: operand {n}: expected a pair (tensor, place), found {found(operand)}")
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise TypeError(f"{name}: shape: expected (heads, components, width), found {found(shape)}")
    shape = [n if isinstance(n, torch.SymInt) else int(n) for n in shape]
    check_same(name, **{f"operand {n}": tensor for n, (tensor, _) in enumerate(operands)})
    axes = list(shape)
    for n, (tensor, place) in enumerate(operands):
        if place not in rows:
            raise ValueError(f"{name}: operand {n}: expected place edge, sender or receiver, found {place!r}")
        if tensor.dim() != 4 or tensor.shape[0] != rows[place]:
            raise ValueError(
                f"{name}: operand {n}: expected [{rows[place]}, heads, components, width], found {list(tensor.shape)}"
            )
        for axis, size in enumerate(tensor.shape[1:]):
            if 1 not in (size, axes[axis]) and size != axes[axis]:
                raise ValueError(f"{name}: operand {n}: axis {axis + 1}: expected 1 or {axes[axis]}, found {size}")
            if size != 1:
                axes[axis] = size
    if any(1 not in (size, axis) and size != axis for size, axis in zip(shape, axes, strict=True)):
        raise ValueError(f"{name}: shape: expected axes of length 1 or {axes}, found {list(shape)}")
    places = [PLACES[out]] + [PLACES[place] for _, place in operands]
    graph = (*edges.by_sender, *edges.by_receiver)
    return run([tensor for tensor, _ in operands], places, list(shape), graph)


def run(operands: list[Tensor], places: list[int], shape: list[int], graph: tuple[Tensor, ...]) -> Tensor:
    """:func:`edge_einsum` without its checks. places: of out, then of the operands; graph: senders, order and pointers, receivers' alike."""
    return _op(*_padded(operands), places, shape, *graph)


def to_edges(x: Tensor, place: str, graph: tuple[Tensor, ...]) -> Tensor:
    """``[senders | receivers, width]`` -> ``[edges, width]``; its derivative sums in a fixed order, that of torch's gather does not."""
    return run([x[:, None, None, :]], [PLACES["edge"], PLACES[place]], [1, 1, x.shape[1]], graph)[:, 0, 0]


def sum_over_edges(x: Tensor, place: str, graph: tuple[Tensor, ...]) -> Tensor:
    """``[edges, width]`` -> ``[senders | receivers, width]``: of each node's edges."""
    return run([x[:, None, None, :]], [PLACES[place], PLACES["edge"]], [1, 1, x.shape[1]], graph)[:, 0, 0]


def _padded(operands):
    return (*operands, *(None,) * (3 - len(operands)))


def _gradient(slot: int, grad: Tensor, operands, places, graph) -> Tensor:
    """The derivative in one operand: the same sum, with the gradient in its place."""
    others = [n for n in range(len(operands)) if n != slot]
    return run(
        [grad] + [operands[n] for n in others],
        [places[slot + 1], places[0]] + [places[n + 1] for n in others],
        list(operands[slot].shape[1:]),
        graph,
    )


@torch.library.register_fake("hamfast::edge_einsum")
def _(a, b, c, places, shape, senders, sender_order, sender_ptr, receivers, receiver_order, receiver_ptr):
    rows = (senders.shape[0], sender_ptr.shape[0] - 1, receiver_ptr.shape[0] - 1)
    return a.new_empty(rows[places[0]], *shape)


def _setup_context(ctx, inputs, output):
    a, b, c, ctx.places, _, *graph = inputs
    ctx.save_for_backward(a, b, c, *graph)


def _backward(ctx, grad):
    *operands, g0, g1, g2, g3, g4, g5 = ctx.saved_tensors
    graph = (g0, g1, g2, g3, g4, g5)
    given = [t for t in operands if t is not None]
    found = [
        _gradient(n, grad, given, ctx.places, graph) if ctx.needs_input_grad[n] else None for n in range(len(given))
    ]
    return (*_padded(found), *(None,) * 8)


_op = differentiable("edge_einsum", _backward, _setup_context, linear_in=3)
