// The plan of a channel-wise product as source text: the header `hamfast_plan.h` that
// kernels/channel.cuh reads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor_product/channel_call.h"

namespace hamfast {

// Tables of hamfast/plan/channel.py in host memory.
struct ChannelTables {
  std::vector<ChannelTask> tasks;
  std::vector<ChannelBlock> x_blocks, g_blocks;
  std::vector<CouplingEntry> entries;
  std::vector<double> coupling;
  ProductDims dims;
};

struct ChannelSource {
  std::string header;
  int64_t units;         // warps' shares of a row: see kernels/channel_plan.cuh
  int64_t shared_bytes;  // of a block's memory
};

ChannelSource channel_source(const ChannelTables& tables, const ChannelVariant& variant);

}  // namespace hamfast
