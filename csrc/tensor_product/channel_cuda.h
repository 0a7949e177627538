// Calls of the channel-wise CUDA kernel on tensors.
#pragma once

#include "channel_plan.cuh"
#include "common/grid.h"
#include "common/matmul.h"
#include "tensor_product/channel_jit.h"
#include "tensor_product/channel_source_op.h"
#include "tensor_product/tensor_product_call.h"

namespace hamfast {

class ChannelCuda {
 public:
  explicit ChannelCuda(const ProductArguments& args)
      : args_(args), device_(args.any_operand().get_device_index()) {
    capability_ = capability_of(device_);
    for (int slot = 0; slot < 4; ++slot) {
      arguments_.operands[slot] = data_of(args.operands[slot]);
      arguments_.tangents[slot] = data_of(args.tangents[slot]);
    }
    arguments_.hidden = data_of(args.hidden);
    makes_weights_ = args.hidden.has_value();
    arguments_.x_index = maybe_data<int64_t>(args.graph.senders);
    arguments_.g_index = maybe_data<int64_t>(args.graph.receivers);
    arguments_.edges = args.edges;
    arguments_.x_rows = args.rows(slot_x), arguments_.g_rows = args.rows(slot_g);
  }

  std::vector<Tensor> run() {
    if (args_.hidden.has_value() && !can_make_weights()) store_weights();
    std::vector<Tensor> out;
    for (int slot = 0; slot < 4; ++slot)
      out.push_back(torch::stable::new_empty(args_.any_operand(), {0}));
    if (args_.wants(slot_g)) forward(out);
    if (args_.wants(slot_x) || args_.wants(slot_y) || args_.wants(slot_w)) backward(out);
    return out;
  }

 private:
  static constexpr int64_t kWarps = channel::kWarpsPerBlock, kMostChunks = 1 << 16,
                           kMostWeightChunks = 256;

  const ProductArguments& args_;
  int32_t device_;
  int capability_ = 0;
  channel::Arguments arguments_{};
  bool makes_weights_ = false;  // in the kernel
  Tensor stored_;               // weights, where the kernel does not make them

  static const void* data_of(const std::optional<Tensor>& t) {
    return t.has_value() ? t->const_data_ptr() : nullptr;
  }

  Tensor empty(int slot) const {
    return torch::stable::new_empty(args_.any_operand(), {args_.rows(slot), args_.dim(slot)});
  }
  auto compute() const {
    return args_.any_operand().scalar_type() == ScalarType::Double ? ScalarType::Double
                                                                   : ScalarType::Float;
  }

  // Tensor cores with TF32, vector loads, and room for the weights of a few edges in shared memory.
  bool can_make_weights() const {
    constexpr int kFirstWithTf32 = 80;
    constexpr uintptr_t kAlignment = 16;
    const bool aligned = reinterpret_cast<uintptr_t>(arguments_.operands[slot_w]) % kAlignment == 0;
    return capability_ >= kFirstWithTf32 && aligned && compute() == ScalarType::Float &&
           kernel(args_.wants(slot_g)).kernel.has_value();
  }
  void store_weights() {
    stored_ = torch::stable::new_empty(*args_.hidden, {args_.edges, args_.dims.w});
    multiply_into(*args_.hidden, *args_.operands[slot_w], stored_);
    arguments_.operands[slot_w] = stored_.const_data_ptr();
    makes_weights_ = false;
  }

  const ChannelJit& kernel(bool forward) const {
    ChannelKey key{args_.dims.key, capability_, {}};
    const Storage storage = storage_of(args_.any_operand());
    ChannelVariant& variant = key.variant;
    variant.forward = forward;
    for (int slot = 0; slot < 4; ++slot) {
      variant.operands |= (args_.operands[slot].has_value() && !(forward && slot == slot_g))
                          << slot;
      variant.tangents |= (args_.tangents[slot].has_value() && !(forward && slot == slot_g))
                          << slot;
      variant.wanted |= (args_.wants(slot) && forward == (slot == slot_g)) << slot;
    }
    variant.storage = static_cast<int64_t>(storage);
    variant.x_layout = static_cast<int64_t>(args_.x_layout),
    variant.g_layout = static_cast<int64_t>(args_.g_layout);
    variant.shared_weights = args_.shared_weights;
    variant.passes = 3;
    if (makes_weights_) {
      variant.hidden = args_.hidden->size(1);
      if (args_.one_pass || storage != Storage::float32)
        variant.passes = 1;  // half-precision factors are TF32 already
    }
    return channel_kernel(key, &tables, &args_);
  }

  // Reads the plan's tables back: once per plan, variant and process.
  static ChannelTables tables(const void* context) {
    const auto& args = *static_cast<const ProductArguments*>(context);
    auto host = [](const Tensor& t) {
      return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
    };
    const ProductTables& t = args.tables;
    return channel_tables(host(t.tasks), host(t.x_blocks), host(t.g_blocks), host(t.entries),
                          host(t.coupling), args.dims);
  }

  void set_rows(const std::optional<Tensor>& order, const std::optional<Tensor>& ptr) {
    arguments_.order = maybe_data<int64_t>(order);
    arguments_.ptr = maybe_data<int64_t>(ptr);
    arguments_.rows = ptr.has_value() ? ptr->numel() - 1 : args_.edges;
  }
  int64_t steps() const { return channel::steps_of(arguments_); }

  // Blocks for `steps` of every unit; where weights are made, a block takes a step, else each of
  // its warps.
  int64_t blocks_for(int64_t steps, const ChannelJit& jit) const {
    const int64_t items = steps * jit.units;
    return makes_weights_ ? items : (items + kWarps - 1) / kWarps;
  }

  void launch(const ChannelJit& jit, int64_t blocks) {
    void* parameters[] = {&arguments_};
    jit.kernel->launch(static_cast<unsigned>(blocks), kWarps * kWarp,
                       static_cast<unsigned>(jit.shared_bytes), current_stream(device_),
                       parameters);
  }

  void forward(std::vector<Tensor>& out) {
    out[slot_g] = empty(slot_g);
    set_rows(args_.graph.receiver_order, args_.graph.receiver_ptr);
    if (steps() == 0) return;
    arguments_.out[slot_g] = out[slot_g].mutable_data_ptr();
    const ChannelJit& jit = kernel(true);
    const int64_t blocks = blocks_for(steps(), jit);
    launch(jit, blocks < kMostBlocks ? blocks : kMostBlocks);
  }

  void backward(std::vector<Tensor>& out) {
    const Tensor& like = args_.any_operand();
    const bool sums_weights = args_.wants(slot_w) && args_.shared_weights;
    if (args_.wants(slot_x)) out[slot_x] = empty(slot_x);
    if (args_.wants(slot_y)) out[slot_y] = empty(slot_y);
    if (args_.wants(slot_w))
      out[slot_w] =
          args_.dims.covers_weights && !args_.shared_weights ? empty(slot_w) : args_.zeros(slot_w);
    set_rows(args_.graph.sender_order, args_.graph.sender_ptr);
    if (steps() == 0) return;
    const ChannelJit& jit = kernel(false);
    const int64_t most = sums_weights ? kMostWeightChunks : kMostChunks;
    const int64_t blocks = blocks_for(steps() < most ? steps() : most, jit);
    const int64_t chunks = blocks * kWarps / jit.units;
    Tensor y_chunks, w_chunks;
    if (args_.wants(slot_y)) {
      y_chunks = torch::stable::new_empty(like, {jit.units, args_.edges, args_.dims.y}, compute());
      arguments_.y_chunks = y_chunks.mutable_data_ptr();
    }
    if (sums_weights) {
      w_chunks = torch::stable::new_zeros(like, {chunks, args_.dims.w}, compute());
      arguments_.w_chunks = w_chunks.mutable_data_ptr();
    }
    if (args_.wants(slot_x)) arguments_.out[slot_x] = out[slot_x].mutable_data_ptr();
    if (args_.wants(slot_w) && !sums_weights)
      arguments_.out[slot_w] = out[slot_w].mutable_data_ptr();
    launch(jit, blocks);
    if (args_.wants(slot_y)) out[slot_y] = sum(y_chunks, jit.units, {args_.edges, args_.dims.y});
    if (sums_weights) out[slot_w] = sum(w_chunks, chunks, {args_.dims.w});
  }

  Tensor sum(const Tensor& chunks, int64_t count, std::vector<int64_t> shape) {
    Tensor total = torch::stable::new_zeros(chunks, shape);
    dispatch_real(chunks.scalar_type(), "tensor_product", [&](auto zero) {
      using T = decltype(zero);
      add_rows(chunks.const_data_ptr<T>(), count, total.numel(), total.mutable_data_ptr<T>(),
               device_);
    });
    const auto type = args_.any_operand().scalar_type();
    return type == total.scalar_type() ? total : torch::stable::to(total, type);
  }

  static constexpr int64_t kMostBlocks = int64_t(1) << 30;
};

}  // namespace hamfast
