"""What the convolutions of several packages have in common: gather, product, scatter-sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from hamfast.nn.adapters import change_class
from hamfast.nn.packaged import is_a
from hamfast.nn.pair_graph import pair_graph
from hamfast.ops import tensor_product
from hamfast.plan import Plan
from hamfast.plan.plan import plan_of_e3nn

TEXT = "gather, product and sum over edges in one op of hamfast"

torch.library.define(
    "hamfast::e3nn_convolution", "(Tensor x, Tensor y, Tensor weight, Tensor edge_index, str plan) -> Tensor"
)


@torch.library.impl("hamfast::e3nn_convolution", "CompositeImplicitAutograd")
def _e3nn_convolution(x: Tensor, y: Tensor, weight: Tensor, edge_index: Tensor, plan: str) -> Tensor:
    return convolution(x, y, weight, edge_index, Plan.parse(plan))


def convolution(
    x: Tensor, y: Tensor, weight: Tensor, edge_index: Tensor, plan: Plan, owner: Tensor | None = None
) -> Tensor:
    """``out[n] = sum over the edges e into n of TP(x[sender of e], y[e], weight[e])``.

    Args:
        x: ``[nodes, dim_in1]``.
        y, weight: ``[edges, dim_in2]``, ``[edges, weight_numel]``.
        edge_index: ``[2, edges]`` integers, senders first. It is sorted once while ``owner``, by
            default itself, lives and holds the same numbers.
        plan: that of the product.

    Returns:
        ``[nodes, dim_out]``.
    """
    edges = pair_graph(edge_index, x.shape[0], x.shape[0], owner=owner).edges
    return tensor_product(x, y, weight, plan, edges)


def why_not(product: Any) -> str:
    """Why a product of e3nn cannot be the middle of a convolution; empty if it can."""
    if not is_a(product, o3.TensorProduct):
        return f"its product is a {type(product).__name__}, not one of e3nn"
    if product.shared_weights or product.weight_numel == 0:
        return "its product's weights are not one per edge"
    return ""


def fuse(module: Any, product: Any, new: type[nn.Module]) -> Callable[[], None]:
    """Gives a module another class, and the plan of its product: ``hamfast_plan``, and as a text
    for TorchScript. Returns what undoes it."""
    plan = plan_of_e3nn(product.irreps_in1, product.irreps_in2, product.irreps_out, product.instructions)
    undo_class = change_class(module, new)
    module.hamfast_plan, module.hamfast_text = plan, plan.text()

    def undo() -> None:
        undo_class()
        del module.hamfast_plan, module.hamfast_text  # a pickle of the module would need hamfast

    return undo


def pairs_of(senders: Tensor, receivers: Tensor) -> tuple[Tensor, Tensor | None]:
    """``[2, edges]``, and the tensor that both are rows of, which lives longer than they do."""
    base = senders._base
    shared = base if base is not None and base is receivers._base else None
    return torch.stack([senders, receivers]), shared
