// The general kernel: one warp per output row, scratch in global memory, right for every plan. What is channel-wise has
// a kernel of its own, compiled for each plan when it is first needed.
#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "tensor_product/channel_cuda.h"
#include "tensor_product/tensor_product_call.h"

namespace hamfast {

// Scratch is per block, so fewer blocks than rows.
constexpr int64_t kScratchBlocks = 2048;

struct TensorProductOnCuda {
  using Guard = LaunchGuard;
  static constexpr bool kChannels = true;

  template <class T>
  static void paths(const TensorProductCall<T>& call, int64_t rows, const Tensor& like) {
    if (rows == 0) return;
    const int64_t blocks = rows < kScratchBlocks ? rows : kScratchBlocks;
    Tensor scratch = torch::stable::new_empty(like, {blocks * call.scratch_size});
    launch("tensor_product", tensor_product_kernel<T>, Grid{blocks}, kWarp, like.get_device_index(), call, rows,
           scratch.mutable_data_ptr<T>());
  }

  static std::vector<Tensor> channels(const TensorProductArguments& args) { return ChannelCuda(args).run(); }

  template <class T>
  static void add_rows(const T* in, int64_t parts, int64_t n, T* out, int32_t device) {
    hamfast::add_rows(in, parts, n, out, device);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  m.impl("tensor_product", TORCH_BOX(&hamfast::tensor_product<hamfast::TensorProductOnCuda>));
}
