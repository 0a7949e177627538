// The channel-wise kernel of one plan and variant, compiled at run time. No CUDA header:
// csrc/common/jit.h.
#pragma once

#include <optional>
#include <string>

#include "common/jit.h"
#include "tensor_product/channel_source.h"

namespace hamfast {

inline constexpr const char* kChannelKernel = "hamfast_channel";

// Machine code of kernels/channel.cuh for a header of channel_source(), from the cache if it is
// there.
std::string compile_channel(const std::string& plan_header, int capability);

// What a block may use on every GPU since sm_80.
constexpr int64_t kMostShared = 96 << 10;

struct ChannelJit {
  std::optional<jit::Kernel> kernel;  // absent: it would need more than kMostShared
  int64_t units, shared_bytes;
};

// What identifies the kernel of a call: the plan's key (dims of the op), what it does, and for
// which GPUs.
struct ChannelKey {
  int64_t plan;
  int capability;
  ChannelVariant variant;
};

// Compiled when first asked for, then kept; `tables` is called only then. Throws jit::Error.
// Threads may call it.
const ChannelJit& channel_kernel(const ChannelKey& key, ChannelTables (*tables)(const void*),
                                 const void* context);

}  // namespace hamfast
