// Results that do not fit into the caches need not pass through them.
#pragma once

#include <cstdint>

namespace hamfast {

constexpr int64_t kStreamedBytes = int64_t(8) << 20;

inline bool is_streamed(int64_t numbers, int64_t size) { return numbers * size > kStreamedBytes; }

}  // namespace hamfast
