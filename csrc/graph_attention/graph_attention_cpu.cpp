#include <torch/csrc/stable/library.h>

#include "graph_attention/graph_attention_call.h"
#include "graph_attention/graph_attention_isa.h"

namespace hamfast {

struct AttentionOnCpu {
  using Guard = NoGuard;

  template <class T>
  static void run(const AttentionCall<T>& call, int64_t targets, int derivative, int32_t) {
    torch::stable::parallel_for(0, targets, 1, [&](int64_t begin, int64_t end) {
      HAMFAST_ISA_CALL(attention_nodes, call, begin, end, derivative);
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  using Ops = hamfast::AttentionOps<hamfast::AttentionOnCpu>;
  m.impl("graph_attention", TORCH_BOX(&Ops::forward));
  m.impl("graph_attention_backward", TORCH_BOX(&Ops::backward));
  m.impl("graph_attention_double_backward", TORCH_BOX(&Ops::double_backward));
}
