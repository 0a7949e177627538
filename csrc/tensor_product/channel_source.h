// The plan of a channel-wise product as source text: the header `hamfast_plan.h` that kernels/channel.cuh reads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor_product/channel_kernel.h"

namespace hamfast {

// Tables of hamfast/plan/channel.py in host memory.
struct ChannelTables {
  std::vector<ChannelTask> tasks;
  std::vector<ChannelBlock> x_blocks, g_blocks;
  std::vector<CouplingEntry> entries;
  std::vector<double> coupling;
  int64_t x_dim, y_dim, w_dim, g_dim;
};

// What else a kernel is compiled for: sets of x, y, w, g as bits.
struct ChannelCallKind {
  bool forward;  // dF/dg; else dF/d(x, y, w), those `wanted`
  int operands, directions, wanted;
  Storage storage;
  Layout x_layout, g_layout;
  bool shared_weights;
  int hidden = 0;  // numbers per edge that the kernel makes the weights from; 0: it reads them
  int passes = 3;  // of the tensor cores: see kernels/tensor_core.cuh
};

struct ChannelSource {
  std::string header;
  int64_t units;         // warps' shares of a row: see kernels/channel_plan.cuh
  int64_t shared_bytes;  // of a block's memory
};

ChannelSource channel_source(const ChannelTables& tables, const ChannelCallKind& kind);

}  // namespace hamfast
