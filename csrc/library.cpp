// Every op of hamfast. Kernels register themselves beside their code; fakes and autograd live in hamfast/ops/.
#include <torch/csrc/stable/library.h>

#include <string>

// So many tensors as a result.
static std::string tensors(int count) {
  std::string types = "(Tensor";
  for (int n = 1; n < count; ++n) types += ", Tensor";
  return types + ")";
}

STABLE_TORCH_LIBRARY(hamfast, m) {
  // Partial derivatives of F = sum_e <g[receiver e], TP(x[sender e], y[e], w[e])> in the wanted slots (bits x = 1, y =
  // 2, w = 4, g = 8); with directions, those of the derivative of F along them. See hamfast/ops/tensor_product.py.
  // table, cg_index, cg_value: the paths of the general kernel; tasks, x_blocks, g_blocks, entries, coupling: of the
  // channel-wise one. dims: row length of x, y, w and g; scratch; padded x and g; largest coupling; covers weights; key
  // of the channel-wise tables.
  m.def(
      "tensor_product(Tensor? x, Tensor? y, Tensor? w, Tensor? g, Tensor? dx, Tensor? dy, Tensor? dw, Tensor? dg, "
      "Tensor table, Tensor cg_index, Tensor cg_value, Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries, "
      "Tensor coupling, "
      "Tensor? senders, Tensor? sender_order, Tensor? sender_ptr, "
      "Tensor? receivers, Tensor? receiver_order, Tensor? receiver_ptr, "
      "int wanted, SymInt edges, bool shared_weights, int x_layout, int g_layout, int[] dims) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // The header kernels/channel.cuh is compiled with, as bytes, for tables and a kind of call (1 forward or 0 backward;
  // bits of operands, directions, wanted; storage; layouts of x and g; shared weights; numbers per edge that weights
  // are made from, or 0, and passes of the tensor cores); its number of units and a block's bytes of shared memory.
  m.def(
      "channel_kernel_source(Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries, Tensor coupling, "
      "int[] dims, int[] kind) -> (Tensor, Tensor)");

  // The channel-wise product with weights h @ matrix that are never stored for all edges: the product if g is absent
  // (first result), else its gradients in x, y, h and the matrix.
  m.def(
      "radial_tensor_product(Tensor x, Tensor y, Tensor h, Tensor matrix, Tensor? g, "
      "Tensor table, Tensor cg_index, Tensor cg_value, Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries, "
      "Tensor coupling, Tensor? senders, Tensor? sender_order, Tensor? sender_ptr, "
      "Tensor? receivers, Tensor? receiver_order, Tensor? receiver_ptr, int x_layout, int g_layout, int[] dims) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  // The same with the weights' gradient in place of those of h and the matrix, for GPUs: weights are made in the
  // kernel, by the tensor cores where there are some (TF32: in one pass, or in three that are as good as float32).
  m.def(
      "tensor_product_from_hidden(Tensor x, Tensor y, Tensor h, Tensor matrix, Tensor? g, "
      "Tensor table, Tensor cg_index, Tensor cg_value, Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries, "
      "Tensor coupling, Tensor? senders, Tensor? sender_order, Tensor? sender_ptr, Tensor? receivers, "
      "Tensor? receiver_order, Tensor? receiver_ptr, bool one_pass, int x_layout, int g_layout, int[] dims) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // Irreps rows into and out of the frames of their edges. Into: up to three sources, each read through an index or
  // not; `partial`: they do not fill the frames. Out: one source, its rows summed over edges by order and ptr. Each is
  // the other's adjoint.
  m.def(
      "rotate_to_edge(Tensor x0, Tensor? x1, Tensor? x2, Tensor table0, Tensor? table1, Tensor? table2, "
      "Tensor? index0, Tensor? index1, Tensor? index2, Tensor? order0, Tensor? order1, Tensor? order2, "
      "Tensor? ptr0, Tensor? ptr1, Tensor? ptr2, Tensor wigner, int frame_dim, bool channels_fast, bool partial) "
      "-> Tensor");
  m.def(
      "rotate_from_edge(Tensor frame, Tensor table, Tensor? index, Tensor? order, Tensor? ptr, Tensor wigner, int dim, "
      "bool channels_fast, bool partial) -> Tensor");
  // Path weights, each times a scale per column or not, to the matrices of an edge-frame plan: the derivative of a
  // trilinear form in the slot weight (0), scale (1) or matrix (2), which has `numel` elements.
  m.def(
      "edge_frame_weights(Tensor? weight, Tensor? scale, Tensor? matrix, Tensor terms, Tensor factors, "
      "Tensor by_matrix, Tensor by_path, Tensor path_order, int slot, int numel) -> Tensor");

  // C = A B (0), A = C B^T (1) or B = A^T C (2) for blocks A [rows r, k], B [k, n], shapes r, k, n, in flat buffers.
  m.def("block_matmul(Tensor left, Tensor right, SymInt rows, int[] shapes, int which) -> Tensor");

  // Sums over edges of products of operands [rows, heads, components, width], each with a row per edge (place 0),
  // sender (1) or receiver (2); places: of the result, then of the operands; shape: the result's last three axes.
  m.def(
      "edge_einsum(Tensor a, Tensor? b, Tensor? c, int[] places, SymInt[] shape, Tensor senders, Tensor sender_order, "
      "Tensor sender_ptr, Tensor receivers, Tensor receiver_order, Tensor receiver_ptr) -> Tensor");

  // act(norm(edge[e] + sender[s] + receiver[t])) of rows [., width], with weight and bias of the norm or without it;
  // its gradients in the sum, [edges, width], and in weight and bias, [2, width]; and, along directions of these, the
  // gradients in grad, in the sum, and in weight and bias.
#define HAMFAST_UPDATE_SCHEMA                                                                              \
  "Tensor? edge, Tensor? sender, Tensor? receiver, Tensor? weight, Tensor? bias, Tensor senders, "         \
  "Tensor sender_order, Tensor sender_ptr, Tensor receivers, Tensor receiver_order, Tensor receiver_ptr, " \
  "float epsilon, bool silu) -> "
  m.def("edge_update(" HAMFAST_UPDATE_SCHEMA "Tensor");
  m.def("edge_update_backward(Tensor grad, " HAMFAST_UPDATE_SCHEMA "(Tensor, Tensor)");
  m.def("edge_update_double_backward(Tensor? sum_dot, Tensor? norm_dot, Tensor grad, " HAMFAST_UPDATE_SCHEMA
        "(Tensor, Tensor, Tensor)");

  // out[r, i] = sum over n in ptr[i] ... ptr[i + 1] of value[n] x[r, column[n]]; the transposed matrix is for the
  // derivative.
  m.def(
      "sparse_map(Tensor x, Tensor ptr, Tensor column, Tensor value, Tensor transposed_ptr, Tensor transposed_column, "
      "Tensor transposed_value) -> Tensor");

  // Attention of each receiver over its incoming edges; hamfast/ops/graph_attention.py says what the operands are.
  // kinds: heads, score, activation, weight; numbers: slope, scale, clip, epsilon, dropout. Results: out, out_on_edge
  // (if wanted & 4), lse, weights (1), logits (2); gradients: of query_edge ... gate, one bit each.
#define HAMFAST_ATTENTION_SCHEMA                                                                                    \
  "Tensor? query_edge, Tensor? query_sender, Tensor? query_receiver, Tensor? key_edge, Tensor? key_sender, "        \
  "Tensor? key_receiver, Tensor? value_edge, Tensor? value_sender, Tensor? value_receiver, Tensor? query_on_edge, " \
  "Tensor? edge, Tensor? vector, Tensor? bias, Tensor? score_scale, Tensor? envelope, Tensor? gate, Tensor? seed, " \
  "Tensor senders, Tensor sender_order, Tensor sender_ptr, Tensor receivers, Tensor receiver_order, "               \
  "Tensor receiver_ptr, int[] kinds, float[] numbers, int wanted) -> "
  m.def(("graph_attention(Tensor? edge_key_weight, " HAMFAST_ATTENTION_SCHEMA + tensors(5)).c_str());
  m.def(("graph_attention_backward(Tensor? grad_out, Tensor? grad_on_edge, Tensor? grad_lse, Tensor? grad_weights, "
         "Tensor? grad_logits, Tensor lse, " HAMFAST_ATTENTION_SCHEMA +
         tensors(16))
            .c_str());
  m.def(
      ("graph_attention_double_backward(Tensor? dot_query_edge, Tensor? dot_query_sender, Tensor? dot_query_receiver, "
       "Tensor? dot_key_edge, Tensor? dot_key_sender, Tensor? dot_key_receiver, Tensor? dot_value_edge, "
       "Tensor? dot_value_sender, Tensor? dot_value_receiver, Tensor? dot_query_on_edge, Tensor? dot_edge, "
       "Tensor? dot_vector, Tensor? dot_bias, Tensor? dot_score_scale, Tensor? dot_envelope, Tensor? dot_gate, "
       "Tensor? grad_out, Tensor? grad_on_edge, Tensor? grad_lse, Tensor? grad_weights, Tensor? grad_logits, "
       "Tensor lse, " HAMFAST_ATTENTION_SCHEMA +
       tensors(21))
          .c_str());
}
