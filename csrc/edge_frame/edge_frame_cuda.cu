// One warp per edge (rotations) or per term (weights).
#include <torch/csrc/stable/library.h>

#include "common/cuda_launch.h"
#include "edge_frame/edge_frame_call.h"

namespace hamfast {

template <class T>
__global__ void rotate_kernel(FrameCall<T> call, bool into_frame) {
  for (int64_t e = blockIdx.x; e < call.edges; e += gridDim.x) {
    if (into_frame)
      HAMFAST_ISA::rotate_edge<true>(HAMFAST_ISA::Warp{}, call, e);
    else
      HAMFAST_ISA::rotate_edge<false>(HAMFAST_ISA::Warp{}, call, e);
  }
}

// Terms of one matrix overlap, so a single warp walks all of them in order.
template <class T>
__global__ void matrix_terms_kernel(const MatrixTerm* terms, const double* factors, int64_t count, bool transpose,
                                    const T* in, T* out) {
  for (int64_t n = 0; n < count; ++n) {
    HAMFAST_ISA::add_matrix_term(HAMFAST_ISA::Warp{}, terms[n], T(factors[n]), transpose, in, out);
    __syncwarp();
  }
}

struct EdgeFrameOnCuda {
  using Guard = torch::stable::accelerator::DeviceGuard;

  template <class T>
  static void rotate(const FrameCall<T>& call, bool into_frame, int32_t device) {
    if (call.edges == 0) return;
    rotate_kernel<T><<<blocks_for(call.edges), kWarp, 0, current_stream(device)>>>(call, into_frame);
    check_launch(into_frame ? "rotate_to_edge" : "rotate_from_edge");
  }

  template <class T>
  static void add_terms(const MatrixTerm* terms, const double* factors, int64_t count, bool transpose, const T* in,
                        T* out, int32_t device) {
    matrix_terms_kernel<T><<<1, kWarp, 0, current_stream(device)>>>(terms, factors, count, transpose, in, out);
    check_launch("edge_frame_weights");
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CUDA, m) {
  using Ops = hamfast::EdgeFrameOps<hamfast::EdgeFrameOnCuda>;
  m.impl("rotate_to_edge", TORCH_BOX(&Ops::rotate_to_edge));
  m.impl("rotate_from_edge", TORCH_BOX(&Ops::rotate_from_edge));
  m.impl("edge_frame_weights", TORCH_BOX(&Ops::weights));
}
