"""e3tools: its convolutions, ``Conv`` and ``SeparableConv``, and the attention made of them.

- The last layer of the radial network of a ``Conv`` is left to the product (``RadialWeights``).
- The linear layer of a separable convolution comes after the product, edge by edge, and before the
  mean over edges. It is the same for all edges, so it can follow the mean, and meets nodes in place
  of edges.
- A score of attention is ``<W query, key>``. The matrix W meets the queries, which are fewer than
  the keys.
"""

from __future__ import annotations

from typing import Any

from e3nn import o3
from e3tools.nn import Attention, Conv, MultiheadAttention, ScalarMLP, SeparableConv, SeparableTensorProduct
from torch import Tensor, nn

from hamfast.nn.adapters import Adapted, as_subclass, change_class, hooks_of
from hamfast.nn.adapters.convolution import TEXT, fuse, why_not
from hamfast.nn.pair_graph import pair_graph
from hamfast.ops import EdgeIndex, RadialWeights, graph_attention, tensor_product
from hamfast.plan import Plan
from hamfast.plan.plan import Instruction, as_blocks, plan_of_e3nn


class _Fused(Conv):
    """What both convolutions have in common."""

    hamfast_plan: Plan

    def hamfast_product(
        self, node_attr: Tensor, edges: EdgeIndex, edge_attr: Tensor, edge_sh: Tensor, scatter: bool
    ) -> Tensor:
        """The product of each edge, or the sum of each receiver's."""
        separable = isinstance(self.tp, SeparableTensorProduct)
        # A product that does not mix channels is faster with weights that are stored.
        weight = self.radial_nn(edge_attr) if separable else _radial_weights(self.radial_nn, edge_attr)
        out = tensor_product(node_attr, edge_sh, weight, self.hamfast_plan, edges, scatter=scatter)
        return self.tp.lin(out) if separable else out

    def forward(self, node_attr: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_sh: Tensor) -> Tensor:
        """As ``Conv.forward``."""
        nodes = node_attr.shape[0]
        edges = pair_graph(edge_index, nodes, nodes).edges
        total = self.hamfast_product(node_attr, edges, edge_attr, edge_sh, True)
        return total / edges.receiver_ptr.diff().clamp(min=1).unsqueeze(1).to(total.dtype)


class FusedConv(_Fused):
    """e3tools' layer, with gather, product and sum in one op."""


class FusedSeparableConv(_Fused, SeparableConv):
    """The same, with the linear layer on nodes."""


class _Scores:
    """What both forms of attention have in common: they differ in their heads."""

    hamfast_scores: Plan
    """From a query to what the key is multiplied with."""

    def hamfast_attention(
        self: Any, node_attr: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_sh: Tensor, heads: int
    ) -> Tensor:
        """``[nodes, heads, width]``."""
        nodes = node_attr.shape[0]
        edges = pair_graph(edge_index, nodes, nodes).edges
        key, value = (
            conv.hamfast_product(node_attr, edges, edge_attr, edge_sh, False).unflatten(1, (heads, -1))
            for conv in (self.h_k, self.h_v)
        )
        query = self.h_q(node_attr).view(nodes * heads, -1)
        query = tensor_product(query, query.new_ones(nodes * heads, 1), self.dot.weight, self.hamfast_scores)
        query = query.view(nodes, heads, -1)
        return graph_attention(edges, query_receiver=query, key_edge=key, value_edge=value, scale=1.0)


class FusedAttention(_Scores, Attention):
    """e3tools' layer on hamfast's products and attention."""

    def forward(self, node_attr: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_sh: Tensor) -> Tensor:
        """As ``Attention.forward``."""
        return self.hamfast_attention(node_attr, edge_index, edge_attr, edge_sh, 1).flatten(1)


class FusedMultiheadAttention(_Scores, MultiheadAttention):
    """e3tools' layer on hamfast's products and attention."""

    def forward(self, node_attr: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_sh: Tensor) -> Tensor:
        """As ``MultiheadAttention.forward``."""
        out = self.hamfast_attention(node_attr, edge_index, edge_attr, edge_sh, self.num_heads)
        return self.lin_out(out.flatten(1))


_CONVOLUTIONS: dict[type[nn.Module], type[nn.Module]] = {Conv: FusedConv, SeparableConv: FusedSeparableConv}
_ATTENTIONS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: FusedAttention,
    MultiheadAttention: FusedMultiheadAttention,
}


def _radial_weights(radial: Any, edge_attr: Tensor) -> Tensor | RadialWeights:
    """Weights of each edge; where a linear layer ends the network, that layer is left to the
    product."""
    if type(radial) is ScalarMLP and not hooks_of(radial):
        *layers, last, dropout = radial
        drops = not isinstance(dropout, nn.Dropout) or (dropout.training and dropout.p > 0)
        if type(last) is nn.Linear and not drops and not hooks_of(last, dropout):
            for layer in layers:
                edge_attr = layer(edge_attr)
            return RadialWeights(edge_attr, last.weight.T, last.bias)
    return radial(edge_attr)


def _product_of(conv: Conv) -> nn.Module:
    return conv.tp.dtp if isinstance(conv.tp, SeparableTensorProduct) else conv.tp


def _why_not(conv: Any) -> str:
    """Why a convolution is left alone; empty if it is not."""
    if type(conv) not in _CONVOLUTIONS:
        return as_subclass(conv)
    separable = isinstance(conv.tp, SeparableTensorProduct)
    if separable and conv.tp.lin.bias_numel:
        return "its linear layer has biases"
    inside = [conv.tp, conv.tp.dtp, conv.tp.lin] if separable else [conv.tp]
    return why_not(_product_of(conv)) or hooks_of(*inside)


def _fuse(conv: nn.Module) -> Any:
    return fuse(conv, _product_of(conv), _CONVOLUTIONS[type(conv)])


def adapt(module: nn.Module) -> Adapted | None:
    """Fuses a ``Conv``, a ``SeparableConv``, or attention made of such."""
    if isinstance(module, (Attention, MultiheadAttention)):
        return _adapt_attention(module)
    if not isinstance(module, Conv):
        return None
    if not isinstance(module.tp, (o3.TensorProduct, SeparableTensorProduct)):
        return None
    separable = isinstance(module.tp, SeparableTensorProduct)
    text = f"{TEXT}, with the linear layer after the sum" if separable else TEXT
    if isinstance(module, _Fused):
        return Adapted(True, text, (_product_of(module),))
    if reason := _why_not(module):
        return Adapted(False, reason)
    return Adapted(True, text, (_product_of(module),), _fuse(module))


def _adapt_attention(module: Any) -> Adapted:
    inside = (module.h_k, module.h_v)
    text = "products of hamfast, and scores, softmax and sum over edges in one op"
    products = (*inside, *map(_product_of, inside), module.dot)
    if isinstance(module, _Scores):
        return Adapted(True, text, products)
    if type(module) not in _ATTENTIONS:
        return Adapted(False, as_subclass(module))
    reason = "it returns its weights" if module.return_attention else ""
    reason = reason or hooks_of(*inside, module.dot) or next(filter(None, map(_why_not, inside)), "")
    if reason:
        return Adapted(False, reason)
    module.hamfast_scores = _scores_plan(module.dot)
    changes = [*map(_fuse, inside), change_class(module, _ATTENTIONS[type(module)])]

    def undo() -> None:
        for change in changes:
            change()
        del module.hamfast_scores

    return Adapted(True, text, products, undo)


def _scores_plan(dot: o3.TensorProduct) -> Plan:
    """From a query q to W q, irreps like a key k: ``<W q, k>`` is the scalar ``dot(q, k)``."""
    plan = plan_of_e3nn(dot.irreps_in1, dot.irreps_in2, dot.irreps_out, dot.instructions)
    paths = tuple(
        Instruction(
            i.i_in1, 0, i.i_in2, "uvw", True, i.coefficient, (i.weight_shape[0], 1, i.weight_shape[1]), i.weight_offset
        )
        for i in plan.instructions
    )
    return Plan(plan.irreps_in1, as_blocks("1x0e"), plan.irreps_in2, paths)
