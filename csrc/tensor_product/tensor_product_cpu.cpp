#include <torch/csrc/stable/library.h>

#include "tensor_product/tensor_product_call.h"
#include "tensor_product/tensor_product_isa.h"

namespace hamfast {

struct TensorProductOnCpu {
  using Guard = NoGuard;

  template <class T>
  static void run(const TensorProductCall<T>& call, int64_t rows, const Tensor&) {
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(call.scratch_size);
      HAMFAST_ISA_CALL(tensor_product_rows, call, begin, end, scratch.data());
    });
  }

  // out[i] = sum_p in[p * n + i], in the order of p.
  template <class T>
  static void sum_rows(const T* in, int64_t parts, int64_t n, T* out, int32_t) {
    torch::stable::parallel_for(0, n, 16384, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out[i] = parts > 0 ? in[i] : T(0);
      for (int64_t p = 1; p < parts; ++p)
        for (int64_t i = begin; i < end; ++i) out[i] += in[p * n + i];
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("tensor_product", TORCH_BOX(&hamfast::tensor_product<hamfast::TensorProductOnCpu>));
}
