// Compiled once per instruction set. Nothing of the standard library may be inlined here: see kernels/common.cuh.
#include "tensor_product.cuh"

namespace hamfast::HAMFAST_ISA {

template <class T>
static void rows(const TensorProductCall<T>& call, int64_t begin, int64_t end, T* scratch) {
  for (int64_t row = begin; row < end; ++row) tensor_product_row(Serial{}, call, row, scratch);
}

void tensor_product_rows(const TensorProductCall<float>& call, int64_t begin, int64_t end, float* scratch) {
  rows(call, begin, end, scratch);
}
void tensor_product_rows(const TensorProductCall<double>& call, int64_t begin, int64_t end, double* scratch) {
  rows(call, begin, end, scratch);
}

}  // namespace hamfast::HAMFAST_ISA
