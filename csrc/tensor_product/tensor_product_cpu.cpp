#include <torch/csrc/stable/library.h>

#include "tensor_product/channel_cpu.h"
#include "tensor_product/general_isa.h"

namespace hamfast {

constexpr int64_t kMostChunks = 64;

struct TensorProductOnCpu {
  using Guard = NoGuard;

  template <class T>
  static void general(const GeneralCall<T>& call, int64_t rows, const Tensor&) {
    parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(call.scratch_size);
      HAMFAST_ISA_CALL(general_rows, call, begin, end, scratch.data());
    });
  }

  template <class T>
  static void add_rows(const T* in, int64_t chunks, int64_t n, T* out, int32_t) {
    add_rows_in_order(in, chunks, n, out);
  }

  static std::vector<Tensor> channel(const ProductArguments& args) {
    if (args.any_operand().scalar_type() == ScalarType::Double) return channel_in<double>(args);
    return channel_in<float>(args);
  }

 private:
  template <class T>
  static std::vector<Tensor> channel_in(const ProductArguments& args) {
    const Tensor& like = args.any_operand();
    ChannelRun<T> run(args);
    std::vector<Tensor> out;
    for (int slot = 0; slot < 4; ++slot) {
      if (!args.wants(slot))
        out.push_back(torch::stable::new_empty(like, {0}));
      else if (args.reduces_all(slot))
        out.push_back(torch::stable::new_zeros(like, {args.dim(slot)}, run.kCompute));
      else
        out.push_back(run.new_output(slot));
    }
    if (args.wants(slot_g)) {
      run.by_receiver();
      run.forward(0, run.num_rows());
    }
    if (!args.wants(slot_x) && !args.wants(slot_y) && !args.wants(slot_w)) return out;
    run.by_sender();
    const int64_t chunks = ProductArguments::chunks_of(run.num_rows(), kMostChunks);
    if (!args.wants(slot_w) || !args.shared_weights) {
      run.backward(0, run.num_rows(), chunks);
      return out;
    }
    T* partial = run.new_compute(chunks, args.dims.w);
    run.call.out[slot_w] = partial;
    run.backward(0, run.num_rows(), chunks);
    add_rows_in_order(partial, chunks, args.dims.w, out[slot_w].mutable_data_ptr<T>());
    if (like.scalar_type() != run.kCompute)
      out[slot_w] = torch::stable::to(out[slot_w], like.scalar_type());
    return out;
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("tensor_product",
         TORCH_BOX(
             &hamfast::tensor_product_boxed<hamfast::tensor_product<hamfast::TensorProductOnCpu>>));
}
