#include <torch/csrc/stable/library.h>

#include "common/balance.h"
#include "common/host_pool.h"
#include "common/scratch.h"
#include "edge_update/edge_update_call.h"
#include "edge_update/edge_update_isa.h"

namespace hamfast {

struct EdgeUpdateOnCpu : OnCpu {
  static constexpr bool reads_half = false;
  static int64_t parts(int64_t) { return kParts; }

  template <class T>
  static void forward(const EdgeUpdateCall<T>& call, int32_t) {
    for_parts(call, [&](int64_t begin, int64_t end, int64_t, T* scratch) {
      HAMFAST_ISA_CALL(edge_update_rows, call, begin, end, scratch);
    });
  }

  template <class T>
  static void backward(const EdgeUpdateCall<T>& call, int32_t) {
    for_parts(call, [&](int64_t begin, int64_t end, int64_t part, T* scratch) {
      HAMFAST_ISA_CALL(edge_update_backward_rows, call, begin, end, part, scratch);
    });
  }

  template <class T>
  static void double_backward(const EdgeUpdateCall<T>& call, int32_t) {
    for_parts(call, [&](int64_t begin, int64_t end, int64_t part, T* scratch) {
      HAMFAST_ISA_CALL(edge_update_double_backward_rows, call, begin, end, part, scratch);
    });
  }

 private:
  template <class T, class F>
  static void for_parts(const EdgeUpdateCall<T>& call, F&& f) {
    for_balanced_rows({}, call.edges, [&](int64_t begin, int64_t end, int64_t part) {
      const Scratch<T> scratch(HAMFAST_ISA_CALL(edge_update_scratch, call));
      f(begin, end, part, scratch.data());
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  using Ops = hamfast::EdgeUpdateOps<hamfast::EdgeUpdateOnCpu>;
  m.impl("edge_update", TORCH_BOX(&Ops::forward));
  m.impl("edge_update_backward", TORCH_BOX(&Ops::backward));
  m.impl("edge_update_double_backward", TORCH_BOX(&Ops::double_backward));
}
