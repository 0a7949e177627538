#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/grid.h"
#include "symmetric_contraction/symmetric_contraction_call.h"

namespace hamfast {

struct SymmetricContractionOnCuda : OnCuda {
  // A warp's lanes have their numbers in shared memory, up to this size: what every GPU since sm_80
  // has twice. Larger ones lie in scratch memory, for so many warps at a time that the caches help.
  static constexpr int64_t kMostShared = 80 << 10, kWarps = 1024;

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
    using Kernel = void (*)(ContractionCall<T>, const T*, T*);
    const auto in_lanes = [&](Kernel with_shared, Kernel with_scratch, int64_t tasks) {
      if (tasks == 0) return;
      const int64_t numbers_of_warp = kWarp * ContractionLane<T>::rows(call);
      const int64_t bytes = numbers_of_warp * static_cast<int64_t>(sizeof(T));
      const bool shared = bytes <= kMostShared;
      const Grid grid{shared ? blocks_for(tasks) : std::min(tasks, kWarps), 1, shared ? bytes : 0};
      const Tensor scratch = empty(shared ? 0 : grid.x * numbers_of_warp);
      launch(op, shared ? with_shared : with_scratch, grid, kWarp, device, call,
             static_cast<const T*>(coefficients.mutable_data_ptr<T>()),
             scratch.mutable_data_ptr<T>());
    };
    if (call.grad_g || call.grad_x)
      in_lanes(contraction_kernel<T, true>, contraction_kernel<T, false>, call.nodes * tiles);
    if (call.grad_y)
      in_lanes(contraction_species_kernel<T, true>, contraction_species_kernel<T, false>,
               call.nodes * call.species);
    if (!call.grad_w) return;
    const auto transposed = [&](const T* from) {
      constexpr int kThreads = 256;
      const int64_t size = call.nodes * call.channels * call.dims.x;
      Tensor to = empty(size);
      if (size > 0)
        launch(op, contraction_transpose_kernel<T>,
               Grid{blocks_for((size + kThreads - 1) / kThreads)}, kThreads, device, from,
               to.mutable_data_ptr<T>(), call.nodes, call.channels, call.dims.x);
      return to;
    };
    const Tensor grad = empty(numbers), by_channel = transposed(call.x);
    const Tensor along_by_channel = call.direction ? transposed(call.direction.data) : empty(0);
    const int64_t tasks = call.species * call.num_groups * tiles;
    if (tasks > 0)
      launch(op, contraction_coefficients_kernel<T>, Grid{blocks_for(tasks)}, kWarp, device, call,
             by_channel.const_data_ptr<T>(), along_by_channel.const_data_ptr<T>(),
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
