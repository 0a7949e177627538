#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/host_pool.h"
#include "common/matmul.h"
#include "symmetric_contraction/symmetric_contraction_call.h"
#include "symmetric_contraction/symmetric_contraction_isa.h"

namespace hamfast {

struct SymmetricContractionOnCpu : OnCpu {
  static constexpr int64_t kRunNodes = 128;  // at most: what a thread does at once

  // The one species of a node, or -1 if its weights are a mixture.
  template <class T>
  static int64_t species_of(const ContractionCall<T>& call, int64_t node) {
    const T* y = call.y + node * call.species;
    int64_t found = -1;
    for (int64_t s = 0; s < call.species; ++s) {
      if (y[s] == T(0)) continue;
      if (y[s] != T(1) || found >= 0) return -1;
      found = s;
    }
    return found;
  }

  // Nodes of a species side by side, then the mixtures: cut into runs that share their weights. For
  // the gradient in y every node has a run of its own.
  template <class T>
  static std::vector<ContractionRun> runs_of(const ContractionCall<T>& call,
                                             std::vector<int64_t>& order) {
    std::vector<std::pair<int64_t, int64_t>> keys;
    for (int64_t n = 0; n < call.nodes; ++n) {
      const int64_t species = call.grad_y ? -1 : species_of(call, n);
      keys.push_back({species < 0 ? call.species : species, n});
    }
    std::sort(keys.begin(), keys.end());
    std::vector<ContractionRun> runs;
    for (const auto& [species, node] : keys) {
      const int64_t at = static_cast<int64_t>(order.size());
      order.push_back(node);
      const bool mixture = species == call.species;
      if (!mixture && !runs.empty() && runs.back().species == species &&
          at - runs.back().first < kRunNodes)
        runs.back().last = at + 1;
      else
        runs.push_back({at, at + 1, mixture ? -1 : species});
    }
    return runs;
  }

  template <class T>
  static void run(const ContractionCall<T>& call, const Tensor& like, const Tensor& w,
                  const Tensor& grad_y) {
    std::vector<int64_t> order;
    const std::vector<ContractionRun> found = runs_of(call, order);
    const int64_t count = static_cast<int64_t>(found.size());
    const int64_t weights = call.dims.paths * call.channels;
    const bool weighs = call.grad_w || call.grad_y;
    const Tensor grad = weighs ? pooled_empty({count, weights}, like.scalar_type())
                               : torch::stable::new_empty(like, {0});
    ContractionRuns<T> runs{found.data(), order.data(), {}};
    if (weighs) runs.grad = grad.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, count * tasks_of<T>(call.channels), 1,
                                [&](int64_t begin, int64_t end) {
                                  HAMFAST_ISA_CALL(contraction_tasks, call, runs, begin, end);
                                });
    if (call.grad_w) add_runs(call, found, order, grad.const_data_ptr<T>());
    if (call.grad_y) {  // the runs are the nodes, in order
      const Tensor rows = torch::stable::reshape(w, {call.species, weights});
      multiply_into(grad, torch::stable::transpose(rows, 0, 1), grad_y);
    }
  }

  // From the gradients in the runs' weights to those in the species', run after run.
  template <class T>
  static void add_runs(const ContractionCall<T>& call, const std::vector<ContractionRun>& runs,
                       const std::vector<int64_t>& order, const T* grad) {
    constexpr int64_t kColumns = 1024;
    const int64_t weights = call.dims.paths * call.channels;
    const int64_t pieces = (weights + kColumns - 1) / kColumns;
    torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t first = piece * kColumns, n = std::min(kColumns, weights - first);
        const auto add = [&](int64_t species, size_t run, T factor) {
          const T* from = grad + static_cast<int64_t>(run) * weights + first;
          T* to = call.grad_w + species * weights + first;
          for (int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
        };
        for (int64_t s = 0; s < call.species; ++s)
          std::fill_n(call.grad_w + s * weights + first, n, T(0));
        for (size_t r = 0; r < runs.size(); ++r) {
          if (runs[r].species >= 0) {
            add(runs[r].species, r, T(1));
            continue;
          }
          const T* y = call.y + order[static_cast<size_t>(runs[r].first)] * call.species;
          for (int64_t s = 0; s < call.species; ++s)
            if (y[s] != T(0)) add(s, r, y[s]);
        }
      }
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("symmetric_contraction",
         TORCH_BOX(&hamfast::symmetric_contraction_boxed<
                   hamfast::SymmetricContractionOp<hamfast::SymmetricContractionOnCpu>::run>));
}
