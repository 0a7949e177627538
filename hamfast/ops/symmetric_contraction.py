"""The symmetric contraction: polynomials in a node's irreps, channel by channel, weighted by its
species.

    F(x, y, w, g) = sum over nodes of <g, P(x; y, w)>

is linear in y, w and g, and a polynomial in x. One op gives F's partial derivatives, or those of
its derivative along a direction of x. That derivative is once more such an F, of the plan whose
polynomials have x and the direction as their variables: so every order is exact, and a kernel's
work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hamfast import _library  # noqa: F401  (loads the kernels)
from hamfast.constants import constant, on_host, real_tensors
from hamfast.ops.checks import HALF, check_rows, check_same, check_tensor, found
from hamfast.ops.transforms import differentiable
from hamfast.plan.symmetric_contraction import ContractionPlan, contraction_tables, derivative_plan
from hamfast.records.choices import Slot
from hamfast.records.ops import CONTRACTION_TABLES, SYMMETRIC_CONTRACTION
from hamfast.records.tables import ContractionDims, ContractionEntry, ContractionGroup, Product

_NAME = "symmetric_contraction"
X, Y, W, G = Slot.X, Slot.Y, Slot.W, Slot.G


def symmetric_contraction(x: Tensor, weight: Tensor, y: Tensor, plan: ContractionPlan) -> Tensor:
    """``out[n, c, i] = sum of C[n, c, t] prod of x[n, c, j]`` over the terms t of component i, and
    over the factors j of t.

    ``C[n, c, t] = sum over paths k, species s of U[t, k] y[n, s] weight[s, k, c]``: the product
    basis of MACE (Batatia et al., arXiv 2206.07697, equations 10 and 11).

    Args:
        x: ``[nodes, channels, plan.dim_in]``, float32 or float64. bfloat16 and float16 are computed
            on float32 copies.
        weight: ``[species, plan.paths, channels]``, of x's dtype.
        y: ``[nodes, species]``, of x's dtype. Any numbers. Nodes with a single 1 and otherwise 0
            share the work on their species' weights on the CPU, so long as no gradient in y is
            asked for.
        plan: from :func:`hamfast.plan.contraction_plan`.

    Returns:
        ``[nodes, channels * plan.dim_out]``: one block ``[channels, d]`` for each of
        ``plan.dims_out``. Differentiable to any order, in reverse and forward mode and under
        ``torch.func``. Sums have a fixed order: deterministic.

    Raises:
        TypeError: no tensor, or no plan.
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    if not isinstance(plan, ContractionPlan):
        raise TypeError(f"{_NAME}: plan: expected a ContractionPlan from contraction_plan, found {found(plan)}")
    check_tensor(_NAME, "x", x)
    if x.dim() != 3 or x.shape[2] != plan.dim_in:
        raise ValueError(f"{_NAME}: x: expected [nodes, channels, {plan.dim_in}], found {list(x.shape)}")
    check_tensor(_NAME, "y", y)
    if y.dim() != 2 or y.shape[0] != x.shape[0]:
        raise ValueError(f"{_NAME}: y: expected [{x.shape[0]}, species], found {list(y.shape)}")
    check_rows(_NAME, "weight", weight, y.shape[1], plan.paths, x.shape[1])
    check_same(_NAME, True, x=x, weight=weight, y=y)
    dtype = x.dtype
    if dtype in HALF:
        x, weight, y = x.float(), weight.float(), y.float()
    form = Form(*make_tables(plan, x.dtype, x.device))
    out = form.derivatives((x, y, weight, None), None, (G,))[G]
    return out.to(dtype)


class Tables(NamedTuple):
    """What a plan is for the kernels on one device."""

    tensors: Any
    """The group ``tables`` of the op's record."""
    dims: ContractionDims


_TABLES: dict[tuple, Tables] = {}


@torch.compiler.assume_constant_result
def make_tables(plan: ContractionPlan, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables of a plan, made once."""
    key = (plan.id, dtype, device)
    if key not in _TABLES:
        made = contraction_tables(plan)
        with real_tensors():
            tensors = CONTRACTION_TABLES.fields(
                *(constant(array, device, dtype if array.dtype == np.float64 else None) for array in made)
            )
        number = int(plan.id[:15], 16)
        _TABLES[key] = Tables(tensors, ContractionDims(plan.dim_in, plan.dim_out, plan.paths, number))
    return _TABLES[key]


_DERIVATIVES: dict[tuple, Tables] = {}


def _derivative_tables(tensors: Any, dims: ContractionDims) -> Tables:
    """Those of the derivative along a direction. Made from the tables themselves, which an exported
    program has where it has no plan.

    Raises:
        NotImplementedError: in a graph that is being traced: its third derivative needs tables that
            depend on what is in these.
    """
    if torch._guards.detect_fake_mode() is not None:
        raise NotImplementedError(
            f"hamfast: {_NAME}: third derivatives cannot be compiled; compile what is inside them"
        )
    values = tensors.by_path_value
    key = (dims.key, values.dtype, values.device)
    if key not in _DERIVATIVES:
        with real_tensors():
            plan = derivative_plan(_plan_of(tensors, dims))
            _DERIVATIVES[key] = make_tables(plan, values.dtype, values.device)
    return _DERIVATIVES[key]


def _plan_of(tensors: Any, dims: ContractionDims) -> ContractionPlan:
    """The plan of tables; its terms are in their order."""
    monomials: list[tuple[int, ...]] = [(), *((j,) for j in range(dims.x))]
    for row in on_host(tensors.products).tolist():
        product = Product(*row)
        monomials.append((*monomials[product.parent], product.factor - 1))
    groups = [ContractionGroup(*row) for row in on_host(tensors.groups).tolist()]
    prefixes = [group.prefix for group in groups for _ in range(group.terms)]
    factors = on_host(tensors.factors).tolist()
    pairs = [ContractionEntry(*row) for row in on_host(tensors.by_term).tolist()]
    return ContractionPlan(
        dims.x,
        tuple(row[0] for row in on_host(tensors.blocks).tolist()),
        dims.paths,
        np.array([group.component for group in groups for _ in range(group.terms)], dtype=np.int64),
        tuple(tuple(sorted(monomials[p] + monomials[f])) for p, f in zip(prefixes, factors, strict=True)),
        np.array([(pair.source, pair.target) for pair in pairs], dtype=np.int64).reshape(-1, 2),
        on_host(tensors.by_term_value).astype(np.float64),
    )


class Form(NamedTuple):
    """F of one plan, whatever its operands are."""

    tables: Any
    dims: Any

    def derivatives(self, operands: Sequence, direction: Tensor | None, slots: Sequence[int]) -> dict[int, Tensor]:
        """Those of F, or of its derivative along a direction of x, in the slots."""
        if not slots:
            return {}
        x, y, w, g = operands
        wanted = sum(1 << slot for slot in slots)
        given = (x, y, w, None if wanted == 1 << G else g)
        results = _op(*given, direction, *self.tables, wanted, self.dims)
        return {slot: results[slot] for slot in slots}

    def along(self, operands: Sequence, tangents: Sequence, slots: Sequence[int]) -> dict[int, Tensor]:
        """Derivatives in the slots of F's derivative along tangents of its operands."""
        total: dict[int, Tensor] = {}
        if tangents[X] is not None:
            total = self.derivatives(operands, tangents[X], slots)
        for n in (Y, W, G):  # linear: the tangent takes the operand's place
            if tangents[n] is not None:
                exchanged = [tangents[i] if i == n else t for i, t in enumerate(operands)]
                more = self.derivatives(exchanged, None, [slot for slot in slots if slot != n])
                for slot, term in more.items():
                    total[slot] = total[slot] + term if slot in total else term
        return total

    def of_direction(self) -> Form:
        """F's derivative along a direction, as the F of the pair of x and the direction."""
        return Form(*_derivative_tables(self.tables, ContractionDims(*self.dims)))


def _pair(x: Tensor | None, direction: Tensor | None) -> Tensor | None:
    """The variables of :meth:`Form.of_direction`, or their tangent."""
    if x is None and direction is None:
        return None
    like = x if x is not None else direction
    assert like is not None
    return torch.cat([torch.zeros_like(like) if t is None else t for t in (x, direction)], dim=2)


@torch.library.register_fake("hamfast::symmetric_contraction")
def _(*flat):
    arguments = SYMMETRIC_CONTRACTION.read(flat)
    x, y, w, _ = arguments.operands
    shapes = (x.shape, y.shape, w.shape, (x.shape[0], x.shape[1] * arguments.dims[1]))
    return tuple(x.new_empty(shape if arguments.wanted >> slot & 1 else (0,)) for slot, shape in enumerate(shapes))


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: SYMMETRIC_CONTRACTION.tensors])
    ctx.settings = inputs[SYMMETRIC_CONTRACTION.tensors :]


def _backward(ctx, *grads):
    arguments = SYMMETRIC_CONTRACTION.read((*ctx.saved_tensors, *ctx.settings))
    needs = SYMMETRIC_CONTRACTION.read(ctx.needs_input_grad)
    incoming = [grad if arguments.wanted >> slot & 1 else None for slot, grad in enumerate(grads)]
    needed = [slot for slot in range(4) if needs.operands[slot]]
    to_direction = None
    if all(grad is None for grad in incoming):
        return SYMMETRIC_CONTRACTION.per_argument()
    form, operands = Form(arguments.tables, arguments.dims), list(arguments.operands)
    if arguments.direction is None:
        results = form.along(operands, incoming, needed)
    else:
        results, to_direction = _along_direction(form, arguments, incoming, None, needed, needs.direction)
    return SYMMETRIC_CONTRACTION.per_argument(operands=[results.get(slot) for slot in range(4)], direction=to_direction)


def _along_direction(form, arguments, tangents, tangent_direction, slots, wants_direction):
    """:meth:`Form.along` of F's derivative along a direction: that in the slots, and in the
    direction."""
    x, *others = arguments.operands
    slots = list(slots) + ([X] if wants_direction and X not in slots else [])
    found = form.of_direction().along(
        [_pair(x, arguments.direction), *others], [_pair(tangents[X], tangent_direction), *tangents[1:]], slots
    )
    both = found.pop(X, None)
    if both is None:
        return found, None
    dim = x.shape[2]
    return found | {X: both[..., :dim]}, both[..., dim:] if wants_direction else None


def _jvp(inputs, input_tangents):
    arguments, given = SYMMETRIC_CONTRACTION.read(inputs), SYMMETRIC_CONTRACTION.read(input_tangents)
    form = Form(arguments.tables, arguments.dims)
    slots = [slot for slot in range(4) if arguments.wanted >> slot & 1]
    if arguments.direction is None:
        results = form.along(arguments.operands, given.operands, slots)
    else:
        results, _ = _along_direction(form, arguments, given.operands, given.direction, slots, False)
    x, y, w, _ = arguments.operands
    shapes = (x.shape, y.shape, w.shape, (x.shape[0], x.shape[1] * arguments.dims[1]))
    return tuple(
        results[slot] if slot in results else x.new_zeros(shape if slot in slots else (0,))
        for slot, shape in enumerate(shapes)
    )


def _vmap(info, in_dims, *inputs):
    """A batch of nodes becomes more nodes; with a batch of weights, or of their gradients, one call
    per sample."""
    size, arguments = info.batch_size, SYMMETRIC_CONTRACTION.read(inputs)
    dims = SYMMETRIC_CONTRACTION.read(in_dims)
    wanted, (x, y, w, g) = arguments.wanted, arguments.operands

    def moved(t, dim):
        return t if t is None or dim is None else t.movedim(dim, 0)

    def rows(t, dim):
        if t is None:
            return None
        t = moved(t, dim)
        return (t if dim is not None else t.expand(size, *t.shape)).flatten(0, 1)

    if dims.operands[W] is not None or wanted >> W & 1:
        tensors = [*arguments.operands, arguments.direction]
        places = [*dims.operands, dims.direction]
        each = []
        for n in range(size):
            sample = [t if d is None or t is None else t.select(d, n) for t, d in zip(tensors, places, strict=True)]
            each.append(_op(*sample, *inputs[len(sample) :]))
        return tuple(torch.stack(results) for results in zip(*each, strict=True)), (0,) * 4
    folded = [rows(x, dims.operands[X]), rows(y, dims.operands[Y]), w, rows(g, dims.operands[G])]
    direction = rows(arguments.direction, dims.direction)
    out = _op(*folded, direction, *arguments.tables, wanted, arguments.dims)
    nodes = folded[X].shape[0] // max(size, 1)
    shaped = [t.unflatten(0, (size, nodes)) if wanted >> n & 1 else t.new_empty(size, 0) for n, t in enumerate(out)]
    return tuple(shaped), (0,) * 4


_op = differentiable(_NAME, _backward, _setup_context, _jvp, _vmap)
