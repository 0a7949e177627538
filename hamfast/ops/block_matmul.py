"""Matrix products of many blocks in flat buffers, one call for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.transforms import differentiable, gradients_of_three
from hamfast.records.choices import MatrixProduct

_C, _A, _B = MatrixProduct.C, MatrixProduct.A, MatrixProduct.B
FACTORS = {_C: (_A, _B), _A: (_C, _B), _B: (_A, _C)}
"""What each is made of, in the order of the op's operands."""


def block_matmul(a: Tensor, b: Tensor, rows: int, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
    """``C = A B`` for each block.

    Args:
        a: flat; block after block ``[rows * r, k]``, for each ``(r, k, n)`` of ``shapes``.
        b: flat; block after block ``[k, n]``.

    Returns:
        Flat, block after block ``[rows * r, n]``. Differentiable in both to any order.
    """
    return _op(a, b, rows, [n for shape in shapes for n in shape], _C)


def block_matmul_transposed(c: Tensor, b: Tensor, rows: int, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
    """``A = C B^T`` for each block: the adjoint of :func:`block_matmul`, which has the shapes."""
    return _op(c, b, rows, [n for shape in shapes for n in shape], _A)


def _numel(product, rows, shapes):
    blocks = [shapes[n : n + 3] for n in range(0, len(shapes), 3)]
    return sum({_C: rows * r * n, _A: rows * r * k, _B: k * n}[product] for r, k, n in blocks)


@torch.library.register_fake("hamfast::block_matmul")
def _(left, right, rows, shapes, product):
    return left.new_empty(_numel(product, rows, shapes))


def _setup_context(ctx, inputs, output):
    left, right, ctx.rows, ctx.shapes, ctx.product = inputs
    ctx.save_for_backward(left, right)


def _backward(ctx, grad):
    def op(left, right, product):
        return _op(left, right, ctx.rows, ctx.shapes, product)

    grads = gradients_of_three(op, FACTORS, ctx.product, ctx.saved_tensors, grad, ctx.needs_input_grad)
    return (*grads, None, None, None)


_op = differentiable("block_matmul", _backward, _setup_context, multilinear=True)
