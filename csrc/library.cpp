// Every op of hamfast. Kernels register themselves beside their code; fakes and autograd live in hamfast/ops/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(hamfast, m) {
  // dF/d(slot) of F = sum_e <g[receiver e], TP(x[sender e], y[e], w[e])>; slots x = 0, y = 1, w = 2, g = 3.
  // The operand of the slot is absent. table, cg_index, cg_value: the plan. dims: rows of x, y, w and g; scratch.
  m.def(
      "tensor_product(Tensor? x, Tensor? y, Tensor? w, Tensor? g, Tensor table, Tensor cg_index, Tensor cg_value, "
      "Tensor? senders, Tensor? sender_order, Tensor? sender_ptr, "
      "Tensor? receivers, Tensor? receiver_order, Tensor? receiver_ptr, "
      "int slot, int edges, bool shared_weights, int[] dims) -> Tensor");

  // Irreps rows into and out of the frames of their edges; each is the other's adjoint.
  m.def("rotate_to_edge(Tensor x, Tensor wigner, Tensor table, int frame_dim, bool channels_fast) -> Tensor");
  m.def("rotate_from_edge(Tensor frame, Tensor wigner, Tensor table, int dim, bool channels_fast) -> Tensor");
  // Path weights to the matrices of an edge-frame plan, a fixed sparse linear map, or its transpose.
  m.def("edge_frame_weights(Tensor weight, Tensor terms, Tensor factors, int numel, bool transpose) -> Tensor");

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
