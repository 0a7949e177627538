"""The product with the harmonics of a direction: make them, then multiply."""

import torch
from e3nn import o3
from torch import Tensor

from hamfast.plan import Plan
from hamfast.reference.tensor_product import tensor_product


def edge_tensor_product(x: Tensor, weight: Tensor, plan: Plan, vector: Tensor) -> Tensor:
    """See :func:`hamfast.ops.edge_tensor_product`; ``vector``: ``[edges, 3]`` in e3nn's axis order.
    Layout ``mul_ir``.
    """
    irreps = o3.Irreps([(mul, (l, p)) for mul, l, p in plan.irreps_in2])
    harmonics = o3.spherical_harmonics(irreps, vector, normalize=True, normalization="component")
    # e3nn 0.6 normalises a zero vector to zero, which makes every l > 0 vanish; keep that whatever
    # its version does.
    onsite = vector.norm(dim=-1) <= 1e-6
    scalar = torch.cat([torch.full((mul * (2 * l + 1),), float(l == 0)) for mul, l, _ in plan.irreps_in2])
    harmonics = torch.where(onsite[:, None], scalar.to(harmonics), harmonics)
    return tensor_product(x, harmonics, weight, plan)
