"""Per-edge weights that are never stored: the last layer of the radial network, made inside the product.

After gather and scatter are fused, most of what a convolution reads is its weight tensor, ``[edges, weights]``, which the radial
network's last layer has just written: ``w[e] = h[e] W + b``. Here it is made for a block of edges, used, and forgotten; the
backward pass makes it again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.ops.checks import check_rows
from hamfast.ops.edge_index import EdgeIndex
from hamfast.ops.multilinear import LAYOUTS, G, Tables, W, X, Y, graph_tensors, product_gradients
from hamfast.ops.transforms import differentiable, gradients_along

_product = torch.ops.hamfast.tensor_product.default
_from_hidden = torch.ops.hamfast.tensor_product_from_hidden.default


class RadialWeights(NamedTuple):
    """Weights of each edge, ``hidden @ matrix + bias``, for the ``weight`` of :func:`hamfast.ops.tensor_product`."""

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
    graph = graph_tensors(edges, gather, scatter)
    modes = (LAYOUTS[layout], LAYOUTS[layout])
    return _op(x, y, *weight.with_bias_as_column(), None, *tables.tensors, *graph, *modes, tables.dims)[0]


LEAST_BLOCK = 1 << 15
MOST_BLOCKS = 16


def radial_in_blocks(x, y, h, matrix, g, *rest):
    """``radial_tensor_product`` on a GPU, from ops that know one block of edges: its weights, or their gradients, are stored.

    CUDA kernels make the weights themselves, so that only gradients go in blocks. Edges are taken in the order of the rows that are
    summed, so that a row ends in the block after the one it began in, if that. No number leaves the device.
    """
    *tables, senders, s_order, s_ptr, receivers, r_order, r_ptr, x_layout, g_layout, dims = rest
    none = x.new_empty(0)
    product = _ProductOfBlock(x, matrix, tables, (x_layout, g_layout, dims))
    if g is None and product.makes_weights:
        return (product(x, y, h, None, (senders, s_order, s_ptr, receivers, r_order, r_ptr))[G], *(none,) * 4)
    order, ptr = (r_order, r_ptr) if g is None else (s_order, s_ptr)
    edges = h.shape[0]
    size = max(LEAST_BLOCK, -(-edges // MOST_BLOCKS))
    shape = (edges if ptr is None else ptr.shape[0] - 1, dims[3] if g is None else dims[0])
    sums = torch.promote_types(x.dtype, torch.float32)
    rows, grad_matrix = x.new_zeros(shape, dtype=sums), torch.zeros_like(matrix, dtype=sums)
    grad_y, grad_h = torch.empty_like(y), torch.empty_like(h)
    for begin in range(0, edges, size):
        end = min(begin + size, edges)
        part = slice(begin, end) if order is None else order[begin:end]
        own_ptr = None if ptr is None else ptr.clamp(begin, end) - begin

        def of_edges(t, index, part=part):
            """Rows and index of an operand for the edges of this block."""
            return (t[part], None) if index is None else (t, index[part])

        hidden, (x_rows, x_index) = h[part], of_edges(x, senders)
        if g is None:
            found = product(x_rows, y[part], hidden, None, (x_index, None, None, None, None, own_ptr))[G]
        else:
            g_rows, g_index = of_edges(g, receivers)
            graph = (x_index, None, own_ptr, g_index, None, None)
            found, grad_y[part], grad_w, _ = product(x_rows, y[part], hidden, g_rows, graph)
            grad_h[part] = grad_w @ matrix.T
            grad_matrix += hidden.T @ grad_w
        if ptr is None:
            rows[part] = found
        else:
            rows += found
    rows = rows.to(x.dtype)
    return (rows, *(none,) * 4) if g is None else (none, rows, grad_y, grad_h, grad_matrix.to(x.dtype))


class _ProductOfBlock:
    """The product of some edges, or its gradients in x, y and the weights, for weights ``h @ matrix``."""

    def __init__(self, x, matrix, tables, numbers):
        self.matrix, self.tables, self.numbers = matrix, tables, numbers
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(_from_hidden.name(), x.device.type.upper())
        self.makes_weights = has_kernel and x.dtype != torch.float64
        self.one_pass = torch.get_float32_matmul_precision() != "highest"

    def __call__(self, x, y, h, g, graph):
        if self.makes_weights:
            return _from_hidden(x, y, h, self.matrix, g, *self.tables, *graph, self.one_pass, *self.numbers)
        wanted = 1 << G if g is None else 1 << X | 1 << Y | 1 << W
        fixed = (*(None,) * 4, *self.tables, *graph, wanted, h.shape[0], False)
        return _product(x, y, h @ self.matrix, g, *fixed, *self.numbers)


@torch.library.register_fake("hamfast::radial_tensor_product")
def _(x, y, h, matrix, g, *rest):
    *_, receiver_ptr, _, _, dims = rest
    none = x.new_empty(0)
    if g is None:
        rows = h.shape[0] if receiver_ptr is None else receiver_ptr.shape[0] - 1
        return x.new_empty(rows, dims[3]), none, none, none, none
    return none, torch.empty_like(x), torch.empty_like(y), torch.empty_like(h), torch.empty_like(matrix)


def _setup_context(ctx, inputs, output):
    *tensors, x_layout, g_layout, dims = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.numbers = (x_layout, g_layout, dims)


def _backward(ctx, *grads):
    x, y, h, matrix, g, *rest = ctx.saved_tensors
    found: tuple[Tensor | None, ...]
    if g is None:
        if grads[0] is None:
            return (None,) * (len(rest) + 8)
        _, *found_list = _op(x, y, h, matrix, grads[0], *rest, *ctx.numbers)
        found = (*found_list, None)
    else:
        found = _backward_of_gradients(ctx, (x, y, h, matrix, g), rest, grads[1:])
    return (
        *(t if needed else None for t, needed in zip(found, ctx.needs_input_grad, strict=False)),
        *(None,) * (len(rest) + 3),
    )


def _backward_of_gradients(ctx, inputs, rest, grads):
    """From here on the weights are stored: the gradients are those of the plain op, and its derivatives are known."""
    with torch.enable_grad():
        # Views: one input may depend on another (g on x, say), and its share must not be counted here.
        inputs = [t.view_as(t) for t in inputs]
        x, y, h, matrix, g = inputs
        gx, gy, gw = product_gradients(x, y, h @ matrix, g, rest, *ctx.numbers)
        outputs = (gx, gy, gw @ matrix.T, h.T @ gw)
    chosen = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    wanted = [n for n, needed in enumerate(ctx.needs_input_grad[:5]) if needed]
    return tuple(gradients_along(chosen, inputs, wanted, torch.is_grad_enabled()))


_op = differentiable("radial_tensor_product", _backward, _setup_context)
