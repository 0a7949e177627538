// Runs the CPU kernel of symmetric_contraction outside of torch, on buffers of exactly the right
// size, for the sanitizers.
//   run_contraction CASE RESULTS THREADS
// CASE: arrays as tests/kernels/test_sanitizers.py writes them; RESULTS: the result, the gradient
// in x, and those in the weights of each run; then the same along the direction.

#include "cpp/case_file.h"
#include "cpp/in_threads.h"
#include "symmetric_contraction/symmetric_contraction_isa.cpp"

using namespace hamfast;
using T = double;

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::vector<Array> a = read_arrays(argv[1]);
  const int threads = std::atoi(argv[3]);
  // The order of the file.
  enum {
    kSizes,  // nodes, channels, species
    kDims,
    kX,
    kY,
    kW,
    kG,
    kDirection,
    kRuns,
    kOrder,
    kProducts,
    kGroups,
    kBuckets,
    kFactors,
    kByPath,
    kByPathValue,
    kByTerm,
    kByTermValue,
    kBlocks
  };
  const int64_t* sizes = a[kSizes].as<int64_t>();
  ContractionCall<T> call{};
  call.nodes = sizes[0], call.channels = sizes[1], call.species = sizes[2];
  call.dims = *a[kDims].as<ContractionDims>();
  call.x = a[kX].as<T>(), call.y = a[kY].as<T>(), call.w = a[kW].as<T>();
  call.g = a[kG].maybe<const T>();
  call.products = a[kProducts].as<Product>(), call.groups = a[kGroups].as<ContractionGroup>();
  call.buckets = a[kBuckets].as<int64_t>(), call.factors = a[kFactors].as<int64_t>();
  call.by_path = a[kByPath].as<ContractionEntry>(),
  call.by_term = a[kByTerm].as<ContractionEntry>();
  call.by_path_value = a[kByPathValue].as<T>(), call.by_term_value = a[kByTermValue].as<T>();
  call.blocks = a[kBlocks].as<ContractionBlock>();
  call.num_products = a[kProducts].size<Product>(),
  call.num_groups = a[kGroups].size<ContractionGroup>();
  call.terms = a[kFactors].size<int64_t>(), call.entries = a[kByPathValue].size<T>();
  call.num_blocks = a[kBlocks].size<ContractionBlock>();
  const int64_t count = a[kRuns].size<ContractionRun>();

  std::vector<Array> results;
  for (const bool along : {false, true}) {
    const Array out = poisoned(a[kG].bytes), grad_x = poisoned(a[kX].bytes);
    const Array grad =
        poisoned(count * call.dims.paths * call.channels * static_cast<int64_t>(sizeof(T)));
    // All at once, then the result alone, as each is another kernel.
    for (const bool everything : {false, true}) {
      ContractionCall<T> given = call;
      if (along) given.direction = a[kDirection].maybe<const T>();
      given.grad_g = out.as<T>();
      ContractionRuns<T> runs{a[kRuns].as<ContractionRun>(), a[kOrder].as<int64_t>(), {}};
      if (everything) given.grad_x = grad_x.as<T>(), runs.grad = grad.as<T>();
      in_threads(threads, count * tasks_of<T>(call.channels), [&](int64_t begin, int64_t end) {
        HAMFAST_ISA::contraction_tasks(given, runs, begin, end);
      });
    }
    for (const Array& made : {out, grad_x, grad}) results.push_back(made);
  }
  write_arrays(argv[2], results);
}
