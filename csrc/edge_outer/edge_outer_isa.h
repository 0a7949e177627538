#pragma once

#include "common/isa.h"
#include "records.cuh"

namespace hamfast {

// One component of a block: n channels.
struct OuterRow {
  int64_t channels, channels_stride;  // in the flat channels: first element, from edge to edge
  int64_t node, node_stride;          // in the flat nodes, likewise
  int64_t n;
};

// sum over edges e of <node[n(e)], factor[e] x channels[e]> in one slot, which is written to.
template <class T>
struct EdgeOuterCall {
  T *node, *factor, *channels;
  const OuterRow* outer_rows;
  int64_t count, width;
  const int64_t *order, *ptr;
};

}  // namespace hamfast

// Nodes [begin, end), one thread.
#define HAMFAST_DECLARE_FOR(T)                                                      \
  void edge_outer_node(const EdgeOuterCall<T>& call, int64_t begin, int64_t end);   \
  void edge_outer_factor(const EdgeOuterCall<T>& call, int64_t begin, int64_t end); \
  void edge_outer_channels(const EdgeOuterCall<T>& call, int64_t begin, int64_t end);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
