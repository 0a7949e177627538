// Rotations: kernels/edge_frame.cuh. Weights: a block of threads per group of terms, its rows dealt
// to the warps.
#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "edge_frame/edge_frame_call.h"

namespace hamfast {

struct EdgeFrameOnCuda {
  using Guard = LaunchGuard;

  template <class T>
  static void rotate_into(const FrameCall<T>& call, int32_t device) {
    rotate<true>("rotate_to_edge", call, call.edges, device);
  }

  template <class T>
  static void rotate_out(const FrameCall<T>& call, int64_t rows, int32_t device) {
    rotate<false>("rotate_from_edge", call, rows, device);
  }

  template <class T>
  static void add_groups(const MatrixCall<T>& call, int32_t device) {
    if (call.groups == 0) return;
    launch("edge_frame_weights", matrix_groups_kernel<T>, Grid{call.groups}, 8 * kWarp, device,
           call);
  }

 private:
  template <bool kIntoFrame, class T>
  static void rotate(const char* op, const FrameCall<T>& call, int64_t rows, int32_t device) {
    int64_t blocks = 0;
    for (int s = 0; s < kMaxSources; ++s) blocks += call.num_blocks[s];
    if (rows * blocks == 0) return;
    const Grid grid{(rows + kRotateRows - 1) / kRotateRows, blocks};
    launch(op, rotate_kernel<kIntoFrame, T>, grid, kRotateThreads, device, call, rows);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  using Ops = hamfast::EdgeFrameOps<hamfast::EdgeFrameOnCuda>;
  m.impl("rotate_to_edge", TORCH_BOX(&hamfast::rotate_to_edge_boxed<Ops::rotate_to_edge>));
  m.impl("rotate_from_edge", TORCH_BOX(&hamfast::rotate_from_edge_boxed<Ops::rotate_from_edge>));
  m.impl("edge_frame_weights", TORCH_BOX(&hamfast::edge_frame_weights_boxed<Ops::weights>));
}
