"""Layers: parameters around the ops.

Where e3nn or PyG has such a layer, the names and the ``state_dict`` are theirs.
"""

from hamfast.nn.attention import GATv2Conv, GraphTransformerConv
from hamfast.nn.drop_in import AccelerateReport, accelerate, e3nn_backend, set_e3nn_backend
from hamfast.nn.gate import Gate
from hamfast.nn.irreps_layout import convert_layout
from hamfast.nn.layer_norm import EquivariantLayerNorm, ScalarLayerNorm
from hamfast.nn.linear import Linear, SpeciesLinear
from hamfast.nn.radial import GaussianBasis, RadialMLP, polynomial_envelope
from hamfast.nn.symmetric_contraction import SymmetricContraction
from hamfast.nn.tensor_product import EdgeTensorProduct, FullyConnectedTensorProduct, TensorProduct

__all__ = [
    "AccelerateReport",
    "EdgeTensorProduct",
    "EquivariantLayerNorm",
    "FullyConnectedTensorProduct",
    "GATv2Conv",
    "Gate",
    "GaussianBasis",
    "GraphTransformerConv",
    "Linear",
    "RadialMLP",
    "ScalarLayerNorm",
    "SpeciesLinear",
    "SymmetricContraction",
    "TensorProduct",
    "accelerate",
    "convert_layout",
    "e3nn_backend",
    "polynomial_envelope",
    "set_e3nn_backend",
]
