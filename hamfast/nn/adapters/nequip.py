"""nequip: the ``TensorProductScatter`` of its interaction blocks, and its compiled models.

    python -m hamfast.nn.adapters.nequip model.nequip.zip model.nequip.pt2 --mode aotinductor \\
        --target ase --device cpu

does with an accelerated model what ``nequip-compile`` does, with the same arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from nequip.nn._tp_scatter_base import TensorProductScatter
from torch import Tensor, nn

from hamfast.nn.adapters import Adapted, as_subclass, hooks_of
from hamfast.nn.adapters.convolution import TEXT, convolution, fuse, pairs_of, why_not
from hamfast.nn.checks import CallsPython
from hamfast.nn.packaged import is_a, is_exactly
from hamfast.plan import Plan


class FusedTensorProductScatter(CallsPython, TensorProductScatter):
    """NequIP's module, with its three steps in one op."""

    if TYPE_CHECKING:  # TorchScript would take the annotation for one that it does not know
        hamfast_plan: Plan
        hamfast_text: str

    def forward(self, x: Tensor, edge_attr: Tensor, edge_weight: Tensor, edge_dst: Tensor, edge_src: Tensor) -> Tensor:
        """``[nodes, dim_in1]``, ``[edges, dim_in2]``, ``[edges, weight_numel]``, receivers,
        senders -> ``[nodes, dim_out]``."""
        if torch.jit.is_scripting():
            pairs = torch.stack([edge_src, edge_dst])
            return torch.ops.hamfast.e3nn_convolution(x, edge_attr, edge_weight, pairs, self.hamfast_text)
        else:
            return self._run(x, edge_attr, edge_weight, edge_dst, edge_src)

    @torch.jit.unused
    def _run(self, x: Tensor, edge_attr: Tensor, edge_weight: Tensor, edge_dst: Tensor, edge_src: Tensor) -> Tensor:
        pairs, owner = pairs_of(edge_src, edge_dst)
        return convolution(x, edge_attr, edge_weight, pairs, self.hamfast_plan, owner)


def adapt(module: nn.Module) -> Adapted | None:
    """Fuses a ``TensorProductScatter``."""
    if is_a(module, FusedTensorProductScatter):
        return Adapted(True, TEXT, (module.tp,))
    if not is_a(module, TensorProductScatter) or isinstance(module, torch.jit.ScriptModule):
        return None
    if not is_exactly(module, TensorProductScatter):
        return Adapted(False, as_subclass(module))
    reason = why_not(module.tp) or hooks_of(module.tp)
    if reason:
        return Adapted(False, reason)
    return Adapted(True, TEXT, (module.tp,), fuse(module, module.tp, FusedTensorProductScatter))


def compile_accelerated(arguments: Sequence[str] | None = None) -> None:
    """``nequip-compile``, with :func:`hamfast.accelerate` between loading the model and compiling
    it.

    The compiled model names ``hamfast.nn``, which NequIP imports before it loads the model.

    Args:
        arguments: those of ``nequip-compile``; by default the command line's.
    """
    from nequip.scripts import compile as program

    from hamfast.nn.drop_in import accelerate

    load = program.load_saved_model

    def loaded(*args, **options):
        found = load(*args, **options)
        print(accelerate(found[0] if isinstance(found, tuple) else found))
        return found

    with patch.object(program, "load_saved_model", loaded):
        program.main(arguments)


if __name__ == "__main__":
    compile_accelerated()
