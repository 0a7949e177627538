"""The last equivariant linear maps of a model, and what goes into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from e3nn.o3 import Irrep, Irreps
from torch import Tensor

from hamfast.graph import CrystalGraph
from hamfast.models.cascade import Cascade
from hamfast.models.covariant import CovariantNetwork
from hamfast.models.frame_transformer import FrameTransformer
from hamfast.nn import Linear
from hamfast.nn.irreps_layout import split_blocks


@dataclass
class LastFeatures:
    """Covariant features of one graph, in the layout ``ir_mul``."""

    irreps_edge: Irreps
    irreps_node: Irreps
    """Without channels where only edges have features."""
    edge: Tensor | None = None
    """``[edges, irreps_edge.dim]``; None where there are no channels, as in ``node``."""
    node: Tensor | None = None
    """``[atoms, irreps_node.dim]``: of on-site blocks, beside those of the edge."""

    def of(self, graph: CrystalGraph, rows: Tensor, onsite: bool, ir: Irrep) -> Tensor:
        """``[rows, features, 2 l + 1]`` float64: the features of one irrep.

        ``0e`` has one more feature, which is 1: the bias of a linear map.

        Args:
            graph: that the features are of.
            rows: ``[rows]`` int64, edges of one kind.
            onsite: are they on-site blocks?
            ir: the irrep.
        """
        parts = [] if self.edge is None else _channels(self.edge[rows], self.irreps_edge, ir)
        if onsite and self.node is not None:
            parts += _channels(self.node[graph.receivers[rows]], self.irreps_node, ir)
        if ir.is_scalar():
            parts.append(graph.vector.new_ones(len(rows), 1, 1))
        if not parts:
            return graph.vector.new_zeros(len(rows), 0, ir.dim, dtype=torch.float64)
        return torch.cat(parts, dim=1).double()


def last_maps(model: Cascade) -> tuple[Linear | None, Linear | None]:
    """The maps that make the blocks of the features of edges, and of atoms.

    They are those of the second stage if it is covariant, else those of the first. None where there
    is no such map.
    """
    last = model.stage2 if isinstance(model.stage2, FrameTransformer) else model.stage1
    if not isinstance(last, (FrameTransformer, CovariantNetwork)):
        return None, None
    return last.output, last.onsite_output


@contextmanager
def captured_features(model: Cascade) -> Iterator[LastFeatures]:
    """Within the block a forward pass of the model puts its features into what this yields."""
    edge, node = last_maps(model)
    found = LastFeatures(*(Irreps("") if m is None else m.irreps_in for m in (edge, node)))
    hooks = [
        m.register_forward_pre_hook(lambda _, inputs, name=name: setattr(found, name, inputs[0].detach()))
        for name, m in (("edge", edge), ("node", node))
        if m is not None
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _channels(x: Tensor, irreps: Irreps, wanted: Irrep) -> list[Tensor]:
    """``[rows, mul, 2 l + 1]`` of every block of an irrep."""
    blocks = zip(split_blocks(x, irreps), irreps, strict=True)
    return [block.unflatten(-1, (ir.dim, mul)).transpose(1, 2) for block, (mul, ir) in blocks if ir == wanted]
