"""hamfast under PyG's attention layers: each is exchanged for hamfast's layer of the same
parameters.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from hamfast.nn.attention import GATv2Conv, GraphTransformerConv

_ARGUMENTS = {
    "TransformerConv": ("beta", "concat", "dropout", "edge_dim", "root_weight"),
    "GATv2Conv": (
        "concat",
        "negative_slope",
        "dropout",
        "add_self_loops",
        "edge_dim",
        "fill_value",
        "share_weights",
        "residual",
    ),
}


def is_pyg_attention(module: nn.Module) -> bool:
    """Is it one of the layers known here, or a subclass of one?

    Where PyG was not imported the answer is False; it is not imported for the question.
    """
    convolutions = sys.modules.get("torch_geometric.nn.conv")
    return convolutions is not None and any(
        isinstance(module, getattr(convolutions, name, ())) for name in _ARGUMENTS if hasattr(convolutions, name)
    )


def replacement_of(module: Any) -> nn.Module | str:
    """hamfast's layer with the very parameters of a PyG layer, or why there is none."""
    known = type(module).__name__
    if known not in _ARGUMENTS or not type(module).__module__.startswith("torch_geometric."):
        return f"{known} is a subclass, whose changes would be lost"
    if getattr(module, "flow", "source_to_target") != "source_to_target":
        return "its flow is target_to_source"
    if type(getattr(module, "aggr_module", None)).__name__ != "SumAggregation":
        return "its aggregation is not a sum"
    if getattr(module, "explain", False):
        return "it is being explained"
    hooks = [name for name in vars(module) if name.endswith(("_hooks", "_pre_hooks")) and vars(module)[name]]
    if hooks:
        return f"it has hooks ({', '.join(hooks)})"
    if any(type(p).__name__ == "UninitializedParameter" for p in module.parameters()):
        return "its parameters have no shape yet; run the model once first"
    arguments = {name: getattr(module, name) for name in _ARGUMENTS[known]}
    made = GraphTransformerConv if known == "TransformerConv" else GATv2Conv
    bias = module.lin_key.bias is not None if known == "TransformerConv" else module.bias is not None
    layer = made(module.in_channels, module.out_channels, module.heads, bias=bias, **arguments)
    if known == "GATv2Conv" and (module.lin_l.bias is None) == bias:
        return "its linear layers and its output do not agree on having biases"
    for name, child in layer.named_children():
        for parameter, value in getattr(module, name).named_parameters():
            setattr(child, parameter, value)
    for name, value in module.named_parameters(recurse=False):
        setattr(layer, name, value)
    return layer.train(module.training)
