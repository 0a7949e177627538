#include <torch/csrc/stable/library.h>

#include "common/host_pool.h"
#include "sparse_map/sparse_map_call.h"

namespace hamfast {

struct SparseMapOnCpu : OnCpu {
  template <class T>
  static void run(const SparseMapCall<T>& call, int32_t) {
    constexpr int64_t kRows = 64;  // at least, of a thread
    torch::stable::parallel_for(0, call.rows, kRows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < call.dim_out; ++i)
          call.out[row * call.dim_out + i] = sparse_map_element(call, row, i);
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("sparse_map",
         TORCH_BOX(&hamfast::sparse_map_boxed<hamfast::SparseMapOp<hamfast::SparseMapOnCpu>::run>));
}
