// Large results on the CPU come from blocks that are kept and used again.
//
// The C library maps every allocation of more than 32 MiB anew, and the operating system then
// clears it page by page while it is first written: for the kernels here that costs several times
// the computation. Blocks are backed by huge pages where the system has them. HAMFAST_HOST_POOL_MB
// (default 1024) limits what is kept unused; 0 turns the pool off. HAMFAST_POISON=1 fills every
// block with NaN, so that tests see elements that no kernel has written.
#pragma once

#include <vector>

#include "common/balance.h"

namespace hamfast {

// Uninitialised, on the CPU, contiguous, aligned to 64 bytes or more.
Tensor pooled_empty(const std::vector<int64_t>& sizes, ScalarType type);

// What launchers on the CPU share.
struct OnCpu {
  using Guard = NoGuard;
  static Tensor new_result(const Tensor& like, const std::vector<int64_t>& sizes,
                           std::optional<ScalarType> type = {}) {
    return pooled_empty(sizes, type.value_or(like.scalar_type()));
  }
  static Tensor sum_chunks(const Tensor& chunks) { return added_chunks(chunks); }
};

}  // namespace hamfast
