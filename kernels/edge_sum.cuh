// Rows that each edge adds up: one of its own, its sender's and its receiver's.
#pragma once

#include "common.cuh"

namespace hamfast {

enum Part { part_edge = 0, part_sender = 1, part_receiver = 2 };

// Rows [rows, heads, width].
template <class T>
struct EdgeSum {
  Maybe<const T> part[3];
  int64_t width;
  HAMFAST_HD bool any() const { return part[0] || part[1] || part[2]; }
};

}  // namespace hamfast
