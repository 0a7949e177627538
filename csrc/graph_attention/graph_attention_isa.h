#pragma once

#include "common/isa.h"
#include "graph_attention.cuh"

// Nodes [begin, end), one thread. order: 0 forward, 1 backward, 2 double backward.
#define HAMFAST_DECLARE_FOR(T) \
  void attention_nodes(const AttentionCall<T>& call, int64_t begin, int64_t end, int derivative);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
