// The op on tensors, for any launcher: `Launch::run(call, rows, like)` and `Launch::sum_rows`.
#pragma once

#include <vector>

#include "common/dispatch.h"
#include "tensor_product.cuh"

namespace hamfast {

// Fixed, so that sums over edges do not depend on the number of threads.
constexpr int64_t kMaxChunks = 16;
constexpr int64_t kMinChunk = 32;

struct TensorProductArguments {
  std::optional<Tensor> operand[4];  // x, y, w, g
  Tensor table, cg_index, cg_value;
  std::optional<Tensor> senders, sender_order, sender_ptr, receivers, receiver_order, receiver_ptr;
  Slot slot;
  int64_t edges;
  bool shared_weights;
  std::vector<int64_t> dims;  // row length of x, y, w, g; scratch

  void make_contiguous() {
    for (auto& t : operand) t = contiguous(t);
    for (auto* t : {&senders, &sender_order, &sender_ptr, &receivers, &receiver_order, &receiver_ptr})
      *t = contiguous(*t);
  }

  const Tensor& any_operand() const {
    for (const auto& t : operand)
      if (t.has_value()) return *t;
    STD_TORCH_CHECK(false, "tensor_product: no operand");
  }

  // Does the result sum edges by a graph's index?
  bool reduces() const {
    return (slot == slot_x && sender_ptr.has_value()) || (slot == slot_g && receiver_ptr.has_value());
  }
  bool reduces_all() const { return slot == slot_w && shared_weights; }

  int64_t chunk() const {
    const int64_t even = (edges + kMaxChunks - 1) / kMaxChunks;
    return even > kMinChunk ? even : kMinChunk;
  }
  int64_t rows() const {
    if (reduces()) return (slot == slot_x ? *sender_ptr : *receiver_ptr).numel() - 1;
    if (reduces_all()) return (edges + chunk() - 1) / chunk();
    return edges;
  }

  template <class T>
  TensorProductCall<T> call(T* out) const {
    TensorProductCall<T> c{};
    c.paths = reinterpret_cast<const Path*>(table.const_data_ptr<int64_t>());
    c.num_paths = table.size(0);
    c.cg = {cg_index.const_data_ptr<int64_t>(), cg_value.const_data_ptr<double>()};
    c.slot = slot;
    for (int a = 0; a < 4; ++a) {
      c.operand[a] = data_or_null<T>(operand[a]);
      c.dim[a] = a == slot_w && shared_weights ? 0 : dims[a];
      c.index[a] = nullptr;
    }
    c.index[slot_x] = data_or_null<int64_t>(senders);
    c.index[slot_g] = data_or_null<int64_t>(receivers);
    if (reduces()) {
      c.order = data_or_null<int64_t>(slot == slot_x ? sender_order : receiver_order);
      c.ptr = data_or_null<int64_t>(slot == slot_x ? sender_ptr : receiver_ptr);
    }
    c.edges = edges;
    c.chunk = reduces_all() ? chunk() : 0;
    c.out_dim = dims[slot];
    c.scratch_size = dims[4];
    c.out = out;
    return c;
  }
};

template <class Launch>
Tensor tensor_product(std::optional<Tensor> x, std::optional<Tensor> y, std::optional<Tensor> w,
                      std::optional<Tensor> g, Tensor table, Tensor cg_index, Tensor cg_value,
                      std::optional<Tensor> senders, std::optional<Tensor> sender_order,
                      std::optional<Tensor> sender_ptr, std::optional<Tensor> receivers,
                      std::optional<Tensor> receiver_order, std::optional<Tensor> receiver_ptr, int64_t slot,
                      int64_t edges, bool shared_weights, std::vector<int64_t> dims) {
  TensorProductArguments args{{x, y, w, g},
                              table,
                              cg_index,
                              cg_value,
                              senders,
                              sender_order,
                              sender_ptr,
                              receivers,
                              receiver_order,
                              receiver_ptr,
                              static_cast<Slot>(slot),
                              edges,
                              shared_weights,
                              dims};
  args.make_contiguous();
  const Tensor& like = args.any_operand();
  const typename Launch::Guard guard(like.get_device_index());
  const int64_t rows = args.rows(), width = dims[slot];
  Tensor out = torch::stable::new_empty(like, {rows, width});
  Tensor total = args.reduces_all() ? torch::stable::new_empty(like, {width}) : out;
  dispatch_real(like.scalar_type(), "tensor_product", [&](auto zero) {
    using T = decltype(zero);
    Launch::run(args.call<T>(out.mutable_data_ptr<T>()), rows, like);
    if (args.reduces_all())
      Launch::sum_rows(out.const_data_ptr<T>(), rows, width, total.mutable_data_ptr<T>(), like.get_device_index());
  });
  return total;
}

}  // namespace hamfast
