#pragma once

#include <cstdint>

#include "common/isa.h"

namespace hamfast {

// A block of irreps in rows, and the matrix [rows d, channels] that matrix products take.
template <class T>
struct PackCall {
  T* rows;               // the first row's block
  int64_t row_stride;    // from one row to the next
  const int64_t* index;  // which rows, or null: all in their order
  int64_t d, channels;
  bool channels_fast;  // layout of the rows: [d, channels], else [channels, d]
  T* matrix;
  int64_t matrix_stride;  // from one line of the matrix to the next, at least channels
};

}  // namespace hamfast

// Rows [begin, end) into the matrix, and back; one thread.
#define HAMFAST_DECLARE_FOR(T)                                           \
  void pack_irreps(const PackCall<T>& call, int64_t begin, int64_t end); \
  void unpack_irreps(const PackCall<T>& call, int64_t begin, int64_t end);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
