"""Derivatives of an edge-frame product in the edges' directions, without a derivative of any rotation matrix.

The frame of an edge is a choice, and no choice is smooth at every direction; the product does not depend on it. With M(r) the
map of one edge r, and R a rotation, covariance says ``M(R r) = D(R) M(r) D(R)^-1``. So for ``T = <g, M(r) x>``, turning r by a
small angle about axis a changes T by

    tau_a = <g, J_a M x> - <M^T g, J_a x>,      J_a: generator of rotations about a,

and ``dT/dr = (tau x r) / |r|^2`` (M depends on the direction alone). That needs the product and its adjoint, at any direction,
and nothing else. T is linear in x, g and the weights; each derivative is one of the same three maps with arguments exchanged,
so the formula applies again, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from e3nn.o3._wigner import so3_generators
from torch import Tensor

from hamfast.ops.wigner import float64_default
from hamfast.plan.constants import real_tensors
from hamfast.plan.plan import IrrepBlock

G, W, X = range(3)

Irreps = tuple[IrrepBlock, ...]

Product = Callable[[Sequence[Tensor], Tensor], Tensor]
"""``(x, weight) -> M x``, the directions fixed; x in one or more parts, each of some of its irreps blocks."""


class Turns:
    """What the formula needs to know of a product: its irreps (one list per part of x), and which edges have no direction."""

    def __init__(self, irreps_in: Sequence[Irreps], irreps_out: Irreps, layout: str, onsite: Tensor, product: Product):
        self.irreps_in, self.irreps_out, self.layout = irreps_in, irreps_out, layout
        self.onsite, self.product = onsite, product

    def gradient(
        self, x: Sequence[Tensor], g: Tensor, out: Tensor, adjoint: Sequence[Tensor], vector: Tensor
    ) -> Tensor:
        """dT/dr, ``[edges, 3]``, for ``out = M x`` and ``adjoint = M^T g``. Zero on edges of length zero."""
        torque = _pairing(g, out, self.irreps_out, self.layout)
        for part, other, irreps in zip(x, adjoint, self.irreps_in, strict=True):
            torque = torque - _pairing(other, part, irreps, self.layout)
        square = vector.square().sum(-1, keepdim=True).index_fill(0, self.onsite, 1.0)
        return (torch.linalg.cross(torque, vector) / square).index_fill(0, self.onsite, 0.0)


def product_with_direction(x: Sequence[Tensor], weight: Tensor, vector: Tensor, turns: Turns) -> Tensor:
    """``turns.product(x, weight)``, differentiable in ``vector`` as well. Parts of x: one row per edge."""
    return _Trilinear.apply(x[0].new_empty(0), weight, vector, (G,), turns, *x)[G]


class _Trilinear(torch.autograd.Function):
    """The wanted derivatives of T(g, weight, x): M x (slot G), dT/dweight (slot W), M^T g (slot X, all parts)."""

    @staticmethod
    def forward(g, weight, vector, wanted, turns, *x):
        out = [x[0].new_empty(0) for _ in range(2 + len(x))]
        if wanted == (G,):
            out[G] = turns.product(x, weight)
            return tuple(out)
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (weight, *x)]
            value = turns.product(leaves[1:], leaves[0])
            slots = [n for n in range(len(leaves)) if (W if n == 0 else X) in wanted]
            found = torch.autograd.grad(value, [leaves[n] for n in slots], g)
        for n, gradient in zip(slots, found, strict=True):
            out[W + n] = gradient
        if G in wanted:
            out[G] = value.detach()
        return tuple(out)

    @staticmethod
    def setup_context(ctx, inputs, output):
        g, weight, vector, ctx.wanted, ctx.turns, *x = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, weight, vector, *x)

    @staticmethod
    def backward(ctx, *grads):
        g, weight, vector, *x = ctx.saved_tensors
        to_x, to_vector = any(ctx.needs_input_grad[5:]), ctx.needs_input_grad[2]
        needs = (ctx.needs_input_grad[0] and ctx.wanted != (G,), ctx.needs_input_grad[1], to_x)
        needed = {slot for slot in (G, W, X) if needs[slot]}
        total: list[Tensor | None] = [None] * (2 + len(x))
        vector_grad = None
        for slot in ctx.wanted:
            incoming = grads[X:] if slot == X else grads[slot : slot + 1]
            if all(grad is None for grad in incoming):
                continue
            operands = [g, weight, *x]
            for n, grad in enumerate(incoming, slot):
                operands[n] = torch.zeros_like(operands[n]) if grad is None else grad
            wanted = needed - {slot} | ({X, G} if to_vector else set())
            if not wanted:
                continue
            found = _Trilinear.apply(*operands[:2], vector, tuple(sorted(wanted)), ctx.turns, *operands[2:])
            for other in needed - {slot}:
                for n in range(X, len(total)) if other == X else (other,):
                    total[n] = found[n] if total[n] is None else total[n] + found[n]
            if to_vector:
                term = ctx.turns.gradient(operands[X:], operands[G], found[G], found[X:], vector)
                vector_grad = term if vector_grad is None else vector_grad + term
        return total[G], total[W], vector_grad, None, None, *total[X:]


def _pairing(a: Tensor, b: Tensor, irreps: Irreps, layout: str) -> Tensor:
    """``<a, J_k b>`` per edge for the three axes k, ``[edges, 3]``."""
    total = a.new_zeros(a.shape[0], 3)
    sizes = [mul * (2 * l + 1) for mul, l, _ in irreps]
    for x, y, (mul, l, _) in zip(a.split(sizes, 1), b.split(sizes, 1), irreps, strict=True):
        if l == 0 or mul == 0:
            continue
        if layout == "mul_ir":
            products = x.unflatten(1, (mul, 2 * l + 1)).transpose(1, 2) @ y.unflatten(1, (mul, 2 * l + 1))
        else:
            products = x.unflatten(1, (2 * l + 1, mul)) @ y.unflatten(1, (2 * l + 1, mul)).transpose(1, 2)
        total = total + products.flatten(1) @ _generators(l, a.dtype, a.device)
    return total


@cache
@real_tensors()
def _generators(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[(2 l + 1)^2, 3]``, e3nn's axes."""
    with float64_default():
        return so3_generators(l).flatten(1).T.to(dtype=dtype, device=device).contiguous()
