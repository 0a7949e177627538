#pragma once

#include "common/isa.h"
#include "edge_update.cuh"

// Edges [begin, end), one thread; chunk: where the gradients of weight and bias are summed.
// `scratch`: of edge_update_scratch(call) elements.
#define HAMFAST_DECLARE_FOR(T)                                                                     \
  int64_t edge_update_scratch(const EdgeUpdateCall<T>& call);                                      \
  void edge_update_rows(const EdgeUpdateCall<T>& call, int64_t begin, int64_t end, T* scratch);    \
  void edge_update_backward_rows(const EdgeUpdateCall<T>& call, int64_t begin, int64_t end,        \
                                 int64_t chunk, T* scratch);                                       \
  void edge_update_double_backward_rows(const EdgeUpdateCall<T>& call, int64_t begin, int64_t end, \
                                        int64_t chunk, T* scratch);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
