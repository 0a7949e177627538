// Rows of a graph in parts of about equal work, whose number does not depend on the number of threads: sums made part
// by part are the same on every machine.
#pragma once

#include <algorithm>

#include "common/dispatch.h"

namespace hamfast {

constexpr int64_t kParts = 64;

// f(first row, last row, part) for every part, in parallel. ptr: where each row's edges begin; null: rows cost the
// same.
template <class F>
void for_balanced_rows(const int64_t* ptr, int64_t rows, F&& f) {
  auto boundary = [&](int64_t part) {
    if (ptr == nullptr) return rows * part / kParts;
    // Rows cost something of their own, too.
    const int64_t work = (ptr[rows] - ptr[0] + rows) * part / kParts;
    int64_t low = 0, high = rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ptr[middle] - ptr[0] + middle < work)
        low = middle + 1;
      else
        high = middle;
    }
    return part == kParts ? rows : low;
  };
  torch::stable::parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = boundary(part), last = boundary(part + 1);
      if (first < last) f(first, last, part);
    }
  });
}

}  // namespace hamfast
