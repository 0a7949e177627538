#pragma once

#include "common/isa.h"
#include "general.cuh"

// Rows [begin, end) of a call, one thread.
#define HAMFAST_DECLARE_FOR(T) \
  void general_rows(const GeneralCall<T>& call, int64_t begin, int64_t end, T* scratch);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
