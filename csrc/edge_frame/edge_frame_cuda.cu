// One warp per edge (rotations); a block per group of terms, its rows dealt to the warps (weights).
#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "edge_frame/edge_frame_call.h"

namespace hamfast {

template <class T>
__global__ void rotate_into_kernel(FrameCall<T> call) {
  for (int64_t e = blockIdx.x; e < call.edges; e += gridDim.x)
    HAMFAST_ISA::rotate_into_edge(HAMFAST_ISA::Warp{}, call, e);
}

template <class T>
__global__ void rotate_out_kernel(FrameCall<T> call, int64_t rows) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) HAMFAST_ISA::rotate_row(HAMFAST_ISA::Warp{}, call, row);
}

template <class T>
__global__ void matrix_groups_kernel(MatrixCall<T> call) {
  const int64_t warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  HAMFAST_ISA::add_matrix_group(HAMFAST_ISA::Warp{}, call, blockIdx.x, warp, warps);
}

struct EdgeFrameOnCuda {
  using Guard = LaunchGuard;

  template <class T>
  static void rotate_into(const FrameCall<T>& call, int32_t device) {
    if (call.edges == 0) return;
    launch("rotate_to_edge", rotate_into_kernel<T>, blocks_for(call.edges), kWarp, device, call);
  }

  template <class T>
  static void rotate_out(const FrameCall<T>& call, int64_t rows, int32_t device) {
    if (rows == 0) return;
    launch("rotate_from_edge", rotate_out_kernel<T>, blocks_for(rows), kWarp, device, call, rows);
  }

  template <class T>
  static void add_groups(const MatrixCall<T>& call, int32_t device) {
    if (call.groups == 0) return;
    launch("edge_frame_weights", matrix_groups_kernel<T>, call.groups, 8 * kWarp, device, call);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  using Ops = hamfast::EdgeFrameOps<hamfast::EdgeFrameOnCuda>;
  m.impl("rotate_to_edge", TORCH_BOX(&Ops::rotate_to_edge));
  m.impl("rotate_from_edge", TORCH_BOX(&Ops::rotate_from_edge));
  m.impl("edge_frame_weights", TORCH_BOX(&Ops::weights));
}
