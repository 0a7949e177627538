#pragma once

#include "common/isa.h"
#include "symmetric_contraction.cuh"

namespace hamfast {

// Nodes [first, last) of an order that share their weights: those of a species, or of a node
// (species -1), which are mixed by its row of y.
struct ContractionRun {
  int64_t first, last, species;
};

template <class T>
struct ContractionRuns {
  const ContractionRun* runs;
  const int64_t* order;
  Maybe<T> grad;  // [runs, paths, channels]: gradients in each run's weights
};

// A task is a run for so many channels.
template <class T>
constexpr int64_t kTaskChannels = 64 / static_cast<int64_t>(sizeof(T));
template <class T>
constexpr int64_t tasks_of(int64_t channels) {
  return (channels + kTaskChannels<T> - 1) / kTaskChannels<T>;
}

}  // namespace hamfast

// Tasks [begin, end), one thread: run after run, within each its channels.
#define HAMFAST_DECLARE_FOR(T)                                                           \
  void contraction_tasks(const ContractionCall<T>& call, const ContractionRuns<T>& runs, \
                         int64_t begin, int64_t end);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
