#include <torch/csrc/stable/library.h>

#include "common/balance.h"
#include "common/host_pool.h"
#include "common/scratch.h"
#include "edge_update/edge_update_call.h"
#include "edge_update/edge_update_isa.h"

namespace hamfast {

struct EdgeUpdateOnCpu : OnCpu {
  static constexpr bool reads_half = false;
  static int64_t chunks(int64_t) { return kChunks; }

  template <class T>
  static void forward(const EdgeUpdateCall<T>& call, int32_t) {
    for_chunks(call, [&](int64_t begin, int64_t end, int64_t, T* scratch) {
      HAMFAST_ISA_CALL(edge_update_rows, call, begin, end, scratch);
    });
  }

  template <class T>
  static void backward(const EdgeUpdateCall<T>& call, int32_t) {
    for_chunks(call, [&](int64_t begin, int64_t end, int64_t chunk, T* scratch) {
      HAMFAST_ISA_CALL(edge_update_backward_rows, call, begin, end, chunk, scratch);
    });
  }

  template <class T>
  static void double_backward(const EdgeUpdateCall<T>& call, int32_t) {
    for_chunks(call, [&](int64_t begin, int64_t end, int64_t chunk, T* scratch) {
      HAMFAST_ISA_CALL(edge_update_double_backward_rows, call, begin, end, chunk, scratch);
    });
  }

 private:
  template <class T, class F>
  static void for_chunks(const EdgeUpdateCall<T>& call, F&& f) {
    for_balanced_rows({}, call.edges, [&](int64_t begin, int64_t end, int64_t chunk) {
      const Scratch<T> scratch(HAMFAST_ISA_CALL(edge_update_scratch, call));
      f(begin, end, chunk, scratch.data());
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  using Ops = hamfast::EdgeUpdateOps<hamfast::EdgeUpdateOnCpu>;
  m.impl("edge_update", TORCH_BOX(&hamfast::edge_update_boxed<Ops::forward>));
  m.impl("edge_update_backward", TORCH_BOX(&hamfast::edge_update_backward_boxed<Ops::backward>));
  m.impl("edge_update_double_backward",
         TORCH_BOX(&hamfast::edge_update_double_backward_boxed<Ops::double_backward>));
}
