"""Irreps in the last dimension of a tensor: what layers need of the two layouts.

The layouts are those of hamfast/ops/layout.py. The states that e3nn saves are read here, too.
The models keep ``ir_mul`` between layers: channel mixing is then one matrix product, and gates
broadcast along contiguous memory.
"""

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from hamfast.nn.checks import NotScripted
from hamfast.ops import layout
from hamfast.ops.layout import check_layout as check_layout
from hamfast.plan.plan import as_blocks


class LoadsE3nnState(NotScripted):
    """A layer whose ``load_state_dict`` takes the state of its e3nn counterpart.

    e3nn keeps tables of its generated code in the state; they are constants of the plan and are
    passed over.
    """

    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = {prefix + name for name in (*self._parameters, *self._buffers)}
        for key in [k for k in state_dict if k.startswith(prefix) and k not in own]:
            if key.startswith(prefix + "_compiled_main") or key == prefix + "output_mask":
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


def split_blocks(x: Tensor, irreps: Irreps) -> list[Tensor]:
    """``[..., irreps.dim]`` -> one ``[..., dim]`` view per irreps block."""
    return list(torch.split(x, [mul * ir.dim for mul, ir in irreps], dim=-1))


def convert_layout(x: Tensor, irreps: Irreps, source: str, target: str) -> Tensor:
    """Reorders ``[..., irreps.dim]`` from one layout to the other; a copy unless they agree."""
    return layout.convert_layout(x, as_blocks(irreps), source, target)
