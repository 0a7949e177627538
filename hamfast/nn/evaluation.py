"""What a user's model computes on a user's batch: outputs, forces, the gradient of a force loss.

:func:`hamfast.accelerate` compares them before and after.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of outputs and forces that rounding explains, relative to their largest
number. Gradients of a force loss, in which more is summed, may differ by ten times as much."""


@dataclass(frozen=True)
class Comparison:
    """One of the results of a model before and after it was changed."""

    what: str
    difference: float
    """The largest, relative to the largest number before; NaN where one of both is not finite."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Is the difference within the tolerance?"""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "agrees" if self.agrees else "DIFFERS"
        return f"{self.what}: {verdict}, difference {self.difference:.1e}, tolerance {self.tolerance:.0e}"


def evaluate(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The results of one call of a model, by name.

    The model runs in the mode (training or evaluation) that it is in, on a copy of the batch.

    - ``output ...``: each tensor of real numbers that the model returns.
    - ``forces``: the negative gradient of the sum of all outputs in those tensors of the batch that
      require a gradient, or that the model made require one. They are missing where there are none,
      and where the model has taken the gradient itself and freed its graph.
    - ``gradient of a force loss``: that of the sum of squares of the above, in all parameters.

    Args:
        batch: the model's argument, or a tuple or list of its arguments.
    """
    arguments = fresh(batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        returned = model(*arguments) if isinstance(arguments, (tuple, list)) else model(arguments)
    outputs = {(f"output {name}" if name else "output"): t for name, t in _tensors(returned, "") if t.numel()}
    found = dict(outputs)
    live = [t for t in outputs.values() if t.requires_grad]
    leaves = [t for _, t in _tensors(arguments, "") if t.requires_grad and t.is_leaf]
    losses = [t.square().sum() for t in live]
    parameters = [p for p in model.parameters() if p.requires_grad]
    if live and leaves:
        gradients = _gradients(live, leaves, create_graph=bool(parameters))
        if gradients:
            forces = torch.cat([-g.flatten() for g in gradients])
            found["forces"] = forces
            losses += [forces.square().sum()] if forces.requires_grad else []
    if losses and parameters:
        gradients = _gradients(losses, parameters)
        if gradients:
            found["gradient of a force loss"] = torch.cat([g.flatten() for g in gradients])
    return {name: t.detach() for name, t in found.items()}


def compare(before: dict[str, Tensor], after: dict[str, Tensor], model: nn.Module) -> tuple[Comparison, ...]:
    """The results of :func:`evaluate` before and after a change, one by one.

    They agree as well as the coarser of their dtype and those of the model's parameters lets them:
    MACE of float32 returns some energies as float64.
    """
    compared = []
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    for what, a in before.items():
        b = after.get(what)
        tolerance = max(TOLERANCE.get(dtype, 1e-4) for dtype in {a.dtype} | dtypes)
        tolerance *= 10 if what.startswith("gradient") else 1
        if b is None or b.shape != a.shape:
            difference = float("inf")
        else:
            scale = float(a.abs().max())
            difference = float((a - b).abs().max()) / (scale or 1.0)
        compared.append(Comparison(what, difference, tolerance))
    return tuple(compared)


def fresh(batch: Any) -> Any:
    """A copy of a batch whose tensors are leaves: models write into what they are given."""
    if isinstance(batch, Tensor):
        return batch.detach().clone().requires_grad_(batch.requires_grad)
    if isinstance(batch, dict):
        made = copy.copy(batch)
        for key, value in batch.items():
            made[key] = fresh(value)
        return made
    if isinstance(batch, (tuple, list)):
        parts = [fresh(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if hasattr(batch, "apply") and hasattr(batch, "clone"):  # PyG's Data
        return batch.clone().apply(lambda t: t.detach().requires_grad_(t.requires_grad))
    return batch


def _tensors(value: Any, name: str):
    """Name and tensor of every tensor of real numbers in dicts, sequences, and PyG's data."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, (tuple, list)):
        for n, part in enumerate(value):
            yield from _tensors(part, f"{name} {n}".strip())
    elif isinstance(value, dict) or hasattr(value, "to_dict"):
        for key, part in (value if isinstance(value, dict) else value.to_dict()).items():
            yield from _tensors(part, f"{name} {key}".strip())


def _gradients(of: Sequence[Tensor], leaves: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """The gradients that exist; none where the model has freed its graph."""
    try:
        total = torch.stack([t.sum() for t in of]).sum()
        found = torch.autograd.grad(total, leaves, create_graph=create_graph, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "backward through the graph a second time" in str(error):
            return []
        raise
    return [g for g in found if g is not None]
