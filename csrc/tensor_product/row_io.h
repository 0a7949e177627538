// Rows of irreps between a tensor and the padded blocks [d][channels] a kernel works on. For
// *_isa.cpp files only.
#pragma once

#include "common.cuh"
#include "common/simd.h"
#include "tensor_product/channel_call.h"

namespace hamfast::HAMFAST_ISA {

inline float widen_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return value;
}

inline uint16_t round_to_bfloat16(float value) {  // to nearest, ties to even, as torch
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// `at`: the first element, counted in elements of the storage type.
template <class T>
inline void load_converted(const void* from, Storage storage, int64_t at, int64_t n, T* to) {
  if (storage == Storage::bfloat16) {
    const auto* p = static_cast<const uint16_t*>(from) + at;
    HAMFAST_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = T(widen_bfloat16(p[i]));
  } else if (storage == Storage::float16) {
    const auto* p = static_cast<const _Float16*>(from) + at;
    for (int64_t i = 0; i < n; ++i) to[i] = T(p[i]);
  } else {
    __builtin_memcpy(to, static_cast<const T*>(from) + at, n * sizeof(T));
  }
}

template <class T>
inline void store_converted(const T* from, int64_t n, Storage storage, int64_t at, void* to) {
  if (storage == Storage::bfloat16) {
    auto* p = static_cast<uint16_t*>(to) + at;
    HAMFAST_SIMD
    for (int64_t i = 0; i < n; ++i) p[i] = round_to_bfloat16(float(from[i]));
  } else if (storage == Storage::float16) {
    auto* p = static_cast<_Float16*>(to) + at;
    for (int64_t i = 0; i < n; ++i) p[i] = _Float16(from[i]);
  } else {
    __builtin_memcpy(static_cast<T*>(to) + at, from, n * sizeof(T));
  }
}

inline bool converts(Storage storage) {
  return storage == Storage::bfloat16 || storage == Storage::float16;
}

// Interleaving by shuffles pays for short irreps; longer ones are copied number by number.
constexpr int kMostShuffled = 7;

// Where a row's block begins, in elements.
template <class T>
inline int64_t block_begin(const ChannelCall<T>& call, bool is_g, const ChannelBlock& block,
                           int64_t r) {
  if ((is_g ? call.g_layout : call.x_layout) == Layout::blocks)
    return (is_g ? call.g_rows : call.x_rows) * block.offset + r * block.mul * block.d;
  return r * (is_g ? call.g_dim : call.x_dim) + block.offset;
}

// Row r of x or g as padded blocks; the padding is 0. `space`: one row.
template <class T>
inline void unpack_blocks(const ChannelCall<T>& call, bool is_g, const void* rows, int64_t r, T* to,
                          T* space) {
  const ChannelBlock* blocks = is_g ? call.g_blocks : call.x_blocks;
  const int64_t count = is_g ? call.num_g_blocks : call.num_x_blocks;
  const bool interleaved = (is_g ? call.g_layout : call.x_layout) == Layout::mul_ir;
  // A last vector may reach over the last block: what lies there is multiplied by 0, and must not
  // be NaN.
  const int64_t size = is_g ? call.g_padded : call.x_padded;
  for (int64_t i = count ? blocks[count - 1].at + blocks[count - 1].d * blocks[count - 1].stride
                         : 0;
       i < size; ++i)
    to[i] = T(0);
  for (int64_t b = 0; b < count; ++b) {
    const ChannelBlock& block = blocks[b];
    const int64_t begin = block_begin(call, is_g, block, r);
    const T* from = space;
    if (converts(call.storage))
      load_converted(rows, call.storage, begin, block.mul * block.d, space);
    else
      from = static_cast<const T*>(rows) + begin;
    T* const start = to + block.at;
    for (int64_t i = 0; i < block.d; ++i)
      for (int64_t u = block.mul; u < block.stride; ++u) start[i * block.stride + u] = T(0);
    if (!interleaved) {
      for (int64_t i = 0; i < block.d; ++i)
        copy_row(from + i * block.mul, block.mul, start + i * block.stride, false);
      continue;
    }
    for_irrep_size(block.d, [&](auto d) {
      if constexpr (d() > 0 && d() <= kMostShuffled) {
        deinterleave<T, d()>(from, block.mul, start, block.stride);
      } else {
        for (int64_t u = 0; u < block.mul; ++u)
          for (int64_t i = 0; i < block.d; ++i) start[i * block.stride + u] = from[u * block.d + i];
      }
    });
  }
}

// The reverse, without the padding.
template <class T>
inline void pack_blocks(const ChannelCall<T>& call, bool is_g, const T* from, void* rows, int64_t r,
                        T* space) {
  const ChannelBlock* blocks = is_g ? call.g_blocks : call.x_blocks;
  const int64_t count = is_g ? call.num_g_blocks : call.num_x_blocks;
  const bool interleaved = (is_g ? call.g_layout : call.x_layout) == Layout::mul_ir;
  for (int64_t b = 0; b < count; ++b) {
    const ChannelBlock& block = blocks[b];
    const int64_t begin = block_begin(call, is_g, block, r);
    const bool streamed = !converts(call.storage) && call.stream[is_g ? 3 : 0];
    T* const to = converts(call.storage) ? space : static_cast<T*>(rows) + begin;
    const T* start = from + block.at;
    if (!interleaved) {
      for (int64_t i = 0; i < block.d; ++i)
        copy_row(start + i * block.stride, block.mul, to + i * block.mul, streamed);
    } else {
      for_irrep_size(block.d, [&](auto d) {
        if constexpr (d() > 0 && d() <= kMostShuffled) {
          interleave<T, d()>(start, block.stride, block.mul, to, streamed);
        } else {
          for (int64_t u = 0; u < block.mul; ++u)
            for (int64_t i = 0; i < block.d; ++i) to[u * block.d + i] = start[i * block.stride + u];
        }
      });
    }
    if (converts(call.storage))
      store_converted(space, block.mul * block.d, call.storage, begin, rows);
  }
}

}  // namespace hamfast::HAMFAST_ISA
