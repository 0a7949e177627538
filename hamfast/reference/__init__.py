"""The ops in slow, plain torch: what is true. Tests and benchmarks compare with these; nothing else
uses them.
"""

from hamfast.reference.covariant_network import E3nnNetwork
from hamfast.reference.edge_tensor_product import edge_tensor_product
from hamfast.reference.edge_update import edge_update
from hamfast.reference.graph_attention import graph_attention
from hamfast.reference.symmetric_contraction import symmetric_contraction
from hamfast.reference.tensor_product import separate_weights, tensor_product

__all__ = [
    "E3nnNetwork",
    "edge_tensor_product",
    "edge_update",
    "graph_attention",
    "separate_weights",
    "symmetric_contraction",
    "tensor_product",
]
