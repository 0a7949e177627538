// The general kernel: one warp per output row, scratch in global memory, right for every plan. What
// is channel-wise has a kernel of its own, compiled for each plan when it is first needed.
#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "tensor_product/channel_cuda.h"
#include "tensor_product/tensor_product_call.h"

namespace hamfast {

// Scratch is per block, so fewer blocks than rows.
constexpr int64_t kScratchBlocks = 2048;

struct TensorProductOnCuda {
  using Guard = LaunchGuard;

  template <class T>
  static void general(const GeneralCall<T>& call, int64_t rows, const Tensor& like) {
    if (rows == 0) return;
    const int64_t blocks = rows < kScratchBlocks ? rows : kScratchBlocks;
    Tensor scratch = torch::stable::new_empty(like, {blocks * call.scratch_size});
    launch("general", general_kernel<T>, Grid{blocks}, kWarp, like.get_device_index(), call, rows,
           scratch.mutable_data_ptr<T>());
  }

  static std::vector<Tensor> channel(const ProductArguments& args) {
    return ChannelCuda(args).run();
  }

  template <class T>
  static void add_rows(const T* in, int64_t chunks, int64_t n, T* out, int32_t device) {
    hamfast::add_rows(in, chunks, n, out, device);
  }
};

// g absent: the product. Else its gradients in x, y and the weights.
std::tuple<Tensor, Tensor, Tensor, Tensor> tensor_product_from_hidden(
    const TensorProductFromHiddenArguments& given) {
  ProductArguments args(given, given.operands.matrix);
  args.hidden = torch::stable::contiguous(given.operands.hidden);
  args.one_pass = given.one_pass;
  const LaunchGuard guard(given.operands.x.get_device_index());
  std::vector<Tensor> out = TensorProductOnCuda::channel(args);
  return {out[slot_x], out[slot_y], out[slot_w], out[slot_g]};
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  m.impl(
      "tensor_product",
      TORCH_BOX(
          &hamfast::tensor_product_boxed<hamfast::tensor_product<hamfast::TensorProductOnCuda>>));
  m.impl(
      "tensor_product_from_hidden",
      TORCH_BOX(&hamfast::tensor_product_from_hidden_boxed<hamfast::tensor_product_from_hidden>));
}
