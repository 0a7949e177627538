// Every op of hamfast. Kernels register themselves beside their code; fakes and autograd live in hamfast/ops/.
#include <torch/csrc/stable/library.h>

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
  // bits of operands, directions, wanted; storage; layouts of x and g; shared weights), and its number of units.
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

  // Attention of each target over its incoming edges; hamfast/ops/graph_attention.py says what the parts are.
  m.def(
      "graph_attention("
      "Tensor? query_edge, Tensor? query_source, Tensor? query_target, Tensor? key_edge, Tensor? key_source, "
      "Tensor? key_target, Tensor? value_edge, Tensor? value_source, Tensor? value_target, "
      "Tensor senders, Tensor receivers, Tensor order, Tensor ptr, float scale, float clip) -> Tensor");
  m.def(
      "graph_attention_backward(Tensor grad, "
      "Tensor? query_edge, Tensor? query_source, Tensor? query_target, Tensor? key_edge, Tensor? key_source, "
      "Tensor? key_target, Tensor? value_edge, Tensor? value_source, Tensor? value_target, "
      "Tensor senders, Tensor receivers, Tensor order, Tensor ptr, float scale, float clip) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "graph_attention_double_backward(Tensor direction_q, Tensor direction_k, Tensor direction_v, Tensor grad, "
      "Tensor? query_edge, Tensor? query_source, Tensor? query_target, Tensor? key_edge, Tensor? key_source, "
      "Tensor? key_target, Tensor? value_edge, Tensor? value_source, Tensor? value_target, "
      "Tensor senders, Tensor receivers, Tensor order, Tensor ptr, float scale, float clip) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}
