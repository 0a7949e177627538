// Compiled once per instruction set. Only <cmath> of the standard library: see kernels/common.cuh.
#include "graph_attention.cuh"

namespace hamfast::HAMFAST_ISA {

template <class T>
static void nodes(const AttentionCall<T>& call, int64_t begin, int64_t end, int derivative) {
  for (int64_t node = begin; node < end; ++node) {
    if (derivative == 0)
      attention_forward(Serial{}, call, node);
    else
      attention_backward(Serial{}, call, node, derivative == 2);
  }
}

void attention_nodes(const AttentionCall<float>& call, int64_t begin, int64_t end, int derivative) {
  nodes(call, begin, end, derivative);
}
void attention_nodes(const AttentionCall<double>& call, int64_t begin, int64_t end, int derivative) {
  nodes(call, begin, end, derivative);
}

}  // namespace hamfast::HAMFAST_ISA
