"""Whether an operand of scalars is one-hot, as the numbers themselves show.

Models write a linear layer as a product with ones, and a linear layer of each species as a product
with one-hot vectors. Rows of one species are then multiplied by one matrix each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hamfast.nn.remembered import Remembered, may_look
from hamfast.ops.irreps_linear import SpeciesRows, irreps_linear, rows_of_species
from hamfast.ops.tensor_product import scalar_plan, weights_of_scalar_plan
from hamfast.plan import Plan


def product_with_species(x: Tensor, y: Tensor, weight: Tensor, plan: Plan) -> Tensor | None:
    """The product as linear layers of species, where ``y`` is found to be one-hot.

    Args:
        x: ``[..., dim_in1]``; y: ``[..., species]``; weight: ``[weight_numel]``, shared.
        plan: any.

    Returns:
        ``[..., dim_out]``, layout ``mul_ir``; None where the general way is to be gone.
    """
    linear = scalar_plan(plan)
    if linear is None or weight.dim() != 1 or x.shape[:-1] != y.shape[:-1] or not may_look(y, x, weight):
        return None
    species = _SPECIES(y)
    if species is None:
        return None
    out = irreps_linear(
        x.reshape(-1, x.shape[-1]),
        weights_of_scalar_plan(weight, plan),
        linear,
        species=species if linear.species > 1 else None,
    )
    return out.view(*x.shape[:-1], plan.dim_out)


@torch.no_grad()
def find_species(y: Tensor) -> SpeciesRows | None:
    """The rows of each species of one-hot vectors ``[..., species]``; None if ``y`` is no such."""
    y = y.reshape(-1, y.shape[-1])
    one = y == 1
    if not bool((one | (y == 0)).all() & (one.sum(1) == 1).all()):
        return None
    return rows_of_species(one.to(torch.int64).argmax(1), y.shape[1])


_SPECIES = Remembered(find_species)
