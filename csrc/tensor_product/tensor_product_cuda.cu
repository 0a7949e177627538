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

// g absent: the product. Else its gradients in x, y and the weights.
std::tuple<Tensor, Tensor, Tensor, Tensor> tensor_product_from_hidden(Tensor x, Tensor y, Tensor hidden, Tensor matrix,
                                                                      std::optional<Tensor> g, HAMFAST_PLAN_AND_GRAPH,
                                                                      bool one_pass, int64_t x_layout, int64_t g_layout,
                                                                      std::vector<int64_t> dims) {
  const int64_t wanted = g.has_value() ? 1 << slot_x | 1 << slot_y | 1 << slot_w : 1 << slot_g;
  TensorProductArguments args{{x, y, matrix, g},
                              {},
                              HAMFAST_PLAN_AND_GRAPH_ARGUMENTS,
                              wanted,
                              hidden.size(0),
                              false,
                              x_layout,
                              g_layout,
                              dims,
                              hidden,
                              one_pass};
  args.make_contiguous();
  const LaunchGuard guard(x.get_device_index());
  std::vector<Tensor> out = TensorProductOnCuda::channels(args);
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  m.impl("tensor_product", TORCH_BOX(&hamfast::tensor_product<hamfast::TensorProductOnCuda>));
  m.impl("tensor_product_from_hidden", TORCH_BOX(&hamfast::tensor_product_from_hidden));
}
