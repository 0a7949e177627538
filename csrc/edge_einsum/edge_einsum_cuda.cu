#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "edge_einsum/edge_einsum_call.h"

namespace hamfast {

struct EdgeEinsumOnCuda : OnCuda {
  template <class T>
  static void run(const EdgeEinsumCall<T>& call, int32_t device) {
    if (call.rows == 0) return;
    launch("edge_einsum", edge_einsum_kernel<T>, Grid{blocks_for(call.rows)}, kWarp, device, call);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  m.impl("edge_einsum",
         TORCH_BOX(
             &hamfast::edge_einsum_boxed<hamfast::EdgeEinsumOp<hamfast::EdgeEinsumOnCuda>::run>));
}
