"""Derivatives of an edge-frame product in the edges' directions, without a derivative of any
rotation matrix.

The frame of an edge is a choice, and no choice is smooth at every direction; the product does not
depend on it. With M(r) the map of one edge r, and R a rotation, covariance says ``M(R r) = D(R)
M(r) D(R)^-1``. So for ``T = <g, M(r) x>``, turning r by a small angle about axis a changes T by

    tau_a = <g, J_a M x> - <M^T g, J_a x>,      J_a: generator of rotations about a,

and ``dT/dr = (tau x r) / |r|^2`` (M depends on the direction alone). That needs the product and its
adjoint, at any direction, and nothing else. T is linear in x, g and the weights; each derivative is
one of the same three maps with arguments exchanged, so the formula applies again, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from e3nn.o3._wigner import so3_generators
from torch import Tensor

from hamfast.constants import real_tensors
from hamfast.ops.transforms import by_sample
from hamfast.ops.wigner import float64_default
from hamfast.plan.plan import IrrepBlock

G, W, X = range(3)

Irreps = tuple[IrrepBlock, ...]

Product = Callable[[Sequence[Tensor], Tensor, Tensor, Tensor], Tensor]
"""``(x, weight, wigner, onsite) -> M x``, the directions fixed; x in one or more pieces, each of
some of its irreps blocks."""


class Rotations(NamedTuple):
    """What the formula needs to know of a product: its irreps, one list per piece of x, and their
    layout."""

    irreps_in: Sequence[Irreps]
    irreps_out: Irreps
    layout: str
    product: Product

    def gradient(
        self, x: Sequence[Tensor], g: Tensor, out: Tensor, adjoint: Sequence[Tensor], vector: Tensor, onsite: Tensor
    ) -> Tensor:
        """dT/dr, ``[edges, 3]``, for ``out = M x`` and ``adjoint = M^T g``. Zero on edges of length
        zero."""
        torque = _pairing(g, out, self.irreps_out, self.layout)
        for piece, other, irreps in zip(x, adjoint, self.irreps_in, strict=True):
            torque = torque - _pairing(other, piece, irreps, self.layout)
        return _per_square(torch.linalg.cross(torque, vector), vector, onsite)

    def rotated(self, angle: Tensor, x: Sequence[Tensor]) -> list[Tensor]:
        """``sum over a of angle_a J_a x``, piece by piece."""
        return [_rotate(angle, piece, irreps, self.layout) for piece, irreps in zip(x, self.irreps_in, strict=True)]

    def rotated_out(self, angle: Tensor, g: Tensor) -> Tensor:
        """``sum over a of angle_a J_a g``, for rows ``[edges, dim_out]`` of the result."""
        return _rotate(angle, g, self.irreps_out, self.layout)


def product_with_direction(
    x: Sequence[Tensor], weight: Tensor, vector: Tensor, wigner: Tensor, onsite: Tensor, rotations: Rotations
) -> Tensor:
    """``rotations.product(x, weight, wigner, onsite)``, differentiable in ``vector`` as well; also
    in forward mode and under ``torch.func``.

    Args:
        x: pieces, one row per edge each.
        wigner, onsite: the frames of the vectors, and the edges of length zero.
    """
    return _Trilinear.apply(x[0].new_empty(0), weight, vector, wigner, onsite, (G,), rotations, *x)[G]


class _Trilinear(torch.autograd.Function):
    """The wanted derivatives of T(g, weight, x): M x (slot G), dT/dweight (slot W), M^T g (slot X,
    all pieces)."""

    @staticmethod
    def forward(g, weight, vector, wigner, onsite, wanted, rotations, *x):
        out = [x[0].new_empty(0) for _ in range(2 + len(x))]
        if wanted == (G,):
            out[G] = rotations.product(x, weight, wigner, onsite)
            return tuple(out)
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (weight, *x)]
            value = rotations.product(leaves[1:], leaves[0], wigner, onsite)
            slots = [n for n in range(len(leaves)) if (W if n == 0 else X) in wanted]
            found = torch.autograd.grad(value, [leaves[n] for n in slots], g)
        for n, gradient in zip(slots, found, strict=True):
            out[W + n] = gradient
        if G in wanted:
            out[G] = value.detach()
        return tuple(out)

    @staticmethod
    def setup_context(ctx, inputs, output):
        g, weight, vector, wigner, onsite, ctx.wanted, ctx.rotations, *x = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, weight, vector, wigner, onsite, *x)
        ctx.save_for_forward(g, weight, vector, wigner, onsite, *x, *output)

    @staticmethod
    def backward(ctx, *grads):
        g, weight, vector, wigner, onsite, *x = ctx.saved_tensors
        fixed = (vector, wigner, onsite)
        to_x, to_vector = any(ctx.needs_input_grad[_FIRST_X:]), ctx.needs_input_grad[2]
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
            found = _Trilinear.apply(*operands[:2], *fixed, tuple(sorted(wanted)), ctx.rotations, *operands[2:])
            for other in needed - {slot}:
                for n in range(X, len(total)) if other == X else (other,):
                    total[n] = found[n] if total[n] is None else total[n] + found[n]
            if to_vector:
                term = ctx.rotations.gradient(operands[X:], operands[G], found[G], found[X:], vector, onsite)
                vector_grad = term if vector_grad is None else vector_grad + term
        return total[G], total[W], vector_grad, None, None, None, None, *total[X:]

    @staticmethod
    def jvp(ctx, dot_g, dot_weight, dot_vector, *tangents):
        rotations, tangents_x = ctx.rotations, tangents[_FIRST_X - 3 :]
        g, weight, vector, wigner, onsite, *rest = ctx.saved_tensors
        x, results = rest[: len(tangents_x)], rest[len(tangents_x) :]
        total: list[Tensor | None] = [None] * (2 + len(x))

        def add_term(n, term):
            before = total[n]
            total[n] = term if before is None else before + term

        def add(g, weight, x, wanted, sign=1.0):
            if not wanted:
                return
            found = _Trilinear.apply(g, weight, vector, wigner, onsite, tuple(sorted(wanted)), rotations, *x)
            for slot in wanted:
                for n in range(X, len(total)) if slot == X else (slot,):
                    add_term(n, sign * found[n])

        every = set(ctx.wanted)
        if dot_g is not None and every != {G}:
            add(dot_g, weight, x, every - {G})
        if dot_weight is not None:
            add(g, dot_weight, x, every - {W})
        if any(t is not None for t in tangents_x):
            zeros = [torch.zeros_like(t) if d is None else d for t, d in zip(x, tangents_x, strict=True)]
            add(g, weight, zeros, every - {X})
        if dot_vector is not None:
            # M turns with the edge: d(M x) = J M x - M J x, and the same for the other two.
            angle = _per_square(torch.linalg.cross(vector, dot_vector), vector, onsite)
            rotated_x = rotations.rotated(angle, x)
            maps = every - {W}
            if maps:
                now = _Trilinear.apply(g, weight, vector, wigner, onsite, tuple(sorted(maps)), rotations, *x)
                if G in maps:
                    add_term(G, rotations.rotated_out(angle, now[G]))
                if X in maps:
                    for n, term in enumerate(rotations.rotated(angle, now[X:]), X):
                        add_term(n, term)
            rotated_g = g if every == {G} else rotations.rotated_out(angle, g)
            add(rotated_g, weight, rotated_x, maps, -1.0)
            add(rotated_g, weight, x, every & {W}, -1.0)
            add(g, weight, rotated_x, every & {W}, -1.0)
        # What did not change, and what is not wanted and empty.
        return tuple(torch.zeros_like(t) if dot is None else dot for t, dot in zip(results, total, strict=True))

    @staticmethod
    def vmap(info, in_dims, *args):
        return by_sample(_Trilinear.apply)(info, in_dims, *args)


_FIRST_X = 7  # where x begins among the arguments


def _per_square(x: Tensor, vector: Tensor, onsite: Tensor) -> Tensor:
    """``x / |r|^2``, 0 on edges of length zero."""
    square = vector.square().sum(-1, keepdim=True).index_fill(0, onsite, 1.0)
    return (x / square).index_fill(0, onsite, 0.0)


def _rotate(angle: Tensor, x: Tensor, irreps: Irreps, layout: str) -> Tensor:
    """``sum over k of angle_k J_k x`` per edge; angle ``[edges, 3]``."""
    pieces = []
    for block, (mul, l, _) in zip(x.split([mul * (2 * l + 1) for mul, l, _ in irreps], 1), irreps, strict=True):
        if l == 0 or mul == 0:
            pieces.append(torch.zeros_like(block))
            continue
        # J_k x for the three axes by one product with a constant matrix, then their sum.
        d = 2 * l + 1
        generators = _generators(l, x.dtype, x.device).T.reshape(3 * d, d)
        rotated = (_components(block, mul, d, layout).reshape(-1, d) @ generators.T).view(-1, mul, 3, d)
        rotated = (rotated * angle[:, None, :, None]).sum(2)
        pieces.append((rotated.transpose(1, 2) if layout == "ir_mul" else rotated).reshape(block.shape))
    return torch.cat(pieces, dim=1)


def _components(block: Tensor, mul: int, d: int, layout: str) -> Tensor:
    """``[edges, mul, d]``; reshape: torch's batched gradients know neither flatten nor
    unflatten."""
    rows = block.shape[0]
    return block.reshape(rows, d, mul).transpose(1, 2) if layout == "ir_mul" else block.reshape(rows, mul, d)


def _pairing(a: Tensor, b: Tensor, irreps: Irreps, layout: str) -> Tensor:
    """``<a, J_k b>`` per edge for the three axes k, ``[edges, 3]``."""
    total = a.new_zeros(a.shape[0], 3)
    sizes = [mul * (2 * l + 1) for mul, l, _ in irreps]
    for x, y, (mul, l, _) in zip(a.split(sizes, 1), b.split(sizes, 1), irreps, strict=True):
        if l == 0 or mul == 0:
            continue
        left, right = (_components(block, mul, 2 * l + 1, layout) for block in (x, y))
        products = left.transpose(1, 2) @ right
        total = total + products.reshape(-1, (2 * l + 1) ** 2) @ _generators(l, a.dtype, a.device)
    return total


@cache
@real_tensors()
def _generators(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[(2 l + 1)^2, 3]``, e3nn's axes."""
    with float64_default():
        return so3_generators(l).flatten(1).T.to(dtype=dtype, device=device).contiguous()
