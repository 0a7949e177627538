"""Tensor-product layers with the names, weights and ``state_dict`` of e3nn's."""

import torch
from e3nn.o3 import Irreps
from torch import Tensor, nn

from hamfast.nn.checks import NotScripted
from hamfast.nn.irreps_layout import LoadsE3nnState, check_layout
from hamfast.ops import (
    EdgeFrames,
    EdgeIndex,
    EdgeSources,
    RadialWeights,
    SeparateWeights,
    edge_tensor_product,
    tensor_product,
)
from hamfast.ops.checks import check_count
from hamfast.ops.tensor_product import broadcast_tensor_product
from hamfast.plan import edge_frame_plan, make_plan


class TensorProduct(LoadsE3nnState):
    """``e3nn.o3.TensorProduct``: same arguments, weights, normalisation and ``state_dict``.

    Args:
        irreps_in1, irreps_in2, irreps_out, instructions: as in e3nn.
        in1_var, in2_var, out_var, irrep_normalization, path_normalization: as in e3nn.
        internal_weights: the module owns a parameter ``weight``; by default if weights are shared.
        shared_weights: one weight for all rows.
        layout: of the first operand and of the result, ``mul_ir`` as e3nn has it, or ``ir_mul``.
    """

    def __init__(
        self,
        irreps_in1,
        irreps_in2,
        irreps_out,
        instructions,
        in1_var=None,
        in2_var=None,
        out_var=None,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        layout: str = "mul_ir",
    ):
        super().__init__()
        self.layout = check_layout(layout)
        self.irreps_in1, self.irreps_in2, self.irreps_out = Irreps(irreps_in1), Irreps(irreps_in2), Irreps(irreps_out)
        self.plan = make_plan(
            self.irreps_in1,
            self.irreps_in2,
            self.irreps_out,
            instructions,
            in1_var=in1_var,
            in2_var=in2_var,
            out_var=out_var,
            irrep_normalization=irrep_normalization or "component",
            path_normalization=path_normalization or "element",
        )
        if shared_weights is False and internal_weights is None:
            internal_weights = False
        self.shared_weights = True if shared_weights is None else shared_weights
        has_weight = self.plan.weight_numel > 0
        self.internal_weights = self.shared_weights and has_weight if internal_weights is None else internal_weights
        if self.internal_weights and not self.shared_weights:
            raise ValueError("TensorProduct: internal weights are shared by all rows; set shared_weights=True")
        self.weight_numel = self.plan.weight_numel
        if self.internal_weights and has_weight:
            self.weight = nn.Parameter(torch.randn(self.weight_numel))
        else:
            self.register_buffer("weight", torch.Tensor())
        # e3nn keeps this buffer in its state_dict.
        touched = {ins.i_out for ins in self.plan.instructions if ins.coefficient != 0 and 0 not in ins.weight_shape}
        mask = [torch.full((mul_ir.dim,), float(n in touched)) for n, mul_ir in enumerate(self.irreps_out)]
        self.register_buffer("output_mask", torch.cat(mask) if mask else torch.ones(0))

    def forward(
        self, x: Tensor, y: Tensor, weight: Tensor | RadialWeights | None = None, edges: EdgeIndex | None = None
    ) -> Tensor:
        """``[..., irreps_in1.dim]``, ``[..., irreps_in2.dim]`` -> ``[..., irreps_out.dim]``.

        With ``edges``: gather, product and scatter-sum of :func:`hamfast.ops.tensor_product`, which
        also takes
        :class:`hamfast.ops.RadialWeights`.
        """
        if self.weight_numel == 0:
            weight = None
        elif weight is None:
            if not self.internal_weights:
                raise ValueError(f"TensorProduct: expected weight [{self.weight_numel}] per row, found None")
            weight = self.weight
        if edges is not None or isinstance(weight, RadialWeights):
            return tensor_product(x, y, weight, self.plan, edges, layout=self.layout)
        return broadcast_tensor_product(x, y, weight, self.plan, self.layout)


class FullyConnectedTensorProduct(TensorProduct):
    """``e3nn.o3.FullyConnectedTensorProduct``: every allowed path, mode uvw."""

    def __init__(self, irreps_in1, irreps_in2, irreps_out, **kwargs):
        super().__init__(
            irreps_in1,
            irreps_in2,
            irreps_out,
            fully_connected(Irreps(irreps_in1), Irreps(irreps_in2), Irreps(irreps_out)),
            **kwargs,
        )


def fully_connected(irreps_in1: Irreps, irreps_in2: Irreps, irreps_out: Irreps) -> list[tuple]:
    """Instructions of every path the selection rules allow, in e3nn's order."""
    return [
        (i, j, k, "uvw", True, 1.0)
        for i, (_, ir1) in enumerate(irreps_in1)
        for j, (_, ir2) in enumerate(irreps_in2)
        for k, (_, ir3) in enumerate(irreps_out)
        if ir3 in ir1 * ir2
    ]


class EdgeTensorProduct(NotScripted):
    """Every path of ``irreps_in1 x Y(direction) -> irreps_out`` with DeepH-E3's separate weights,
    ``W1[u, w] W2[w]``.

    Computed in each edge's own frame. ``weight1`` and ``weight2`` are the matrices of all paths,
    flat, in e3nn's path order.
    """

    def __init__(self, irreps_in1, l_max: int, irreps_out, layout: str = "mul_ir"):
        super().__init__()
        self.irreps_in1, self.irreps_out = Irreps(irreps_in1), Irreps(irreps_out)
        check_count("EdgeTensorProduct", "l_max", l_max)
        irreps_sh = Irreps.spherical_harmonics(l_max)
        instructions = fully_connected(self.irreps_in1, irreps_sh, self.irreps_out)
        self.layout = check_layout(layout)
        self.plan = edge_frame_plan(make_plan(self.irreps_in1, irreps_sh, self.irreps_out, instructions))
        self.weight1 = nn.Parameter(torch.randn(self.plan.plan.weight_numel))
        self.weight2 = nn.Parameter(torch.randn(sum(ins.weight_shape[-1] for ins in self.plan.plan.instructions)))

    def forward(self, x: Tensor | EdgeSources, frames: EdgeFrames) -> Tensor:
        """``[edges, irreps_in1.dim]`` -> ``[edges, irreps_out.dim]``."""
        return edge_tensor_product(x, SeparateWeights(self.weight1, self.weight2), self.plan, frames, self.layout)
