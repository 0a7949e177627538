// The channel-wise product with weights made in the kernel: w[e] = hidden[e] @ matrix, the last
// layer of a radial network. channel.cuh includes it in place of its own kernel.
//
// A block takes one row of the result (or kRowsPerStep rows of one edge each) and one unit of
// channels. For kTileEdges of its edges at a time its warps make the weights of all tasks on the
// tensor cores, in shared memory; then each warp takes some of those edges. Blocks that follow one
// another share the unit, so its columns of the matrix stay in the caches. Sums of a row: over the
// slots of a warp, then over the warps, in a fixed order.
#pragma once

#include "tensor_core.cuh"

namespace hamfast::channel {

constexpr int kBlocksAtOnce =
    3;  // on a multiprocessor, so that some wait at barriers while others work

template <class Element>
struct alignas(4 * sizeof(Element)) Four {
  Element at[4];
};

// Row k of the matrix: channels group * kTiles ... of a unit, one for each of kTiles tiles of 8
// columns.
template <int kTiles>
HAMFAST_INLINE void load_matrix(const Number* matrix, const Task& task, const Unit& unit, int k,
                                int group, float* to) {
  const Number* const row = matrix + int64_t(k) * kWDim + task.w_offset;
  const int first = group * kTiles;
  if (k >= kHidden) {
    HAMFAST_UNROLL
    for (int j = 0; j < kTiles; ++j) to[j] = 0.0f;
  } else if (kTiles == 4 && task.w_stride == 1 && kWDim % 4 == 0 &&
             (task.w_offset | unit.first) % 4 == 0) {
    const Four<Number> numbers = *reinterpret_cast<const Four<Number>*>(row + unit.first + first);
    HAMFAST_UNROLL
    for (int j = 0; j < kTiles; ++j) to[j] = widen(numbers.at[j]);
  } else {
    HAMFAST_UNROLL
    for (int j = 0; j < kTiles; ++j)
      to[j] = first + j < unit.width
                  ? widen(__ldg(row + int64_t(unit.first + first + j) * task.w_stride))
                  : 0.0f;
  }
}

// The weights of one task for the tile's edges: rows of `hidden` times the task's columns of the
// matrix, 8 kTiles of them. Inner indices and columns are dealt to the lanes so that each reads and
// writes numbers that lie side by side: the sum does not mind.
template <int kTiles>
HAMFAST_INLINE void make_task(const Number* matrix, const Task& task, const Unit& unit, int lane,
                              const float* hidden, float* to) {
  const int group = lane / 4, member = lane % 4;
  float made[kTiles][4] = {};
#pragma unroll 1
  for (int k = 0; k < padded_hidden(kHidden); k += 16) {
    const int at = k + 4 * member;
    const Four<float> upper =
        *reinterpret_cast<const Four<float>*>(hidden + group * hidden_row(kHidden) + at);
    const Four<float> lower =
        *reinterpret_cast<const Four<float>*>(hidden + (group + 8) * hidden_row(kHidden) + at);
    HAMFAST_UNROLL
    for (int half = 0; half < 4; half += 2) {
      float first[kTiles], second[kTiles];
      load_matrix<kTiles>(matrix, task, unit, at + half, group, first);
      load_matrix<kTiles>(matrix, task, unit, at + half + 1, group, second);
      const float left[4] = {upper.at[half], lower.at[half], upper.at[half + 1],
                             lower.at[half + 1]};
      const Tf32<4> rows(left);
      HAMFAST_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        const float right[2] = {first[j], second[j]};
        multiply_add<kPasses>(made[j], rows, Tf32<2>(right));
      }
    }
  }
  HAMFAST_UNROLL
  for (int n = 0; n < 4; ++n) {  // accumulators: two columns of row `group`, two of row `group` + 8
    float* const row = to + (group + 8 * (n / 2)) * kTileRow + (2 * member + n % 2) * kTiles;
    if constexpr (kTiles == 4) {
      *reinterpret_cast<Four<float>*>(row) = {made[0][n], made[1][n], made[2][n], made[3][n]};
    } else {
      HAMFAST_UNROLL
      for (int j = 0; j < kTiles; ++j) row[j] = made[j][n];
    }
  }
}

// The weights of `count` edges from place `begin` on, of all tasks of a role. All threads of the
// block.
template <int kRole>
HAMFAST_INLINE void make_weights(const Arguments& a, const Unit& unit, int64_t begin, int count,
                                 float* hidden, float* tile) {
  constexpr int kColumns = padded_hidden(kHidden);
  __syncthreads();  // what lies there has been read
  for (int n = threadIdx.x; n < kTileEdges * kColumns; n += kWarp * kWarpsPerBlock) {
    const int i = n / kColumns, k = n % kColumns;
    hidden[i * hidden_row(kHidden) + k] =
        i < count && k < kHidden
            ? widen(__ldg(as_stored(a.hidden) + edge_at(a, begin + i) * kHidden + k))
            : 0.0f;
  }
  __syncthreads();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Number* const matrix = as_stored(a.operands[slot_w]);
  int slot = 0;
  for (int t = 0; t < kTasks; ++t) {
    if (!in_tile(kRole, t)) continue;
    float* const to = tile + slot * kTileEdges * kTileRow;
    if (slot++ % kWarpsPerBlock != warp) continue;
    if (unit.width == 32)
      make_task<4>(matrix, tasks[t], unit, lane, hidden, to);
    else if (unit.width == 16)
      make_task<2>(matrix, tasks[t], unit, lane, hidden, to);
    else
      make_task<1>(matrix, tasks[t], unit, lane, hidden, to);
  }
  __syncthreads();
}

// Adds up what slot 0 of every warp holds: slot 0 of warp 0 then has the total. All threads of the
// block.
template <int N>
HAMFAST_INLINE void sum_warps(T* values, const Lanes& at, float* shared) {
  const int warp = threadIdx.x / kWarp;
  __syncthreads();
  if (warp > 0) {
    HAMFAST_UNROLL
    for (int i = 0; i < N; ++i) shared[((warp - 1) * N + i) * kWarp + at.lane] = values[i];
  }
  __syncthreads();
  for (int w = 1; warp == 0 && w < kWarpsPerBlock; ++w) {
    HAMFAST_UNROLL
    for (int i = 0; i < N; ++i) values[i] += shared[((w - 1) * N + i) * kWarp + at.lane];
  }
}

// `at`: slots are those of the whole block.
template <int kRole>
HAMFAST_INLINE void row_with_weights_made(const Arguments& a, const Lanes& at, int unit_index,
                                          int64_t step) {
  constexpr int kSums = kForward ? kGRegisters : kXRegisters;
  constexpr bool writes_rows = kForward || (kWanted >> slot_x & 1);
  float* const hidden = shared_memory();
  float* const tile = hidden + kTileEdges * hidden_row(kHidden);
  const float* const own = tile + at.lane % at.width;
  T x[kXRegisters], tangent_x[kXRegisters],
      sum[kSums];  // there are no tangents: tangent_x is nothing
  set_zero<kSums>(sum);
  int64_t first = step * kRowsPerStep,
          last = first + kRowsPerStep < a.rows ? first + kRowsPerStep : a.rows;
  if (a.ptr) first = a.ptr[step], last = a.ptr[step + 1];
  const bool row_is_x = !kForward && a.ptr && a.x_index;
  if (row_is_x) load_x<kRole>(a, step, at.u, x, tangent_x);
  auto write = [&](int64_t row) HAMFAST_ALWAYS_INLINE {
    if constexpr (kForward) store_row<kRole, true>(sum, a.out[slot_g], a.g_rows, row, at.u);
    if constexpr (!kForward && writes_rows)
      store_row<kRole, false>(sum, a.out[slot_x], a.x_rows, row, at.u);
  };
  for (int64_t begin = first; begin < last; begin += kTileEdges) {
    const int count = static_cast<int>(last - begin < kTileEdges ? last - begin : kTileEdges);
    make_weights<kRole>(a, units[unit_index], begin, count, hidden, tile);
    // A warp's lanes stay together: the backward pass sums over them.
#pragma unroll 1
    for (int step = 0; step < count; step += at.edges) {
      const bool active = step + at.edge < count;
      const int i = active ? step + at.edge : 0;
      const int64_t e = edge_at(a, begin + i);
      if constexpr (kForward) {
        if (active) forward_edge<kRole>(a, e, at.u, own + i * kTileRow, sum);
      } else {
        if (!row_is_x) load_x<kRole>(a, x_row(a, e), at.u, x, tangent_x);
        backward_edge<kRole>(a, at, unit_index, e, active, own + i * kTileRow, x, tangent_x, sum,
                             nullptr);
      }
      if (a.ptr) continue;
      if (active) write(begin + i);
      set_zero<kSums>(sum);
    }
  }
  if (!a.ptr || !writes_rows) return;
  sum_edges<kSums>(sum, at.width);
  sum_warps<kSums>(sum, at, hidden);
  if (at.edge == 0) write(step);
}

HAMFAST_INLINE void with_weights_made(const Arguments& a) {
  static_assert(kStorage != Storage::float64 && !kTangents && !kSharedWeights);
  const int64_t steps = steps_of(a);
  for (int64_t item = blockIdx.x; item < steps * kUnits; item += gridDim.x) {
    const int unit_index = static_cast<int>(item / steps);
    Lanes at = lanes_of(units[unit_index]);
    at.edge += static_cast<int>(threadIdx.x) / kWarp * at.edges;
    at.edges *= kWarpsPerBlock;
    with_role(units[unit_index].role, [&]<int kRole>() HAMFAST_ALWAYS_INLINE {
      row_with_weights_made<kRole>(a, at, unit_index, item % steps);
    });
  }
}

extern "C" __global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kBlocksAtOnce)
    hamfast_channel(const Arguments a) {
  with_weights_made(a);
}

}  // namespace hamfast::channel
