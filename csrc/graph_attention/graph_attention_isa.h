#pragma once

#include "common/isa.h"
#include "graph_attention.cuh"

// Rows [begin, end) of one pass, one thread: results by receiver, gradients by receiver (chunk:
// where it may sum what all rows share), gradients by sender. `scratch`: of attention_scratch(call,
// edges of the largest row) elements.
#define HAMFAST_DECLARE_FOR(T)                                                                     \
  int64_t attention_scratch(const AttentionCall<T>& call, int64_t degree);                         \
  void attention_forward(const AttentionCall<T>& call, int64_t begin, int64_t end, T* scratch);    \
  void attention_backward(const AttentionCall<T>& call, int64_t begin, int64_t end, int64_t chunk, \
                          T* scratch);                                                             \
  void attention_backward_senders(const AttentionCall<T>& call, int64_t begin, int64_t end,        \
                                  T* scratch);                                                     \
  void attention_double_backward(const AttentionCall<T>& call, int64_t begin, int64_t end,         \
                                 int64_t chunk, T* scratch);                                       \
  void attention_double_backward_senders(const AttentionCall<T>& call, int64_t begin, int64_t end, \
                                         T* scratch);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
