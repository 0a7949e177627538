// The ops: their schemas; the arguments of each as a struct; and a function `<op>_boxed`, which
// takes them in the order of the schema and calls run(struct). Written by `python -m
// hamfast.records.write` from hamfast/records: change it there.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "records.cuh"

namespace hamfast {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

struct ProductTables {
  Tensor paths;     // [paths, Path]
  Tensor cg_index;  // [entries, 3]
  Tensor cg_value;  // [entries]
  Tensor tasks;     // [tasks, ChannelTask]
  Tensor x_blocks;  // [blocks, ChannelBlock]
  Tensor g_blocks;  // [blocks, ChannelBlock]
  Tensor entries;   // [entries, CouplingEntry]
  Tensor coupling;  // [couplings]
};

struct OptionalGraph {
  Optional senders;         // [edges]
  Optional sender_order;    // [edges]
  Optional sender_ptr;      // [senders + 1]
  Optional receivers;       // [edges]
  Optional receiver_order;  // [edges]
  Optional receiver_ptr;    // [receivers + 1]
};

struct ProductSettings {
  int64_t edges;
  bool shared_weights;        // one row of weights for all edges
  int64_t x_layout;           // Layout
  int64_t g_layout;           // Layout
  std::vector<int64_t> dims;  // ProductDims
};

// tensor_product: The partial derivatives of F in the wanted slots; with tangents, those of F's
// derivative along them. See hamfast/ops/multilinear.py.
struct TensorProductArguments {
  std::array<Optional, 4> operands;
  std::array<Optional, 4> tangents;
  ProductTables tables;
  OptionalGraph graph;
  int64_t wanted;  // bits of the slots
  ProductSettings settings;
};
template <auto run>
auto tensor_product_boxed(Optional x, Optional y, Optional w, Optional g, Optional tangent_x,
                          Optional tangent_y, Optional tangent_w, Optional tangent_g, Tensor paths,
                          Tensor cg_index, Tensor cg_value, Tensor tasks, Tensor x_blocks,
                          Tensor g_blocks, Tensor entries, Tensor coupling, Optional senders,
                          Optional sender_order, Optional sender_ptr, Optional receivers,
                          Optional receiver_order, Optional receiver_ptr, int64_t wanted,
                          int64_t edges, bool shared_weights, int64_t x_layout, int64_t g_layout,
                          std::vector<int64_t> dims) {
  return run(TensorProductArguments{
      {std::move(x), std::move(y), std::move(w), std::move(g)},
      {std::move(tangent_x), std::move(tangent_y), std::move(tangent_w), std::move(tangent_g)},
      {std::move(paths), std::move(cg_index), std::move(cg_value), std::move(tasks),
       std::move(x_blocks), std::move(g_blocks), std::move(entries), std::move(coupling)},
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      wanted,
      {edges, shared_weights, x_layout, g_layout, std::move(dims)}});
}

struct RadialOperands {
  Tensor x;       // [edges | senders, dims.x]
  Tensor y;       // [edges, dims.y]
  Tensor hidden;  // [edges, k]
  Tensor matrix;  // [k, dims.w]
  Optional g;     // [edges | receivers, dims.g]
};

// radial_tensor_product: The channel-wise product with weights hidden @ matrix, which are never
// stored for all edges: the product if g is absent, else its gradients.
struct RadialTensorProductArguments {
  RadialOperands operands;
  ProductTables tables;
  OptionalGraph graph;
  int64_t x_layout;           // Layout
  int64_t g_layout;           // Layout
  std::vector<int64_t> dims;  // ProductDims
};
template <auto run>
auto radial_tensor_product_boxed(Tensor x, Tensor y, Tensor hidden, Tensor matrix, Optional g,
                                 Tensor paths, Tensor cg_index, Tensor cg_value, Tensor tasks,
                                 Tensor x_blocks, Tensor g_blocks, Tensor entries, Tensor coupling,
                                 Optional senders, Optional sender_order, Optional sender_ptr,
                                 Optional receivers, Optional receiver_order, Optional receiver_ptr,
                                 int64_t x_layout, int64_t g_layout, std::vector<int64_t> dims) {
  return run(RadialTensorProductArguments{
      {std::move(x), std::move(y), std::move(hidden), std::move(matrix), std::move(g)},
      {std::move(paths), std::move(cg_index), std::move(cg_value), std::move(tasks),
       std::move(x_blocks), std::move(g_blocks), std::move(entries), std::move(coupling)},
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      x_layout,
      g_layout,
      std::move(dims)});
}

// tensor_product_from_hidden: The same on GPUs, with the weights' gradient in place of those of
// hidden and matrix. Weights are made in the kernel, by the tensor cores where there are some: TF32
// in one pass, or in three that are as good as float32.
struct TensorProductFromHiddenArguments {
  RadialOperands operands;
  ProductTables tables;
  OptionalGraph graph;
  bool one_pass;
  int64_t x_layout;           // Layout
  int64_t g_layout;           // Layout
  std::vector<int64_t> dims;  // ProductDims
};
template <auto run>
auto tensor_product_from_hidden_boxed(Tensor x, Tensor y, Tensor hidden, Tensor matrix, Optional g,
                                      Tensor paths, Tensor cg_index, Tensor cg_value, Tensor tasks,
                                      Tensor x_blocks, Tensor g_blocks, Tensor entries,
                                      Tensor coupling, Optional senders, Optional sender_order,
                                      Optional sender_ptr, Optional receivers,
                                      Optional receiver_order, Optional receiver_ptr, bool one_pass,
                                      int64_t x_layout, int64_t g_layout,
                                      std::vector<int64_t> dims) {
  return run(TensorProductFromHiddenArguments{
      {std::move(x), std::move(y), std::move(hidden), std::move(matrix), std::move(g)},
      {std::move(paths), std::move(cg_index), std::move(cg_value), std::move(tasks),
       std::move(x_blocks), std::move(g_blocks), std::move(entries), std::move(coupling)},
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      one_pass,
      x_layout,
      g_layout,
      std::move(dims)});
}

// channel_kernel_source: The header that kernels/channel.cuh is compiled with for a plan, as bytes;
// its number of units and a block's bytes of shared memory.
struct ChannelKernelSourceArguments {
  Tensor tasks;                  // [tasks, ChannelTask]
  Tensor x_blocks;               // [blocks, ChannelBlock]
  Tensor g_blocks;               // [blocks, ChannelBlock]
  Tensor entries;                // [entries, CouplingEntry]
  Tensor coupling;               // [couplings]
  std::vector<int64_t> dims;     // ProductDims
  std::vector<int64_t> variant;  // ChannelVariant
};
template <auto run>
auto channel_kernel_source_boxed(Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries,
                                 Tensor coupling, std::vector<int64_t> dims,
                                 std::vector<int64_t> variant) {
  return run(ChannelKernelSourceArguments{
      std::move(tasks), std::move(x_blocks), std::move(g_blocks), std::move(entries),
      std::move(coupling), std::move(dims), std::move(variant)});
}

struct Source {
  enum : int { x0, x1, x2, count };
};

// rotate_to_edge: Up to three sources, each read through an index or not. Orders and pointers are
// for the adjoint.
struct RotateToEdgeArguments {
  std::array<Optional, 3> x;
  std::array<Optional, 3> tables;
  std::array<Optional, 3> index;
  std::array<Optional, 3> order;
  std::array<Optional, 3> ptr;
  Tensor wigner;  // [edges, sum (2 l + 1)^2]
  int64_t frame_dim;
  bool channels_fast;  // rows are ir_mul, else mul_ir
  bool partial;        // the sources do not fill the frames
};
template <auto run>
auto rotate_to_edge_boxed(Tensor x0, Optional x1, Optional x2, Tensor table0, Optional table1,
                          Optional table2, Optional index0, Optional index1, Optional index2,
                          Optional order0, Optional order1, Optional order2, Optional ptr0,
                          Optional ptr1, Optional ptr2, Tensor wigner, int64_t frame_dim,
                          bool channels_fast, bool partial) {
  return run(RotateToEdgeArguments{{std::move(x0), std::move(x1), std::move(x2)},
                                   {std::move(table0), std::move(table1), std::move(table2)},
                                   {std::move(index0), std::move(index1), std::move(index2)},
                                   {std::move(order0), std::move(order1), std::move(order2)},
                                   {std::move(ptr0), std::move(ptr1), std::move(ptr2)},
                                   std::move(wigner),
                                   frame_dim,
                                   channels_fast,
                                   partial});
}

// rotate_from_edge: One source, its rows summed over edges by order and ptr. Index and partial are
// for the adjoint.
struct RotateFromEdgeArguments {
  Tensor frame;    // [edges * frame_dim]
  Tensor table;    // [blocks, FrameBlock and FrameColumns]
  Optional index;  // [edges]
  Optional order;  // [edges]
  Optional ptr;    // [rows + 1]
  Tensor wigner;   // [edges, sum (2 l + 1)^2]
  int64_t dim;
  bool channels_fast;  // rows are ir_mul, else mul_ir
  bool partial;        // the sources do not fill the frames
};
template <auto run>
auto rotate_from_edge_boxed(Tensor frame, Tensor table, Optional index, Optional order,
                            Optional ptr, Tensor wigner, int64_t dim, bool channels_fast,
                            bool partial) {
  return run(RotateFromEdgeArguments{std::move(frame), std::move(table), std::move(index),
                                     std::move(order), std::move(ptr), std::move(wigner), dim,
                                     channels_fast, partial});
}

// edge_frame_weights: Path weights, each times a scale per column or not, to the matrices of an
// edge-frame plan: the derivative of a trilinear form in one of its slots.
struct EdgeFrameWeightsArguments {
  std::array<Optional, 3> operands;
  Tensor terms;       // [terms, MatrixTerm]
  Tensor factors;     // [terms]
  Tensor by_matrix;   // [matrices + 1]
  Tensor by_path;     // [paths + 1]
  Tensor path_order;  // [terms]
  int64_t slot;       // WeightSlot
  int64_t numel;      // of the result
};
template <auto run>
auto edge_frame_weights_boxed(Optional weight, Optional scale, Optional matrix, Tensor terms,
                              Tensor factors, Tensor by_matrix, Tensor by_path, Tensor path_order,
                              int64_t slot, int64_t numel) {
  return run(EdgeFrameWeightsArguments{{std::move(weight), std::move(scale), std::move(matrix)},
                                       std::move(terms),
                                       std::move(factors),
                                       std::move(by_matrix),
                                       std::move(by_path),
                                       std::move(path_order),
                                       slot,
                                       numel});
}

// block_matmul: C = A B, A = C B^T or B = A^T C for blocks A [rows r, k], B [k, n], shapes r, k, n,
// in flat buffers.
struct BlockMatmulArguments {
  Tensor left;   // [numel]
  Tensor right;  // [numel]
  int64_t rows;
  std::vector<int64_t> shapes;
  int64_t product;  // MatrixProduct
};
template <auto run>
auto block_matmul_boxed(Tensor left, Tensor right, int64_t rows, std::vector<int64_t> shapes,
                        int64_t product) {
  return run(
      BlockMatmulArguments{std::move(left), std::move(right), rows, std::move(shapes), product});
}

// irreps_linear: C = A B, A = C B^T or B = A^T C for rows of irreps A [rows, dims.a] and C [rows,
// dims.c], and matrices B of channels, flat. With order and ptr rows are of several species, and
// each species has matrices of its own.
struct IrrepsLinearArguments {
  Tensor left;                // [rows, dims.a | rows, dims.c]
  Tensor right;               // [dims.b | rows, dims.c]
  Optional order;             // [rows]
  Optional ptr;               // [species + 1]
  Tensor tasks;               // [tasks, LinearTask]
  int64_t product;            // MatrixProduct
  int64_t layout;             // Layout
  std::vector<int64_t> dims;  // LinearDims
};
template <auto run>
auto irreps_linear_boxed(Tensor left, Tensor right, Optional order, Optional ptr, Tensor tasks,
                         int64_t product, int64_t layout, std::vector<int64_t> dims) {
  return run(IrrepsLinearArguments{std::move(left), std::move(right), std::move(order),
                                   std::move(ptr), std::move(tasks), product, layout,
                                   std::move(dims)});
}

// row_matmul: C = A B, A = C B^T or B = A^T C, row by row, for matrices B that are parts of each
// row's weights. A and C are flat, block after block [rows, d, channels]; B is [rows, dims.b].
struct RowMatmulArguments {
  Tensor left;   // [numel | rows, dims.b]
  Tensor right;  // [numel | rows, dims.b]
  Tensor tasks;  // [tasks, RowTask]
  int64_t rows;
  int64_t product;            // MatrixProduct
  std::vector<int64_t> dims;  // RowDims
};
template <auto run>
auto row_matmul_boxed(Tensor left, Tensor right, Tensor tasks, int64_t rows, int64_t product,
                      std::vector<int64_t> dims) {
  return run(RowMatmulArguments{std::move(left), std::move(right), std::move(tasks), rows, product,
                                std::move(dims)});
}

// edge_outer: A derivative of the form sum over edges e of <node[n(e)], factor[e] x channels[e]> in
// one of its slots. factor: [edges, width]; node and channels: flat, block after block [nodes, d,
// width, n] and [edges, d, n].
struct EdgeOuterArguments {
  Tensor left;   // [numel | edges, width]
  Tensor right;  // [numel]
  Tensor order;  // [edges]
  Tensor ptr;    // [nodes + 1]
  int64_t slot;  // OuterSlot
  int64_t width;
  std::vector<int64_t> shapes;  // d and n of each block
};
template <auto run>
auto edge_outer_boxed(Tensor left, Tensor right, Tensor order, Tensor ptr, int64_t slot,
                      int64_t width, std::vector<int64_t> shapes) {
  return run(EdgeOuterArguments{std::move(left), std::move(right), std::move(order), std::move(ptr),
                                slot, width, std::move(shapes)});
}

struct EinsumOperand {
  enum : int { a, b, c, count };
};

struct Graph {
  Tensor senders;         // [edges]
  Tensor sender_order;    // [edges]
  Tensor sender_ptr;      // [senders + 1]
  Tensor receivers;       // [edges]
  Tensor receiver_order;  // [edges]
  Tensor receiver_ptr;    // [receivers + 1]
};

// edge_einsum: Sums over edges of products of operands [rows, heads, components, width], each with
// a row per edge, sender or receiver.
struct EdgeEinsumArguments {
  std::array<Optional, 3> operands;
  std::vector<int64_t> rows_of;  // RowOf of the result, then of the operands
  std::vector<int64_t> shape;    // the result's last three axes
  Graph graph;
};
template <auto run>
auto edge_einsum_boxed(Tensor a, Optional b, Optional c, std::vector<int64_t> rows_of,
                       std::vector<int64_t> shape, Tensor senders, Tensor sender_order,
                       Tensor sender_ptr, Tensor receivers, Tensor receiver_order,
                       Tensor receiver_ptr) {
  return run(EdgeEinsumArguments{
      {std::move(a), std::move(b), std::move(c)},
      std::move(rows_of),
      std::move(shape),
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)}});
}

// sparse_map: out[r, i] = sum over n in ptr[i] ... ptr[i + 1] of value[n] x[r, column[n]].
struct SparseMapArguments {
  Tensor x;                  // [rows, dim_in]
  Tensor ptr;                // [dim_out + 1]
  Tensor column;             // [entries]
  Tensor value;              // [entries]
  Tensor transposed_ptr;     // [dim_in + 1]
  Tensor transposed_column;  // [entries]
  Tensor transposed_value;   // [entries]
};
template <auto run>
auto sparse_map_boxed(Tensor x, Tensor ptr, Tensor column, Tensor value, Tensor transposed_ptr,
                      Tensor transposed_column, Tensor transposed_value) {
  return run(SparseMapArguments{std::move(x), std::move(ptr), std::move(column), std::move(value),
                                std::move(transposed_ptr), std::move(transposed_column),
                                std::move(transposed_value)});
}

struct UpdateOperands {
  Optional edge;      // [edges, width]
  Optional sender;    // [senders, width]
  Optional receiver;  // [receivers, width]
  Optional weight;    // [width]
  Optional bias;      // [width]
};

struct UpdateSettings {
  double epsilon;  // added to the variance
  bool silu;       // else no activation
};

// edge_update: act(norm(edge[e] + sender[s] + receiver[t])), with weight and bias of the norm or
// without it.
struct EdgeUpdateArguments {
  UpdateOperands operands;
  Graph graph;
  UpdateSettings settings;
};
template <auto run>
auto edge_update_boxed(Optional edge, Optional sender, Optional receiver, Optional weight,
                       Optional bias, Tensor senders, Tensor sender_order, Tensor sender_ptr,
                       Tensor receivers, Tensor receiver_order, Tensor receiver_ptr, double epsilon,
                       bool silu) {
  return run(EdgeUpdateArguments{
      {std::move(edge), std::move(sender), std::move(receiver), std::move(weight), std::move(bias)},
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      {epsilon, silu}});
}

// edge_update_backward: Its gradients in the sum, and in weight and bias.
struct EdgeUpdateBackwardArguments {
  Tensor grad;  // [edges, width]
  UpdateOperands operands;
  Graph graph;
  UpdateSettings settings;
};
template <auto run>
auto edge_update_backward_boxed(Tensor grad, Optional edge, Optional sender, Optional receiver,
                                Optional weight, Optional bias, Tensor senders, Tensor sender_order,
                                Tensor sender_ptr, Tensor receivers, Tensor receiver_order,
                                Tensor receiver_ptr, double epsilon, bool silu) {
  return run(EdgeUpdateBackwardArguments{
      std::move(grad),
      {std::move(edge), std::move(sender), std::move(receiver), std::move(weight), std::move(bias)},
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      {epsilon, silu}});
}

// edge_update_double_backward: The gradients of the backward pass along tangents of its results.
struct EdgeUpdateDoubleBackwardArguments {
  Optional tangent_sum;   // [edges, width]
  Optional tangent_norm;  // [2, width]
  Tensor grad;            // [edges, width]
  UpdateOperands operands;
  Graph graph;
  UpdateSettings settings;
};
template <auto run>
auto edge_update_double_backward_boxed(Optional tangent_sum, Optional tangent_norm, Tensor grad,
                                       Optional edge, Optional sender, Optional receiver,
                                       Optional weight, Optional bias, Tensor senders,
                                       Tensor sender_order, Tensor sender_ptr, Tensor receivers,
                                       Tensor receiver_order, Tensor receiver_ptr, double epsilon,
                                       bool silu) {
  return run(EdgeUpdateDoubleBackwardArguments{
      std::move(tangent_sum),
      std::move(tangent_norm),
      std::move(grad),
      {std::move(edge), std::move(sender), std::move(receiver), std::move(weight), std::move(bias)},
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      {epsilon, silu}});
}

struct AttentionOperand {
  enum : int {
    query_edge,
    query_sender,
    query_receiver,
    key_edge,
    key_sender,
    key_receiver,
    value_edge,
    value_sender,
    value_receiver,
    query_on_edge,
    edge,
    vector,
    bias,
    score_scale,
    envelope,
    gate,
    count
  };
};

struct AttentionSettings {
  int64_t heads;
  int64_t score;       // Score
  int64_t activation;  // ScoreActivation
  int64_t weighting;   // Weighting
  double slope;        // of the score's activation
  double scale;        // of z
  double clip;         // scores stay within -clip and clip; infinity: no clip
  double epsilon;      // added to the sum of weights
  double dropout;      // probability
};

// graph_attention: edge_key_weight: what query_on_edge was made with; read by the backward pass
// alone.
struct GraphAttentionArguments {
  Optional edge_key_weight;  // [heads, width, features]
  std::array<Optional, 16> operands;
  Optional seed;
  Graph graph;
  AttentionSettings settings;
  int64_t wanted;  // AttentionWanted
};
template <auto run>
auto graph_attention_boxed(Optional edge_key_weight, Optional query_edge, Optional query_sender,
                           Optional query_receiver, Optional key_edge, Optional key_sender,
                           Optional key_receiver, Optional value_edge, Optional value_sender,
                           Optional value_receiver, Optional query_on_edge, Optional edge,
                           Optional vector, Optional bias, Optional score_scale, Optional envelope,
                           Optional gate, Optional seed, Tensor senders, Tensor sender_order,
                           Tensor sender_ptr, Tensor receivers, Tensor receiver_order,
                           Tensor receiver_ptr, int64_t heads, int64_t score, int64_t activation,
                           int64_t weighting, double slope, double scale, double clip,
                           double epsilon, double dropout, int64_t wanted) {
  return run(GraphAttentionArguments{
      std::move(edge_key_weight),
      {std::move(query_edge), std::move(query_sender), std::move(query_receiver),
       std::move(key_edge), std::move(key_sender), std::move(key_receiver), std::move(value_edge),
       std::move(value_sender), std::move(value_receiver), std::move(query_on_edge),
       std::move(edge), std::move(vector), std::move(bias), std::move(score_scale),
       std::move(envelope), std::move(gate)},
      std::move(seed),
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      {heads, score, activation, weighting, slope, scale, clip, epsilon, dropout},
      wanted});
}

struct AttentionResult {
  enum : int { out, out_on_edge, lse, weights, logits, count };
};

// graph_attention_backward: Gradients of the operands whose bits are set; the others are empty.
struct GraphAttentionBackwardArguments {
  std::array<Optional, 5> gradients;
  Tensor lse;  // [receivers, heads]
  std::array<Optional, 16> operands;
  Optional seed;
  Graph graph;
  AttentionSettings settings;
  int64_t wanted;  // bits of the operands
};
template <auto run>
auto graph_attention_backward_boxed(
    Optional grad_out, Optional grad_out_on_edge, Optional grad_lse, Optional grad_weights,
    Optional grad_logits, Tensor lse, Optional query_edge, Optional query_sender,
    Optional query_receiver, Optional key_edge, Optional key_sender, Optional key_receiver,
    Optional value_edge, Optional value_sender, Optional value_receiver, Optional query_on_edge,
    Optional edge, Optional vector, Optional bias, Optional score_scale, Optional envelope,
    Optional gate, Optional seed, Tensor senders, Tensor sender_order, Tensor sender_ptr,
    Tensor receivers, Tensor receiver_order, Tensor receiver_ptr, int64_t heads, int64_t score,
    int64_t activation, int64_t weighting, double slope, double scale, double clip, double epsilon,
    double dropout, int64_t wanted) {
  return run(GraphAttentionBackwardArguments{
      {std::move(grad_out), std::move(grad_out_on_edge), std::move(grad_lse),
       std::move(grad_weights), std::move(grad_logits)},
      std::move(lse),
      {std::move(query_edge), std::move(query_sender), std::move(query_receiver),
       std::move(key_edge), std::move(key_sender), std::move(key_receiver), std::move(value_edge),
       std::move(value_sender), std::move(value_receiver), std::move(query_on_edge),
       std::move(edge), std::move(vector), std::move(bias), std::move(score_scale),
       std::move(envelope), std::move(gate)},
      std::move(seed),
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      {heads, score, activation, weighting, slope, scale, clip, epsilon, dropout},
      wanted});
}

// graph_attention_double_backward: Gradients of the five gradients, then of the operands, of the
// backward pass along tangents of its results.
struct GraphAttentionDoubleBackwardArguments {
  std::array<Optional, 16> tangents;
  std::array<Optional, 5> gradients;
  Tensor lse;  // [receivers, heads]
  std::array<Optional, 16> operands;
  Optional seed;
  Graph graph;
  AttentionSettings settings;
  int64_t wanted;  // bits of the operands, then of the gradients
};
template <auto run>
auto graph_attention_double_backward_boxed(
    Optional tangent_query_edge, Optional tangent_query_sender, Optional tangent_query_receiver,
    Optional tangent_key_edge, Optional tangent_key_sender, Optional tangent_key_receiver,
    Optional tangent_value_edge, Optional tangent_value_sender, Optional tangent_value_receiver,
    Optional tangent_query_on_edge, Optional tangent_edge, Optional tangent_vector,
    Optional tangent_bias, Optional tangent_score_scale, Optional tangent_envelope,
    Optional tangent_gate, Optional grad_out, Optional grad_out_on_edge, Optional grad_lse,
    Optional grad_weights, Optional grad_logits, Tensor lse, Optional query_edge,
    Optional query_sender, Optional query_receiver, Optional key_edge, Optional key_sender,
    Optional key_receiver, Optional value_edge, Optional value_sender, Optional value_receiver,
    Optional query_on_edge, Optional edge, Optional vector, Optional bias, Optional score_scale,
    Optional envelope, Optional gate, Optional seed, Tensor senders, Tensor sender_order,
    Tensor sender_ptr, Tensor receivers, Tensor receiver_order, Tensor receiver_ptr, int64_t heads,
    int64_t score, int64_t activation, int64_t weighting, double slope, double scale, double clip,
    double epsilon, double dropout, int64_t wanted) {
  return run(GraphAttentionDoubleBackwardArguments{
      {std::move(tangent_query_edge), std::move(tangent_query_sender),
       std::move(tangent_query_receiver), std::move(tangent_key_edge),
       std::move(tangent_key_sender), std::move(tangent_key_receiver),
       std::move(tangent_value_edge), std::move(tangent_value_sender),
       std::move(tangent_value_receiver), std::move(tangent_query_on_edge), std::move(tangent_edge),
       std::move(tangent_vector), std::move(tangent_bias), std::move(tangent_score_scale),
       std::move(tangent_envelope), std::move(tangent_gate)},
      {std::move(grad_out), std::move(grad_out_on_edge), std::move(grad_lse),
       std::move(grad_weights), std::move(grad_logits)},
      std::move(lse),
      {std::move(query_edge), std::move(query_sender), std::move(query_receiver),
       std::move(key_edge), std::move(key_sender), std::move(key_receiver), std::move(value_edge),
       std::move(value_sender), std::move(value_receiver), std::move(query_on_edge),
       std::move(edge), std::move(vector), std::move(bias), std::move(score_scale),
       std::move(envelope), std::move(gate)},
      std::move(seed),
      {std::move(senders), std::move(sender_order), std::move(sender_ptr), std::move(receivers),
       std::move(receiver_order), std::move(receiver_ptr)},
      {heads, score, activation, weighting, slope, scale, clip, epsilon, dropout},
      wanted});
}

struct ContractionOperands {
  Tensor x;    // [nodes, channels, dims.x]
  Tensor y;    // [nodes, species]
  Tensor w;    // [species, paths, channels]
  Optional g;  // [nodes, channels * dims.g]
};

struct ContractionTables {
  Tensor products;       // [products, Product]
  Tensor groups;         // [groups, ContractionGroup]
  Tensor buckets;        // [most terms of a group + 1]
  Tensor factors;        // [terms]
  Tensor path_ptr;       // [paths + 1]
  Tensor by_path;        // [entries, ContractionEntry]
  Tensor by_path_value;  // [entries]
  Tensor term_ptr;       // [terms + 1]
  Tensor by_term;        // [entries, ContractionEntry]
  Tensor by_term_value;  // [entries]
  Tensor blocks;         // [blocks, ContractionBlock]
};

// symmetric_contraction: The partial derivatives of F in the wanted slots; with a direction of x,
// those of F's derivative along it. See hamfast/ops/symmetric_contraction.py.
struct SymmetricContractionArguments {
  ContractionOperands operands;
  Optional direction;  // [nodes, channels, dims.x]
  ContractionTables tables;
  int64_t wanted;             // bits of the slots
  std::vector<int64_t> dims;  // ContractionDims
};
template <auto run>
auto symmetric_contraction_boxed(Tensor x, Tensor y, Tensor w, Optional g, Optional direction,
                                 Tensor products, Tensor groups, Tensor buckets, Tensor factors,
                                 Tensor path_ptr, Tensor by_path, Tensor by_path_value,
                                 Tensor term_ptr, Tensor by_term, Tensor by_term_value,
                                 Tensor blocks, int64_t wanted, std::vector<int64_t> dims) {
  return run(SymmetricContractionArguments{
      {std::move(x), std::move(y), std::move(w), std::move(g)},
      std::move(direction),
      {std::move(products), std::move(groups), std::move(buckets), std::move(factors),
       std::move(path_ptr), std::move(by_path), std::move(by_path_value), std::move(term_ptr),
       std::move(by_term), std::move(by_term_value), std::move(blocks)},
      wanted,
      std::move(dims)});
}

constexpr const char* kSchemas[] = {
    "tensor_product(Tensor? x, Tensor? y, Tensor? w, Tensor? g, Tensor? tangent_x, Tensor? "
    "tangent_y, Tensor? tangent_w, Tensor? tangent_g, Tensor paths, Tensor cg_index, Tensor "
    "cg_value, Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries, Tensor coupling, "
    "Tensor? senders, Tensor? sender_order, Tensor? sender_ptr, Tensor? receivers, Tensor? "
    "receiver_order, Tensor? receiver_ptr, int wanted, SymInt edges, bool shared_weights, int "
    "x_layout, int g_layout, int[] dims) -> (Tensor, Tensor, Tensor, Tensor)",
    "radial_tensor_product(Tensor x, Tensor y, Tensor hidden, Tensor matrix, Tensor? g, Tensor "
    "paths, Tensor cg_index, Tensor cg_value, Tensor tasks, Tensor x_blocks, Tensor g_blocks, "
    "Tensor entries, Tensor coupling, Tensor? senders, Tensor? sender_order, Tensor? sender_ptr, "
    "Tensor? receivers, Tensor? receiver_order, Tensor? receiver_ptr, int x_layout, int g_layout, "
    "int[] dims) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "tensor_product_from_hidden(Tensor x, Tensor y, Tensor hidden, Tensor matrix, Tensor? g, "
    "Tensor paths, Tensor cg_index, Tensor cg_value, Tensor tasks, Tensor x_blocks, Tensor "
    "g_blocks, Tensor entries, Tensor coupling, Tensor? senders, Tensor? sender_order, Tensor? "
    "sender_ptr, Tensor? receivers, Tensor? receiver_order, Tensor? receiver_ptr, bool one_pass, "
    "int x_layout, int g_layout, int[] dims) -> (Tensor, Tensor, Tensor, Tensor)",
    "channel_kernel_source(Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries, Tensor "
    "coupling, int[] dims, int[] variant) -> (Tensor, Tensor)",
    "rotate_to_edge(Tensor x0, Tensor? x1, Tensor? x2, Tensor table0, Tensor? table1, Tensor? "
    "table2, Tensor? index0, Tensor? index1, Tensor? index2, Tensor? order0, Tensor? order1, "
    "Tensor? order2, Tensor? ptr0, Tensor? ptr1, Tensor? ptr2, Tensor wigner, int frame_dim, bool "
    "channels_fast, bool partial) -> Tensor",
    "rotate_from_edge(Tensor frame, Tensor table, Tensor? index, Tensor? order, Tensor? ptr, "
    "Tensor wigner, int dim, bool channels_fast, bool partial) -> Tensor",
    "edge_frame_weights(Tensor? weight, Tensor? scale, Tensor? matrix, Tensor terms, Tensor "
    "factors, Tensor by_matrix, Tensor by_path, Tensor path_order, int slot, int numel) -> Tensor",
    "block_matmul(Tensor left, Tensor right, SymInt rows, int[] shapes, int product) -> Tensor",
    "irreps_linear(Tensor left, Tensor right, Tensor? order, Tensor? ptr, Tensor tasks, int "
    "product, int layout, int[] dims) -> Tensor",
    "row_matmul(Tensor left, Tensor right, Tensor tasks, SymInt rows, int product, int[] dims) -> "
    "Tensor",
    "edge_outer(Tensor left, Tensor right, Tensor order, Tensor ptr, int slot, int width, int[] "
    "shapes) -> Tensor",
    "edge_einsum(Tensor a, Tensor? b, Tensor? c, int[] rows_of, SymInt[] shape, Tensor senders, "
    "Tensor sender_order, Tensor sender_ptr, Tensor receivers, Tensor receiver_order, Tensor "
    "receiver_ptr) -> Tensor",
    "sparse_map(Tensor x, Tensor ptr, Tensor column, Tensor value, Tensor transposed_ptr, Tensor "
    "transposed_column, Tensor transposed_value) -> Tensor",
    "edge_update(Tensor? edge, Tensor? sender, Tensor? receiver, Tensor? weight, Tensor? bias, "
    "Tensor senders, Tensor sender_order, Tensor sender_ptr, Tensor receivers, Tensor "
    "receiver_order, Tensor receiver_ptr, float epsilon, bool silu) -> Tensor",
    "edge_update_backward(Tensor grad, Tensor? edge, Tensor? sender, Tensor? receiver, Tensor? "
    "weight, Tensor? bias, Tensor senders, Tensor sender_order, Tensor sender_ptr, Tensor "
    "receivers, Tensor receiver_order, Tensor receiver_ptr, float epsilon, bool silu) -> (Tensor, "
    "Tensor)",
    "edge_update_double_backward(Tensor? tangent_sum, Tensor? tangent_norm, Tensor grad, Tensor? "
    "edge, Tensor? sender, Tensor? receiver, Tensor? weight, Tensor? bias, Tensor senders, Tensor "
    "sender_order, Tensor sender_ptr, Tensor receivers, Tensor receiver_order, Tensor "
    "receiver_ptr, float epsilon, bool silu) -> (Tensor, Tensor, Tensor)",
    "graph_attention(Tensor? edge_key_weight, Tensor? query_edge, Tensor? query_sender, Tensor? "
    "query_receiver, Tensor? key_edge, Tensor? key_sender, Tensor? key_receiver, Tensor? "
    "value_edge, Tensor? value_sender, Tensor? value_receiver, Tensor? query_on_edge, Tensor? "
    "edge, Tensor? vector, Tensor? bias, Tensor? score_scale, Tensor? envelope, Tensor? gate, "
    "Tensor? seed, Tensor senders, Tensor sender_order, Tensor sender_ptr, Tensor receivers, "
    "Tensor receiver_order, Tensor receiver_ptr, int heads, int score, int activation, int "
    "weighting, float slope, float scale, float clip, float epsilon, float dropout, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "graph_attention_backward(Tensor? grad_out, Tensor? grad_out_on_edge, Tensor? grad_lse, "
    "Tensor? grad_weights, Tensor? grad_logits, Tensor lse, Tensor? query_edge, Tensor? "
    "query_sender, Tensor? query_receiver, Tensor? key_edge, Tensor? key_sender, Tensor? "
    "key_receiver, Tensor? value_edge, Tensor? value_sender, Tensor? value_receiver, Tensor? "
    "query_on_edge, Tensor? edge, Tensor? vector, Tensor? bias, Tensor? score_scale, Tensor? "
    "envelope, Tensor? gate, Tensor? seed, Tensor senders, Tensor sender_order, Tensor "
    "sender_ptr, Tensor receivers, Tensor receiver_order, Tensor receiver_ptr, int heads, int "
    "score, int activation, int weighting, float slope, float scale, float clip, float epsilon, "
    "float dropout, int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "graph_attention_double_backward(Tensor? tangent_query_edge, Tensor? tangent_query_sender, "
    "Tensor? tangent_query_receiver, Tensor? tangent_key_edge, Tensor? tangent_key_sender, "
    "Tensor? tangent_key_receiver, Tensor? tangent_value_edge, Tensor? tangent_value_sender, "
    "Tensor? tangent_value_receiver, Tensor? tangent_query_on_edge, Tensor? tangent_edge, Tensor? "
    "tangent_vector, Tensor? tangent_bias, Tensor? tangent_score_scale, Tensor? tangent_envelope, "
    "Tensor? tangent_gate, Tensor? grad_out, Tensor? grad_out_on_edge, Tensor? grad_lse, Tensor? "
    "grad_weights, Tensor? grad_logits, Tensor lse, Tensor? query_edge, Tensor? query_sender, "
    "Tensor? query_receiver, Tensor? key_edge, Tensor? key_sender, Tensor? key_receiver, Tensor? "
    "value_edge, Tensor? value_sender, Tensor? value_receiver, Tensor? query_on_edge, Tensor? "
    "edge, Tensor? vector, Tensor? bias, Tensor? score_scale, Tensor? envelope, Tensor? gate, "
    "Tensor? seed, Tensor senders, Tensor sender_order, Tensor sender_ptr, Tensor receivers, "
    "Tensor receiver_order, Tensor receiver_ptr, int heads, int score, int activation, int "
    "weighting, float slope, float scale, float clip, float epsilon, float dropout, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "symmetric_contraction(Tensor x, Tensor y, Tensor w, Tensor? g, Tensor? direction, Tensor "
    "products, Tensor groups, Tensor buckets, Tensor factors, Tensor path_ptr, Tensor by_path, "
    "Tensor by_path_value, Tensor term_ptr, Tensor by_term, Tensor by_term_value, Tensor blocks, "
    "int wanted, int[] dims) -> (Tensor, Tensor, Tensor, Tensor)",
};

}  // namespace hamfast
