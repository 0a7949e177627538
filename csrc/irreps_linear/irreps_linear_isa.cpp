// Compiled once per instruction set.
#include "irreps_linear/irreps_linear_isa.h"

#include <algorithm>

#include "common/simd.h"

namespace hamfast::HAMFAST_ISA {

// f(block of the row, lines of the matrix) for each row.
template <class T, class F>
static void for_rows(const PackCall<T>& call, int64_t begin, int64_t end, F&& f) {
  for (int64_t r = begin; r < end; ++r)
    f(call.rows + (call.index ? call.index[r] : r) * call.row_stride,
      call.matrix + r * call.d * call.matrix_stride);
}

// components: as a type, 0 for any number.
template <class T, class D>
static void pack(const PackCall<T>& call, int64_t begin, int64_t end, D components) {
  const int64_t d = components() ? components() : call.d, n = call.channels;
  const int64_t ld = call.matrix_stride;
  for_rows(call, begin, end, [&](const T* block, T* lines) {
    if (call.channels_fast)
      for (int64_t m = 0; m < d; ++m) std::copy_n(block + m * n, n, lines + m * ld);
    else
      for (int64_t m = 0; m < d; ++m)
        for (int64_t u = 0; u < n; ++u) lines[m * ld + u] = block[u * d + m];
  });
}

template <class T, class D>
static void unpack(const PackCall<T>& call, int64_t begin, int64_t end, D components) {
  const int64_t d = components() ? components() : call.d, n = call.channels;
  const int64_t ld = call.matrix_stride;
  for_rows(call, begin, end, [&](T* block, const T* lines) {
    if (call.channels_fast)
      for (int64_t m = 0; m < d; ++m) std::copy_n(lines + m * ld, n, block + m * n);
    else
      for (int64_t u = 0; u < n; ++u)
        for (int64_t m = 0; m < d; ++m) block[u * d + m] = lines[m * ld + u];
  });
}

#define HAMFAST_DEFINE_FOR(T)                                               \
  void pack_irreps(const PackCall<T>& call, int64_t begin, int64_t end) {   \
    for_irrep_size(call.d, [&](auto d) { pack(call, begin, end, d); });     \
  }                                                                         \
  void unpack_irreps(const PackCall<T>& call, int64_t begin, int64_t end) { \
    for_irrep_size(call.d, [&](auto d) { unpack(call, begin, end, d); });   \
  }
HAMFAST_DEFINE_FOR(float) HAMFAST_DEFINE_FOR(double)
#undef HAMFAST_DEFINE_FOR

}  // namespace hamfast::HAMFAST_ISA
