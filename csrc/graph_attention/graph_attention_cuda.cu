// One warp per target node.
#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "graph_attention/graph_attention_call.h"

namespace hamfast {

struct AttentionOnCuda {
  using Guard = LaunchGuard;

  template <class T>
  static void run(const AttentionCall<T>& call, int64_t targets, int derivative, int32_t device) {
    if (targets == 0) return;
    launch("graph_attention", attention_kernel<T>, Grid{blocks_for(targets)}, kWarp, device, call, targets, derivative);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  using Ops = hamfast::AttentionOps<hamfast::AttentionOnCuda>;
  m.impl("graph_attention", TORCH_BOX(&Ops::forward));
  m.impl("graph_attention_backward", TORCH_BOX(&Ops::backward));
  m.impl("graph_attention_double_backward", TORCH_BOX(&Ops::double_backward));
}
