// Products of small matrices on the tensor cores, in float32 from TF32: one pass keeps 11 bits of
// each factor (relative error up to 2^-11 each), three passes about 22, as good as float32.
#pragma once

#include "common.cuh"

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

namespace hamfast::HAMFAST_ISA {

// To nearest, ties away from zero.
__device__ inline uint32_t to_tf32(float value) {
  uint32_t bits = 0;
#if defined(__CUDA_ARCH__)
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#elif defined(HAMFAST_SIMT)
  bits = simt::to_tf32(value);
#endif
  return bits;
}

// d [16, 8] += a [16, 8] b [8, 8] by the lanes of a warp. Lane 4 g + t holds a[g, t], a[g + 8, t],
// a[g, t + 4], a[g + 8, t + 4]; b[t, g], b[t + 4, g]; d[g, 2 t], d[g, 2 t + 1], d[g + 8, 2 t], d[g
// + 8, 2 t + 1] (PTX ISA, "Matrix Fragments for mma.m16n8k8").
__device__ inline void multiply_add_tf32(float* d, const uint32_t* a, const uint32_t* b) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(HAMFAST_SIMT)
  simt::multiply_add_m16n8k8(d, a, b);
#endif
}

// Numbers as two of TF32 each.
template <int N>
struct Tf32 {
  uint32_t high[N], low[N];
  HAMFAST_INLINE explicit Tf32(const float* values) {
    HAMFAST_UNROLL
    for (int i = 0; i < N; ++i) {
      high[i] = to_tf32(values[i]);
      low[i] = to_tf32(values[i] - __uint_as_float(high[i]));
    }
  }
};

template <int kPasses>
HAMFAST_INLINE void multiply_add(float* d, const Tf32<4>& a, const Tf32<2>& b) {
  static_assert(kPasses == 1 || kPasses == 3);
  if constexpr (kPasses == 3) {  // small terms first
    multiply_add_tf32(d, a.low, b.high);
    multiply_add_tf32(d, a.high, b.low);
  }
  multiply_add_tf32(d, a.high, b.high);
}

}  // namespace hamfast::HAMFAST_ISA

#endif
