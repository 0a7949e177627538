"""A constant sparse matrix times rows: the head of a network, whose Clebsch-Gordan sums have few
terms each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.constants import outside_inference_mode
from hamfast.ops.checks import check_rows, check_same, check_tensor, found
from hamfast.ops.transforms import differentiable


class SparseMatrix(NamedTuple):
    """A matrix and its transpose, row by row. Make one with :func:`sparse_matrix`."""

    ptr: Tensor
    """``[rows + 1]`` int64: where each row's entries begin."""
    column: Tensor
    value: Tensor
    transposed_ptr: Tensor
    transposed_column: Tensor
    transposed_value: Tensor

    def to(self, like: Tensor) -> SparseMatrix:
        """On the device of ``like``, values in its dtype."""
        with outside_inference_mode():
            return SparseMatrix(*(t.to(like) if t.is_floating_point() else t.to(like.device) for t in self))


def sparse_matrix(dense: Tensor) -> SparseMatrix:
    """Of the elements of ``dense``, ``[dim_out, dim_in]``, that are not 0: a copy.

    Raises:
        TypeError: no tensor.
        ValueError: another number of dimensions.
    """
    check_tensor("sparse_matrix", "dense", dense)
    if dense.dim() != 2:
        raise ValueError(f"sparse_matrix: dense: expected [dim_out, dim_in], found {list(dense.shape)}")

    def by_rows(matrix):
        row, column = torch.nonzero(matrix, as_tuple=True)
        ptr = torch.zeros(matrix.shape[0] + 1, dtype=torch.int64, device=matrix.device)
        ptr[1:] = torch.bincount(row, minlength=matrix.shape[0]).cumsum(0)
        return ptr, column, matrix[row, column]

    with outside_inference_mode():
        return SparseMatrix(*by_rows(dense), *by_rows(dense.T))


def sparse_map(x: Tensor, matrix: SparseMatrix) -> Tensor:
    """``out[r] = matrix @ x[r]`` for each row.

    Args:
        x: ``[rows, dim_in]``, float32 or float64.
        matrix: from :func:`sparse_matrix`, on the device and in the dtype of ``x``.

    Returns:
        ``[rows, dim_out]``, contiguous. Differentiable in ``x`` to any order: its derivative is the
        transposed matrix.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    if not isinstance(matrix, SparseMatrix):
        raise TypeError(f"sparse_map: matrix: expected a SparseMatrix from sparse_matrix, found {found(matrix)}")
    check_tensor("sparse_map", "x", x)
    check_rows("sparse_map", "x", x, x.shape[0] if x.dim() else None, matrix.transposed_ptr.shape[0] - 1)
    check_same("sparse_map", x=x, matrix=matrix.value)
    return _op(x, *matrix)


@torch.library.register_fake("hamfast::sparse_map")
def _(x, ptr, *rest):
    return x.new_empty(x.shape[0], ptr.shape[0] - 1)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx, grad):
    matrix = ctx.saved_tensors
    return (_op(grad, *matrix[3:], *matrix[:3]), *(None,) * 6)


def _vmap(info, in_dims, x, *matrix):
    if in_dims[0] is None:
        return _op(x, *matrix), None
    x = x.movedim(in_dims[0], 0)
    return _op(x.flatten(0, 1), *matrix).unflatten(0, x.shape[:2]), 0


_op = differentiable("sparse_map", _backward, _setup_context, vmap=_vmap, multilinear=True)
