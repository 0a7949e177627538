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
  explicit ChannelCuda(const TensorProductArguments& args)
      : args_(args), device_(args.any_operand().get_device_index()) {
    capability_ = capability_of(device_);
    for (int a = 0; a < 4; ++a) {
      arguments_.operand[a] = data_of(args.operand[a]);
      arguments_.direction[a] = data_of(args.direction[a]);
    }
    arguments_.hidden = data_of(args.hidden);
    makes_weights_ = args.hidden.has_value();
    arguments_.x_index = maybe_data<int64_t>(args.senders);
    arguments_.g_index = maybe_data<int64_t>(args.receivers);
    arguments_.edges = args.edges;
    arguments_.x_rows = args.rows(slot_x), arguments_.g_rows = args.rows(slot_g);
  }

  std::vector<Tensor> run() {
    if (args_.hidden.has_value() && !can_make_weights()) store_weights();
    std::vector<Tensor> out;
    for (int slot = 0; slot < 4; ++slot) out.push_back(torch::stable::new_empty(args_.any_operand(), {0}));
    if (args_.wants(slot_g)) forward(out);
    if (args_.wants(slot_x) || args_.wants(slot_y) || args_.wants(slot_w)) backward(out);
    return out;
  }

 private:
  static constexpr int64_t kWarps = channel::kWarpsPerBlock, kMostParts = 1 << 16, kMostWeightParts = 256;

  const TensorProductArguments& args_;
  int32_t device_;
  int capability_ = 0;
  channel::Arguments arguments_{};
  bool makes_weights_ = false;  // in the kernel
  Tensor stored_;               // weights, where the kernel does not make them

  static const void* data_of(const std::optional<Tensor>& t) { return t.has_value() ? t->const_data_ptr() : nullptr; }

  Tensor empty(int slot) const {
    return torch::stable::new_empty(args_.any_operand(), {args_.rows(slot), args_.dims[slot]});
  }
  auto compute() const {
    return args_.any_operand().scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  // Tensor cores with TF32, vector loads, and room for the weights of a few edges in shared memory.
  bool can_make_weights() const {
    constexpr int kFirstWithTf32 = 80;
    constexpr uintptr_t kAlignment = 16;
    const bool aligned = reinterpret_cast<uintptr_t>(arguments_.operand[slot_w]) % kAlignment == 0;
    return capability_ >= kFirstWithTf32 && aligned && compute() == ScalarType::Float &&
           kernel(args_.wants(slot_g)).kernel.has_value();
  }
  void store_weights() {
    stored_ = torch::stable::new_empty(*args_.hidden, {args_.edges, args_.dims[slot_w]});
    multiply_into(*args_.hidden, *args_.operand[slot_w], stored_);
    arguments_.operand[slot_w] = stored_.const_data_ptr();
    makes_weights_ = false;
  }

  const ChannelJit& kernel(bool forward) const {
    ChannelKey key{args_.dims[9], capability_, {}};
    ChannelCallKind& kind = key.kind;
    kind.forward = forward;
    for (int a = 0; a < 4; ++a) {
      kind.operands |= (args_.operand[a].has_value() && !(forward && a == slot_g)) << a;
      kind.directions |= (args_.direction[a].has_value() && !(forward && a == slot_g)) << a;
      kind.wanted |= (args_.wants(a) && forward == (a == slot_g)) << a;
    }
    kind.storage = storage_of(args_.any_operand());
    kind.x_layout = static_cast<Layout>(args_.x_layout), kind.g_layout = static_cast<Layout>(args_.g_layout);
    kind.shared_weights = args_.shared_weights;
    if (makes_weights_) {
      kind.hidden = static_cast<int>(args_.hidden->size(1));
      // Half-precision factors are TF32 already.
      kind.passes = args_.one_pass || kind.storage != Storage::float32 ? 1 : 3;
    }
    return channel_kernel(key, &tables, &args_);
  }

  // Reads the plan's tables back: once per plan, kind of call and process.
  static ChannelTables tables(const void* context) {
    const auto& args = *static_cast<const TensorProductArguments*>(context);
    auto host = [](const Tensor& t) {
      return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
    };
    return channel_tables(host(args.tasks), host(args.x_blocks), host(args.g_blocks), host(args.entries),
                          host(args.coupling), args.dims);
  }

  void set_rows(const std::optional<Tensor>& order, const std::optional<Tensor>& ptr) {
    arguments_.order = maybe_data<int64_t>(order);
    arguments_.ptr = maybe_data<int64_t>(ptr);
    arguments_.rows = ptr.has_value() ? ptr->numel() - 1 : args_.edges;
  }
  int64_t turns() const { return channel::turns_of(arguments_); }

  // Blocks for `turns` of every unit; where weights are made, a block takes a turn, else each of its warps.
  int64_t blocks_for(int64_t turns, const ChannelJit& jit) const {
    const int64_t items = turns * jit.units;
    return makes_weights_ ? items : (items + kWarps - 1) / kWarps;
  }

  void launch(const ChannelJit& jit, int64_t blocks) {
    void* parameters[] = {&arguments_};
    jit.kernel->launch(static_cast<unsigned>(blocks), kWarps * kWarp, static_cast<unsigned>(jit.shared_bytes),
                       current_stream(device_), parameters);
  }

  void forward(std::vector<Tensor>& out) {
    out[slot_g] = empty(slot_g);
    set_rows(args_.receiver_order, args_.receiver_ptr);
    if (turns() == 0) return;
    arguments_.out[slot_g] = out[slot_g].mutable_data_ptr();
    const ChannelJit& jit = kernel(true);
    const int64_t blocks = blocks_for(turns(), jit);
    launch(jit, blocks < kMostBlocks ? blocks : kMostBlocks);
  }

  void backward(std::vector<Tensor>& out) {
    const Tensor& like = args_.any_operand();
    const bool sums_weights = args_.wants(slot_w) && args_.shared_weights;
    if (args_.wants(slot_x)) out[slot_x] = empty(slot_x);
    if (args_.wants(slot_y)) out[slot_y] = empty(slot_y);
    if (args_.wants(slot_w)) out[slot_w] = args_.dims[8] && !args_.shared_weights ? empty(slot_w) : args_.zeros(slot_w);
    set_rows(args_.sender_order, args_.sender_ptr);
    if (turns() == 0) return;
    const ChannelJit& jit = kernel(false);
    const int64_t most = sums_weights ? kMostWeightParts : kMostParts;
    const int64_t blocks = blocks_for(turns() < most ? turns() : most, jit);
    const int64_t parts = blocks * kWarps / jit.units;
    Tensor y_parts, w_parts;
    if (args_.wants(slot_y)) {
      y_parts = torch::stable::new_empty(like, {jit.units, args_.edges, args_.dims[slot_y]}, compute());
      arguments_.y_parts = y_parts.mutable_data_ptr();
    }
    if (sums_weights) {
      w_parts = torch::stable::new_zeros(like, {parts, args_.dims[slot_w]}, compute());
      arguments_.w_parts = w_parts.mutable_data_ptr();
    }
    if (args_.wants(slot_x)) arguments_.out[slot_x] = out[slot_x].mutable_data_ptr();
    if (args_.wants(slot_w) && !sums_weights) arguments_.out[slot_w] = out[slot_w].mutable_data_ptr();
    launch(jit, blocks);
    if (args_.wants(slot_y)) out[slot_y] = sum(y_parts, jit.units, {args_.edges, args_.dims[slot_y]});
    if (sums_weights) out[slot_w] = sum(w_parts, parts, {args_.dims[slot_w]});
  }

  Tensor sum(const Tensor& parts, int64_t count, std::vector<int64_t> shape) {
    Tensor total = torch::stable::new_zeros(parts, shape);
    dispatch_real(parts.scalar_type(), "tensor_product", [&](auto zero) {
      using T = decltype(zero);
      add_rows(parts.const_data_ptr<T>(), count, total.numel(), total.mutable_data_ptr<T>(), device_);
    });
    const auto type = args_.any_operand().scalar_type();
    return type == total.scalar_type() ? total : torch::stable::to(total, type);
  }

  static constexpr int64_t kMostBlocks = int64_t(1) << 30;
};

}  // namespace hamfast
