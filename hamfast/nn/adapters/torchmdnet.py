"""torchmd-net: the attention of its equivariant transformer, of Thoelke and De Fabritiis (arXiv
2202.02541)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torchmdnet.models.torchmd_et import EquivariantMultiHeadAttention

from hamfast.nn.adapters import Adapted, are_few, as_subclass, change_class, hooks_of
from hamfast.nn.checks import ScriptsTheirCode
from hamfast.nn.pair_graph import pair_graph
from hamfast.ops import EdgeIndex, edge_einsum, graph_attention

TEXT = "attention and sums of vectors over edges on hamfast, TorchMD-NET's code for few edges"
FEW = 60_000
"""For fewer numbers (edges times channels) TorchMD-NET's own code is the faster one on a CPU, by up
to a third."""
WEIGHTS = {nn.SiLU: "silu", nn.Sigmoid: "sigmoid"}
"""TorchMD-NET's activation of the attention -> the op's name of it."""


class FusedAttention(ScriptsTheirCode, EquivariantMultiHeadAttention):
    """TorchMD-NET's layer, whose messages are not made."""

    def forward(
        self, x: Tensor, vec: Tensor, edge_index: Tensor, r_ij: Tensor, f_ij: Tensor, d_ij: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Changes of scalars ``[nodes, channels]`` and of vectors ``[nodes, 3, channels]``.

        Args:
            x, vec: those scalars and vectors.
            edge_index: ``[2, edges]`` integers, senders first.
            r_ij, f_ij, d_ij: per edge its length, radial functions, and direction.
        """
        if are_few(edge_index, self.hidden_channels, FEW):
            return super().forward(x, vec, edge_index, r_ij, f_ij, d_ij)
        edges = pair_graph(edge_index, len(x), len(x)).edges
        x, cutoff = self.layernorm(x), self.cutoff(r_ij)
        value, turning, pointing = _thirds(self.v_proj(x), self.num_heads)
        filters: Any = (None, None, None)
        if self.dv_proj is not None:
            # By thirds, as each is the operand of another op, and all three together no operand.
            weights, biases = (_thirds(p, self.num_heads, 0) for p in (self.dv_proj.weight, self.dv_proj.bias))
            filters = [self.act(linear(f_ij, w, b)) for w, b in zip(weights, biases, strict=True)]
        scalars = graph_attention(
            edges,
            query_receiver=self._by_head(self.q_proj(x)),
            key_sender=self._by_head(self.k_proj(x)),
            value_sender=self._by_head(value),
            key_filter=None if self.dk_proj is None else self._by_head(self.act(self.dk_proj(f_ij))),
            value_filter=None if filters[0] is None else self._by_head(filters[0]),
            scale=1.0,
            weight=WEIGHTS[type(self.attn_activation)],
            envelope=cutoff,
        ).flatten(1)
        moved = self._vectors(edges, vec, turning, pointing, filters, d_ij, cutoff if self.vector_cutoff else None)
        vec1, vec2, vec3 = self.vec_proj(vec).split(self.hidden_channels, dim=-1)
        o1, o2, o3 = self.o_proj(scalars).split(self.hidden_channels, dim=1)
        return (vec1 * vec2).sum(dim=1) * o2 + o3, vec3 * o1.unsqueeze(1) + moved

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def _vectors(
        self,
        edges: EdgeIndex,
        vec: Tensor,
        turning: Tensor,
        pointing: Tensor,
        filters: Any,
        d_ij: Tensor,
        cutoff: Tensor | None,
    ) -> Tensor:
        """``[nodes, 3, channels]``: sums over edges of the senders' vectors, and of directions."""
        shape = (1, 3, self.hidden_channels)
        turned = [((vec * turning[:, None]).unsqueeze(1), "sender")]
        pointed = [(pointing[:, None, None], "sender")]
        for operands, factor in zip((turned, pointed), filters[1:], strict=True):
            operands += [] if factor is None else [(factor[:, None, None], "edge")]
        if cutoff is not None:
            turned.append((cutoff[:, None, None, None], "edge"))
            d_ij = d_ij * cutoff[:, None]
        pointed.append((d_ij[:, None, :, None], "edge"))
        total = edge_einsum(edges, "receiver", shape, *turned) + edge_einsum(edges, "receiver", shape, *pointed)
        return total.squeeze(1)


def _thirds(x: Tensor, heads: int, axis: int = 1) -> list[Tensor]:
    """Three parts of an axis on which they stand side by side in each head."""
    parts = x.unflatten(axis, (heads, 3, -1)).unbind(axis + 1)
    return [part.flatten(axis, axis + 1) for part in parts]


def why_not(layer: Any) -> str:
    """Why a layer of TorchMD-NET is left alone; empty if it is not."""
    missing = [name for name in ("vector_cutoff", "dk_proj", "dv_proj", "vec_proj") if not hasattr(layer, name)]
    if missing:
        return f"expected TorchMD-NET's layer with {', '.join(missing)}, found one without"
    if type(layer.attn_activation) not in WEIGHTS:
        names = " nor ".join(kind.__name__ for kind in WEIGHTS)
        return f"the activation of its attention is {type(layer.attn_activation).__name__}, neither {names}"
    if layer.dv_proj is None:
        return ""
    if type(layer.dv_proj) is not nn.Linear:
        return f"its dv_proj is a {type(layer.dv_proj).__name__}, not a Linear"
    return hooks_of(layer.dv_proj)


def adapt(module: nn.Module) -> Adapted | None:
    """Runs one of the attention layers on hamfast."""
    if isinstance(module, FusedAttention):
        return Adapted(True, TEXT)
    if not isinstance(module, EquivariantMultiHeadAttention) or isinstance(module, torch.jit.ScriptModule):
        return None
    if type(module) is not EquivariantMultiHeadAttention:
        return Adapted(False, as_subclass(module))
    reason = why_not(module)
    if reason:
        return Adapted(False, reason)
    return Adapted(True, TEXT, undo=change_class(module, FusedAttention))
