// A call of the channel-wise kernel on tensors, prepared once and run over ranges of rows.
#pragma once

#include "common/host_pool.h"
#include "common/scratch.h"
#include "common/streamed.h"
#include "tensor_product/channel_kernel_isa.h"
#include "tensor_product/tensor_product_call.h"

namespace hamfast {

using torch::stable::parallel_for;

// out[i] += sum_p in[p * n + i], in the order of p.
template <class T>
void add_rows_in_order(const T* in, int64_t parts, int64_t n, T* out) {
  parallel_for(0, n, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t p = 0; p < parts; ++p)
      for (int64_t i = begin; i < end; ++i) out[i] += in[p * n + i];
  });
}

template <class T>
class ChannelRun {
 public:
  static constexpr ScalarType kCompute = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

  ChannelCall<T> call{};

  explicit ChannelRun(const TensorProductArguments& args) : args_(args) {
    call.tasks = reinterpret_cast<const ChannelTask*>(args.tasks.const_data_ptr<int64_t>());
    call.num_tasks = args.tasks.size(0);
    call.x_blocks = reinterpret_cast<const ChannelBlock*>(args.x_blocks.const_data_ptr<int64_t>());
    call.num_x_blocks = args.x_blocks.size(0);
    call.g_blocks = reinterpret_cast<const ChannelBlock*>(args.g_blocks.const_data_ptr<int64_t>());
    call.num_g_blocks = args.g_blocks.size(0);
    call.entries = reinterpret_cast<const CouplingEntry*>(args.entries.const_data_ptr<int64_t>());
    call.coupling = args.coupling.const_data_ptr<T>();
    call.x_dim = args.dims[0], call.y_dim = args.dims[1], call.w_dim = args.dims[2], call.g_dim = args.dims[3];
    call.x_padded = args.dims[5], call.g_padded = args.dims[6], call.max_coupling = args.dims[7];
    call.covers_weights = args.dims[8] != 0;
    call.storage = storage_of(args.any_operand());
    call.x_layout = static_cast<Layout>(args.x_layout);
    call.g_layout = static_cast<Layout>(args.g_layout);
    call.x_rows = args.rows(slot_x), call.g_rows = args.rows(slot_g);
    call.shared_weights = args.shared_weights;
    call.derivative = args.has_directions();
    call.w_begin = -1;
    for (int n = 0; n < 2; ++n)
      for (int a = 0; a < 4; ++a)
        set_rows(n == 0 ? args.operand[a] : args.direction[a], a, n == 0 ? call.operand[a] : call.direction[a]);
  }

  // An output that this call will write.
  Tensor new_output(int slot) {
    const int64_t rows = args_.rows(slot), width = args_.dims[slot];
    Tensor out = pooled_empty({rows, width}, args_.any_operand().scalar_type());
    call.out[slot] = out.mutable_data_ptr();
    call.stream[slot] = is_streamed(rows * width, sizeof(T));
    return out;
  }

  T* new_compute(int64_t rows, int64_t columns) {
    kept_.push_back(pooled_empty({rows, columns}, kCompute));
    return kept_.back().template mutable_data_ptr<T>();
  }

  void by_receiver() { set_order(args_.receiver_order, args_.receiver_ptr); }
  void by_sender() { set_order(args_.sender_order, args_.sender_ptr); }
  int64_t num_rows() const { return rows_; }
  int64_t edges_before(int64_t row) const { return call.ptr ? call.ptr[row] : row; }
  int64_t edge_at(int64_t place) const { return call.order ? call.order[place] : place; }

  void forward(int64_t first, int64_t last) const {
    parallel_for(first, last, call.ptr ? 1 : 8, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(channel_scratch(call));
      HAMFAST_ISA_CALL(channel_forward, call, begin, end, scratch.data());
    });
  }

  // In `parts` parts; with shared weights, part p writes its sum of their gradients to row p.
  void backward(int64_t first, int64_t last, int64_t parts) const {
    const int64_t rows = last - first;
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(channel_scratch(call));
      for (int64_t p = begin; p < end; ++p)
        HAMFAST_ISA_CALL(channel_backward, call, first + rows * p / parts, first + rows * (p + 1) / parts, p,
                         scratch.data());
    });
  }

 private:
  void set_order(const std::optional<Tensor>& order, const std::optional<Tensor>& ptr) {
    call.order = maybe_data<int64_t>(order);
    call.ptr = maybe_data<int64_t>(ptr);
    rows_ = ptr.has_value() ? ptr->numel() - 1 : args_.edges;
  }

  void set_rows(const std::optional<Tensor>& tensor, int slot, Rows& rows) {
    if (!tensor.has_value()) return;
    rows.data = tensor->const_data_ptr();
    rows.dim = slot == slot_w && args_.shared_weights ? 0 : args_.dims[slot];
    if (slot != slot_x && slot != slot_g) return;
    rows.index = maybe_data<int64_t>(slot == slot_x ? args_.senders : args_.receivers);
    if (!rows.index) return;
    // Nodes have many edges: their rows are brought into padded blocks once.
    const int64_t count = tensor->size(0);
    T* prepared = new_compute(count, slot == slot_g ? call.g_padded : call.x_padded);
    parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(channel_scratch(call));
      HAMFAST_ISA_CALL(channel_prepare, call, slot == slot_g, rows.data.data, begin, end, prepared, scratch.data());
    });
    rows.prepared = prepared;
  }

  const TensorProductArguments& args_;
  int64_t rows_ = 0;
  std::vector<Tensor> kept_;  // what the call points to
};

}  // namespace hamfast
