"""The tensor product, path by path, as one einsum each."""

import torch
from torch import Tensor

from hamfast.plan import Plan
from hamfast.plan.coupling import wigner_3j

_EINSUM = {
    "uvw": "zuvw,ijk,zui,zvj->zwk",
    "uvu": "zuv,ijk,zui,zvj->zuk",
    "uvv": "zuv,ijk,zui,zvj->zvk",
    "uuw": "zuw,ijk,zui,zuj->zwk",
    "uuu": "zu,ijk,zui,zuj->zuk",
    "uvuv": "zuv,ijk,zui,zvj->zuvk",
    "uvu<v": "zp,ijk,zpi,zpj->zpk",
    "u<vw": "zpw,ijk,zpi,zpj->zwk",
}


def tensor_product(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    plan: Plan,
    senders: Tensor | None = None,
    receivers: Tensor | None = None,
    num_receivers: int = 0,
) -> Tensor:
    """See :func:`hamfast.ops.tensor_product`; the graph is given by its plain index tensors."""
    if senders is not None:
        x = x[senders]
    rows = x.shape[0]
    if weight is not None:
        weight = weight.expand(rows, -1)
    x_blocks = _blocks(x, plan.irreps_in1)
    y_blocks = _blocks(y, plan.irreps_in2)
    out = [x.new_zeros(rows, mul, 2 * l + 1) for mul, l, _ in plan.irreps_out]
    for ins in plan.instructions:
        a, b = x_blocks[ins.i_in1], y_blocks[ins.i_in2]
        l1, l2, l3 = plan.irreps_in1[ins.i_in1][1], plan.irreps_in2[ins.i_in2][1], plan.irreps_out[ins.i_out][1]
        cg = torch.tensor(wigner_3j(l1, l2, l3), dtype=x.dtype, device=x.device)
        if ins.mode in ("uvu<v", "u<vw"):
            u, v = torch.triu_indices(a.shape[1], a.shape[1], 1)
            a, b = a[:, u], b[:, v]
        if ins.has_weight:
            assert weight is not None
            w = weight[:, ins.weight_offset : ins.weight_offset + ins.weight_numel]
            w = w.reshape(rows, *ins.weight_shape)
        else:
            w = x.new_ones(rows, *ins.weight_shape)
        term = ins.coefficient * torch.einsum(_EINSUM[ins.mode], w, cg, a, b)
        out[ins.i_out] = out[ins.i_out] + term.reshape(out[ins.i_out].shape)
    result = torch.cat([block.flatten(1) for block in out], dim=1) if out else x.new_zeros(rows, 0)
    if receivers is not None:
        result = x.new_zeros(num_receivers, result.shape[1]).index_add(0, receivers, result)
    return result


def _blocks(x, irreps):
    blocks = torch.split(x, [mul * (2 * l + 1) for mul, l, _ in irreps], dim=1)
    return [block.reshape(x.shape[0], mul, 2 * l + 1) for block, (mul, l, _) in zip(blocks, irreps, strict=True)]


def separate_weights(left: Tensor, right: Tensor, plan: Plan) -> Tensor:
    """The weight ``left[u, w] right[w]`` of each path, ``[weight_numel]`` (DeepH-E3's separate
    weights with one channel of y).
    """
    shapes = [ins.weight_shape for ins in plan.instructions]
    paths = zip(
        left.split([ins.weight_numel for ins in plan.instructions]),
        right.split([n for *_, n in shapes]),
        shapes,
        strict=True,
    )
    return torch.cat([left[:0], *((a.view(shape) * b).flatten() for a, b, shape in paths)])
