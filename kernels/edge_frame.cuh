// Rotation of irreps into and out of each edge's own frame, and the per-|m| matrices from the path
// weights.
//
// A frame tensor is one flat buffer: for each block of the plan (one m) a row-major [edges, 1 or 2,
// width] matrix, the
// 2
// being (+m, -m). Irreps of unnatural parity store (-m, minus +m) there; see
// hamfast/plan/edge_frame.py.
#pragma once

#include "common.cuh"
#include "records.cuh"

namespace hamfast {

constexpr int kMaxSources = 3;

template <class T>
struct FrameCall {
  const int64_t* table[kMaxSources];  // the irreps blocks of each source
  int64_t num_blocks[kMaxSources], table_stride[kMaxSources];
  bool channels_fast;  // x is ir_mul, else mul_ir
  int64_t edges, wigner_dim;
  const T* wigner;  // [edges, sum (2l+1)^2], row-major D_l one after another; frame = D x
  // To the frame: up to kMaxSources tensors; edge e reads row index[e], or e.
  Maybe<const T> x_in[kMaxSources];
  Maybe<const int64_t> index[kMaxSources];
  int64_t dim[kMaxSources];
  // From the frame: one tensor (source 0), [rows, dim[0]]. Row r is edge r, or the sum over edges
  // order[ptr[r]] ...
  T* x_out;
  Maybe<const int64_t> order, ptr;
  const T* frame_in;
  T* frame_out;
};

constexpr int kMaxL = 8;
#define HAMFAST_EACH_L(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8)

// The trilinear form  sum over terms of factor weight[u, w] scale[w] matrix[u, w]; a call makes its
// derivative in one of the three. Terms of one group write to one place, those of two groups never
// do.
template <class T>
struct MatrixCall {
  const MatrixTerm* terms;
  const double* factors;
  Maybe<const int64_t> order;  // terms by group; absent: as they come
  const int64_t* ptr;          // [groups + 1]
  int64_t groups;
  WeightSlot slot;
  Maybe<const T> operand[3];  // `slot_scale` absent: all ones
  T* out;                     // zeros at the start
};

namespace HAMFAST_ISA {

HAMFAST_HD inline int64_t wigner_offset(int64_t l) { return l * (4 * l * l - 1) / 3; }

// Which stored row (0: +m, 1: -m) and sign hold component `m` of -l ... l.
struct FrameRow {
  int64_t row;
  int sign;
};
HAMFAST_HD inline FrameRow frame_row(int64_t m, bool natural) {
  if (m == 0) return {0, 1};
  if (natural) return {m > 0 ? 0 : 1, 1};
  return m < 0 ? FrameRow{0, 1} : FrameRow{1, -1};
}

// One irreps block of one edge, D = 2 l + 1 known to the compiler: all D components of a channel
// are in registers at once. `frame[a]`: where component a - l of channel 0 lies in the frame
// tensor, null if it is not stored.
template <int D, bool kIntoFrame, class T, class Team>
HAMFAST_HD inline void rotate_block(const Team& team, int64_t mul, const T* wigner, const T* sign,
                                    T* const* frame, T* x, int64_t channel, int64_t component,
                                    bool add) {
  T matrix[D * D];
  for (int a = 0; a < D; ++a)
    for (int b = 0; b < D; ++b) matrix[a * D + b] = frame[a] ? wigner[a * D + b] * sign[a] : T(0);
  if (kIntoFrame) {
    HAMFAST_SIMD
    for (int64_t u = team.rank(); u < mul; u += team.size()) {
      T in[D];
      HAMFAST_UNROLL
      for (int b = 0; b < D; ++b) in[b] = x[u * channel + b * component];
      HAMFAST_UNROLL
      for (int a = 0; a < D; ++a) {
        T total = T(0);
        HAMFAST_UNROLL
        for (int b = 0; b < D; ++b) total += matrix[a * D + b] * in[b];
        if (frame[a]) frame[a][u] = total;
      }
    }
  } else {
    HAMFAST_SIMD
    for (int64_t u = team.rank(); u < mul; u += team.size()) {
      T in[D];
      HAMFAST_UNROLL
      for (int a = 0; a < D; ++a) in[a] = frame[a] ? frame[a][u] : T(0);
      HAMFAST_UNROLL
      for (int b = 0; b < D; ++b) {
        T total = T(0);
        HAMFAST_UNROLL
        for (int a = 0; a < D; ++a) total += matrix[a * D + b] * in[a];
        x[u * channel + b * component] = add ? x[u * channel + b * component] + total : total;
      }
    }
  }
}

template <bool kIntoFrame, class T, class Team>
HAMFAST_HD inline void rotate_edge(const Team& team, const FrameCall<T>& call, int64_t e, int s,
                                   int64_t row, bool add) {
  for (int64_t n = 0; n < call.num_blocks[s]; ++n) {
    const int64_t* entry = call.table[s] + n * call.table_stride[s];
    const FrameBlock& block = *reinterpret_cast<const FrameBlock*>(entry);
    const FrameColumns* columns_of_m = reinterpret_cast<const FrameColumns*>(entry + 4);
    const int64_t d = 2 * block.l + 1;
    const T* wigner = call.wigner + e * call.wigner_dim + wigner_offset(block.l);
    const int64_t channel = call.channels_fast ? 1 : d,
                  component = call.channels_fast ? block.mul : 1;
    T* x = (kIntoFrame ? const_cast<T*>(call.x_in[s].data) : call.x_out) + row * call.dim[s] +
           block.offset;
    T* buffer = kIntoFrame ? call.frame_out : const_cast<T*>(call.frame_in);
    T* frame[2 * kMaxL + 1];
    T sign[2 * kMaxL + 1];
    for (int64_t a = 0; a < d; ++a) {
      const int64_t m = a - block.l;
      const FrameColumns& place = columns_of_m[m < 0 ? -m : m];
      const FrameRow row = frame_row(m, block.natural != 0);
      frame[a] = place.start < 0 ? nullptr
                                 : buffer + place.start * call.edges + e * place.stride +
                                       row.row * place.width + place.column;
      sign[a] = T(row.sign);
    }
#define HAMFAST_ROTATE(L)                                                                 \
  case L:                                                                                 \
    rotate_block<2 * L + 1, kIntoFrame>(team, block.mul, wigner, sign, frame, x, channel, \
                                        component, add);                                  \
    break;
    switch (block.l) { HAMFAST_EACH_L(HAMFAST_ROTATE) }
#undef HAMFAST_ROTATE
  }
}

template <class T, class Team>
HAMFAST_HD inline void rotate_into_edge(const Team& team, const FrameCall<T>& call, int64_t e) {
  for (int s = 0; s < kMaxSources; ++s)
    if (call.x_in[s])
      rotate_edge<true>(team, call, e, s, call.index[s] ? call.index[s][e] : e, false);
}

// One row of the result of a rotation out of the frames.
template <class T, class Team>
HAMFAST_HD inline void rotate_row(const Team& team, const FrameCall<T>& call, int64_t row) {
  if (!call.ptr) return rotate_edge<false>(team, call, row, 0, row, false);
  T* out = call.x_out + row * call.dim[0];
  for (int64_t i = team.rank(); i < call.dim[0]; i += team.size()) out[i] = T(0);
  team.sync();
  for (int64_t p = call.ptr[row]; p < call.ptr[row + 1]; ++p) {
    rotate_edge<false>(team, call, call.order[p], 0, row, true);
    team.sync();
  }
}

// The rows `first`, `first + step`, ... of one group's terms; all of them where rows are summed.
template <class T, class Team>
HAMFAST_HD inline void add_matrix_group(const Team& team, const MatrixCall<T>& call, int64_t group,
                                        int64_t first, int64_t step) {
  const bool sums_rows = call.slot == slot_scale;
  if (sums_rows && first > 0) return;
  for (int64_t p = call.ptr[group]; p < call.ptr[group + 1]; ++p) {
    const int64_t n = call.order ? call.order[p] : p;
    const MatrixTerm& term = call.terms[n];
    const T factor = T(call.factors[n]);
    const Maybe<const T> scale = call.operand[slot_scale].row(term.scale, 1);
    for (int64_t u = sums_rows ? 0 : first; u < term.rows; u += sums_rows ? 1 : step) {
      const int64_t weight = term.weight + u * term.columns, matrix = term.matrix + u * term.stride;
      if (sums_rows) {
        const T *a = call.operand[slot_weight] + weight, *b = call.operand[slot_matrix] + matrix;
        T* to = call.out + term.scale;
        HAMFAST_SIMD
        for (int64_t c = team.rank(); c < term.columns; c += team.size())
          to[c] += factor * a[c] * b[c];
        continue;
      }
      const bool to_matrix = call.slot == slot_matrix;
      const T* from =
          to_matrix ? call.operand[slot_weight] + weight : call.operand[slot_matrix] + matrix;
      T* to = call.out + (to_matrix ? matrix : weight);
      if (scale) {
        HAMFAST_SIMD
        for (int64_t c = team.rank(); c < term.columns; c += team.size())
          to[c] += factor * from[c] * scale[c];
      } else {
        HAMFAST_SIMD
        for (int64_t c = team.rank(); c < term.columns; c += team.size()) to[c] += factor * from[c];
      }
    }
  }
}

}  // namespace HAMFAST_ISA

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

// On a GPU a thread turns one channel of one irreps block: blockIdx.y is the block (of all
// sources), blockIdx.x a group of rows. Lanes are channels, and where there are few of them,
// channels of several rows.
constexpr int kRotateRows = 16, kRotateThreads = 128;

// Where component m of channel 0 of edge e is stored, and its sign.
struct FrameComponent {
  int64_t at;  // in the frame tensor
  int sign;    // 0: it is not stored
};
__device__ inline FrameComponent frame_component(const FrameBlock& block,
                                                 const FrameColumns* columns_of_m, int64_t edges,
                                                 int64_t e, int64_t m) {
  const FrameColumns& place = columns_of_m[m < 0 ? -m : m];
  if (place.start < 0) return {0, 0};
  const HAMFAST_ISA::FrameRow row = HAMFAST_ISA::frame_row(m, block.natural != 0);
  return {place.start * edges + e * place.stride + row.row * place.width + place.column, row.sign};
}

template <int D, class T>
__device__ inline void rotate_into_frame(const FrameCall<T>& call, const FrameBlock& block,
                                         const FrameColumns* columns_of_m, const T* x, int64_t e,
                                         int64_t u) {
  const T* wigner = call.wigner + e * call.wigner_dim + HAMFAST_ISA::wigner_offset(D / 2);
  T in[D];
  HAMFAST_UNROLL
  for (int b = 0; b < D; ++b)
    in[b] = __ldg(x + (call.channels_fast ? b * block.mul + u : u * D + b));
  for (int a = 0; a < D; ++a) {
    const FrameComponent to = frame_component(block, columns_of_m, call.edges, e, a - D / 2);
    if (to.sign == 0) continue;
    T total = T(0);
    HAMFAST_UNROLL
    for (int b = 0; b < D; ++b) total += __ldg(wigner + a * D + b) * in[b];
    call.frame_out[to.at + u] = T(to.sign) * total;
  }
}

// Adds the edge's share to `out`.
template <int D, class T>
__device__ inline void rotate_from_frame(const FrameCall<T>& call, const FrameBlock& block,
                                         const FrameColumns* columns_of_m, int64_t e, int64_t u,
                                         T* out) {
  const T* wigner = call.wigner + e * call.wigner_dim + HAMFAST_ISA::wigner_offset(D / 2);
  for (int a = 0; a < D; ++a) {
    const FrameComponent from = frame_component(block, columns_of_m, call.edges, e, a - D / 2);
    if (from.sign == 0) continue;
    const T value = T(from.sign) * __ldg(call.frame_in + from.at + u);
    HAMFAST_UNROLL
    for (int b = 0; b < D; ++b) out[b] += __ldg(wigner + a * D + b) * value;
  }
}

template <bool kIntoFrame, int D, class T>
__device__ inline void rotate_rows(const FrameCall<T>& call, int s, const FrameBlock& block,
                                   const FrameColumns* columns_of_m, int64_t rows) {
  const int64_t first = int64_t(blockIdx.x) * kRotateRows;
  const int count = static_cast<int>(rows - first < kRotateRows ? rows - first : kRotateRows);
  const int mul = static_cast<int>(block.mul);
  for (int item = threadIdx.x; item < count * mul; item += kRotateThreads) {
    const int64_t row = first + item / mul, u = item % mul;
    if constexpr (kIntoFrame) {
      const int64_t r = call.index[s] ? call.index[s][row] : row;
      rotate_into_frame<D>(call, block, columns_of_m, call.x_in[s] + r * call.dim[s] + block.offset,
                           row, u);
    } else {
      T out[D];
      HAMFAST_UNROLL
      for (int b = 0; b < D; ++b) out[b] = T(0);
      const int64_t begin = call.ptr ? call.ptr[row] : row,
                    end = call.ptr ? call.ptr[row + 1] : row + 1;
      for (int64_t p = begin; p < end; ++p)
        rotate_from_frame<D>(call, block, columns_of_m, call.ptr ? call.order[p] : p, u, out);
      T* x = call.x_out + row * call.dim[0] + block.offset;
      HAMFAST_UNROLL
      for (int b = 0; b < D; ++b) x[call.channels_fast ? b * mul + u : u * D + b] = out[b];
    }
  }
}

template <bool kIntoFrame, class T>
__global__ void __launch_bounds__(kRotateThreads) rotate_kernel(FrameCall<T> call, int64_t rows) {
  int s = 0;
  int64_t n = blockIdx.y;
  while (n >= call.num_blocks[s]) n -= call.num_blocks[s++];
  const int64_t* entry = call.table[s] + n * call.table_stride[s];
  const FrameBlock& block = *reinterpret_cast<const FrameBlock*>(entry);
  const FrameColumns* columns_of_m = reinterpret_cast<const FrameColumns*>(entry + 4);
#define HAMFAST_ROTATE(L) \
  case L:                 \
    return rotate_rows<kIntoFrame, 2 * L + 1>(call, s, block, columns_of_m, rows);
  switch (block.l) { HAMFAST_EACH_L(HAMFAST_ROTATE) }
#undef HAMFAST_ROTATE
}

template <class T>
__global__ void matrix_groups_kernel(MatrixCall<T> call) {
  const int64_t warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  HAMFAST_ISA::add_matrix_group(HAMFAST_ISA::Warp{}, call, blockIdx.x, warp, warps);
}

#endif

}  // namespace hamfast
