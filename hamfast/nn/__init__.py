"""Layers: parameters around the ops, with the names and ``state_dict`` of e3nn's and PyG's where those exist."""

from hamfast.nn.gate import Gate
from hamfast.nn.irreps_layout import convert_layout
from hamfast.nn.layer_norm import EquivariantLayerNorm
from hamfast.nn.linear import Linear, SpeciesLinear
from hamfast.nn.radial import GaussianBasis, RadialMLP, polynomial_envelope
from hamfast.nn.tensor_product import EdgeTensorProduct, FullyConnectedTensorProduct, TensorProduct

__all__ = [
    "EdgeTensorProduct",
    "EquivariantLayerNorm",
    "FullyConnectedTensorProduct",
    "Gate",
    "GaussianBasis",
    "Linear",
    "RadialMLP",
    "SpeciesLinear",
    "TensorProduct",
    "convert_layout",
    "polynomial_envelope",
]
