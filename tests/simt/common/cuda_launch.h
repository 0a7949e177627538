// In place of csrc/common/cuda_launch.h: launches on the executor, ops on CPU tensors.
#pragma once

#include "common/dispatch.h"
#include "simt.h"

#define HAMFAST_CUDA_KEY CPU

namespace hamfast {

using LaunchGuard = NoGuard;

struct Grid {
  int64_t x = 1, y = 1;
  int64_t shared_bytes = 0;
};

inline void* current_stream(int32_t) { return nullptr; }
inline int capability_of(int32_t) { return 90; }

template <class... Parameters, class... Arguments>
void launch(const char*, void (*kernel)(Parameters...), Grid grid, int threads, int32_t,
            const Arguments&... arguments) {
  simt::launch({static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)},
               {static_cast<unsigned>(threads)}, static_cast<size_t>(grid.shared_bytes),
               simt::seed(), std::function<void(Parameters...)>(kernel), Parameters(arguments)...);
}

}  // namespace hamfast
