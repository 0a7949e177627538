// A call of the channel-wise kernel on tensors, prepared once and run over ranges of rows.
#pragma once

#include "common/host_pool.h"
#include "common/scratch.h"
#include "common/streamed.h"
#include "tensor_product/channel_isa.h"
#include "tensor_product/tensor_product_call.h"

namespace hamfast {

using torch::stable::parallel_for;

// out[i] += sum_p in[p * n + i], in the order of p.
template <class T>
void add_rows_in_order(const T* in, int64_t chunks, int64_t n, T* out) {
  parallel_for(0, n, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t p = 0; p < chunks; ++p)
      for (int64_t i = begin; i < end; ++i) out[i] += in[p * n + i];
  });
}

template <class T>
class ChannelRun {
 public:
  static constexpr ScalarType kCompute = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

  ChannelCall<T> call{};

  explicit ChannelRun(const ProductArguments& args) : args_(args) {
    const ProductTables& tables = args.tables;
    const ProductDims& dims = args.dims;
    call.tasks = rows_of<ChannelTask>(tables.tasks), call.num_tasks = tables.tasks.size(0);
    call.x_blocks = rows_of<ChannelBlock>(tables.x_blocks),
    call.num_x_blocks = tables.x_blocks.size(0);
    call.g_blocks = rows_of<ChannelBlock>(tables.g_blocks),
    call.num_g_blocks = tables.g_blocks.size(0);
    call.entries = rows_of<CouplingEntry>(tables.entries);
    call.coupling = tables.coupling.const_data_ptr<T>();
    call.x_dim = dims.x, call.y_dim = dims.y, call.w_dim = dims.w, call.g_dim = dims.g;
    call.x_padded = dims.x_padded, call.g_padded = dims.g_padded,
    call.max_coupling = dims.max_coupling;
    call.covers_weights = dims.covers_weights != 0;
    call.storage = storage_of(args.any_operand());
    call.x_layout = args.x_layout, call.g_layout = args.g_layout;
    call.x_rows = args.rows(slot_x), call.g_rows = args.rows(slot_g);
    call.shared_weights = args.shared_weights;
    call.derivative = args.has_tangents();
    call.w_begin = -1;
    for (int slot = 0; slot < 4; ++slot) {
      set_rows(args.operands[slot], slot, call.operands[slot]);
      set_rows(args.tangents[slot], slot, call.tangents[slot]);
    }
  }

  // An output that this call will write.
  Tensor new_output(int slot) {
    const int64_t rows = args_.rows(slot), width = args_.dim(slot);
    Tensor out = pooled_empty({rows, width}, args_.any_operand().scalar_type());
    call.out[slot] = out.mutable_data_ptr();
    call.stream[slot] = is_streamed(rows * width, sizeof(T));
    return out;
  }

  T* new_compute(int64_t rows, int64_t columns) {
    kept_.push_back(pooled_empty({rows, columns}, kCompute));
    return kept_.back().template mutable_data_ptr<T>();
  }

  void by_receiver() { set_order(args_.graph.receiver_order, args_.graph.receiver_ptr); }
  void by_sender() { set_order(args_.graph.sender_order, args_.graph.sender_ptr); }
  int64_t num_rows() const { return rows_; }
  int64_t edges_before(int64_t row) const { return call.ptr ? call.ptr[row] : row; }
  int64_t edge_at(int64_t n) const { return call.order ? call.order[n] : n; }

  void forward(int64_t first, int64_t last) const {
    parallel_for(first, last, call.ptr ? 1 : 8, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(channel_scratch(call));
      HAMFAST_ISA_CALL(channel_forward, call, begin, end, scratch.data());
    });
  }

  // In chunks of the rows; with shared weights, chunk n writes its sum of their gradients to row n.
  void backward(int64_t first, int64_t last, int64_t chunks) const {
    const int64_t rows = last - first;
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(channel_scratch(call));
      for (int64_t n = begin; n < end; ++n)
        HAMFAST_ISA_CALL(channel_backward, call, first + rows * n / chunks,
                         first + rows * (n + 1) / chunks, n, scratch.data());
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
    rows.dim = slot == slot_w && args_.shared_weights ? 0 : args_.dim(slot);
    if (slot != slot_x && slot != slot_g) return;
    rows.index = maybe_data<int64_t>(slot == slot_x ? args_.graph.senders : args_.graph.receivers);
    if (!rows.index) return;
    // Nodes have many edges: their rows are brought into padded blocks once.
    const int64_t count = tensor->size(0);
    T* prepared = new_compute(count, slot == slot_g ? call.g_padded : call.x_padded);
    parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(channel_scratch(call));
      HAMFAST_ISA_CALL(channel_prepare, call, slot == slot_g, rows.data.data, begin, end, prepared,
                       scratch.data());
    });
    rows.prepared = prepared;
  }

  const ProductArguments& args_;
  int64_t rows_ = 0;
  std::vector<Tensor> kept_;  // what the call points to
};

}  // namespace hamfast
