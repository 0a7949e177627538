#include <torch/csrc/stable/library.h>

#include "edge_frame/edge_frame_call.h"
#include "edge_frame/edge_frame_isa.h"

namespace hamfast {

struct EdgeFrameOnCpu {
  using Guard = NoGuard;
  static constexpr int64_t kGrain = 32;

  template <class T>
  static void rotate_into(const FrameCall<T>& call, int32_t) {
    torch::stable::parallel_for(0, call.edges, kGrain, [&](int64_t begin, int64_t end) {
      HAMFAST_ISA_CALL(rotate_into_frames, call, begin, end);
    });
  }

  template <class T>
  static void rotate_out(const FrameCall<T>& call, int64_t rows, int32_t) {
    torch::stable::parallel_for(0, rows, call.ptr ? 1 : kGrain, [&](int64_t begin, int64_t end) {
      HAMFAST_ISA_CALL(rotate_out_of_frames, call, begin, end);
    });
  }

  template <class T>
  static void add_groups(const MatrixCall<T>& call, int32_t) {
    torch::stable::parallel_for(0, call.groups, 1, [&](int64_t begin, int64_t end) {
      HAMFAST_ISA_CALL(add_matrix_groups, call, begin, end);
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  using Ops = hamfast::EdgeFrameOps<hamfast::EdgeFrameOnCpu>;
  m.impl("rotate_to_edge", TORCH_BOX(&hamfast::rotate_to_edge_boxed<Ops::rotate_to_edge>));
  m.impl("rotate_from_edge", TORCH_BOX(&hamfast::rotate_from_edge_boxed<Ops::rotate_from_edge>));
  m.impl("edge_frame_weights", TORCH_BOX(&hamfast::edge_frame_weights_boxed<Ops::weights>));
}
