// Adds up what chunks of a launch have summed, in the order of the chunks.
#pragma once

#include "common.cuh"

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

namespace hamfast {

template <class T>
__global__ void add_rows_kernel(const T* in, int64_t chunks, int64_t n, T* out) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    T total = out[i];
    for (int64_t p = 0; p < chunks; ++p) total += in[p * n + i];
    out[i] = total;
  }
}

}  // namespace hamfast

#endif
