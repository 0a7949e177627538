"""The ops: one file each, which states its shapes, checks its arguments and registers fake and
autograd."""

from hamfast.ops.edge_einsum import edge_einsum
from hamfast.ops.edge_index import EdgeIndex, edge_index, reverse_edges
from hamfast.ops.edge_tensor_product import EdgeFrames, EdgeSources, SeparateWeights, edge_frames, edge_tensor_product
from hamfast.ops.edge_update import edge_update
from hamfast.ops.graph_attention import AttentionOutput, graph_attention
from hamfast.ops.irreps_linear import SpeciesRows, irreps_linear, rows_of_species
from hamfast.ops.radial import RadialWeights
from hamfast.ops.sparse_map import SparseMatrix, sparse_map, sparse_matrix
from hamfast.ops.symmetric_contraction import symmetric_contraction
from hamfast.ops.tensor_product import tensor_product
from hamfast.ops.wigner import rotate_irreps, rotation_from_euler

__all__ = [
    "AttentionOutput",
    "EdgeFrames",
    "EdgeIndex",
    "EdgeSources",
    "RadialWeights",
    "SeparateWeights",
    "SparseMatrix",
    "SpeciesRows",
    "edge_einsum",
    "edge_frames",
    "edge_index",
    "edge_tensor_product",
    "edge_update",
    "graph_attention",
    "irreps_linear",
    "reverse_edges",
    "rotate_irreps",
    "rotation_from_euler",
    "rows_of_species",
    "sparse_map",
    "sparse_matrix",
    "symmetric_contraction",
    "tensor_product",
]
