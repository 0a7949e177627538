// The op on tensors, for any launcher: `Launch::general` runs the general kernel (any mode),
// `Launch::channel` the channel-wise one. A plan may need both, and their results add up.
#pragma once

#include <tuple>
#include <vector>

#include "common/dispatch.h"
#include "common/op_records.h"
#include "common/tables.h"
#include "general.cuh"
#include "tensor_product/channel_call.h"

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

// A call of any of the products, contiguous.
struct ProductArguments {
  std::array<Optional, 4> operands, tangents;  // by Slot
  ProductTables tables;
  OptionalGraph graph;
  int64_t wanted, edges;
  bool shared_weights;
  Layout x_layout, g_layout;
  ProductDims dims;
  Optional hidden;        // weights are hidden @ operands[slot_w], made in the kernel
  bool one_pass = false;  // of the tensor cores

  explicit ProductArguments(TensorProductArguments&& a)
      : operands(std::move(a.operands)),
        tangents(std::move(a.tangents)),
        tables(std::move(a.tables)),
        graph(std::move(a.graph)),
        wanted(a.wanted),
        edges(a.settings.edges),
        shared_weights(a.settings.shared_weights),
        x_layout(static_cast<Layout>(a.settings.x_layout)),
        g_layout(static_cast<Layout>(a.settings.g_layout)),
        dims(row_of<ProductDims>(a.settings.dims, "dims")) {
    make_contiguous();
  }
  // Of weights that are made of hidden rows: the product if g is absent, else its gradients in x, y
  // and w.
  template <class Radial>
  ProductArguments(const Radial& a, const Optional& w)
      : operands{a.operands.x, a.operands.y, w, a.operands.g},
        tables(a.tables),
        graph(a.graph),
        wanted(a.operands.g.has_value() ? 1 << slot_x | 1 << slot_y | 1 << slot_w : 1 << slot_g),
        edges(a.operands.hidden.size(0)),
        shared_weights(false),
        x_layout(static_cast<Layout>(a.x_layout)),
        g_layout(static_cast<Layout>(a.g_layout)),
        dims(row_of<ProductDims>(a.dims, "dims")) {
    make_contiguous();
  }

  bool wants(int slot) const { return wanted >> slot & 1; }
  bool has_tangents() const {
    for (const Optional& t : tangents)
      if (t.has_value()) return true;
    return false;
  }
  const Tensor& any_operand() const {
    for (const Optional& t : operands)
      if (t.has_value()) return *t;
    STD_TORCH_CHECK(false, "tensor_product: no operand");
  }

  // Row length of an operand.
  int64_t dim(int slot) const {
    return slot == slot_x ? dims.x : slot == slot_y ? dims.y : slot == slot_w ? dims.w : dims.g;
  }
  // Does the derivative in `slot` sum edges by a graph's index?
  bool reduces(int slot) const {
    return (slot == slot_x && graph.sender_ptr.has_value()) ||
           (slot == slot_g && graph.receiver_ptr.has_value());
  }
  bool reduces_all(int slot) const { return slot == slot_w && shared_weights; }
  int64_t rows(int slot) const {
    return reduces(slot) ? (slot == slot_x ? *graph.sender_ptr : *graph.receiver_ptr).numel() - 1
                         : edges;
  }
  Tensor zeros(int slot) const {
    if (reduces_all(slot)) return torch::stable::new_zeros(any_operand(), {dim(slot)});
    return torch::stable::new_zeros(any_operand(), {rows(slot), dim(slot)});
  }

  // A fixed number of chunks, so that sums over edges do not depend on the number of threads.
  static int64_t chunks_of(int64_t rows, int64_t most) {
    constexpr int64_t kSmallest = 32;
    const int64_t chunks = (rows + kSmallest - 1) / kSmallest;
    return chunks < most ? chunks : most;
  }

 private:
  void make_contiguous() {
    for (auto* group : {&operands, &tangents})
      for (Optional& t : *group) t = contiguous(t);
    for (Optional* t : {&graph.senders, &graph.sender_order, &graph.sender_ptr, &graph.receivers,
                        &graph.receiver_order, &graph.receiver_ptr})
      *t = contiguous(*t);
  }
};

// Adds the paths of the general kernel to `out`: dF/d(slot), the operand of `replaced` being its
// tangent (-1: none).
template <class T, class Launch>
void add_general(const ProductArguments& a, int slot, int replaced, Tensor& out) {
  constexpr int64_t kMostChunks = 16;
  GeneralCall<T> c{};
  c.paths = rows_of<Path>(a.tables.paths);
  c.num_paths = a.tables.paths.size(0);
  c.cg = {a.tables.cg_index.const_data_ptr<int64_t>(), a.tables.cg_value.const_data_ptr<double>()};
  c.slot = static_cast<Slot>(slot);
  for (int n = 0; n < 4; ++n) {
    if (n != slot) c.operand[n] = maybe_data<T>(n == replaced ? a.tangents[n] : a.operands[n]);
    c.dim[n] = n == slot_w && a.shared_weights ? 0 : a.dim(n);
  }
  c.index[slot_x] = maybe_data<int64_t>(a.graph.senders);
  c.index[slot_g] = maybe_data<int64_t>(a.graph.receivers);
  if (a.reduces(slot)) {
    c.order = maybe_data<int64_t>(slot == slot_x ? a.graph.sender_order : a.graph.receiver_order);
    c.ptr = maybe_data<int64_t>(slot == slot_x ? a.graph.sender_ptr : a.graph.receiver_ptr);
  }
  c.edges = a.edges;
  c.weighted_only = replaced == slot_w;
  c.out_dim = a.dim(slot);
  c.scratch_size = a.dims.scratch;
  if (!a.reduces_all(slot)) {
    c.out = out.mutable_data_ptr<T>();
    return Launch::general(c, a.rows(slot), out);
  }
  const int64_t chunks = ProductArguments::chunks_of(a.edges, kMostChunks);
  if (chunks == 0) return;
  Tensor partial = torch::stable::new_zeros(out, {chunks, a.dim(slot)});
  c.chunk = (a.edges + chunks - 1) / chunks;
  c.out = partial.mutable_data_ptr<T>();
  Launch::general(c, chunks, out);
  Launch::add_rows(partial.const_data_ptr<T>(), chunks, a.dim(slot), out.mutable_data_ptr<T>(),
                   out.get_device_index());
}

template <class Launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> tensor_product(TensorProductArguments given) {
  const ProductArguments args(std::move(given));
  const Tensor& like = args.any_operand();
  const typename Launch::Guard guard(like.get_device_index());
  std::vector<Tensor> out;
  const bool has_channel = args.tables.tasks.size(0) > 0;
  if (has_channel) out = Launch::channel(args);
  for (int slot = 0; slot < 4; ++slot) {
    const Tensor none = torch::stable::new_empty(like, {0});
    if (!has_channel) out.push_back(args.wants(slot) ? args.zeros(slot) : none);
  }
  if (args.tables.paths.size(0) > 0)
    dispatch_real(like.scalar_type(), "tensor_product", [&](auto zero) {
      using T = decltype(zero);
      for (int slot = 0; slot < 4; ++slot) {
        if (!args.wants(slot)) continue;
        if (!args.has_tangents()) add_general<T, Launch>(args, slot, -1, out[slot]);
        for (int n = 0; n < 4; ++n)
          if (n != slot && args.tangents[n].has_value())
            add_general<T, Launch>(args, slot, n, out[slot]);
      }
    });
  return {out[slot_x], out[slot_y], out[slot_w], out[slot_g]};
}

}  // namespace hamfast
