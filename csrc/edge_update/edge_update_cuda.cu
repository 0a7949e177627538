#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "edge_update.cuh"
#include "edge_update/edge_update_call.h"

namespace hamfast {

struct EdgeUpdateOnCuda : OnCuda {
  static constexpr bool reads_half = true;
  // Of which each group of lanes sums one: as many as fill a GPU, of 16 edges at least.
  static int64_t chunks(int64_t edges) {
    return edges < 16 * kMaxChunks ? (edges + 15) / 16 : kMaxChunks;
  }

  template <class T, class Stored>
  static void forward(EdgeUpdateCall<T, Stored> call, int32_t device) {
    call.packed = is_packed(call);
    run(edge_update_kernel<T, Stored>, call, call.edges, device);
  }
  template <class T, class Stored>
  static void backward(EdgeUpdateCall<T, Stored> call, int32_t device) {
    call.packed = is_packed(call);
    run(edge_update_gradients_kernel<T, Stored, false>, call, call.chunks, device);
  }
  template <class T, class Stored>
  static void double_backward(EdgeUpdateCall<T, Stored> call, int32_t device) {
    call.packed = is_packed(call);
    run(edge_update_gradients_kernel<T, Stored, true>, call, call.chunks, device);
  }

 private:
  static constexpr int64_t kMaxChunks = 4096;

  template <class T, class Stored>
  static bool is_packed(const EdgeUpdateCall<T, Stored>& c) {
    return c.width() % kColumns == 0 &&
           are_aligned(c.sum.part[0], c.sum.part[1], c.sum.part[2], c.out, c.grad, c.grad_sum,
                       c.tangent_sum, c.grad_grad) &&
           are_aligned(c.weight, c.bias, c.grad_norm, c.tangent_norm);
  }

  // A group of lanes per item.
  template <class T, class Stored>
  static void run(void (*kernel)(EdgeUpdateCall<T, Stored>), const EdgeUpdateCall<T, Stored>& call,
                  int64_t items, int32_t device) {
    if (items == 0 || call.width() == 0) return;
    constexpr int64_t kThreads = kWarp * kUpdateWarps;
    const int64_t threads = items * update_lanes(call.width());
    launch("edge_update", kernel, Grid{blocks_for((threads + kThreads - 1) / kThreads)}, kThreads,
           device, call);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  using Ops = hamfast::EdgeUpdateOps<hamfast::EdgeUpdateOnCuda>;
  m.impl("edge_update", TORCH_BOX(&hamfast::edge_update_boxed<Ops::forward>));
  m.impl("edge_update_backward", TORCH_BOX(&hamfast::edge_update_backward_boxed<Ops::backward>));
  m.impl("edge_update_double_backward",
         TORCH_BOX(&hamfast::edge_update_double_backward_boxed<Ops::double_backward>));
}
