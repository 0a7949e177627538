// What every kernel shares: one source for nvcc, g++ and clang. No torch, no allocation.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define HAMFAST_HD __host__ __device__
#define HAMFAST_UNROLL _Pragma("unroll")
#else
#define HAMFAST_HD
#define HAMFAST_UNROLL
#endif

#if defined(__CUDA_ARCH__)
#define HAMFAST_SIMD
#define HAMFAST_SIMD_SUM(variable)
#else
#define HAMFAST_PRAGMA(text) _Pragma(#text)
#define HAMFAST_SIMD HAMFAST_PRAGMA(omp simd)
#define HAMFAST_SIMD_SUM(variable) HAMFAST_PRAGMA(omp simd reduction(+ : variable))
#endif

// The CPU compiles each kernel once per instruction set, each time into a namespace of its own: two versions of one
// inline function with one name would be merged by the linker, and the baseline could end up with AVX-512 code.
#if !defined(HAMFAST_ISA)
#define HAMFAST_ISA device
#endif

namespace hamfast::HAMFAST_ISA {

// The threads that work on one row together. `rank()` of `size()`; `sum` gives everyone the total.
struct Serial {
  HAMFAST_HD int rank() const { return 0; }
  HAMFAST_HD constexpr int size() const { return 1; }
  HAMFAST_HD void sync() const {}
  template <class T>
  HAMFAST_HD T sum(T value) const {
    return value;
  }
};

#if defined(__CUDACC__)
struct Warp {
  __device__ int rank() const { return static_cast<int>(threadIdx.x) & 31; }
  __device__ constexpr int size() const { return 32; }
  __device__ void sync() const { __syncwarp(); }
  template <class T>
  __device__ T sum(T value) const {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
  }
};
#endif

}  // namespace hamfast::HAMFAST_ISA
