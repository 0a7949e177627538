// The channel-wise product on a GPU, for one plan that the compiler knows.
//
// A thread owns one channel u of every irreps block: all of x, of the result's sums and of their
// gradients that belong to u are its registers, and the Clebsch-Gordan sums are straight-line code
// with constants. A warp takes `width` channels (a power of two) of 32 / width edges at a time, so
// that no lane idles whatever the multiplicities: channels are cut where a multiplicity ends, then
// into powers of two (struct Unit). Rows of the result are walked one by one, their edges summed in
// registers in a fixed order: no atomics, and each result is written once.
#pragma once

#include "channel_plan.cuh"
#include "common.cuh"
#include "hamfast_plan.h"

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

namespace hamfast::channel {

using namespace HAMFAST_ISA;

template <Storage kStorage>
struct Stored {
  using Type = float;
};
template <>
struct Stored<Storage::float64> {
  using Type = double;
};
template <>
struct Stored<Storage::bfloat16> {
  using Type = uint16_t;
};
template <>
struct Stored<Storage::float16> {
  using Type = uint16_t;
};
using Number = Stored<kStorage>::Type;  // as it lies in memory
using T = Stored<kStorage == Storage::float64 ? Storage::float64 : Storage::float32>::Type;

HAMFAST_INLINE T widen(Number stored) {
  if constexpr (kStorage == Storage::bfloat16)
    return bfloat16_to_float(stored);
  else if constexpr (kStorage == Storage::float16)
    return half_to_float(stored);
  else
    return stored;
}

HAMFAST_INLINE Number narrow(T value) {
  if constexpr (kStorage == Storage::bfloat16)
    return float_to_bfloat16(value);
  else if constexpr (kStorage == Storage::float16)
    return float_to_half(value);
  else
    return value;
}

HAMFAST_INLINE const Number* as_stored(const void* p) { return static_cast<const Number*>(p); }

// One channel's d components of a block in row r: `at[i * step]`.
template <class Pointer>
struct Components {
  Pointer at;
  int64_t step;
};

template <class Pointer>
HAMFAST_INLINE Components<Pointer> components(Pointer data, const Block& block, Layout layout,
                                              int64_t dim, int64_t rows, int64_t r, int u) {
  const int64_t channel = block.first + u;
  if (layout == Layout::blocks)
    return {data + rows * block.offset + r * block.d * block.mul + channel, block.mul};
  if (layout == Layout::ir_mul) return {data + r * dim + block.offset + channel, block.mul};
  return {data + r * dim + block.offset + channel * block.d, 1};
}

// Does a warp of this role work on block b of the result, or of x?
__device__ constexpr bool has(int role, bool is_g, int b) {
  const Block& block = is_g ? g_blocks[b] : x_blocks[b];
  return block.group == roles[role].group && block.n > roles[role].first;
}

// Are the weights of task t among those that a block of this role makes?
__device__ constexpr bool in_tile(int role, int t) {
  return tasks[t].w_offset >= 0 &&
         has(role, kForward, kForward ? tasks[t].g_block : tasks[t].x_block);
}

// Does a warp of this role read block b of x on its way to the result?
__device__ constexpr bool reads(int role, int b) {
  for (int t = 0; t < kTasks; ++t)
    if (tasks[t].x_block == b && has(role, true, tasks[t].g_block)) return true;
  return false;
}

// f.operator()<0>(), f.operator()<1>() ...: indices the compiler knows, so that arrays become
// registers.
template <int N, class F>
HAMFAST_INLINE void for_each(F&& f) {
  if constexpr (N > 0) {
    for_each<N - 1>(f);
    f.template operator()<N - 1>();
  }
}

// The d components of block b, of one edge.
template <bool kIsG, int b>
HAMFAST_INLINE void load_block(const void* data, int64_t rows, int64_t r, int u, T* to) {
  constexpr Block block = kIsG ? g_blocks[b] : x_blocks[b];
  const auto from = components(as_stored(data), block, kIsG ? kGLayout : kXLayout,
                               kIsG ? kGDim : kXDim, rows, r, u);
  HAMFAST_UNROLL
  for (int i = 0; i < block.d; ++i) to[i] = widen(__ldg(from.at + i * from.step));
}

// The registers of one channel, all blocks of a role.
template <int kRole, bool kIsG>
HAMFAST_INLINE void load_row(const void* data, int64_t rows, int64_t r, int u, T* to) {
  for_each<(kIsG ? kGBlocks : kXBlocks)>([&]<int b>() HAMFAST_ALWAYS_INLINE {
    constexpr Block block = kIsG ? g_blocks[b] : x_blocks[b];
    if constexpr (has(kRole, kIsG, b)) load_block<kIsG, b>(data, rows, r, u, to + block.start);
  });
}

template <int kRole, bool kIsG>
HAMFAST_INLINE void store_row(const T* from, void* data, int64_t rows, int64_t r, int u) {
  for_each<(kIsG ? kGBlocks : kXBlocks)>([&]<int b>() HAMFAST_ALWAYS_INLINE {
    constexpr Block block = kIsG ? g_blocks[b] : x_blocks[b];
    if constexpr (has(kRole, kIsG, b)) {
      const auto to = components(static_cast<Number*>(data), block, kIsG ? kGLayout : kXLayout,
                                 kIsG ? kGDim : kXDim, rows, r, u);
      HAMFAST_UNROLL
      for (int i = 0; i < block.d; ++i) to.at[i * to.step] = narrow(from[block.start + i]);
    }
  });
}

template <int t>
HAMFAST_INLINE void load_y(const void* data, int64_t e, T* to) {
  constexpr Task task = tasks[t];
  const Number* from = as_stored(data) + e * kYDim + task.y_offset;
  HAMFAST_UNROLL
  for (int j = 0; j < task.d2; ++j) to[j] = widen(__ldg(from + j));
}

template <int t>
HAMFAST_INLINE T load_weight(const void* data, int64_t e, int u) {
  constexpr Task task = tasks[t];
  return widen(__ldg(as_stored(data) + (kSharedWeights ? 0 : e * kWDim) + task.w_offset +
                     int64_t(u) * task.w_stride));
}

// The three contractions of task t's C; the compiler shares the products of two operands.
template <int t>
HAMFAST_INLINE void add_out(const T* x, const T* y, T* out) {
  HAMFAST_UNROLL
  for (int n = tasks[t].begin; n < tasks[t].end; ++n)
    out[entries[n].k] += T(entries[n].value) * (x[entries[n].i] * y[entries[n].j]);
}
template <int t>
HAMFAST_INLINE void add_x(const T* y, const T* g, T* out) {
  HAMFAST_UNROLL
  for (int n = tasks[t].begin; n < tasks[t].end; ++n)
    out[entries[n].i] += T(entries[n].value) * (y[entries[n].j] * g[entries[n].k]);
}
template <int t>
HAMFAST_INLINE void add_y(const T* x, const T* g, T* out) {
  HAMFAST_UNROLL
  for (int n = tasks[t].begin; n < tasks[t].end; ++n)
    out[entries[n].j] += T(entries[n].value) * (x[entries[n].i] * g[entries[n].k]);
}

// Adds up `values` over the slots of a warp: every slot then has the total.
template <int N>
HAMFAST_INLINE void sum_edges(T* values, int width) {
  for (int step = width; step < kWarp; step *= 2) {
    HAMFAST_UNROLL
    for (int i = 0; i < N; ++i) values[i] += __shfl_xor_sync(0xffffffffu, values[i], step);
  }
}

// values[0 ... N - 1] summed over the `width` lanes of a slot. Each step halves what a lane holds
// and sends the other half away, so N totals cost about N exchanges, not 5 N. Afterwards the lane
// holds totals `begin` ... `begin + held - 1` in values[0 ...].
struct Held {
  int begin, held;
};
template <int kHalf>
HAMFAST_INLINE void halve(T* values, int lane, int& step, Held& held) {
  if constexpr (kHalf > 0) {
    if (step > 0) {
      const bool upper = lane & step;
      for_each<kHalf>([&]<int i>() HAMFAST_ALWAYS_INLINE {
        const T low = values[i], high = values[i + kHalf];
        values[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, step);
      });
      held.held = kHalf;
      held.begin += upper ? kHalf : 0;
      step /= 2;
    }
    halve<kHalf / 2>(values, lane, step, held);
  }
}
template <int N>
HAMFAST_INLINE Held sum_lanes(T* values, int lane, int width) {
  Held held{0, N};
  int step = width / 2;
  halve<N / 2>(values, lane, step, held);
  for (; step > 0; step /= 2) values[0] += __shfl_xor_sync(0xffffffffu, values[0], step);
  return held;
}

__host__ __device__ constexpr int next_power_of_two(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// A lane of a warp at a unit: how many channels and edges the warp takes at once, and which edge
// and channel are the lane's.
struct Lanes {
  int lane, width, edges, edge, u;
};
HAMFAST_INLINE Lanes lanes_of(const Unit& unit) {
  const int lane = threadIdx.x % kWarp;
  return {lane, unit.width, kWarp / unit.width, lane / unit.width, unit.first + lane % unit.width};
}

// How many tasks of a role with weights come before this one.
template <int kRole>
__device__ constexpr int tile_index(int task) {
  int index = 0;
  for (int t = 0; t < task; ++t) index += in_tile(kRole, t);
  return index;
}

// Of task t: from memory, or from the weights `made` for this edge and channel.
template <int kRole, int t>
HAMFAST_INLINE T weight_of(const Arguments& a, int64_t e, int u, const T* made) {
  if constexpr (kHidden > 0)
    return made[tile_index<kRole>(t) * kTileEdges * kTileRow];
  else
    return load_weight<t>(a.operands[slot_w], e, u);
}

// One task of one edge. Along tangents: (w tangent_x + tangent_w x) y + w x tangent_y.
template <int kRole, int t>
HAMFAST_INLINE void forward_task(const Arguments& a, int64_t e, int u, const T* made, const T* x,
                                 const T* tangent_x, T* out) {
  constexpr Task task = tasks[t];
  constexpr bool weighted = task.w_offset >= 0;
  constexpr bool along_x = kTangents >> slot_x & 1, along_w = weighted && (kTangents >> slot_w & 1);
  T y[task.d2], with_y[task.d1], w = T(1), tangent_w = T(0);
  if constexpr (weighted && (kOperands >> slot_w & 1)) w = weight_of<kRole, t>(a, e, u, made);
  if constexpr (along_w) tangent_w = load_weight<t>(a.tangents[slot_w], e, u);
  if constexpr (!kTangents || along_x || along_w) {
    HAMFAST_UNROLL
    for (int i = 0; i < task.d1; ++i) {
      if constexpr (!kTangents) with_y[i] = w * x[i];
      if constexpr (kTangents)
        with_y[i] = (along_x ? w * tangent_x[i] : T(0)) + (along_w ? tangent_w * x[i] : T(0));
    }
    load_y<t>(a.operands[slot_y], e, y);
    add_out<t>(with_y, y, out);
  }
  if constexpr (kTangents >> slot_y & 1) {
    HAMFAST_UNROLL
    for (int i = 0; i < task.d1; ++i) with_y[i] = w * x[i];
    load_y<t>(a.tangents[slot_y], e, y);
    add_out<t>(with_y, y, out);
  }
}

HAMFAST_INLINE int64_t edge_at(const Arguments& a, int64_t p) { return a.order ? a.order[p] : p; }
HAMFAST_INLINE int64_t x_row(const Arguments& a, int64_t e) { return a.x_index ? a.x_index[e] : e; }

template <int kRole>
HAMFAST_INLINE void forward_edge(const Arguments& a, int64_t e, int u, const T* made, T* sum) {
  const int64_t r = x_row(a, e);
  for_each<kXBlocks>([&]<int b>() HAMFAST_ALWAYS_INLINE {
    if constexpr (reads(kRole, b)) {
      T x[x_blocks[b].d], tangent_x[x_blocks[b].d];
      if constexpr (kOperands >> slot_x & 1)
        load_block<false, b>(a.operands[slot_x], a.x_rows, r, u, x);
      if constexpr (kTangents >> slot_x & 1)
        load_block<false, b>(a.tangents[slot_x], a.x_rows, r, u, tangent_x);
      for_each<kTasks>([&]<int t>() HAMFAST_ALWAYS_INLINE {
        if constexpr (tasks[t].x_block == b && has(kRole, true, tasks[t].g_block))
          forward_task<kRole, t>(a, e, u, made, x, tangent_x,
                                 sum + g_blocks[tasks[t].g_block].start);
      });
    }
  });
}

template <int N>
HAMFAST_INLINE void set_zero(T* values) {
  HAMFAST_UNROLL
  for (int i = 0; i < N; ++i) values[i] = T(0);
}

template <int kRole>
HAMFAST_INLINE void forward_row(const Arguments& a, const Lanes& at, int64_t row, bool active_row) {
  T sum[kGRegisters];
  set_zero<kGRegisters>(sum);
  const int64_t first = a.ptr ? a.ptr[row] + at.edge : row,
                last = a.ptr ? a.ptr[row + 1] : (active_row ? row + 1 : row);
  for (int64_t p = first; p < last; p += a.ptr ? at.edges : 1)
    forward_edge<kRole>(a, edge_at(a, p), at.u, nullptr, sum);
  if (a.ptr) sum_edges<kGRegisters>(sum, at.width);
  if (active_row && (!a.ptr || at.edge == 0))
    store_row<kRole, true>(sum, a.out[slot_g], a.g_rows, row, at.u);
}

// One task of one edge: its share of all gradients that are wanted. With q = C y g:  grad_x += w q,
// grad_w = <x, q>, grad_y += C (w x) g; along tangents the same, with one operand after the other
// replaced by its tangent.
template <int kRole, int t>
HAMFAST_INLINE void backward_task(const Arguments& a, int64_t e, int64_t g_row, int u, bool active,
                                  const T* made, const T* x, const T* tangent_x, T* sum_x, T* sum_y,
                                  T* sum_w) {
  constexpr Task task = tasks[t];
  constexpr bool weighted = task.w_offset >= 0;
  constexpr bool to_x = kWanted >> slot_x & 1, to_y = kWanted >> slot_y & 1,
                 to_w = weighted && (kWanted >> slot_w & 1);
  constexpr bool along_x = kTangents >> slot_x & 1, along_y = kTangents >> slot_y & 1;
  constexpr bool along_w = weighted && (kTangents >> slot_w & 1), along_g = kTangents >> slot_g & 1;
  T y[task.d2], tangent_y[task.d2], g[task.d3], tangent_g[task.d3], w = T(1), tangent_w = T(0);
  if constexpr (kOperands >> slot_g & 1)
    load_block<true, task.g_block>(a.operands[slot_g], a.g_rows, g_row, u, g);
  if constexpr (along_g)
    load_block<true, task.g_block>(a.tangents[slot_g], a.g_rows, g_row, u, tangent_g);
  if constexpr (kOperands >> slot_y & 1) load_y<t>(a.operands[slot_y], e, y);
  if constexpr (along_y) load_y<t>(a.tangents[slot_y], e, tangent_y);
  if constexpr (weighted && (kOperands >> slot_w & 1)) w = weight_of<kRole, t>(a, e, u, made);
  if constexpr (along_w) tangent_w = load_weight<t>(a.tangents[slot_w], e, u);

  if constexpr (to_x || to_w) {
    T q[task.d1], along[task.d1];  // C y g; C tangent_y g + C y tangent_g
    HAMFAST_UNROLL
    for (int i = 0; i < task.d1; ++i) q[i] = along[i] = T(0);
    if constexpr (!kTangents || along_x || along_w) add_x<t>(y, g, q);
    if constexpr (along_y) add_x<t>(tangent_y, g, along);
    if constexpr (along_g) add_x<t>(y, tangent_g, along);
    T total = T(0);
    HAMFAST_UNROLL
    for (int i = 0; i < task.d1; ++i) {
      if constexpr (!kTangents) {
        if constexpr (to_x) sum_x[i] += w * q[i];
        if constexpr (to_w) total += x[i] * q[i];
      } else {
        if constexpr (to_x) sum_x[i] += along_w ? tangent_w * q[i] + w * along[i] : w * along[i];
        if constexpr (to_w)
          total += along_x ? tangent_x[i] * q[i] + x[i] * along[i] : x[i] * along[i];
      }
    }
    if constexpr (to_w && kSharedWeights) *sum_w += active ? total : T(0);
    if constexpr (to_w && !kSharedWeights)
      if (active)
        static_cast<Number*>(
            a.out[slot_w])[e * kWDim + task.w_offset + int64_t(u) * task.w_stride] = narrow(total);
  }
  if constexpr (to_y) {
    T with_g[task.d1];
    if constexpr (!kTangents || along_g) {
      HAMFAST_UNROLL
      for (int i = 0; i < task.d1; ++i) with_g[i] = w * x[i];
      add_y<t>(with_g, kTangents ? tangent_g : g, sum_y + task.y_offset);
    }
    if constexpr (along_x || along_w) {
      HAMFAST_UNROLL
      for (int i = 0; i < task.d1; ++i)
        with_g[i] = (along_x ? w * tangent_x[i] : T(0)) + (along_w ? tangent_w * x[i] : T(0));
      add_y<t>(with_g, g, sum_y + task.y_offset);
    }
  }
}

// One edge per slot; `active`: does the slot have one? Its share of tangent_x is added to sum_x.
template <int kRole>
HAMFAST_INLINE void backward_edge(const Arguments& a, const Lanes& at, int unit, int64_t e,
                                  bool active, const T* made, const T* x, const T* tangent_x,
                                  T* sum_x, T* sum_w) {
  const int64_t g_row = a.g_index ? a.g_index[e] : e;
  constexpr int kTotals = next_power_of_two(kYDim > 0 ? kYDim : 1);
  T sum_y[kTotals], edge_x[kXRegisters];
  set_zero<kTotals>(sum_y);
  set_zero<kXRegisters>(edge_x);
  for_each<kTasks>([&]<int t>() HAMFAST_ALWAYS_INLINE {
    constexpr Block block = x_blocks[tasks[t].x_block];
    if constexpr (has(kRole, false, tasks[t].x_block))
      backward_task<kRole, t>(a, e, g_row, at.u, active, made, x + block.start,
                              tangent_x + block.start, edge_x + block.start, sum_y,
                              sum_w + (kSharedWeights ? t : 0));
  });
  HAMFAST_UNROLL
  for (int i = 0; i < kXRegisters; ++i) sum_x[i] += active ? edge_x[i] : T(0);
  if (kWanted >> slot_y & 1) {
    const Held held = sum_lanes<kTotals>(sum_y, at.lane % at.width, at.width);
    // Lanes that share a total after fewer halvings than lanes hold the same: the first of them
    // writes.
    T* const to = static_cast<T*>(a.y_chunks) + (unit * a.edges + e) * kYDim;
    HAMFAST_UNROLL
    for (int j = 0; j < kTotals; ++j)
      if (active && j < held.held && held.begin + j < kYDim) to[held.begin + j] = sum_y[j];
  }
}

// A row of x, and of its tangent.
template <int kRole>
HAMFAST_INLINE void load_x(const Arguments& a, int64_t row, int u, T* x, T* tangent_x) {
  if (kOperands >> slot_x & 1) load_row<kRole, false>(a.operands[slot_x], a.x_rows, row, u, x);
  if (kTangents >> slot_x & 1)
    load_row<kRole, false>(a.tangents[slot_x], a.x_rows, row, u, tangent_x);
}

template <int kRole>
HAMFAST_INLINE void backward_row(const Arguments& a, const Lanes& at, int unit, int64_t row,
                                 bool active_row, T* sum_w) {
  T x[kXRegisters], tangent_x[kXRegisters], sum_x[kXRegisters];
  set_zero<kXRegisters>(sum_x);
  const int64_t first = a.ptr ? a.ptr[row] : row, last = a.ptr ? a.ptr[row + 1] : row + 1;
  const bool row_is_x = a.ptr && a.x_index;  // rows are those of x: one load for all their edges
  if (row_is_x) load_x<kRole>(a, row, at.u, x, tangent_x);
  for (int64_t step = first; step < last; step += a.ptr ? at.edges : 1) {
    const int64_t p = a.ptr ? step + at.edge : step;
    const int64_t e = edge_at(a, p < last ? p : step);
    if (!row_is_x) load_x<kRole>(a, x_row(a, e), at.u, x, tangent_x);
    backward_edge<kRole>(a, at, unit, e, active_row && p < last, nullptr, x, tangent_x, sum_x,
                         sum_w);
  }
  if (kWanted >> slot_x & 1) {
    if (a.ptr) sum_edges<kXRegisters>(sum_x, at.width);
    if (active_row && (!a.ptr || at.edge == 0))
      store_row<kRole, false>(sum_x, a.out[slot_x], a.x_rows, row, at.u);
  }
}

// Calls f(row, active) for the rows of this warp's step `step`; all lanes together.
template <class F>
HAMFAST_INLINE void for_rows(const Arguments& a, const Lanes& at, int64_t step, F&& f) {
  if (a.ptr) return f(step, true);
  for (int64_t begin = step * kRowsPerStep; begin < (step + 1) * kRowsPerStep && begin < a.rows;
       begin += at.edges) {
    const int64_t row = begin + at.edge;
    const bool active = row < a.rows && row < (step + 1) * kRowsPerStep;
    f(active ? row : begin, active);
  }
}

// Calls f with the unit's role as a constant.
template <class F, int kRole = 0>
HAMFAST_INLINE void with_role(int role, F&& f) {
  if constexpr (kRole < kRoles) {
    if (role == kRole) return f.template operator()<kRole>();
    with_role<F, kRole + 1>(role, static_cast<F&&>(f));
  }
}

// Warps take (step, unit) pairs, units fastest: the units of a row share its operands in the
// caches.
HAMFAST_INLINE void forward(const Arguments& a) {
  const int64_t warps = int64_t(gridDim.x) * kWarpsPerBlock;
  for (int64_t item = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
       item < steps_of(a) * kUnits; item += warps) {
    const Unit unit = units[item % kUnits];
    const Lanes at = lanes_of(unit);
    with_role(unit.role, [&]<int kRole>() HAMFAST_ALWAYS_INLINE {
      for_rows(a, at, item / kUnits, [&](int64_t row, bool active) HAMFAST_ALWAYS_INLINE {
        forward_row<kRole>(a, at, row, active);
      });
    });
  }
}

// A warp keeps its unit: with shared weights it sums their gradients over all its rows, a chunk of
// the whole.
HAMFAST_INLINE void backward(const Arguments& a) {
  const int64_t warp = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  const int64_t chunks = int64_t(gridDim.x) * kWarpsPerBlock / kUnits, chunk = warp / kUnits;
  if (chunk >= chunks) return;
  const int unit_index = warp % kUnits;
  const Unit unit = units[unit_index];
  const Lanes at = lanes_of(unit);
  with_role(unit.role, [&]<int kRole>() HAMFAST_ALWAYS_INLINE {
    constexpr bool sums_weights = kSharedWeights && (kWanted >> slot_w & 1);
    T sum_w[sums_weights ? kTasks : 1] = {};
    for (int64_t step = chunk; step < steps_of(a); step += chunks)
      for_rows(a, at, step, [&](int64_t row, bool active) HAMFAST_ALWAYS_INLINE {
        backward_row<kRole>(a, at, unit_index, row, active, sum_w);
      });
    if constexpr (sums_weights) {
      sum_edges<kTasks>(sum_w, at.width);
      for_each<kTasks>([&]<int t>() HAMFAST_ALWAYS_INLINE {
        constexpr Task task = tasks[t];
        if constexpr (has(kRole, false, task.x_block) && task.w_offset >= 0)
          if (at.edge == 0)
            static_cast<T*>(
                a.w_chunks)[chunk * kWDim + task.w_offset + int64_t(at.u) * task.w_stride] =
                sum_w[t];
      });
    }
  });
}

}  // namespace hamfast::channel

#if HAMFAST_WEIGHTS_MADE
#include "channel_radial.cuh"
#else
namespace hamfast::channel {

extern "C" __global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    hamfast_channel(const Arguments a) {
  if constexpr (kForward)
    forward(a);
  else
    backward(a);
}

}  // namespace hamfast::channel
#endif

#endif
