"""Whether an operand of scalars tells species apart, as its numbers or its origin show.

Models write a linear layer as a product with ones, and a linear layer of each species as a product
with one-hot vectors, or with rows of an embedding. Rows of one species are then multiplied by one
matrix each.
"""

from __future__ import annotations

from dataclasses import replace

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
    """The product as linear layers of species, where ``y`` is found to be one-hot.

    Args:
        x: ``[..., dim_in1]``; y: ``[..., species]``; weight: ``[weight_numel]``, shared.
        plan: any.

    Returns:
        ``[..., dim_out]``, layout ``mul_ir``; None where the general way is to be gone.
    """
    linear = scalar_plan(plan)
    if linear is None or weight.dim() != 1 or x.shape[:-1] != y.shape[:-1]:
        return None
    if y.requires_grad and y.dim() == 2 and linear.species > 1:
        return _with_embedding(x, y, weight, plan, linear)
    if not may_look(y, x, weight):
        return None
    species = _SPECIES(y)
    if species is None:
        several = y.dim() == 2 and linear.species > 1
        return _with_equal_rows(x, y, weight, plan, linear) if several else None
    out = irreps_linear(
        x.reshape(-1, x.shape[-1]),
        weights_of_scalar_plan(weight, plan),
        linear,
        species=species if linear.species > 1 else None,
    )
    return out.view(*x.shape[:-1], plan.dim_out)


def _with_embedding(x: Tensor, y: Tensor, weight: Tensor, plan: Plan, linear: LinearPlan) -> Tensor | None:
    """The product with rows of a table: the weights meet each row of the table once.

    The gradient in ``y`` then lies on one row of each species. What ``y`` is taken from adds the
    rows of a species up, and gets the same.
    """
    if not may_look(y.detach(), x, weight):
        return None
    index = rows_of_table(y)
    if index is None:
        return None
    present, kind = torch.unique(index, return_inverse=True)
    if present.shape[0] * SHARED > y.shape[0]:
        return None
    species = rows_of_species(kind, present.shape[0])
    return _of_table(x, y[species.order[species.ptr[:-1]]], weight, plan, linear, species)


def _with_equal_rows(x: Tensor, y: Tensor, weight: Tensor, plan: Plan, linear: LinearPlan) -> Tensor | None:
    """The same for an operand without a gradient, whose rows are few different ones."""
    found = _EQUAL_ROWS(y)
    if found is None:
        return None
    species, first = found
    return _of_table(x, y[first], weight, plan, linear, species)


def _of_table(x: Tensor, table: Tensor, weight: Tensor, plan: Plan, linear: LinearPlan, species: SpeciesRows) -> Tensor:
    """The weights meet each row of the table, ``[species, channels]``, once."""
    factors = weights_of_scalar_plan(weight, plan)
    made = [
        torch.einsum("sv,uvw->usw", table, part.view(ins.weight_shape)).flatten()
        for part, ins in zip(factors.split([i.weight_numel for i in plan.instructions]), plan.instructions, strict=True)
    ]
    kinds = table.shape[0]
    return irreps_linear(x, torch.cat(made), replace(linear, species=kinds), species=species if kinds > 1 else None)


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
    if node is None or y._backward_hooks:
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
def find_equal_rows(y: Tensor) -> tuple[SpeciesRows, Tensor] | None:
    """The rows of each kind of ``y``, and the first row of each; None if there are many kinds."""
    if not y.shape[0] or torch.unique(y[:, 0]).shape[0] * SHARED > y.shape[0]:  # cheap, and says it mostly
        return None
    kinds, kind = torch.unique(y, dim=0, return_inverse=True)
    if kinds.shape[0] * SHARED > y.shape[0]:
        return None
    species = rows_of_species(kind, kinds.shape[0])
    return species, species.order[species.ptr[:-1]]


_SPECIES, _EQUAL_ROWS = Remembered(find_species), Remembered(find_equal_rows)
