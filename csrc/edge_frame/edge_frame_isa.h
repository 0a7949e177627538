#pragma once

#include "common/isa.h"
#include "edge_frame.cuh"

#define HAMFAST_DECLARE_FOR(T)                                                     \
  void rotate_into_frames(const FrameCall<T>& call, int64_t begin, int64_t end);   \
  void rotate_out_of_frames(const FrameCall<T>& call, int64_t begin, int64_t end); \
  void add_matrix_groups(const MatrixCall<T>& call, int64_t begin, int64_t end);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
