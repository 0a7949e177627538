"""How irreps lie in the last dimension of a tensor, and conversion between the two layouts.

``mul_ir`` (e3nn): channels of a block slow, components fast. ``ir_mul``: components slow, channels fast, so that channel
mixing is one matrix product and gates broadcast along contiguous memory. The models keep ``ir_mul`` between layers.
"""

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

LAYOUTS = ("mul_ir", "ir_mul")


class LoadsE3nnState(nn.Module):
    """A layer whose ``load_state_dict`` takes the state of its e3nn counterpart.

    e3nn keeps tables of its generated code in the state; they are constants of the plan and are passed over.
    """

    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = {prefix + name for name in (*self._parameters, *self._buffers)}
        for key in [k for k in state_dict if k.startswith(prefix) and k not in own]:
            if key.startswith(prefix + "_compiled_main") or key == prefix + "output_mask":
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_layout(layout: str) -> str:
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected mul_ir or ir_mul, found {layout!r}")
    return layout


def split_blocks(x: Tensor, irreps: Irreps) -> list[Tensor]:
    """``[..., irreps.dim]`` -> one ``[..., dim]`` view per irreps block."""
    return list(torch.split(x, [mul * ir.dim for mul, ir in irreps], dim=-1))


def convert_layout(x: Tensor, irreps: Irreps, source: str, target: str) -> Tensor:
    """Reorders ``[..., irreps.dim]`` from one layout to the other; a copy unless they agree."""
    if check_layout(source) == check_layout(target) or all(mul == 1 or ir.dim == 1 for mul, ir in irreps):
        return x
    parts = []
    for block, (mul, ir) in zip(split_blocks(x, irreps), irreps, strict=True):
        shape = (mul, ir.dim) if source == "mul_ir" else (ir.dim, mul)
        parts.append(block.unflatten(-1, shape).transpose(-1, -2).flatten(-2))
    return torch.cat(parts, dim=-1)
