// The channel-wise product with weights w[e] = h[e] W, made for a block of rows at a time: a matrix product whose
// result is used while it is in the cache, and never stored for all edges. A bias is a column of ones in h.
#include <torch/csrc/stable/library.h>

#include "tensor_product/channel_cpu.h"

namespace hamfast {

// Edges per block: enough for a matrix product to run at full speed, few enough to stay in the cache.
constexpr int64_t kBlockEdges = 512;

struct RadialArguments {
  TensorProductArguments product;
  Tensor h, matrix;  // [edges, k], [k, weights]
};

// Calls f(first row, last row, rows of h in the order of the rows' edges) for blocks of whole rows.
template <class T, class F>
void for_each_block(ChannelRun<T>& run, const Tensor& h, F&& f) {
  const int64_t width = h.size(1);
  const T* source = h.const_data_ptr<T>();
  for (int64_t first = 0; first < run.num_rows();) {
    const int64_t begin = run.edges_before(first);
    int64_t last = first + 1;
    while (last < run.num_rows() && run.edges_before(last + 1) - begin <= kBlockEdges) ++last;
    const int64_t count = run.edges_before(last) - begin;
    Tensor rows = torch::stable::new_empty(h, {count, width});
    T* to = rows.mutable_data_ptr<T>();
    for (int64_t n = 0; n < count; ++n) {
      const T* from = source + run.edge_at(begin + n) * width;
      for (int64_t i = 0; i < width; ++i) to[n * width + i] = from[i];
    }
    run.call.w_begin = begin;
    f(first, last, rows);
    first = last;
  }
}

template <class T>
Tensor radial_forward(RadialArguments& args) {
  ChannelRun<T> run(args.product);
  Tensor out = run.new_output(slot_g);
  run.by_receiver();
  Rows& weights = run.call.operand[slot_w];
  weights.dim = args.product.dims[slot_w];
  for_each_block(run, args.h, [&](int64_t first, int64_t last, const Tensor& rows) {
    const Tensor w = torch::stable::matmul(rows, args.matrix);
    weights.data = w.const_data_ptr();
    run.forward(first, last);
  });
  return out;
}

template <class T>
std::vector<Tensor> radial_backward(RadialArguments& args) {
  ChannelRun<T> run(args.product);
  std::vector<Tensor> out{run.new_output(slot_x), run.new_output(slot_y),
                          pooled_empty({args.h.size(0), args.h.size(1)}, ChannelRun<T>::kCompute),
                          torch::stable::new_zeros(args.matrix, {args.matrix.size(0), args.matrix.size(1)})};
  run.by_sender();
  Rows& weights = run.call.operand[slot_w];
  weights.dim = args.product.dims[slot_w];
  const Tensor transposed = torch::stable::transpose(args.matrix, 0, 1);
  const int64_t width = args.h.size(1), numel = args.matrix.numel();
  T* grad_h = out[2].template mutable_data_ptr<T>();
  T* grad_matrix = out[3].template mutable_data_ptr<T>();
  for_each_block(run, args.h, [&](int64_t first, int64_t last, const Tensor& rows) {
    const Tensor w = torch::stable::matmul(rows, args.matrix);
    const Tensor grad_w = torch::stable::new_empty(w, {w.size(0), w.size(1)});
    weights.data = w.const_data_ptr();
    run.call.out[slot_w] = const_cast<void*>(grad_w.const_data_ptr());
    const int64_t parts = last - first < 32 ? last - first : 32;
    run.backward(first, last, parts);
    const Tensor grad_rows = torch::stable::matmul(grad_w, transposed);
    const T* from = grad_rows.const_data_ptr<T>();
    for (int64_t n = 0; n < grad_rows.size(0); ++n) {
      T* to = grad_h + run.edge_at(run.call.w_begin + n) * width;
      for (int64_t i = 0; i < width; ++i) to[i] = from[n * width + i];
    }
    const Tensor part = torch::stable::matmul(torch::stable::transpose(rows, 0, 1), grad_w);
    const T* summand = part.const_data_ptr<T>();
    for (int64_t i = 0; i < numel; ++i) grad_matrix[i] += summand[i];
  });
  return out;
}

// g absent: the product. Else the gradients in x, y, h and the matrix.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> radial_tensor_product(
    Tensor x, Tensor y, Tensor h, Tensor matrix, std::optional<Tensor> g, Tensor table, Tensor cg_index,
    Tensor cg_value, Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries, Tensor coupling,
    std::optional<Tensor> senders, std::optional<Tensor> sender_order, std::optional<Tensor> sender_ptr,
    std::optional<Tensor> receivers, std::optional<Tensor> receiver_order, std::optional<Tensor> receiver_ptr,
    int64_t x_layout, int64_t g_layout, std::vector<int64_t> dims) {
  const int64_t edges = h.size(0);
  RadialArguments args{{{x, y, std::nullopt, g},
                        {},
                        table,
                        cg_index,
                        cg_value,
                        tasks,
                        x_blocks,
                        g_blocks,
                        entries,
                        coupling,
                        senders,
                        sender_order,
                        sender_ptr,
                        receivers,
                        receiver_order,
                        receiver_ptr,
                        g.has_value() ? 7 : 8,
                        edges,
                        false,
                        x_layout,
                        g_layout,
                        dims},
                       torch::stable::contiguous(h),
                       torch::stable::contiguous(matrix)};
  args.product.make_contiguous();
  const Tensor none = torch::stable::new_empty(x, {0});
  const bool is_double = x.scalar_type() == ScalarType::Double;
  if (!g.has_value())
    return {is_double ? radial_forward<double>(args) : radial_forward<float>(args), none, none, none, none};
  std::vector<Tensor> out = is_double ? radial_backward<double>(args) : radial_backward<float>(args);
  return {none, out[0], out[1], out[2], out[3]};
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("radial_tensor_product", TORCH_BOX(&hamfast::radial_tensor_product));
}
