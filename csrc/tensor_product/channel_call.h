// The channel-wise lowering on the CPU: what one call is. The kernel is channel_isa.cpp.
//
// A task multiplies n channels of one irrep of x by one channel v of one irrep of y, weight by
// weight:
//   out[k][u] += w[u] sum_i M[k, i] x[i][u],    M[k, i] = sum_j C_ijk y_j  (times the path's
//   normalisation).
// Channels are the vector lanes. M is a small matrix per edge and task; with it, no Clebsch-Gordan
// coefficient remains in the loop over channels: (2 l1 + 1)(2 l3 + 1) multiply-adds per channel
// forward, twice that for all three gradients together. Rows are brought from mul_ir (channels
// slow) to blocks [2 l + 1][channels, padded] on the way in, and back on the way out.
#pragma once

#include <cstdint>

#include "common.cuh"
#include "records.cuh"

namespace hamfast {

struct Rows {
  Maybe<const void> data;      // in storage type
  Maybe<const void> prepared;  // if given: the same rows as padded blocks, in compute type
  Maybe<const int64_t> index;  // which row edge e uses; absent: row e
  int64_t dim = 0;             // 0: all edges share one row
};

// T: the type computed in, float unless the storage is float64.
template <class T>
struct ChannelCall {
  const ChannelTask* tasks;
  int64_t num_tasks;
  const ChannelBlock* x_blocks;
  int64_t num_x_blocks;
  const ChannelBlock* g_blocks;
  int64_t num_g_blocks;
  const CouplingEntry* entries;
  const T* coupling;
  int64_t max_coupling;                // longest coupling_size
  int64_t x_padded, g_padded;          // size of the padded blocks
  int64_t x_dim, y_dim, w_dim, g_dim;  // row lengths
  Storage storage;
  Layout x_layout, g_layout;
  int64_t x_rows, g_rows;  // of the tensors: Layout::blocks needs them
  Rows operands[4],
      tangents[4];      // x, y, w, g; tangents: absent unless a derivative along them is asked for
  bool covers_weights;  // every weight belongs to a task
  bool derivative;      // along the tangents
  bool shared_weights;
  Maybe<const int64_t> order;  // edges by output row; absent: output row r is edge r
  Maybe<const int64_t> ptr;    // [rows + 1] into `order`, or absent
  int64_t w_begin;  // >= 0: weights, and their gradients, lie in the order of the rows' edges from
                    // here on
  Maybe<void>
      out[4];  // absent: not wanted. Storage type; shared weights: compute type, one row per chunk
  bool stream[4];  // write past the caches
};

constexpr int64_t kPad = 16;  // channels are padded to a multiple of it: of every vector's lanes

// How much scratch a thread needs, in elements of T.
template <class T>
int64_t channel_scratch(const ChannelCall<T>& call) {
  const int64_t matrix = call.max_coupling + 2 * kPad;
  return 7 * call.x_padded + 4 * call.g_padded + 3 * (call.w_dim + 2 * kPad) +
         2 * (call.y_dim + 2 * kPad) + (call.y_dim + kPad) * kPad + (2 + kPad) * matrix;
}

}  // namespace hamfast
