// Rows that each edge adds up: one of its own, its sender's and its receiver's.
#pragma once

#include "common.cuh"
#include "records.cuh"

namespace hamfast {

// Rows [rows, heads, width].
template <class T>
struct EdgeSum {
  Maybe<const T> part[3];  // by RowOf
  int64_t width;
  HAMFAST_HD bool any() const { return part[0] || part[1] || part[2]; }
};

}  // namespace hamfast
