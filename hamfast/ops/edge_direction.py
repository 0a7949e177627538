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

from collections.abc import Callable
from functools import cache

import torch
from e3nn.o3._wigner import so3_generators
from torch import Tensor

from hamfast.ops.wigner import float64_default
from hamfast.plan.plan import IrrepBlock

X, G, W = range(3)

Product = Callable[[Tensor, Tensor], Tensor]
"""``(x, weight) -> M x``, the directions fixed."""


class Turns:
    """What the formula needs to know of a product: its irreps, and which edges have no direction."""

    def __init__(self, irreps_in, irreps_out, layout: str, onsite: Tensor, product: Product):
        self.irreps_in, self.irreps_out, self.layout = irreps_in, irreps_out, layout
        self.onsite, self.product = onsite, product

    def gradient(self, x: Tensor, g: Tensor, out: Tensor, adjoint: Tensor, vector: Tensor) -> Tensor:
        """dT/dr, ``[edges, 3]``, for ``out = M x`` and ``adjoint = M^T g``. Zero on edges of length zero."""
        torque = _pairing(g, out, self.irreps_out, self.layout) - _pairing(adjoint, x, self.irreps_in, self.layout)
        square = vector.square().sum(-1, keepdim=True).index_fill(0, self.onsite, 1.0)
        return (torch.linalg.cross(torque, vector) / square).index_fill(0, self.onsite, 0.0)


def product_with_direction(x: Tensor, weight: Tensor, vector: Tensor, turns: Turns) -> Tensor:
    """``turns.product(x, weight)``, differentiable in ``vector`` as well."""
    out = _Trilinear.apply(x, x.new_empty(0), weight, vector, (G,), turns)
    return out[G]


class _Trilinear(torch.autograd.Function):
    """The wanted derivatives of T(x, g, weight): M x (slot G), M^T g (slot X), dT/dweight (slot W)."""

    @staticmethod
    def forward(x, g, weight, vector, wanted, turns):
        none = x.new_empty(0)
        if wanted == (G,):
            return none, turns.product(x, weight), none.clone()
        with torch.enable_grad():
            leaves = {X: x.detach().requires_grad_(), W: weight.detach().requires_grad_()}
            out = turns.product(leaves[X], leaves[W])
            slots = [slot for slot in (X, W) if slot in wanted]
            found = dict(zip(slots, torch.autograd.grad(out, [leaves[s] for s in slots], g), strict=True))
        return found.get(X, none), out.detach() if G in wanted else none.clone(), found.get(W, none.clone())

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, g, weight, vector, ctx.wanted, ctx.turns = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, g, weight, vector)

    @staticmethod
    def backward(ctx, *grads):
        saved, vector = list(ctx.saved_tensors[:3]), ctx.saved_tensors[3]
        needed = [slot for slot in (X, G, W) if ctx.needs_input_grad[slot] and (slot != G or ctx.wanted != (G,))]
        total: list[Tensor | None] = [None] * 4

        def add(n, term):
            total[n] = term if total[n] is None else total[n] + term

        for slot, grad in enumerate(grads):
            if grad is None or slot not in ctx.wanted:
                continue
            operands = list(saved)
            operands[slot] = grad
            wanted = {other for other in needed if other != slot}
            if ctx.needs_input_grad[3]:
                wanted |= {X, G}
            if not wanted:
                continue
            found = _Trilinear.apply(*operands, vector, tuple(sorted(wanted)), ctx.turns)
            for other in needed:
                if other != slot:
                    add(other, found[other])
            if ctx.needs_input_grad[3]:
                add(3, ctx.turns.gradient(operands[X], operands[G], found[G], found[X], vector))
        return (*total, None, None)


def _pairing(a: Tensor, b: Tensor, irreps: tuple[IrrepBlock, ...], layout: str) -> Tensor:
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
def _generators(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[(2 l + 1)^2, 3]``, e3nn's axes."""
    with float64_default():
        return so3_generators(l).flatten(1).T.to(dtype=dtype, device=device).contiguous()
