// What every kernel shares: one source for nvcc, g++ and clang. No torch, no allocation.
#pragma once

#include <cstdint>

#if defined(HAMFAST_SIMT)
#include "simt.h"  // tests/simt: CUDA's names on the host
#endif

#if defined(__CUDACC__)
#define HAMFAST_HD __host__ __device__
#define HAMFAST_CONSTANT __device__
#define HAMFAST_ALWAYS_INLINE __attribute__((always_inline))
#define HAMFAST_INLINE __device__ __forceinline__
#define HAMFAST_UNROLL _Pragma("unroll")
#define HAMFAST_RESTRICT __restrict__
#else
#define HAMFAST_HD
#define HAMFAST_CONSTANT
#define HAMFAST_ALWAYS_INLINE
#define HAMFAST_INLINE inline
#define HAMFAST_UNROLL
#define HAMFAST_RESTRICT
#endif

#if defined(__CUDA_ARCH__)
#define HAMFAST_SIMD
#define HAMFAST_SIMD_SUM(variable)
#else
#define HAMFAST_PRAGMA(text) _Pragma(#text)
#define HAMFAST_SIMD HAMFAST_PRAGMA(omp simd)
#define HAMFAST_SIMD_SUM(variable) HAMFAST_PRAGMA(omp simd reduction(+ : variable))
#endif

// The CPU compiles each kernel once per instruction set, each time into a namespace of its own: two
// versions of one inline function with one name would be merged by the linker, and the baseline
// could end up with AVX-512 code.
#if !defined(HAMFAST_ISA)
#define HAMFAST_ISA device
#endif

namespace hamfast {
constexpr int kWarp = 32;
// As they lie in memory: they are computed in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// A pointer to what a call may lack. It is null if that is absent, and only then: an empty tensor's
// pointer is null, too, so what is given and empty has a placeholder, which nobody reads. A flag
// beside the pointer would cost kernels registers. Always inlined, as it is in the code of every
// instruction set: see above.
#define HAMFAST_HERE HAMFAST_HD __attribute__((always_inline))
template <class T>
struct Maybe {
  T* data = nullptr;

  Maybe() = default;
  HAMFAST_HERE Maybe(T* data_) : data(data_ ? data_ : reinterpret_cast<T*>(64ull)) {}
  Maybe(decltype(nullptr)) = delete;  // what is absent is Maybe<T>()
  template <class Other>
  HAMFAST_HERE Maybe(const Maybe<Other>& other) : data(other.data) {}

  HAMFAST_HERE bool given() const { return data != nullptr; }
  HAMFAST_HERE explicit operator bool() const { return given(); }
  template <class Element = T>
  HAMFAST_HERE Element& operator[](int64_t n) const {
    return data[n];
  }
  HAMFAST_HERE T* operator+(int64_t n) const { return data + n; }
  // Row n of rows of so many elements, if there are rows.
  HAMFAST_HERE Maybe row(int64_t n, int64_t size) const {
    Maybe at;
    if (given()) at.data = data + n * size;
    return at;
  }
};
#undef HAMFAST_HERE
}  // namespace hamfast

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

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)
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

// The block's dynamic shared memory.
HAMFAST_INLINE float* shared_memory() {
#if defined(HAMFAST_SIMT)
  return static_cast<float*>(simt::Executor::get().shared());
#else
  extern __shared__ __align__(16) float hamfast_shared[];
  return hamfast_shared;
#endif
}

// Half precision, without cuda_fp16.h and cuda_bf16.h: run-time compilation has no headers but
// ours.
__device__ inline float bfloat16_to_float(uint16_t bits) {
  return __uint_as_float(uint32_t(bits) << 16);
}
__device__ inline uint16_t float_to_bfloat16(float value) {  // to nearest, ties to even
  if (value != value) return 0x7fc0;
  const uint32_t bits = __float_as_uint(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
__device__ inline float half_to_float(uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#elif defined(HAMFAST_SIMT)
  _Float16 half;
  __builtin_memcpy(&half, &bits, sizeof(half));
  return half;
#else
  return 0;  // nvcc's pass for the host: never called
#endif
}
__device__ inline uint16_t float_to_half(float value) {
  uint16_t bits = 0;
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#elif defined(HAMFAST_SIMT)
  const _Float16 half = static_cast<_Float16>(value);
  __builtin_memcpy(&bits, &half, sizeof(bits));
#endif
  return bits;
}

template <class Real>
__device__ inline Real widen(Real stored) {
  return stored;
}
__device__ inline float widen(BFloat16 stored) { return bfloat16_to_float(stored.bits); }
__device__ inline float widen(Float16 stored) { return half_to_float(stored.bits); }
template <class Real>
__device__ inline void narrow(Real value, Real* to) {
  *to = value;
}
__device__ inline void narrow(float value, BFloat16* to) { to->bits = float_to_bfloat16(value); }
__device__ inline void narrow(float value, Float16* to) { to->bits = float_to_half(value); }
#endif

}  // namespace hamfast::HAMFAST_ISA
