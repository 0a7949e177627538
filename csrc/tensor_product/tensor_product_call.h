// The op on tensors, for any launcher. `Launch::paths` runs the general kernel (any mode), `Launch::channels` the
// channel-wise one, where `Launch::kChannels` says that there is one; a plan may need both, and their results add up.
#pragma once

#include <tuple>
#include <vector>

#include "common/dispatch.h"
#include "tensor_product.cuh"
#include "tensor_product/channel_kernel.h"

namespace hamfast {

inline Storage storage_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return Storage::float64;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    case ScalarType::Half:
      return Storage::float16;
    case ScalarType::Float:
      return Storage::float32;
    default:
      STD_TORCH_CHECK(false, "tensor_product: expected float64, float32, bfloat16 or float16");
  }
}

// What every op takes of a plan and a graph, in the order of the schema and of TensorProductArguments.
#define HAMFAST_PLAN_AND_GRAPH                                                                                    \
  Tensor table, Tensor cg_index, Tensor cg_value, Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries, \
      Tensor coupling, std::optional<Tensor> senders, std::optional<Tensor> sender_order,                         \
      std::optional<Tensor> sender_ptr, std::optional<Tensor> receivers, std::optional<Tensor> receiver_order,    \
      std::optional<Tensor> receiver_ptr
#define HAMFAST_PLAN_AND_GRAPH_ARGUMENTS                                                                      \
  table, cg_index, cg_value, tasks, x_blocks, g_blocks, entries, coupling, senders, sender_order, sender_ptr, \
      receivers, receiver_order, receiver_ptr

struct TensorProductArguments {
  std::optional<Tensor> operand[4], direction[4];       // x, y, w, g
  Tensor table, cg_index, cg_value;                     // paths of the general kernel
  Tensor tasks, x_blocks, g_blocks, entries, coupling;  // of the channel-wise kernel
  std::optional<Tensor> senders, sender_order, sender_ptr, receivers, receiver_order, receiver_ptr;
  int64_t wanted, edges;
  bool shared_weights;
  int64_t x_layout, g_layout;
  std::vector<int64_t>
      dims;  // row length of x, y, w, g; scratch; padded x, padded g, largest coupling, covers weights, key
  std::optional<Tensor> hidden = std::nullopt;  // weights are hidden @ operand[slot_w], made in the kernel
  bool one_pass = false;                        // of the tensor cores

  void make_contiguous() {
    for (auto* group : {operand, direction})
      for (int a = 0; a < 4; ++a) group[a] = contiguous(group[a]);
    for (auto* t : {&senders, &sender_order, &sender_ptr, &receivers, &receiver_order, &receiver_ptr, &hidden})
      *t = contiguous(*t);
  }

  bool wants(int slot) const { return wanted >> slot & 1; }
  bool has_directions() const {
    for (const auto& t : direction)
      if (t.has_value()) return true;
    return false;
  }
  const Tensor& any_operand() const {
    for (const auto& t : operand)
      if (t.has_value()) return *t;
    STD_TORCH_CHECK(false, "tensor_product: no operand");
  }

  // Does the derivative in `slot` sum edges by a graph's index?
  bool reduces(int slot) const {
    return (slot == slot_x && sender_ptr.has_value()) || (slot == slot_g && receiver_ptr.has_value());
  }
  bool reduces_all(int slot) const { return slot == slot_w && shared_weights; }
  int64_t rows(int slot) const {
    return reduces(slot) ? (slot == slot_x ? *sender_ptr : *receiver_ptr).numel() - 1 : edges;
  }
  Tensor zeros(int slot) const {
    if (reduces_all(slot)) return torch::stable::new_zeros(any_operand(), {dims[slot]});
    return torch::stable::new_zeros(any_operand(), {rows(slot), dims[slot]});
  }

  // Fixed numbers of parts, so that sums over edges do not depend on the number of threads.
  static int64_t parts_of(int64_t rows, int64_t most) {
    constexpr int64_t kSmallest = 32;
    const int64_t parts = (rows + kSmallest - 1) / kSmallest;
    return parts < most ? parts : most;
  }
};

// Adds the paths of the general kernel to `out`: dF/d(slot), the operand of `replaced` being its direction (-1: none).
template <class T, class Launch>
void add_paths(const TensorProductArguments& a, int slot, int replaced, Tensor& out) {
  constexpr int64_t kMostParts = 16;
  TensorProductCall<T> c{};
  c.paths = reinterpret_cast<const Path*>(a.table.const_data_ptr<int64_t>());
  c.num_paths = a.table.size(0);
  c.cg = {a.cg_index.const_data_ptr<int64_t>(), a.cg_value.const_data_ptr<double>()};
  c.slot = static_cast<Slot>(slot);
  for (int n = 0; n < 4; ++n) {
    if (n != slot) c.operand[n] = maybe_data<T>(n == replaced ? a.direction[n] : a.operand[n]);
    c.dim[n] = n == slot_w && a.shared_weights ? 0 : a.dims[n];
  }
  c.index[slot_x] = maybe_data<int64_t>(a.senders);
  c.index[slot_g] = maybe_data<int64_t>(a.receivers);
  if (a.reduces(slot)) {
    c.order = maybe_data<int64_t>(slot == slot_x ? a.sender_order : a.receiver_order);
    c.ptr = maybe_data<int64_t>(slot == slot_x ? a.sender_ptr : a.receiver_ptr);
  }
  c.edges = a.edges;
  c.weighted_only = replaced == slot_w;
  c.out_dim = a.dims[slot];
  c.scratch_size = a.dims[4];
  if (!a.reduces_all(slot)) {
    c.out = out.mutable_data_ptr<T>();
    return Launch::paths(c, a.rows(slot), out);
  }
  const int64_t parts = TensorProductArguments::parts_of(a.edges, kMostParts);
  if (parts == 0) return;
  Tensor partial = torch::stable::new_zeros(out, {parts, a.dims[slot]});
  c.chunk = (a.edges + parts - 1) / parts;
  c.out = partial.mutable_data_ptr<T>();
  Launch::paths(c, parts, out);
  Launch::add_rows(partial.const_data_ptr<T>(), parts, a.dims[slot], out.mutable_data_ptr<T>(), out.get_device_index());
}

template <class Launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> tensor_product(std::optional<Tensor> x, std::optional<Tensor> y,
                                                          std::optional<Tensor> w, std::optional<Tensor> g,
                                                          std::optional<Tensor> dx, std::optional<Tensor> dy,
                                                          std::optional<Tensor> dw, std::optional<Tensor> dg,
                                                          HAMFAST_PLAN_AND_GRAPH, int64_t wanted, int64_t edges,
                                                          bool shared_weights, int64_t x_layout, int64_t g_layout,
                                                          std::vector<int64_t> dims) {
  TensorProductArguments args{{x, y, w, g},
                              {dx, dy, dw, dg},
                              HAMFAST_PLAN_AND_GRAPH_ARGUMENTS,
                              wanted,
                              edges,
                              shared_weights,
                              x_layout,
                              g_layout,
                              dims};
  args.make_contiguous();
  const Tensor& like = args.any_operand();
  const typename Launch::Guard guard(like.get_device_index());
  std::vector<Tensor> out;
  const bool channels = tasks.size(0) > 0;
  STD_TORCH_CHECK(!channels || Launch::kChannels,
                  "tensor_product: the channel-wise kernel is not built for this device");
  if (channels) out = Launch::channels(args);
  for (int slot = 0; slot < 4; ++slot) {
    const Tensor none = torch::stable::new_empty(like, {0});
    if (!channels) out.push_back(args.wants(slot) ? args.zeros(slot) : none);
  }
  if (table.size(0) > 0)
    dispatch_real(like.scalar_type(), "tensor_product", [&](auto zero) {
      using T = decltype(zero);
      for (int slot = 0; slot < 4; ++slot) {
        if (!args.wants(slot)) continue;
        if (!args.has_directions()) add_paths<T, Launch>(args, slot, -1, out[slot]);
        for (int n = 0; n < 4; ++n)
          if (n != slot && args.direction[n].has_value()) add_paths<T, Launch>(args, slot, n, out[slot]);
      }
    });
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace hamfast
