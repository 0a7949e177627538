"""Whether an operand of scalars tells species apart, as its numbers or its origin show.

Models write a linear layer as a product with ones, and a linear layer of each species as a product
with one-hot vectors, or with rows of an embedding. Rows of one species are then multiplied by one
matrix each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hamfast.nn.remembered import Remembered, may_look
from hamfast.ops.irreps_linear import SpeciesRows, irreps_linear, rows_of_species
from hamfast.ops.tensor_product import scalar_plan, weights_of_scalar_plan
from hamfast.plan import Plan
from hamfast.plan.linear import LinearPlan

SHARED = 4
"""Rows that a kind must have on average, for its weights to be made."""


def product_with_species(x: Tensor, y: Tensor, weight: Tensor, plan: Plan) -> Tensor | None:
    """The product as linear layers of species, where ``y`` is found to tell them apart.

    Args:
        x: ``[..., dim_in1]``; y: ``[..., species]``; weight: ``[weight_numel]``, shared.
        plan: any.

    Returns:
        ``[..., dim_out]``, layout ``mul_ir``; None where the general way is to be gone.
    """
    linear = scalar_plan(plan)
    if linear is None or weight.dim() != 1 or x.shape[:-1] != y.shape[:-1] or not may_look(y, x, weight):
        return None
    species = None if y.requires_grad else _SPECIES(y)
    if species is not None:
        own = weights_of_scalar_plan(weight, plan)
        return irreps_linear(x, own, linear, species=species if linear.species > 1 else None)
    if y.dim() != 2 or linear.species == 1:
        return None
    kinds = kinds_by_origin(y) if y.requires_grad else _EQUAL_ROWS(y)
    if kinds is None:
        return None
    table = y[kinds.first]
    if table.requires_grad:
        table.register_hook(_refusal(y))
    return _of_kinds(x, table, weight, plan, linear, kinds.rows)


def _of_kinds(x: Tensor, table: Tensor, weight: Tensor, plan: Plan, linear: LinearPlan, rows: SpeciesRows) -> Tensor:
    """The weights meet each row of the table, ``[kinds, channels]``, once."""
    parts = weights_of_scalar_plan(weight, plan).split([ins.weight_numel for ins in plan.instructions])
    made = [
        torch.einsum("sv,uvw->usw", table, part.view(ins.weight_shape)).flatten()
        for part, ins in zip(parts, plan.instructions, strict=True)
    ]
    kinds = table.shape[0]
    return irreps_linear(x, torch.cat(made), replace(linear, species=kinds), species=rows if kinds > 1 else None)


class Kinds(NamedTuple):
    """Rows of few different ones."""

    rows: SpeciesRows
    """Those of each kind."""
    first: Tensor
    """``[kinds]`` int64: one row of each."""


def _kinds(values: Tensor) -> Kinds | None:
    """Of ``[rows, ...]``, whose equal entries are one kind; None if there are many."""
    present, kind = torch.unique(values, dim=None if values.dim() == 1 else 0, return_inverse=True)
    if present.shape[0] * SHARED > values.shape[0]:
        return None
    rows = rows_of_species(kind, present.shape[0])
    return Kinds(rows, rows.order[rows.ptr[:-1]])


def kinds_by_origin(y: Tensor) -> Kinds | None:
    """Of an operand with a gradient: its rows are those of a table.

    The gradient in ``y`` then lies on one row of each kind. What ``y`` is taken from adds the rows
    of a kind up, and gets the same. Who asks for that of ``y`` itself meets :func:`_refusal`.
    """
    index = rows_of_table(y)
    return None if index is None else _kinds(index)


def _refusal(y: Tensor) -> Callable[[Tensor], None]:
    """A hook for the gradient of one row of each kind: it must go on to the table.

    It raises a RuntimeError where it would end in ``y``, which wants one for every row. That cannot
    be told where the gradients in ``y`` and in the table are asked for at once.
    """
    table, rows = _table_node(y), weakref.ref(y)

    def check(gradient: Tensor) -> None:
        of_rows = rows()
        if (of_rows is not None and _watched(of_rows)) or not _will_run(table):
            raise RuntimeError(
                "hamfast: expected a gradient in the table that rows of an embedding were taken from, found one in the "
                "rows, which an accelerated layer has summed over equal rows; call retain_grad() of the rows before the "
                "layer runs, or take_back() of the report of hamfast.accelerate"
            )

    return check


def _watched(y: Tensor) -> bool:
    """Does anybody want to see the gradient in these rows?"""
    return bool(y.retains_grad or y._backward_hooks)


def _table_node(y: Tensor) -> Any:
    """What autograd goes on to after the rows of :func:`rows_of_table`."""
    node = y.grad_fn
    while node is not None and node.name() == "SliceBackward0":
        node = node.next_functions[0][0]
    return None if node is None else node.next_functions[0][0]


def _will_run(node: Any) -> bool:
    """Does the backward pass that runs now reach a node?"""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError as error:  # a leaf whose gradient is asked for, of which torch says so
        if "leaf node" in str(error):
            return True
        raise


def rows_of_table(y: Tensor) -> Tensor | None:
    """``[rows]`` int64: which row of a table each row of ``y`` is, as autograd has recorded it.

    None if ``y`` is anything else.
    """
    node = y.grad_fn
    while node is not None and node.name() == "SliceBackward0":
        start, step = (getattr(node, f"_saved_{name}") for name in ("start", "step"))
        if node._saved_dim != 0 or start != 0 or step != 1:  # type: ignore[attr-defined]
            return None
        node = node.next_functions[0][0]
    if node is None or _watched(y):
        return None
    if node.name() == "EmbeddingBackward0":
        index = node._saved_indices  # type: ignore[attr-defined]
    elif node.name() == "IndexSelectBackward0" and node._saved_dim == 0:  # type: ignore[attr-defined]
        index = node._saved_index  # type: ignore[attr-defined]
    else:
        return None
    return index[: y.shape[0]] if index.dim() == 1 else None


@torch.no_grad()
def find_species(y: Tensor) -> SpeciesRows | None:
    """The rows of each species of one-hot vectors ``[..., species]``; None if ``y`` is no such."""
    y = y.reshape(-1, y.shape[-1])
    one = y == 1
    if not bool((one | (y == 0)).all() & (one.sum(1) == 1).all()):
        return None
    return rows_of_species(one.to(torch.int64).argmax(1), y.shape[1])


@torch.no_grad()
def find_equal_rows(y: Tensor) -> Kinds | None:
    """Of an operand without a gradient: its equal rows."""
    if not y.shape[0] or _kinds(y[:, 0]) is None:  # cheap, and says it mostly
        return None
    return _kinds(y)


_SPECIES, _EQUAL_ROWS = Remembered(find_species), Remembered(find_equal_rows)
