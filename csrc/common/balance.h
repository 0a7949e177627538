// Rows of a graph in chunks of about equal work, whose number does not depend on the number of
// threads: sums made chunk by chunk are the same on every machine.
#pragma once

#include <algorithm>
#include <vector>

#include "common/dispatch.h"

namespace hamfast {

constexpr int64_t kChunks = 64;

// f(first row, last row, chunk) for every chunk, in parallel. ptr: where each row's edges begin;
// absent: rows cost the same.
template <class F>
void for_balanced_rows(Maybe<const int64_t> ptr, int64_t rows, F&& f) {
  auto boundary = [&](int64_t chunk) {
    if (!ptr) return rows * chunk / kChunks;
    // Rows cost something of their own, too.
    const int64_t work = (ptr[rows] - ptr[0] + rows) * chunk / kChunks;
    int64_t low = 0, high = rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ptr[middle] - ptr[0] + middle < work)
        low = middle + 1;
      else
        high = middle;
    }
    return chunk == kChunks ? rows : low;
  };
  torch::stable::parallel_for(0, kChunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = boundary(chunk), last = boundary(chunk + 1);
      if (first < last) f(first, last, chunk);
    }
  });
}

// [chunks, n, m] -> [n, m], in the order of the chunks: of few numbers.
inline Tensor added_chunks(const Tensor& chunks) {
  const int64_t n = chunks.size(1), m = chunks.size(2);
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  Tensor total =
      torch::stable::empty(std::vector<int64_t>{n, m}, chunks.scalar_type(), std::nullopt, cpu);
  dispatch_real(chunks.scalar_type(), "sum of chunks", [&](auto zero) {
    using T = decltype(zero);
    T* to = total.mutable_data_ptr<T>();
    std::fill(to, to + n * m, zero);
    for (int64_t chunk = 0; chunk < chunks.size(0); ++chunk) {
      const T* from = chunks.const_data_ptr<T>() + chunk * n * m;
      for (int64_t i = 0; i < n * m; ++i) to[i] += from[i];
    }
  });
  return total;
}

}  // namespace hamfast
