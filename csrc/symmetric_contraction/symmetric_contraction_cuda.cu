#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/grid.h"
#include "symmetric_contraction/symmetric_contraction_call.h"

namespace hamfast {

struct SymmetricContractionOnCuda : OnCuda {
  // Warps at a time: each has scratch memory of its own, which the caches should hold.
  static constexpr int64_t kWarps = 1024;

  template <class T>
  static void run(const ContractionCall<T>& call, const Tensor& like, const Tensor& w,
                  const Tensor& grad_y) {
    const char* op = "symmetric_contraction";
    const int32_t device = like.get_device_index();
    const auto empty = [&](int64_t n) { return torch::stable::new_empty(like, {n}); };
    const int64_t paths = call.dims.paths;
    const auto entries = [&](const ContractionEntry* rows, const T* values, const int64_t* ptr,
                             const T* from, int64_t sources, T* to, int64_t targets) {
      constexpr int kThreads = 256;
      const int64_t elements = call.species * targets * call.channels;
      if (elements == 0) return;
      launch(op, contraction_entries_kernel<T>,
             Grid{blocks_for((elements + kThreads - 1) / kThreads)}, kThreads, device, rows, values,
             ptr, from, sources, to, targets, call.species, call.channels);
    };
    const int64_t tiles = (call.channels + kWarp - 1) / kWarp;
    const int64_t numbers = call.species * call.terms * call.channels;
    const Tensor coefficients = empty(numbers);
    entries(call.by_term, call.by_term_value, call.term_ptr, call.w, paths,
            coefficients.mutable_data_ptr<T>(), call.terms);
    const auto with_scratch = [&](void (*kernel)(ContractionCall<T>, const T*, T*), int64_t tasks) {
      if (tasks == 0) return;
      const int64_t blocks = std::min(tasks, kWarps);
      const Tensor scratch = empty(blocks * kWarp * (4 * call.monomials() + call.dims.g));
      launch(op, kernel, Grid{blocks}, kWarp, device, call,
             static_cast<const T*>(coefficients.mutable_data_ptr<T>()),
             scratch.mutable_data_ptr<T>());
    };
    if (call.grad_g || call.grad_x) with_scratch(contraction_kernel<T>, call.nodes * tiles);
    if (call.grad_y) with_scratch(contraction_species_kernel<T>, call.nodes * call.species);
    if (!call.grad_w) return;
    const Tensor grad = empty(numbers);
    const int64_t tasks = call.species * call.num_groups * tiles;
    if (tasks > 0)
      launch(op, contraction_coefficients_kernel<T>, Grid{blocks_for(tasks)}, kWarp, device, call,
             grad.mutable_data_ptr<T>());
    entries(call.by_path, call.by_path_value, call.path_ptr, grad.const_data_ptr<T>(), call.terms,
            call.grad_w.data, paths);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  m.impl("symmetric_contraction",
         TORCH_BOX(&hamfast::symmetric_contraction_boxed<
                   hamfast::SymmetricContractionOp<hamfast::SymmetricContractionOnCuda>::run>));
}
