#include <torch/csrc/stable/library.h>

#include "tensor_product/channel_cpu.h"
#include "tensor_product/path_kernel_isa.h"

namespace hamfast {

constexpr int64_t kMostParts = 64;

struct TensorProductOnCpu {
  using Guard = NoGuard;
  static constexpr bool kChannels = true;

  template <class T>
  static void paths(const TensorProductCall<T>& call, int64_t rows, const Tensor&) {
    parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(call.scratch_size);
      HAMFAST_ISA_CALL(tensor_product_rows, call, begin, end, scratch.data());
    });
  }

  template <class T>
  static void add_rows(const T* in, int64_t parts, int64_t n, T* out, int32_t) {
    add_rows_in_order(in, parts, n, out);
  }

  static std::vector<Tensor> channels(const TensorProductArguments& args) {
    if (args.any_operand().scalar_type() == ScalarType::Double) return channels_in<double>(args);
    return channels_in<float>(args);
  }

 private:
  template <class T>
  static std::vector<Tensor> channels_in(const TensorProductArguments& args) {
    const Tensor& like = args.any_operand();
    ChannelRun<T> run(args);
    std::vector<Tensor> out;
    for (int slot = 0; slot < 4; ++slot) {
      if (!args.wants(slot))
        out.push_back(torch::stable::new_empty(like, {0}));
      else if (args.reduces_all(slot))
        out.push_back(torch::stable::new_zeros(like, {args.dims[slot]}, run.kCompute));
      else
        out.push_back(run.new_output(slot));
    }
    if (args.wants(slot_g)) {
      run.by_receiver();
      run.forward(0, run.num_rows());
    }
    if (!args.wants(slot_x) && !args.wants(slot_y) && !args.wants(slot_w)) return out;
    run.by_sender();
    const int64_t parts = TensorProductArguments::parts_of(run.num_rows(), kMostParts);
    if (!args.wants(slot_w) || !args.shared_weights) {
      run.backward(0, run.num_rows(), parts);
      return out;
    }
    T* partial = run.new_compute(parts, args.dims[slot_w]);
    run.call.out[slot_w] = partial;
    run.backward(0, run.num_rows(), parts);
    add_rows_in_order(partial, parts, args.dims[slot_w], out[slot_w].mutable_data_ptr<T>());
    if (like.scalar_type() != run.kCompute) out[slot_w] = torch::stable::to(out[slot_w], like.scalar_type());
    return out;
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("tensor_product", TORCH_BOX(&hamfast::tensor_product<hamfast::TensorProductOnCpu>));
}
