// Runs kernels/channel.cuh for one plan (hamfast_plan.h) on the host: run_channel CASE OUT SEED.
#include "channel.cuh"
#include "cpp/case_file.h"

using namespace hamfast::channel;

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::vector<Array> in = read_arrays(argv[1]);
  // The order of tests/kernels/test_cuda_kernels.py.
  enum {
    kNumbers,
    kOperand,
    kTangent = 5,
    kXIndex = 9,
    kGIndex,
    kOrder,
    kPtr,
    kHiddenRows,
    kCount
  };
  if (in.size() != kCount) return 2;
  const int64_t* numbers = in[kNumbers].as<int64_t>();  // rows, edges, x_rows, g_rows, blocks;
                                                        // bytes of six results, of shared memory
  Arguments a{};
  for (int s = 0; s < 4; ++s) {
    a.operands[s] = in[kOperand + s].data;
    a.tangents[s] = in[kTangent + s].data;
  }
  a.x_index = in[kXIndex].maybe<int64_t>(), a.g_index = in[kGIndex].maybe<int64_t>();
  a.order = in[kOrder].maybe<int64_t>(), a.ptr = in[kPtr].maybe<int64_t>();
  a.hidden = in[kHiddenRows].data;
  a.rows = numbers[0], a.edges = numbers[1], a.x_rows = numbers[2], a.g_rows = numbers[3];
  std::vector<Array> out;
  for (int n = 0; n < 6; ++n) out.push_back(poisoned(numbers[5 + n]));
  for (int s = 0; s < 4; ++s) a.out[s] = out[s].data;
  a.y_chunks = out[4].data, a.w_chunks = out[5].data;
  simt::launch({static_cast<unsigned>(numbers[4])}, {hamfast::kWarp * kWarpsPerBlock},
               static_cast<size_t>(numbers[11]), std::strtoull(argv[3], nullptr, 10),
               hamfast_channel, a);
  write_arrays(argv[2], out);
}
