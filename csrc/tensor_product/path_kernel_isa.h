#pragma once

#include "common/isa.h"
#include "tensor_product.cuh"

// Rows [begin, end) of a call, one thread.
#define HAMFAST_DECLARE_FOR(T) \
  void tensor_product_rows(const TensorProductCall<T>& call, int64_t begin, int64_t end, T* scratch);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
