"""Every op of ``torch.ops.hamfast``: its operands, settings and results, by name and in order."""

from __future__ import annotations

from dataclasses import replace

from hamfast.records.record import Group, Op, Operand, Setting

GRAPH = Group(
    "graph",
    "Graph",
    (
        Operand("senders", "edges"),
        Operand("sender_order", "edges"),
        Operand("sender_ptr", "senders + 1"),
        Operand("receivers", "edges"),
        Operand("receiver_order", "edges"),
        Operand("receiver_ptr", "receivers + 1"),
    ),
)
"""Where each edge comes from and goes to, and the edges in the order of either end, with where each
node's begin.
"""

OPTIONAL_GRAPH = Group("graph", "OptionalGraph", tuple(replace(member, optional=True) for member in GRAPH))
"""Without an end: operands have a row per edge there."""

# Tensor products: F(x, y, w, g) = sum over edges of <g[receiver], TP(x[sender], y, w)>.

PRODUCT_OPERANDS = Group(
    "operands",
    "Slot",
    (
        Operand("x", "edges | senders, dims.x", True, True, True),
        Operand("y", "edges, dims.y", True, True, True),
        Operand("w", "dims.w | edges, dims.w", True, True, True),
        Operand("g", "edges | receivers, dims.g", True, True, True),
    ),
    indexed=True,
)
PRODUCT_TABLES = Group(
    "tables",
    "ProductTables",
    (
        Operand("paths", "paths, Path"),
        Operand("cg_index", "entries, 3"),
        Operand("cg_value", "entries"),
        Operand("tasks", "tasks, ChannelTask"),
        Operand("x_blocks", "blocks, ChannelBlock"),
        Operand("g_blocks", "blocks, ChannelBlock"),
        Operand("entries", "entries, CouplingEntry"),
        Operand("coupling", "couplings"),
    ),
)
"""A plan: the first three are the general kernel's, the others the channel-wise one's."""

LAYOUTS = (Setting("x_layout", "int", "Layout"), Setting("g_layout", "int", "Layout"))
DIMS = Setting("dims", "int[]", "ProductDims")
PRODUCT_SETTINGS = Group(
    "settings",
    "ProductSettings",
    (
        Setting("edges", "SymInt"),
        Setting("shared_weights", "bool", "one row of weights for all edges"),
        *LAYOUTS,
        DIMS,
    ),
)

TENSOR_PRODUCT = Op(
    "tensor_product",
    "The partial derivatives of F in the wanted slots; with tangents, those of F's derivative along them. "
    "See hamfast/ops/multilinear.py.",
    (
        PRODUCT_OPERANDS,
        PRODUCT_OPERANDS.named("tangents", "tangent"),
        PRODUCT_TABLES,
        OPTIONAL_GRAPH,
        Setting("wanted", "int", "bits of the slots"),
        PRODUCT_SETTINGS,
    ),
    PRODUCT_OPERANDS.named("gradients", "grad").members,
    triton="tensor_product",
)

RADIAL_OPERANDS = Group(
    "operands",
    "RadialOperands",
    (
        Operand("x", "edges | senders, dims.x", False, True),
        Operand("y", "edges, dims.y", False, True),
        Operand("hidden", "edges, k", False, True),
        Operand("matrix", "k, dims.w", False, True),
        Operand("g", "edges | receivers, dims.g", True, True),
    ),
)

RADIAL_TENSOR_PRODUCT = Op(
    "radial_tensor_product",
    "The channel-wise product with weights hidden @ matrix, which are never stored for all edges: "
    "the product if g is absent, else its gradients.",
    (RADIAL_OPERANDS, PRODUCT_TABLES, OPTIONAL_GRAPH, *LAYOUTS, DIMS),
    (
        Operand("out", "edges | receivers, dims.g"),
        *(Operand(f"grad_{o.name}", o.shape) for o in RADIAL_OPERANDS.members[:4]),
    ),
    triton="tensor_product",
)

TENSOR_PRODUCT_FROM_HIDDEN = Op(
    "tensor_product_from_hidden",
    "The same on GPUs, with the weights' gradient in place of those of hidden and matrix. Weights are made in the "
    "kernel, by the tensor cores where there are some: TF32 in one pass, or in three that are as good as float32.",
    (RADIAL_OPERANDS, PRODUCT_TABLES, OPTIONAL_GRAPH, Setting("one_pass", "bool"), *LAYOUTS, DIMS),
    PRODUCT_OPERANDS.named("gradients", "grad").members,
)

CHANNEL_KERNEL_SOURCE = Op(
    "channel_kernel_source",
    "The header that kernels/channel.cuh is compiled with for a plan, as bytes; its number of units and a block's "
    "bytes of shared memory.",
    (*PRODUCT_TABLES.members[3:], DIMS, Setting("variant", "int[]", "ChannelVariant")),
    (Operand("text", "bytes"), Operand("sizes", "2")),
)

# The edge frame: irreps rows into and out of the frames of their edges. Each of the first two is
# the other's adjoint.


def _sources(name: str, item: str, shape: str, optional: bool = True) -> Group:
    """One tensor for each of up to three sources."""
    first = Operand(f"{item}0", shape, optional, name == "x")
    others = (replace(first, name=f"{item}{n}", optional=True) for n in (1, 2))
    return Group(name, "Source", (first, *others), indexed=True)


FRAME_SETTINGS = (
    Setting("channels_fast", "bool", "rows are ir_mul, else mul_ir"),
    Setting("partial", "bool", "the sources do not fill the frames"),
)

ROTATE_TO_EDGE = Op(
    "rotate_to_edge",
    "Up to three sources, each read through an index or not. Orders and pointers are for the adjoint.",
    (
        _sources("x", "x", "rows, width", False),
        _sources("tables", "table", "blocks, FrameBlock and FrameColumns", False),
        _sources("index", "index", "edges"),
        _sources("order", "order", "edges"),
        _sources("ptr", "ptr", "rows + 1"),
        Operand("wigner", "edges, sum (2 l + 1)^2"),
        Setting("frame_dim", "int"),
        *FRAME_SETTINGS,
    ),
    (Operand("frame", "edges * frame_dim"),),
    triton="edge_frame",
)

ROTATE_FROM_EDGE = Op(
    "rotate_from_edge",
    "One source, its rows summed over edges by order and ptr. Index and partial are for the adjoint.",
    (
        Operand("frame", "edges * frame_dim", False, True),
        Operand("table", "blocks, FrameBlock and FrameColumns"),
        Operand("index", "edges", True),
        Operand("order", "edges", True),
        Operand("ptr", "rows + 1", True),
        Operand("wigner", "edges, sum (2 l + 1)^2"),
        Setting("dim", "int"),
        *FRAME_SETTINGS,
    ),
    (Operand("x", "rows, dim"),),
    triton="edge_frame",
)

FRAME_WEIGHTS = Group(
    "operands",
    "WeightSlot",
    (
        Operand("weight", "weights", True, True),
        Operand("scale", "scales", True, True),
        Operand("matrix", "numel", True, True),
    ),
    indexed=True,
)

EDGE_FRAME_WEIGHTS = Op(
    "edge_frame_weights",
    "Path weights, each times a scale per column or not, to the matrices of an edge-frame plan: the derivative of a "
    "trilinear form in one of its slots.",
    (
        FRAME_WEIGHTS,
        Operand("terms", "terms, MatrixTerm"),
        Operand("factors", "terms"),
        Operand("by_matrix", "matrices + 1"),
        Operand("by_path", "paths + 1"),
        Operand("path_order", "terms"),
        Setting("slot", "int", "WeightSlot"),
        Setting("numel", "int", "of the result"),
    ),
    (Operand("out", "numel"),),
    triton="edge_frame",
)

BLOCK_MATMUL = Op(
    "block_matmul",
    "C = A B, A = C B^T or B = A^T C for blocks A [rows r, k], B [k, n], shapes r, k, n, in flat buffers.",
    (
        Operand("left", "numel", False, True),
        Operand("right", "numel", False, True),
        Setting("rows", "SymInt"),
        Setting("shapes", "int[]"),
        Setting("product", "int", "MatrixProduct"),
    ),
    (Operand("out", "numel"),),
)

IRREPS_LINEAR = Op(
    "irreps_linear",
    "C = A B, A = C B^T or B = A^T C for rows of irreps A [rows, dims.a] and C [rows, dims.c], and matrices B of "
    "channels, flat. With order and ptr rows are of several species, and each species has matrices of its own.",
    (
        Operand("left", "rows, dims.a | rows, dims.c", False, True),
        Operand("right", "dims.b | rows, dims.c", False, True),
        Operand("order", "rows", True),
        Operand("ptr", "species + 1", True),
        Operand("tasks", "tasks, LinearTask"),
        Setting("product", "int", "MatrixProduct"),
        Setting("layout", "int", "Layout"),
        Setting("dims", "int[]", "LinearDims"),
    ),
    (Operand("out", "rows, dims.c | rows, dims.a | dims.b"),),
)

ROW_MATMUL = Op(
    "row_matmul",
    "C = A B, A = C B^T or B = A^T C, row by row, for matrices B that are parts of each row's weights. "
    "A and C are flat, block after block [rows, d, channels]; B is [rows, dims.b].",
    (
        Operand("left", "numel | rows, dims.b", False, True),
        Operand("right", "numel | rows, dims.b", False, True),
        Operand("tasks", "tasks, RowTask"),
        Setting("rows", "SymInt"),
        Setting("product", "int", "MatrixProduct"),
        Setting("dims", "int[]", "RowDims"),
    ),
    (Operand("out", "numel | rows, dims.b"),),
)

EDGE_OUTER = Op(
    "edge_outer",
    "A derivative of the form sum over edges e of <node[n(e)], factor[e] x channels[e]> in one of its slots. "
    "factor: [edges, width]; node and channels: flat, block after block [nodes, d, width, n] and [edges, d, n].",
    (
        Operand("left", "numel | edges, width", False, True),
        Operand("right", "numel", False, True),
        Operand("order", "edges"),
        Operand("ptr", "nodes + 1"),
        Setting("slot", "int", "OuterSlot"),
        Setting("width", "int"),
        Setting("shapes", "int[]", "d and n of each block"),
    ),
    (Operand("out", "numel | edges, width"),),
)

EDGE_EINSUM = Op(
    "edge_einsum",
    "Sums over edges of products of operands [rows, heads, components, width], each with a row per edge, sender or "
    "receiver.",
    (
        Group(
            "operands",
            "EinsumOperand",
            (
                Operand("a", "rows, heads, components, width", False, True),
                Operand("b", "rows, heads, components, width", True, True),
                Operand("c", "rows, heads, components, width", True, True),
            ),
            indexed=True,
        ),
        Setting("rows_of", "int[]", "RowOf of the result, then of the operands"),
        Setting("shape", "SymInt[]", "the result's last three axes"),
        GRAPH,
    ),
    (Operand("out", "rows, *shape"),),
    triton="edge_einsum",
)

SPARSE_MAP = Op(
    "sparse_map",
    "out[r, i] = sum over n in ptr[i] ... ptr[i + 1] of value[n] x[r, column[n]].",
    (
        Operand("x", "rows, dim_in", False, True),
        Operand("ptr", "dim_out + 1"),
        Operand("column", "entries"),
        Operand("value", "entries"),
        Operand("transposed_ptr", "dim_in + 1"),
        Operand("transposed_column", "entries"),
        Operand("transposed_value", "entries"),
    ),
    (Operand("out", "rows, dim_out"),),
    triton="sparse_map",
)

# The update of edges' features: act(norm(edge[e] + sender[s] + receiver[t])).

UPDATE_OPERANDS = Group(
    "operands",
    "UpdateOperands",
    (
        Operand("edge", "edges, width", True, True, True),
        Operand("sender", "senders, width", True, True, True),
        Operand("receiver", "receivers, width", True, True, True),
        Operand("weight", "width", True, True),
        Operand("bias", "width", True, True),
    ),
)
UPDATE_SETTINGS = Group(
    "settings",
    "UpdateSettings",
    (Setting("epsilon", "float", "added to the variance"), Setting("silu", "bool", "else no activation")),
)

EDGE_UPDATE = Op(
    "edge_update",
    "act(norm(edge[e] + sender[s] + receiver[t])), with weight and bias of the norm or without it.",
    (UPDATE_OPERANDS, GRAPH, UPDATE_SETTINGS),
    (Operand("out", "edges, width"),),
    triton="edge_update",
)
EDGE_UPDATE_BACKWARD = Op(
    "edge_update_backward",
    "Its gradients in the sum, and in weight and bias.",
    (Operand("grad", "edges, width", False, True, True), UPDATE_OPERANDS, GRAPH, UPDATE_SETTINGS),
    (Operand("grad_sum", "edges, width"), Operand("grad_norm", "2, width")),
    triton="edge_update",
)
EDGE_UPDATE_DOUBLE_BACKWARD = Op(
    "edge_update_double_backward",
    "The gradients of the backward pass along tangents of its results.",
    (
        Operand("tangent_sum", "edges, width", True),
        Operand("tangent_norm", "2, width", True),
        Operand("grad", "edges, width", False, True, True),
        UPDATE_OPERANDS,
        GRAPH,
        UPDATE_SETTINGS,
    ),
    (Operand("grad_grad", "edges, width"), Operand("grad_sum", "edges, width"), Operand("grad_norm", "2, width")),
    triton="edge_update",
)

# Attention of each receiver over its incoming edges: hamfast/ops/graph_attention.py says what the
# operands are.


def _parts(name: str, width: str) -> tuple[Operand, ...]:
    """The edge's, the sender's and the receiver's part of a query, key or value."""
    rows = {"edge": "edges", "sender": "senders", "receiver": "receivers"}
    return tuple(Operand(f"{name}_{part}", f"{n}, heads, {width}", True, True, True) for part, n in rows.items())


ATTENTION_OPERANDS = Group(
    "operands",
    "AttentionOperand",
    (
        *_parts("query", "width"),
        *_parts("key", "width"),
        *_parts("value", "value width"),
        Operand("query_on_edge", "receivers, heads, features", True, True),
        Operand("edge", "edges, features", True, True, True),
        Operand("vector", "heads, width", True, True),
        Operand("bias", "edges, heads", True, True),
        Operand("score_scale", "edges, heads", True, True),
        Operand("envelope", "edges, heads", True, True),
        Operand("gate", "edges, heads", True, True),
    ),
    indexed=True,
)
ATTENTION_RESULTS = Group(
    "results",
    "AttentionResult",
    (
        Operand("out", "receivers, heads, value width", False, True, True),
        Operand("out_on_edge", "receivers, heads, features", False, True),
        Operand("lse", "receivers, heads", False, True),
        Operand("weights", "edges, heads", False, True),
        Operand("logits", "edges, heads", False, True),
    ),
    indexed=True,
)
"""Those not wanted are empty."""

ATTENTION_SETTINGS = Group(
    "settings",
    "AttentionSettings",
    (
        Setting("heads", "int"),
        Setting("score", "int", "Score"),
        Setting("activation", "int", "ScoreActivation"),
        Setting("weighting", "int", "Weighting"),
        Setting("slope", "float", "of the score's activation"),
        Setting("scale", "float", "of z"),
        Setting("clip", "float", "scores stay within -clip and clip; infinity: no clip"),
        Setting("epsilon", "float", "added to the sum of weights"),
        Setting("dropout", "float", "probability"),
    ),
)
_ATTENTION = (ATTENTION_OPERANDS, Operand("seed", "", True), GRAPH, ATTENTION_SETTINGS)
_ATTENTION_GRADIENTS = ATTENTION_RESULTS.named("gradients", "grad")

GRAPH_ATTENTION = Op(
    "graph_attention",
    "edge_key_weight: what query_on_edge was made with; read by the backward pass alone.",
    (
        Operand("edge_key_weight", "heads, width, features", True, True),
        *_ATTENTION,
        Setting("wanted", "int", "AttentionWanted"),
    ),
    ATTENTION_RESULTS.members,
    triton="graph_attention",
)
GRAPH_ATTENTION_BACKWARD = Op(
    "graph_attention_backward",
    "Gradients of the operands whose bits are set; the others are empty.",
    (
        _ATTENTION_GRADIENTS,
        Operand("lse", "receivers, heads"),
        *_ATTENTION,
        Setting("wanted", "int", "bits of the operands"),
    ),
    ATTENTION_OPERANDS.named("gradients", "grad").members,
    triton="graph_attention",
)
GRAPH_ATTENTION_DOUBLE_BACKWARD = Op(
    "graph_attention_double_backward",
    "Gradients of the five gradients, then of the operands, of the backward pass along tangents of its results.",
    (
        ATTENTION_OPERANDS.named("tangents", "tangent"),
        _ATTENTION_GRADIENTS,
        Operand("lse", "receivers, heads"),
        *_ATTENTION,
        Setting("wanted", "int", "bits of the operands, then of the gradients"),
    ),
    (
        *_ATTENTION_GRADIENTS.named("gradients", "grad").members,
        *ATTENTION_OPERANDS.named("gradients", "grad").members,
    ),
    triton="graph_attention",
)

# The symmetric contraction: F(x, y, w, g) = sum over nodes of <g, polynomials in x, weighted>.

CONTRACTION_OPERANDS = Group(
    "operands",
    "ContractionOperands",
    (
        Operand("x", "nodes, channels, dims.x", False, True),
        Operand("y", "nodes, species", False, True),
        Operand("w", "species, paths, channels", False, True),
        Operand("g", "nodes, channels * dims.g", True, True),
    ),
)
CONTRACTION_TABLES = Group(
    "tables",
    "ContractionTables",
    (
        Operand("products", "products, Product"),
        Operand("groups", "groups, ContractionGroup"),
        Operand("buckets", "most terms of a group + 1"),
        Operand("factors", "terms"),
        Operand("path_ptr", "paths + 1"),
        Operand("by_path", "entries, ContractionEntry"),
        Operand("by_path_value", "entries"),
        Operand("term_ptr", "terms + 1"),
        Operand("by_term", "entries, ContractionEntry"),
        Operand("by_term_value", "entries"),
        Operand("blocks", "blocks, ContractionBlock"),
    ),
)
"""A plan: see hamfast/plan/symmetric_contraction.py."""

SYMMETRIC_CONTRACTION = Op(
    "symmetric_contraction",
    "The partial derivatives of F in the wanted slots; with a direction of x, those of F's derivative along it. "
    "See hamfast/ops/symmetric_contraction.py.",
    (
        CONTRACTION_OPERANDS,
        Operand("direction", "nodes, channels, dims.x", True, True),
        CONTRACTION_TABLES,
        Setting("wanted", "int", "bits of the slots"),
        Setting("dims", "int[]", "ContractionDims"),
    ),
    CONTRACTION_OPERANDS.named("gradients", "grad").members,
    triton="symmetric_contraction",
)

OPS = (
    TENSOR_PRODUCT,
    RADIAL_TENSOR_PRODUCT,
    TENSOR_PRODUCT_FROM_HIDDEN,
    CHANNEL_KERNEL_SOURCE,
    ROTATE_TO_EDGE,
    ROTATE_FROM_EDGE,
    EDGE_FRAME_WEIGHTS,
    BLOCK_MATMUL,
    IRREPS_LINEAR,
    ROW_MATMUL,
    EDGE_OUTER,
    EDGE_EINSUM,
    SPARSE_MAP,
    EDGE_UPDATE,
    EDGE_UPDATE_BACKWARD,
    EDGE_UPDATE_DOUBLE_BACKWARD,
    GRAPH_ATTENTION,
    GRAPH_ATTENTION_BACKWARD,
    GRAPH_ATTENTION_DOUBLE_BACKWARD,
    SYMMETRIC_CONTRACTION,
)
"""All of them, in the order in which they are declared."""
RECORDS = {op.name: op for op in OPS}
"""Name -> the op."""
