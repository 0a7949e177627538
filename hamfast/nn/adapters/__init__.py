"""Layers of other packages: convolutions (gather, product and scatter-sum), MACE's contraction and
attention of PyG and TorchMD-NET become ops of hamfast.

Each module here is for one package, and imported only where the package is.
Each has a function ``adapt``, which changes a module in place, and says how to undo it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hamfast.nn.packaged import rebased

PACKAGES = {
    "mace": ("mace", "mace_contraction"),
    "nequip": ("nequip",),
    "sevenn": ("sevenn",),
    "allegro": ("allegro",),
    "e3tools": ("e3tools",),
    "torchmdnet.models.torchmd_et": ("torchmdnet",),
    "torch_geometric.nn": ("pyg",),
}
"""Package -> the modules here that are for it."""


@dataclass(frozen=True)
class Adapted:
    """What an adapter did with one module, or why it did nothing."""

    done: bool
    text: str
    """What runs now in the module's stead, or why it was left alone."""
    products: tuple[nn.Module, ...] = ()
    """Modules inside that are taken care of, too."""
    undo: Callable[[], None] = lambda: None


def adapt(module: nn.Module) -> Adapted | None:
    """Exchanges the code of a module that one of the adapters knows; None for all others."""
    for package, adapters in PACKAGES.items():
        if package not in sys.modules:
            continue
        for name in adapters:
            adapted = importlib.import_module(f"hamfast.nn.adapters.{name}").adapt(module)
            if adapted is not None:
                return adapted
    return None


def hooks_of(*modules: nn.Module) -> str:
    """Why modules with hooks are left alone: a hook would see other arguments. Empty without
    hooks."""
    names = sorted(
        {n for m in modules for n in vars(m) if n.endswith("_hooks") and vars(m)[n] and n.startswith(("_for", "_back"))}
    )
    return f"it has hooks ({', '.join(names)})" if names else ""


def are_few(edge_index: Any, width: int, limit: int) -> bool:
    """Is the package's own code faster on a CPU, as edges times width are fewer than the limit?

    Only of plain indices, and where a graph does not stay that way.
    """
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided or edge_index.dim() != 2:
        return False
    if edge_index.device.type != "cpu" or edge_index.dtype != torch.int64 or torch.compiler.is_compiling():
        return False
    return edge_index.shape[1] * width < limit


def as_subclass(module: nn.Module) -> str:
    """Why a module is left alone whose class is derived from one that an adapter knows."""
    return f"{type(module).__name__} is a subclass, whose changes would be lost"


def change_class(module: nn.Module, new: type[nn.Module]) -> Callable[[], None]:
    """Gives a module another class with the same data; returns what undoes it.

    A subclass keeps ``isinstance``, copies and pickles; parameters and the ``state_dict`` do not
    know of it. Of a module from a package the new class is derived from the package's.
    """
    before = type(module)
    module.__class__ = rebased(new, before)

    def undo() -> None:
        module.__class__ = before

    return undo
