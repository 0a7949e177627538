// One warp per output row, scratch in global memory: right for every plan, not yet fast.
#include <torch/csrc/stable/library.h>

#include "common/cuda_launch.h"
#include "tensor_product/tensor_product_call.h"

namespace hamfast {

// Scratch is per block, so fewer blocks than rows.
constexpr int64_t kScratchBlocks = 2048;

template <class T>
__global__ void tensor_product_kernel(TensorProductCall<T> call, int64_t rows, T* scratch) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    HAMFAST_ISA::tensor_product_row(HAMFAST_ISA::Warp{}, call, row, scratch + blockIdx.x * call.scratch_size);
}

template <class T>
__global__ void add_rows_kernel(const T* in, int64_t parts, int64_t n, T* out) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    T total = out[i];
    for (int64_t p = 0; p < parts; ++p) total += in[p * n + i];
    out[i] = total;
  }
}

struct TensorProductOnCuda {
  using Guard = torch::stable::accelerator::DeviceGuard;
  static constexpr bool kChannels = false;

  template <class T>
  static void paths(const TensorProductCall<T>& call, int64_t rows, const Tensor& like) {
    if (rows == 0) return;
    const int64_t blocks = rows < kScratchBlocks ? rows : kScratchBlocks;
    Tensor scratch = torch::stable::new_empty(like, {blocks * call.scratch_size});
    tensor_product_kernel<T><<<static_cast<unsigned>(blocks), kWarp, 0, current_stream(like.get_device_index())>>>(
        call, rows, scratch.mutable_data_ptr<T>());
    check_launch("tensor_product");
  }

  static std::vector<Tensor> channels(const TensorProductArguments&) { return {}; }

  template <class T>
  static void add_rows(const T* in, int64_t parts, int64_t n, T* out, int32_t device) {
    if (n == 0) return;
    add_rows_kernel<T><<<blocks_for((n + 255) / 256), 256, 0, current_stream(device)>>>(in, parts, n, out);
    check_launch("tensor_product");
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CUDA, m) {
  m.impl("tensor_product", TORCH_BOX(&hamfast::tensor_product<hamfast::TensorProductOnCuda>));
}
