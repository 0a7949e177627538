// Sizes of launches, and sums of chunks.
#pragma once

#include <vector>

#include "common/cuda_launch.h"
#include "sum_chunks.cuh"

namespace hamfast {

// What launchers on a GPU share.
struct OnCuda {
  using Guard = LaunchGuard;
  static Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes,
                           std::optional<ScalarType> type = {}) {
    return torch::stable::new_empty(like, sizes, type.value_or(like.scalar_type()));
  }
  // [chunks, ...] -> [...], in an order of its own that is always the same.
  static Tensor sum_chunks(const Tensor& chunks) {
    const int64_t axis = 0;
    return torch::stable::sum(chunks, torch::headeronly::IntHeaderOnlyArrayRef(&axis, 1));
  }
};

constexpr int64_t kMaxBlocks = 1 << 16;

// One warp per block; blocks walk over the rows with stride gridDim.x.
inline int64_t blocks_for(int64_t rows) { return rows < kMaxBlocks ? rows : kMaxBlocks; }

// out[i] += sum_p in[p * n + i], in the order of p.
template <class T>
void add_rows(const T* in, int64_t chunks, int64_t n, T* out, int32_t device) {
  if (n > 0)
    launch("add_rows", add_rows_kernel<T>, Grid{blocks_for((n + 255) / 256)}, 256, device, in,
           chunks, n, out);
}

}  // namespace hamfast
