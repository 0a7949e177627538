// Compiled once per instruction set. Nothing of the standard library may be inlined here: see kernels/common.cuh.
#include "edge_frame.cuh"

namespace hamfast::HAMFAST_ISA {

template <class T>
static void rotate(const FrameCall<T>& call, int64_t begin, int64_t end, bool into_frame) {
  for (int64_t e = begin; e < end; ++e) {
    if (into_frame)
      rotate_edge<true>(Serial{}, call, e);
    else
      rotate_edge<false>(Serial{}, call, e);
  }
}

template <class T>
static void add_terms(const MatrixTerm* terms, const double* factors, int64_t count, bool transpose, const T* in,
                      T* out) {
  for (int64_t n = 0; n < count; ++n) add_matrix_term(Serial{}, terms[n], T(factors[n]), transpose, in, out);
}

void rotate_edges(const FrameCall<float>& call, int64_t begin, int64_t end, bool into_frame) {
  rotate(call, begin, end, into_frame);
}
void rotate_edges(const FrameCall<double>& call, int64_t begin, int64_t end, bool into_frame) {
  rotate(call, begin, end, into_frame);
}
void add_matrix_terms(const MatrixTerm* terms, const double* factors, int64_t count, bool transpose, const float* in,
                      float* out) {
  add_terms(terms, factors, count, transpose, in, out);
}
void add_matrix_terms(const MatrixTerm* terms, const double* factors, int64_t count, bool transpose, const double* in,
                      double* out) {
  add_terms(terms, factors, count, transpose, in, out);
}

}  // namespace hamfast::HAMFAST_ISA
