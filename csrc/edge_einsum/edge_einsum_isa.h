#pragma once

#include "common/isa.h"
#include "edge_einsum.cuh"

// Rows [begin, end) of the result, one thread.
#define HAMFAST_DECLARE_FOR(T) \
  void edge_einsum_rows(const EdgeEinsumCall<T>& call, int64_t begin, int64_t end);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
