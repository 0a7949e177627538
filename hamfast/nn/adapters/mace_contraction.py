"""mace-torch: the product basis, whose symmetric contraction becomes one op."""

from __future__ import annotations

import torch
from e3nn.util.jit import compile_mode
from mace.modules.symmetric_contraction import SymmetricContraction
from torch import nn

from hamfast.nn.adapters import Adapted, as_subclass, change_class
from hamfast.nn.symmetric_contraction import RunsContraction, remake_plan, tensors_of

TEXT = "symmetric contraction on hamfast"


@compile_mode("script")
class MaceContraction(RunsContraction, SymmetricContraction):
    """MACE's ``SymmetricContraction``, run by hamfast."""


def adapt(module: nn.Module) -> Adapted | None:
    """Runs one of MACE's contractions on hamfast."""
    if not isinstance(module, SymmetricContraction) or isinstance(module, torch.jit.ScriptModule):
        return None
    if isinstance(module, MaceContraction):
        return Adapted(True, TEXT)
    if type(module) is not SymmetricContraction:
        return Adapted(False, as_subclass(module))
    if any(type(c).__name__ != "Contraction" for c in module.contractions):
        return Adapted(False, "its parts are not MACE's")
    blocks = [tensors_of(contraction) for contraction in module.contractions]
    dim = blocks[0][0].shape[1]
    for n, tensors in enumerate(blocks):
        for tensor in tensors:
            degree = tensor.ndim - 2
            if degree < 1 or tensor.shape[1:-1] != (dim,) * degree:
                return Adapted(False, f"the coefficients of its irrep {n} have the shape {list(tensor.shape)}")
    undo_class = change_class(module, MaceContraction)
    assert isinstance(module, MaceContraction)
    before = set(module._buffers)
    module.make_plan()
    handle = module.register_load_state_dict_post_hook(remake_plan)

    def undo() -> None:
        handle.remove()
        for name in set(module._buffers) - before:
            delattr(module, name)
        for name in ("plan", "_dims"):
            delattr(module, name)
        undo_class()

    return Adapted(True, TEXT, undo=undo)
