"""Sums over the edges of a graph of products of operands on its edges and nodes: any derivative of
them is one more such sum.

The building block of what no fused kernel covers: sampled products (`q_i . k_j` per edge), weighted
sums over neighbours, and mixtures of both with further factors. Differentiable to any order, in
reverse and in forward mode, and under ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import HALF, check_same, found
from hamfast.ops.edge_index import EdgeIndex, check_graph
from hamfast.ops.transforms import differentiable
from hamfast.records.choices import RowOf
from hamfast.records.ops import EDGE_EINSUM

ROW_OF = {name: number for number, name in enumerate(RowOf.names())}
"""What an operand has a row for: edge, sender or receiver."""


def edge_einsum(
    edges: EdgeIndex, out: str, shape: Sequence[int], *operands: tuple[Tensor, str], name: str = "edge_einsum"
) -> Tensor:
    """``out[r, h, m, c] = sum of prod_i operand_i[row_i(e), h, m, c]`` over the edges e that belong
    to row r of out.

    Args:
        edges: from :func:`hamfast.ops.edge_index`.
        out: ``"edge"`` (a row per edge, no sum over edges), ``"sender"`` or ``"receiver"``.
        shape: ``(heads, components, width)`` of out. An axis of length 1 that an operand has is
            summed over.
        operands: one to three pairs of a tensor ``[rows, heads, components, width]`` and, as for
            ``out``, what its rows are of. An axis of length 1 is the same for all of that axis.
            float32 or float64; under autocast those of bfloat16 or float16 become float32.
        name: for error messages.

    Returns:
        ``[rows, *shape]``, contiguous. Summed in a fixed order: deterministic.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the operand.
    """
    check_graph(name, edges)
    rows = edges.rows
    if out not in rows:
        raise ValueError(f"{name}: out: expected edge, sender or receiver, found {out!r}")
    if not 1 <= len(operands) <= 3:
        raise ValueError(f"{name}: expected one to three operands, found {len(operands)}")
    for n, operand in enumerate(operands):
        if not isinstance(operand, (tuple, list)) or len(operand) != 2:
            raise TypeError(
                f"{name}: operand {n}: expected a pair of a tensor and edge, sender or receiver, found {found(operand)}"
            )
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise TypeError(f"{name}: shape: expected (heads, components, width), found {found(shape)}")
    shape = [n if isinstance(n, torch.SymInt) else int(n) for n in shape]
    if torch.is_autocast_enabled(edges.senders.device.type):
        operands = tuple(
            (t.float() if isinstance(t, Tensor) and t.dtype in HALF else t, row_of) for t, row_of in operands
        )
    check_same(name, **{f"operand {n}": tensor for n, (tensor, _) in enumerate(operands)})
    axes = list(shape)
    for n, (tensor, row_of) in enumerate(operands):
        if row_of not in rows:
            raise ValueError(f"{name}: operand {n}: expected edge, sender or receiver, found {row_of!r}")
        if tensor.dim() != 4 or tensor.shape[0] != rows[row_of]:
            raise ValueError(
                f"{name}: operand {n}: expected [{rows[row_of]}, heads, components, width], found {list(tensor.shape)}"
            )
        for axis, size in enumerate(tensor.shape[1:]):
            if 1 not in (size, axes[axis]) and size != axes[axis]:
                raise ValueError(f"{name}: operand {n}: axis {axis + 1}: expected 1 or {axes[axis]}, found {size}")
            if size != 1:
                axes[axis] = size
    if any(1 not in (size, axis) and size != axis for size, axis in zip(shape, axes, strict=True)):
        raise ValueError(f"{name}: shape: expected axes of length 1 or {axes}, found {list(shape)}")
    rows_of = [ROW_OF[out]] + [ROW_OF[row_of] for _, row_of in operands]
    return run([tensor for tensor, _ in operands], rows_of, list(shape), edges.graph)


def run(operands: list[Tensor], rows_of: list[int], shape: list[int], graph: Any) -> Tensor:
    """:func:`edge_einsum` without its checks. rows_of: the result, then the operands; graph: as the
    op's record has it."""
    return _op(*_padded(operands), rows_of, shape, *graph)


def to_edges(x: Tensor, row_of: str, graph: Any) -> Tensor:
    """``[senders | receivers, width]`` -> ``[edges, width]``; its derivative sums in a fixed order,
    that of torch's gather does not."""
    return run([x[:, None, None, :]], [ROW_OF["edge"], ROW_OF[row_of]], [1, 1, x.shape[1]], graph)[:, 0, 0]


def sum_over_edges(x: Tensor, row_of: str, graph: Any) -> Tensor:
    """``[edges, width]`` -> ``[senders | receivers, width]``: of each node's edges."""
    return run([x[:, None, None, :]], [ROW_OF[row_of], ROW_OF["edge"]], [1, 1, x.shape[1]], graph)[:, 0, 0]


def _padded(operands):
    return (*operands, *(None,) * (3 - len(operands)))


def _gradient(of: int, grad: Tensor, operands, rows_of, graph) -> Tensor:
    """The derivative in one operand: the same sum, with the gradient in its place."""
    others = [n for n in range(len(operands)) if n != of]
    result, *own = rows_of
    return run(
        [grad] + [operands[n] for n in others],
        [own[of], result] + [own[n] for n in others],
        list(operands[of].shape[1:]),
        graph,
    )


@torch.library.register_fake("hamfast::edge_einsum")
def _(*flat):
    arguments = EDGE_EINSUM.read(flat)
    rows = rows_by_end(arguments.graph)[arguments.rows_of[0]]
    return arguments.operands.a.new_empty(rows, *arguments.shape)


def rows_by_end(graph: Any) -> tuple[int, int, int]:
    """How many edges, senders and receivers a graph has, in the order of ``RowOf``."""
    return graph.senders.shape[0], graph.sender_ptr.shape[0] - 1, graph.receiver_ptr.shape[0] - 1


def order_by_end(graph: Any) -> tuple[tuple[Tensor, Tensor] | tuple[None, None], ...]:
    """The order of the edges and where each row's begin in it, in the order of ``RowOf``: none for
    rows that are edges."""
    by_sender, by_receiver = (graph.sender_order, graph.sender_ptr), (graph.receiver_order, graph.receiver_ptr)
    return (None, None), by_sender, by_receiver


def _setup_context(ctx, inputs, output):
    arguments = EDGE_EINSUM.read(inputs)
    ctx.rows_of = arguments.rows_of
    ctx.save_for_backward(*arguments.operands, *arguments.graph)


def _backward(ctx, grad):
    saved = ctx.saved_tensors  # once: a checkpointed activation cannot be taken twice
    operands, graph = saved[:3], saved[3:]
    given = [t for t in operands if t is not None]
    found = [
        _gradient(n, grad, given, ctx.rows_of, graph) if ctx.needs_input_grad[n] else None for n in range(len(given))
    ]
    return EDGE_EINSUM.per_argument(operands=_padded(found))


_op = differentiable("edge_einsum", _backward, _setup_context, multilinear=True)
