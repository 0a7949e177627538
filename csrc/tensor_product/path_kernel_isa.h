#pragma once

#include "common/isa.h"
#include "tensor_product.cuh"

// Rows [begin, end) of a call, one thread.
#define HAMFAST_DECLARE(ISA)                                                                                    \
  namespace hamfast::ISA {                                                                                      \
  void tensor_product_rows(const TensorProductCall<float>& call, int64_t begin, int64_t end, float* scratch);   \
  void tensor_product_rows(const TensorProductCall<double>& call, int64_t begin, int64_t end, double* scratch); \
  }
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE)
#undef HAMFAST_DECLARE
