// Sizes of launches, and the kernel that adds up parts.
#pragma once

#include "common.cuh"
#include "common/cuda_launch.h"

namespace hamfast {

constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 1 << 16;

// One warp per block; blocks walk over the rows with stride gridDim.x.
inline int64_t blocks_for(int64_t rows) { return rows < kMaxBlocks ? rows : kMaxBlocks; }

template <class T>
__global__ void add_rows_kernel(const T* in, int64_t parts, int64_t n, T* out) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    T total = out[i];
    for (int64_t p = 0; p < parts; ++p) total += in[p * n + i];
    out[i] = total;
  }
}

// out[i] += sum_p in[p * n + i], in the order of p.
template <class T>
void add_rows(const T* in, int64_t parts, int64_t n, T* out, int32_t device) {
  if (n > 0) launch("add_rows", add_rows_kernel<T>, blocks_for((n + 255) / 256), 256, device, in, parts, n, out);
}

}  // namespace hamfast
