// A constant sparse matrix times rows: out[r, i] = sum over n in ptr[i] ... ptr[i + 1] of value[n]
// x[r, column[n]].
#pragma once

#include "common.cuh"

namespace hamfast {

template <class T>
struct SparseMapCall {
  const T* x;  // [rows, dim_in]
  const int64_t *ptr, *column;
  const T* value;
  T* out;  // [rows, dim_out]
  int64_t rows, dim_in, dim_out;
};

template <class T>
HAMFAST_HD inline T sparse_map_element(const SparseMapCall<T>& call, int64_t row, int64_t i) {
  const T* x = call.x + row * call.dim_in;
  T total = T(0);
  for (int64_t n = call.ptr[i]; n < call.ptr[i + 1]; ++n)
    total += call.value[n] * x[call.column[n]];
  return total;
}

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

// A thread per element of the result: neighbours read the same few numbers of x.
template <class T>
__global__ void sparse_map_kernel(SparseMapCall<T> call) {
  const int64_t elements = call.rows * call.dim_out;
  for (int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; n < elements;
       n += int64_t(gridDim.x) * blockDim.x)
    call.out[n] = sparse_map_element(call, n / call.dim_out, n % call.dim_out);
}

#endif

}  // namespace hamfast
