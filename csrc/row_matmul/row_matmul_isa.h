#pragma once

#include "common/isa.h"
#include "records.cuh"

namespace hamfast {

// C = A B of rows, or one of its gradients; see RowTask. The one that is made is written to.
template <class T>
struct RowMatmulCall {
  T *a, *b, *c;
  const RowTask* tasks;
  int64_t count, rows;
  RowDims dims;
};

}  // namespace hamfast

// Rows [begin, end), one thread.
#define HAMFAST_DECLARE_FOR(T)                                                 \
  void row_matmul_c(const RowMatmulCall<T>& call, int64_t begin, int64_t end); \
  void row_matmul_a(const RowMatmulCall<T>& call, int64_t begin, int64_t end); \
  void row_matmul_b(const RowMatmulCall<T>& call, int64_t begin, int64_t end);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
