#include <torch/csrc/stable/library.h>

#include "common/balance.h"
#include "common/host_pool.h"
#include "edge_einsum/edge_einsum_call.h"
#include "edge_einsum/edge_einsum_isa.h"

namespace hamfast {

struct EdgeEinsumOnCpu : OnCpu {
  template <class T>
  static void run(const EdgeEinsumCall<T>& call, int32_t) {
    for_balanced_rows(call.ptr, call.rows, [&](int64_t begin, int64_t end, int64_t) {
      HAMFAST_ISA_CALL(edge_einsum_rows, call, begin, end);
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl(
      "edge_einsum",
      TORCH_BOX(&hamfast::edge_einsum_boxed<hamfast::EdgeEinsumOp<hamfast::EdgeEinsumOnCpu>::run>));
}
