// The channel-wise product with weights w[e] = hidden[e] W, made for a block of rows at a time: a
// matrix product whose result is used while it is in the cache, and never stored for all edges. A
// bias is a column of ones in hidden.
#include <torch/csrc/stable/library.h>

#include "common/matmul.h"
#include "tensor_product/channel_cpu.h"

namespace hamfast {

// Edges per block: enough for a matrix product to run at full speed, few enough to stay in the
// cache.
constexpr int64_t kBlockEdges = 1024;

struct RadialCall {
  ProductArguments product;
  Tensor hidden, matrix;  // [edges, k], [k, weights]
};

struct RowBlock {
  int64_t first, last;   // rows
  int64_t begin, count;  // edges, in the order of the rows
};

// Whole rows, about kBlockEdges edges together.
template <class T>
std::vector<RowBlock> blocks_of(const ChannelRun<T>& run) {
  std::vector<RowBlock> blocks;
  for (int64_t first = 0; first < run.num_rows();) {
    const int64_t begin = run.edges_before(first);
    int64_t last = first + 1;
    while (last < run.num_rows() && run.edges_before(last + 1) - begin <= kBlockEdges) ++last;
    blocks.push_back({first, last, begin, run.edges_before(last) - begin});
    first = last;
  }
  return blocks;
}

// A matrix with room for the largest block, taken once.
class BlockMatrix {
 public:
  BlockMatrix(const std::vector<RowBlock>& blocks, int64_t columns, ScalarType type) {
    int64_t most = 0;
    for (const RowBlock& block : blocks) most = block.count > most ? block.count : most;
    all_ = pooled_empty({most, columns}, type);
  }
  Tensor rows(int64_t count) { return torch::stable::narrow(all_, 0, 0, count); }

 private:
  Tensor all_;
};

// Rows of hidden for a block's edges; or, the other way round, from a block's edges to all.
template <class T>
void gather(const ChannelRun<T>& run, const RowBlock& block, const T* all, int64_t width, T* rows) {
  for (int64_t n = 0; n < block.count; ++n) {
    const T* from = all + run.edge_at(block.begin + n) * width;
    for (int64_t i = 0; i < width; ++i) rows[n * width + i] = from[i];
  }
}
template <class T>
void spread(const ChannelRun<T>& run, const RowBlock& block, const T* rows, int64_t width, T* all) {
  for (int64_t n = 0; n < block.count; ++n) {
    T* to = all + run.edge_at(block.begin + n) * width;
    for (int64_t i = 0; i < width; ++i) to[i] = rows[n * width + i];
  }
}

template <class T>
Tensor radial_forward(RadialCall& args) {
  ChannelRun<T> run(args.product);
  Tensor out = run.new_output(slot_g);
  run.by_receiver();
  const std::vector<RowBlock> blocks = blocks_of(run);
  const int64_t width = args.hidden.size(1);
  BlockMatrix all_rows(blocks, width, run.kCompute),
      all_weights(blocks, args.matrix.size(1), run.kCompute);
  Rows& weights = run.call.operands[slot_w];
  weights.dim = args.product.dims.w;
  for (const RowBlock& block : blocks) {
    Tensor rows = all_rows.rows(block.count), w = all_weights.rows(block.count);
    gather(run, block, args.hidden.const_data_ptr<T>(), width, rows.mutable_data_ptr<T>());
    multiply_into(rows, args.matrix, w);
    weights.data = w.const_data_ptr();
    run.call.w_begin = block.begin;
    run.forward(block.first, block.last);
  }
  return out;
}

template <class T>
std::vector<Tensor> radial_backward(RadialCall& args) {
  ChannelRun<T> run(args.product);
  const int64_t width = args.hidden.size(1), numel = args.matrix.numel();
  std::vector<Tensor> out{run.new_output(slot_x), run.new_output(slot_y),
                          pooled_empty({args.hidden.size(0), width}, run.kCompute),
                          torch::stable::new_zeros(args.matrix, {width, args.matrix.size(1)})};
  run.by_sender();
  const std::vector<RowBlock> blocks = blocks_of(run);
  const int64_t columns = args.matrix.size(1);
  BlockMatrix all_rows(blocks, width, run.kCompute), all_grad_rows(blocks, width, run.kCompute);
  BlockMatrix all_weights(blocks, columns, run.kCompute),
      all_grad_weights(blocks, columns, run.kCompute);
  const Tensor partial = pooled_empty({width, columns}, run.kCompute);
  const Tensor transposed = torch::stable::transpose(args.matrix, 0, 1);
  Rows& weights = run.call.operands[slot_w];
  weights.dim = args.product.dims.w;
  T* grad_matrix = out[3].template mutable_data_ptr<T>();
  for (const RowBlock& block : blocks) {
    Tensor rows = all_rows.rows(block.count), w = all_weights.rows(block.count);
    Tensor grad_rows = all_grad_rows.rows(block.count), grad_w = all_grad_weights.rows(block.count);
    gather(run, block, args.hidden.const_data_ptr<T>(), width, rows.mutable_data_ptr<T>());
    multiply_into(rows, args.matrix, w);
    weights.data = w.const_data_ptr();
    run.call.out[slot_w] = grad_w.mutable_data_ptr();
    run.call.w_begin = block.begin;
    const int64_t count = block.last - block.first;
    run.backward(block.first, block.last, count < 32 ? count : 32);
    multiply_into(grad_w, transposed, grad_rows);
    spread(run, block, grad_rows.const_data_ptr<T>(), width, out[2].template mutable_data_ptr<T>());
    multiply_into(torch::stable::transpose(rows, 0, 1), grad_w, partial);
    const T* summand = partial.const_data_ptr<T>();
    for (int64_t i = 0; i < numel; ++i) grad_matrix[i] += summand[i];
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> radial_tensor_product(
    const RadialTensorProductArguments& given) {
  RadialCall args{ProductArguments(given, std::nullopt),
                  torch::stable::contiguous(given.operands.hidden),
                  torch::stable::contiguous(given.operands.matrix)};
  const Tensor& x = given.operands.x;
  const Tensor none = torch::stable::new_empty(x, {0});
  const bool is_double = x.scalar_type() == ScalarType::Double;
  if (!given.operands.g.has_value())
    return {is_double ? radial_forward<double>(args) : radial_forward<float>(args), none, none,
            none, none};
  std::vector<Tensor> out =
      is_double ? radial_backward<double>(args) : radial_backward<float>(args);
  return {none, out[0], out[1], out[2], out[3]};
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("radial_tensor_product",
         TORCH_BOX(&hamfast::radial_tensor_product_boxed<hamfast::radial_tensor_product>));
}
