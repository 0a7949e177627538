// Rows of a graph in parts of about equal work, whose number does not depend on the number of threads: sums made part
// by part are the same on every machine.
#pragma once

#include <algorithm>
#include <vector>

#include "common/dispatch.h"

namespace hamfast {

constexpr int64_t kParts = 64;

// f(first row, last row, part) for every part, in parallel. ptr: where each row's edges begin; absent: rows cost
// the same.
template <class F>
void for_balanced_rows(Maybe<const int64_t> ptr, int64_t rows, F&& f) {
  auto boundary = [&](int64_t part) {
    if (!ptr) return rows * part / kParts;
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

// [parts, n, m] -> [n, m], in the order of the parts: of few numbers.
inline Tensor added_parts(const Tensor& parts) {
  const int64_t n = parts.size(1), m = parts.size(2);
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  Tensor total = torch::stable::empty(std::vector<int64_t>{n, m}, parts.scalar_type(), std::nullopt, cpu);
  dispatch_real(parts.scalar_type(), "sum of parts", [&](auto zero) {
    using T = decltype(zero);
    T* to = total.mutable_data_ptr<T>();
    std::fill(to, to + n * m, zero);
    for (int64_t part = 0; part < parts.size(0); ++part) {
      const T* from = parts.const_data_ptr<T>() + part * n * m;
      for (int64_t i = 0; i < n * m; ++i) to[i] += from[i];
    }
  });
  return total;
}

}  // namespace hamfast
