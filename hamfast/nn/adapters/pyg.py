"""PyG: its attention layers ``TransformerConv`` and ``GATv2Conv``.

They stay PyG's layers, so all that PyG does with layers holds: ``to_hetero``, explainers, lazy
sizes, ``reset_parameters()``.
Where a call asks for what the op does not have, PyG's own code runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch_geometric.nn import conv

from hamfast.nn.adapters import Adapted, are_few, as_subclass, change_class
from hamfast.nn.attention_call import RunsAttention, RunsGATv2, RunsTransformer
from hamfast.nn.checks import ScriptsTheirCode

FEW = {True: 150_000, False: 30_000}
"""With gradients or without: for fewer numbers (edges times heads times channels) PyG's own code is
the faster one on a CPU, by up to a quarter."""


class _OfPyG(ScriptsTheirCode, RunsAttention):
    """What both layers have."""

    aggr_module: Any
    _made: bool

    def averages(self) -> bool:
        """Is ``aggr`` the mean?"""
        return type(self.aggr_module).__name__ == "MeanAggregation"

    def runs_here(self, x: Any, edge_index: Any, edge_attr: Any) -> bool:
        """Is this call one for the op?

        It is not while the layer is explained, while hooks want to see messages, in the call that
        tells lazy sizes, for few edges, and for what PyG itself takes only by chance or refuses.
        """
        layer: Any = self
        if are_few(edge_index, layer.heads * layer.out_channels, FEW[torch.is_grad_enabled()]):
            return False
        rows = x[:2] if isinstance(x, (tuple, list)) else (x,)
        if layer.explain or any(not isinstance(t, Tensor) or t.dim() != 2 for t in rows):
            return False
        if (edge_attr is not None and self.lin_edge is None) or _watched(layer):
            return False
        self._made = getattr(self, "_made", False) or not any(is_lazy(p) for p in layer.parameters())
        return self._made


class TransformerConv(_OfPyG, RunsTransformer, conv.TransformerConv):
    """PyG's layer, run by hamfast. Its name stays, too."""

    def forward(self, x: Any, edge_index: Any, edge_attr: Any = None, return_attention_weights: Any = None):
        """As PyG's."""
        code = RunsTransformer if self.runs_here(x, edge_index, edge_attr) else conv.TransformerConv
        return code.forward(self, x, edge_index, edge_attr, return_attention_weights)


class GATv2Conv(_OfPyG, RunsGATv2, conv.GATv2Conv):
    """PyG's layer, run by hamfast. Its name stays, too."""

    def forward(self, x: Any, edge_index: Any, edge_attr: Any = None, return_attention_weights: Any = None):
        """As PyG's."""
        code = RunsGATv2 if self.runs_here(x, edge_index, edge_attr) else conv.GATv2Conv
        return code.forward(self, x, edge_index, edge_attr, return_attention_weights)


_OURS: dict[type, type] = {conv.TransformerConv: TransformerConv, conv.GATv2Conv: GATv2Conv}


def _watched(layer: Any) -> list[str]:
    """Names of the hooks that want to see messages, of which the op makes none."""
    kinds = ("_propagate", "_message", "_aggregate", "_edge_update")
    return [name for name, hooks in vars(layer).items() if name.startswith(kinds) and name.endswith("_hooks") and hooks]


def why_not(layer: Any) -> str:
    """Why a layer of PyG is left alone; empty if it is not."""
    if layer.flow != "source_to_target":
        return "its flow is target_to_source"
    if type(layer.aggr_module).__name__ not in ("SumAggregation", "MeanAggregation"):
        return "its aggregation is neither a sum nor a mean"
    if layer.decomposed_layers != 1:
        return "its inference is decomposed"
    return ""


def adapt(module: nn.Module) -> Adapted | None:
    """Runs one of the attention layers on hamfast."""
    if isinstance(module, tuple(_OURS.values())):
        return Adapted(True, "graph attention on hamfast")
    if not isinstance(module, tuple(_OURS)):
        return None
    if type(module) not in _OURS:
        return Adapted(False, as_subclass(module))
    reason = why_not(module)
    if reason:
        return Adapted(False, reason)
    text = "graph attention on hamfast, PyG's code for few edges"
    if any(is_lazy(p) for p in module.parameters()):
        text += ", from the second call on: the first tells the sizes"
    return Adapted(True, text, undo=change_class(module, _OURS[type(module)]))
