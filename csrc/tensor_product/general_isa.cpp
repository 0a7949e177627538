// Compiled once per instruction set. Nothing of the standard library may be inlined here: see
// kernels/common.cuh.
#include "general.cuh"

namespace hamfast::HAMFAST_ISA {

template <class T>
static void rows(const GeneralCall<T>& call, int64_t begin, int64_t end, T* scratch) {
  for (int64_t row = begin; row < end; ++row) general_row(Serial{}, call, row, scratch);
}

void general_rows(const GeneralCall<float>& call, int64_t begin, int64_t end, float* scratch) {
  rows(call, begin, end, scratch);
}
void general_rows(const GeneralCall<double>& call, int64_t begin, int64_t end, double* scratch) {
  rows(call, begin, end, scratch);
}

}  // namespace hamfast::HAMFAST_ISA
