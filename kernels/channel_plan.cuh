// The plan of a channel-wise product as the CUDA kernel sees it: values the compiler knows.
//
// csrc/tensor_product/channel_source.cpp writes one header per plan and variant, `hamfast_plan.h`,
// with constants of these types; kernels/channel.cuh reads it. The executor of the tests compiles
// the same two files for the host.
#pragma once

#include "common.cuh"
#include "records.cuh"

namespace hamfast::channel {

// out[g_block][k][u] += w[w_offset + u w_stride] C_ijk x[x_block][i][u] y[y_offset + j] for u < n
struct Task {
  int n, d1, d2, d3;
  int x_block, g_block;
  int y_offset;
  int w_offset, w_stride;  // offset -1: no weight
  int begin, end;          // entries
};

struct Entry {
  int i, j, k;
  double value;  // the coupling times the path's normalisation
};

// Channels `first` ... `first + n - 1` of an irreps block: d components, at `start` in a thread's
// registers.
struct Block {
  int n, d, start;
  int mul, first;
  int64_t offset;  // of the irreps block in a row
  int group;       // blocks of different groups are the work of different warps
};

// What one warp does with one row: `width` channels from `first` on, which all blocks of a group
// with n > first have, of 32 / width edges at a time. `role`: which blocks those are.
struct Unit {
  int role, first, width;
};
struct Role {
  int group, first;
};

// One call. Which operands and tangents it has, and which results are wanted, the compiler knows.
struct Arguments {
  const void*
      operands[4];  // of w, where the kernel makes the weights: the matrix, [kHidden, w_dim]
  const void* tangents[4];
  const void*
      hidden;  // [edges, kHidden]: the weights are hidden @ matrix, where the kernel makes them
  void* out[4];
  Maybe<const int64_t> x_index;  // row of x that edge e reads; absent: e
  Maybe<const int64_t> g_index;
  Maybe<const int64_t> order;  // edges by row of the result; absent: as they come
  Maybe<const int64_t> ptr;    // [rows + 1] into `order`; absent: row r is edge r
  int64_t rows;
  int64_t edges;
  int64_t x_rows, g_rows;  // of the tensors: Layout::blocks needs them
  void* y_chunks;  // dF/tangent_y of every group of channels, [units, edges, y_dim], compute type
  void* w_chunks;  // dF/tangent_w of every chunk, [chunks, w_dim], compute type, where all edges
                   // share the weights
};

constexpr int kWarpsPerBlock = 4;
constexpr int kRowsPerStep = 32;  // rows a warp takes at once where every edge is a row of its own

// Where the kernel makes the weights, a block makes those of kTileEdges edges at a time, in shared
// memory. Rows are as long as keeps the lanes that read together on different banks.
constexpr int kTileEdges = 16, kTileRow = 36;
HAMFAST_HD constexpr int padded_hidden(int hidden) { return (hidden + 15) / 16 * 16; }
HAMFAST_HD constexpr int hidden_row(int hidden) {
  return padded_hidden(hidden) + (padded_hidden(hidden) % 32 == 0 ? 16 : 0);
}
// Floats of shared memory: rows of `hidden` and the weights of `weighted` tasks; afterwards, the
// warps' sums of `registers` numbers.
HAMFAST_HD constexpr int shared_floats(int hidden, int weighted, int registers) {
  const int tile = kTileEdges * (hidden_row(hidden) + weighted * kTileRow);
  const int sums = (kWarpsPerBlock - 1) * registers * kWarp;
  return tile > sums ? tile : sums;
}

// How often a unit's warps come by: a row of the result each time, or kRowsPerStep of them.
HAMFAST_HD inline int64_t steps_of(const Arguments& a) {
  return a.ptr ? a.rows : (a.rows + kRowsPerStep - 1) / kRowsPerStep;
}

}  // namespace hamfast::channel
