// Compiled once per instruction set. Nothing of the standard library may be inlined here: see
// kernels/common.cuh.
#include "edge_frame.cuh"

namespace hamfast::HAMFAST_ISA {

template <class T>
static void into(const FrameCall<T>& call, int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e) rotate_into_edge(Serial{}, call, e);
}

template <class T>
static void out_of(const FrameCall<T>& call, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) rotate_row(Serial{}, call, row);
}

template <class T>
static void add_groups(const MatrixCall<T>& call, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) add_matrix_group(Serial{}, call, n, 0, 1);
}

#define HAMFAST_DEFINE(T)                                                           \
  void rotate_into_frames(const FrameCall<T>& call, int64_t begin, int64_t end) {   \
    into(call, begin, end);                                                         \
  }                                                                                 \
  void rotate_out_of_frames(const FrameCall<T>& call, int64_t begin, int64_t end) { \
    out_of(call, begin, end);                                                       \
  }                                                                                 \
  void add_matrix_groups(const MatrixCall<T>& call, int64_t begin, int64_t end) {   \
    add_groups(call, begin, end);                                                   \
  }
HAMFAST_DEFINE(float)
HAMFAST_DEFINE(double)

}  // namespace hamfast::HAMFAST_ISA
