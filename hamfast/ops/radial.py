"""Per-edge weights that are never stored: the last layer of the radial network, made inside the
product.

After gather and scatter are fused, most of what a convolution reads is its weight tensor, ``[edges,
weights]``, which the radial network's last layer has just written: ``w[e] = hidden[e] W + b``. Here
it is made for a block of edges, used, and forgotten; the backward pass makes it again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import check_rows
from hamfast.ops.edge_index import EdgeIndex
from hamfast.ops.multilinear import LAYOUTS, G, Tables, graph_tensors, product_gradients
from hamfast.ops.transforms import differentiable, gradients_along
from hamfast.records.ops import RADIAL_TENSOR_PRODUCT


class RadialWeights(NamedTuple):
    """Weights of each edge, ``hidden @ matrix + bias``, for the ``weight`` of
    :func:`hamfast.ops.tensor_product`."""

    hidden: Tensor
    """``[edges, k]``: the radial network before its last layer."""
    matrix: Tensor
    """``[k, plan.weight_numel]``, all factors of that layer (such as 1/sqrt(k)) included."""
    bias: Tensor | None = None
    """``[plan.weight_numel]``"""

    def weights(self) -> Tensor:
        """``[edges, plan.weight_numel]``, as they would be stored."""
        out = self.hidden @ self.matrix
        return out if self.bias is None else out + self.bias

    def check(self, edges: int, numel: int) -> None:
        """Raises ValueError if a shape does not fit."""
        check_rows("tensor_product", "weight.hidden", self.hidden, edges, self.hidden.shape[-1])
        check_rows("tensor_product", "weight.matrix", self.matrix, self.hidden.shape[1], numel)
        if self.bias is not None and self.bias.shape != (numel,):
            raise ValueError(f"tensor_product: weight.bias: expected [{numel}], found {list(self.bias.shape)}")

    def with_bias_as_column(self) -> tuple[Tensor, Tensor]:
        """The same as one matrix product: a column of ones, and the bias as its row."""
        if self.bias is None:
            return self.hidden, self.matrix
        ones = self.hidden.new_ones(self.hidden.shape[0], 1)
        return torch.cat([self.hidden, ones], dim=1), torch.cat([self.matrix, self.bias.unsqueeze(0)])


def radial_product(
    x: Tensor,
    y: Tensor,
    weight: RadialWeights,
    tables: Tables,
    edges: EdgeIndex | None,
    gather: bool,
    scatter: bool,
    layout: str,
) -> Tensor:
    """The product; arguments as :func:`hamfast.ops.multilinear.multilinear` takes them."""
    operands = (x, y, *weight.with_bias_as_column(), None)
    layouts = (LAYOUTS[layout], LAYOUTS[layout])
    return _op(*operands, *tables.tensors, *graph_tensors(edges, gather, scatter), *layouts, tables.dims)[0]


@torch.library.register_fake("hamfast::radial_tensor_product")
def _(*flat):
    arguments = RADIAL_TENSOR_PRODUCT.read(flat)
    x, y, hidden, matrix, g = arguments.operands
    none, ptr = x.new_empty(0), arguments.graph.receiver_ptr
    if g is None:
        rows = hidden.shape[0] if ptr is None else ptr.shape[0] - 1
        return x.new_empty(rows, arguments.dims[G]), none, none, none, none
    return none, torch.empty_like(x), torch.empty_like(y), torch.empty_like(hidden), torch.empty_like(matrix)


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: RADIAL_TENSOR_PRODUCT.tensors])
    ctx.settings = inputs[RADIAL_TENSOR_PRODUCT.tensors :]


def _backward(ctx, *grads):
    arguments = RADIAL_TENSOR_PRODUCT.read((*ctx.saved_tensors, *ctx.settings))
    operands = arguments.operands
    found: tuple[Tensor | None, ...]
    if operands.g is None:
        if grads[0] is None:
            return RADIAL_TENSOR_PRODUCT.per_argument()
        _, *gradients = _op(*RADIAL_TENSOR_PRODUCT.flatten(arguments._replace(operands=operands._replace(g=grads[0]))))
        found = (*gradients, None)
    else:
        found = _backward_of_gradients(ctx, arguments, grads[1:])
    needed = ctx.needs_input_grad[: len(operands)]
    return RADIAL_TENSOR_PRODUCT.per_argument(
        operands=[t if is_needed else None for t, is_needed in zip(found, needed, strict=True)]
    )


def _backward_of_gradients(ctx, arguments, grads):
    """From here on the weights are stored: the gradients are those of the plain op, and its
    derivatives are known."""
    with torch.enable_grad():
        # Views: one input may depend on another (g on x, say), and its share must not be counted
        # here.
        inputs = [t.view_as(t) for t in arguments.operands]
        x, y, hidden, matrix, g = inputs
        layouts = (arguments.x_layout, arguments.g_layout)
        grad_x, grad_y, grad_w = product_gradients(
            (x, y, hidden @ matrix, g), arguments.tables, arguments.graph, layouts, arguments.dims
        )
        outputs = (grad_x, grad_y, grad_w @ matrix.T, hidden.T @ grad_w)
    chosen = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    wanted = [n for n, needed in enumerate(ctx.needs_input_grad[: len(inputs)]) if needed]
    return tuple(gradients_along(chosen, inputs, wanted, torch.is_grad_enabled()))


_op = differentiable("radial_tensor_product", _backward, _setup_context)
