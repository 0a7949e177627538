// Runs the CPU kernels of row_matmul and edge_outer outside of torch, on buffers of exactly the
// right size, for the sanitizers.
//   run_row_products CASE RESULTS THREADS
// CASE: arrays as tests/kernels/test_sanitizers.py writes them; RESULTS: C, A and B of row_matmul,
// then node, factor and channels of edge_outer.
#include "cpp/case_file.h"
#include "cpp/in_threads.h"
#include "edge_outer/edge_outer_isa.cpp"
#include "row_matmul/row_matmul_isa.cpp"

using namespace hamfast;
using T = double;

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::vector<Array> a = read_arrays(argv[1]);
  const int threads = std::atoi(argv[3]);
  // The order of the file.
  enum {
    kRows,
    kTasks,
    kDims,
    kA,
    kB,
    kC,
    kWidth,
    kBlocks,
    kOrder,
    kPtr,
    kNode,
    kFactor,
    kChannels
  };
  const Array made_a = poisoned(a[kA].bytes), made_b = poisoned(a[kB].bytes),
              made_c = poisoned(a[kC].bytes), node = poisoned(a[kNode].bytes),
              factor = poisoned(a[kFactor].bytes), channels = poisoned(a[kChannels].bytes);

  RowMatmulCall<T> rows{a[kA].as<T>(),
                        a[kB].as<T>(),
                        a[kC].as<T>(),
                        a[kTasks].as<RowTask>(),
                        a[kTasks].size<RowTask>(),
                        *a[kRows].as<int64_t>(),
                        *a[kDims].as<RowDims>()};
  auto with_c = rows, with_a = rows, with_b = rows;
  with_c.c = made_c.as<T>(), with_a.a = made_a.as<T>(), with_b.b = made_b.as<T>();
  in_threads(threads, rows.rows, [&](int64_t begin, int64_t end) {
    HAMFAST_ISA::row_matmul_c(with_c, begin, end);
    HAMFAST_ISA::row_matmul_a(with_a, begin, end);
    HAMFAST_ISA::row_matmul_b(with_b, begin, end);
  });

  EdgeOuterCall<T> outer{
      a[kNode].as<T>(),          a[kFactor].as<T>(),          a[kChannels].as<T>(),
      a[kBlocks].as<OuterRow>(), a[kBlocks].size<OuterRow>(), *a[kWidth].as<int64_t>(),
      a[kOrder].as<int64_t>(),   a[kPtr].as<int64_t>()};
  auto with_node = outer, with_factor = outer, with_channels = outer;
  with_node.node = node.as<T>(), with_factor.factor = factor.as<T>();
  with_channels.channels = channels.as<T>();
  in_threads(threads, a[kPtr].size<int64_t>() - 1, [&](int64_t begin, int64_t end) {
    HAMFAST_ISA::edge_outer_node(with_node, begin, end);
    HAMFAST_ISA::edge_outer_factor(with_factor, begin, end);
    HAMFAST_ISA::edge_outer_channels(with_channels, begin, end);
  });
  write_arrays(argv[2], {made_c, made_a, made_b, node, factor, channels});
}
