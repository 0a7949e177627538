#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "sparse_map/sparse_map_call.h"

namespace hamfast {

struct SparseMapOnCuda : OnCuda {
  template <class T>
  static void run(const SparseMapCall<T>& call, int32_t device) {
    constexpr int kThreads = 256;
    const int64_t elements = call.rows * call.dim_out;
    if (elements == 0) return;
    const Grid grid{blocks_for((elements + kThreads - 1) / kThreads)};
    launch("sparse_map", sparse_map_kernel<T>, grid, kThreads, device, call);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  m.impl(
      "sparse_map",
      TORCH_BOX(&hamfast::sparse_map_boxed<hamfast::SparseMapOp<hamfast::SparseMapOnCuda>::run>));
}
