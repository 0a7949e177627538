// The general kernel of tensor products: every mode of e3nn, path by path, and all partial
// derivatives.
//
// Per row, F(x, y, w, g) = <g, TP(x, y, w)> is linear in each argument. The product is dF/dg, its
// gradients are dF/dx, dF/dy, dF/dw, and the gradient of any of these is again one of the four.
// `add_row<slot>` adds one row's dF/d(slot) to `out`.
//
// A path multiplies pairs of channels. "Outer" modes pair every u with every v; "tied" modes pair u
// with u, or u < v. All work on a path goes through z[v][k][u], the coupled pairs, with channels
// fastest: then
//   channel modes multiply each pair by one weight (or none) and add it to output channel `out_u *
//   u + out_v * v`, mixing modes sum  W[pair, w] z[pair]  into every output channel w.
#pragma once

#include "common.cuh"
#include "records.cuh"

namespace hamfast {

struct CouplingList {
  const int64_t* ijk;   // [entries, 3]
  const double* value;  // [entries], times the path's normalisation
};

// A whole call: which rows there are, and which edges each row sums over.
template <class T>
struct GeneralCall {
  const Path* paths;
  int64_t num_paths;
  CouplingList cg;
  Slot slot;
  Maybe<const T> operand[4];  // x, y, w, g; the one of `slot` is not read
  int64_t dim[4];             // row lengths; w: 0 when all rows share it
  Maybe<const int64_t>
      index[4];  // x: senders, g: receivers, else absent: row of the operand that edge e uses
  Maybe<const int64_t> order;  // edges by output row; absent: output row r is edge r
  Maybe<const int64_t> ptr;    // [rows + 1] into `order`, or absent
  int64_t edges;
  bool weighted_only;  // leave out paths without weights: they have no derivative along a direction
                       // of the weights
  int64_t chunk;       // > 0: output row r sums edges r * chunk ... (shared weights)
  int64_t out_dim;
  int64_t scratch_size;
  T* out;  // [rows, out_dim], added to
};

namespace HAMFAST_ISA {

template <class T>
struct RowOperands {
  const T* x;
  const T* y;
  const T* w;
  const T* g;
};

// to[i * pairs + p] = block[channel * d + i]; the channel of pair p is p itself, or the `second` or
// first of u < v.
template <class T, class Team>
HAMFAST_HD inline void load_channels_fast(const Team& team, const T* block, int64_t n, int64_t d,
                                          bool triangular, bool second, T* to, int64_t pairs) {
  if (!triangular) {
    for (int64_t u = team.rank(); u < n; u += team.size())
      for (int64_t i = 0; i < d; ++i) to[i * pairs + u] = block[u * d + i];
    return;
  }
  for (int64_t u = 0, first = 0; u < n; first += n - 1 - u, ++u)
    for (int64_t v = u + 1 + team.rank(); v < n; v += team.size())
      for (int64_t i = 0; i < d; ++i)
        to[i * pairs + first + v - u - 1] = block[(second ? v : u) * d + i];
}

// The reverse: adds to block[channel * d + i]. Threads share nothing because each owns whole
// channels.
template <class T, class Team>
HAMFAST_HD inline void add_channels_slow(const Team& team, const T* from, int64_t pairs, int64_t n,
                                         int64_t d, bool triangular, bool second, T* block) {
  for (int64_t c = team.rank(); c < n; c += team.size()) {
    if (!triangular) {
      for (int64_t i = 0; i < d; ++i) block[c * d + i] += from[i * pairs + c];
      continue;
    }
    for (int64_t u = 0, first = 0; u < n; first += n - 1 - u, ++u)
      for (int64_t v = u + 1; v < n; ++v)
        if ((second ? v : u) == c)
          for (int64_t i = 0; i < d; ++i) block[c * d + i] += from[i * pairs + first + v - u - 1];
  }
}

template <class T, class Team>
HAMFAST_HD inline void fill_zero(const Team& team, T* p, int64_t n) {
  for (int64_t i = team.rank(); i < n; i += team.size()) p[i] = T(0);
}

// z[v][k][p] = sum_ij C_ijk x[u, i] y[v, j]
template <class T, class Team>
HAMFAST_HD inline void couple(const Team& team, const Path& path, const CouplingList& cg,
                              const T* xt, const T* yt, const T* y, int64_t pairs, int64_t outer,
                              T* z) {
  const bool tied = path.pairing != int64_t(Pairing::outer);
  fill_zero(team, z, outer * path.d3 * pairs);
  team.sync();
  for (int64_t v = 0; v < outer; ++v) {
    for (int64_t c = path.cg_begin; c < path.cg_end; ++c) {
      const int64_t i = cg.ijk[3 * c], j = cg.ijk[3 * c + 1], k = cg.ijk[3 * c + 2];
      const T* xi = xt + i * pairs;
      T* zk = z + (v * path.d3 + k) * pairs;
      if (tied) {
        const T value = T(cg.value[c]);
        const T* yj = yt + j * pairs;
        HAMFAST_SIMD
        for (int64_t p = team.rank(); p < pairs; p += team.size()) zk[p] += value * xi[p] * yj[p];
      } else {
        const T value = T(cg.value[c]) * y[path.offset2 + v * path.d2 + j];
        if (value == T(0)) continue;  // one-hot operands
        HAMFAST_SIMD
        for (int64_t p = team.rank(); p < pairs; p += team.size()) zk[p] += value * xi[p];
      }
    }
  }
  team.sync();
}

// gz[v][k][p] = sum_w W[pair, w] g[w, k], or weight x g of the pair's output channel
template <class T, class Team>
HAMFAST_HD inline void pull_back(const Team& team, const Path& path, const T* w, const T* g,
                                 int64_t pairs, int64_t outer, T* gt, T* gz) {
  const T* grad = g + path.offset3;
  if (path.mixing) {
    load_channels_fast(team, grad, path.n3, path.d3, false, false, gt, path.n3);
    team.sync();
  }
  for (int64_t v = 0; v < outer; ++v) {
    for (int64_t p = team.rank(); p < pairs; p += team.size()) {
      if (path.mixing) {
        const T* row = w + path.weight_offset + (p * outer + v) * path.n3;
        for (int64_t k = 0; k < path.d3; ++k) {
          const T* gk = gt + k * path.n3;
          T total = T(0);
          HAMFAST_SIMD_SUM(total)
          for (int64_t c = 0; c < path.n3; ++c) total += row[c] * gk[c];
          gz[(v * path.d3 + k) * pairs + p] = total;
        }
      } else {
        const T weight = path.weight_offset < 0 ? T(1) : w[path.weight_offset + p * outer + v];
        const T* gk = grad + (path.out_u * p + path.out_v * v) * path.d3;
        for (int64_t k = 0; k < path.d3; ++k) gz[(v * path.d3 + k) * pairs + p] = weight * gk[k];
      }
    }
  }
  team.sync();
}

template <class T, class Team>
HAMFAST_HD inline void add_output(const Team& team, const Path& path, const T* w, const T* z,
                                  int64_t pairs, int64_t outer, T* acc, T* out) {
  T* to = out + path.offset3;
  if (path.mixing) {
    fill_zero(team, acc, path.d3 * path.n3);
    team.sync();
    for (int64_t p = 0; p < pairs; ++p)
      for (int64_t v = 0; v < outer; ++v) {
        const T* row = w + path.weight_offset + (p * outer + v) * path.n3;
        for (int64_t k = 0; k < path.d3; ++k) {
          const T value = z[(v * path.d3 + k) * pairs + p];
          T* ak = acc + k * path.n3;
          HAMFAST_SIMD
          for (int64_t c = team.rank(); c < path.n3; c += team.size()) ak[c] += value * row[c];
        }
      }
    team.sync();
    add_channels_slow(team, acc, path.n3, path.n3, path.d3, false, false, to);
    return;
  }
  for (int64_t v = 0; v < outer; ++v)
    for (int64_t k = 0; k < path.d3; ++k) {
      const T* zk = z + (v * path.d3 + k) * pairs;
      if (path.out_u == 0) {  // every pair of this v goes to one channel
        T total = T(0);
        for (int64_t p = team.rank(); p < pairs; p += team.size())
          total += path.weight_offset < 0 ? zk[p] : zk[p] * w[path.weight_offset + p * outer + v];
        total = team.sum(total);
        if (team.rank() == 0) to[path.out_v * v * path.d3 + k] += total;
      } else {
        for (int64_t p = team.rank(); p < pairs; p += team.size()) {
          const T weight = path.weight_offset < 0 ? T(1) : w[path.weight_offset + p * outer + v];
          to[(path.out_u * p + path.out_v * v) * path.d3 + k] += weight * zk[p];
        }
      }
    }
}

template <class T, class Team>
HAMFAST_HD inline void add_weight(const Team& team, const Path& path, const T* z, const T* g,
                                  int64_t pairs, int64_t outer, T* gt, T* out) {
  const T* grad = g + path.offset3;
  T* to = out + path.weight_offset;
  if (path.mixing) {
    load_channels_fast(team, grad, path.n3, path.d3, false, false, gt, path.n3);
    team.sync();
    for (int64_t p = 0; p < pairs; ++p)
      for (int64_t v = 0; v < outer; ++v)
        for (int64_t k = 0; k < path.d3; ++k) {
          const T value = z[(v * path.d3 + k) * pairs + p];
          T* row = to + (p * outer + v) * path.n3;
          const T* gk = gt + k * path.n3;
          HAMFAST_SIMD
          for (int64_t c = team.rank(); c < path.n3; c += team.size()) row[c] += value * gk[c];
        }
    return;
  }
  for (int64_t v = 0; v < outer; ++v)
    for (int64_t p = team.rank(); p < pairs; p += team.size()) {
      const T* gk = grad + (path.out_u * p + path.out_v * v) * path.d3;
      T total = T(0);
      for (int64_t k = 0; k < path.d3; ++k) total += z[(v * path.d3 + k) * pairs + p] * gk[k];
      to[p * outer + v] += total;
    }
}

template <class T, class Team>
HAMFAST_HD inline void add_operand(const Team& team, const Path& path, const CouplingList& cg,
                                   Slot slot, const T* xt, const T* yt, const T* y, const T* gz,
                                   int64_t pairs, int64_t outer, T* grad, T* out) {
  const bool tied = path.pairing != int64_t(Pairing::outer);
  const bool triangular = path.pairing == int64_t(Pairing::triangular);
  if (slot == slot_y && !tied) {
    for (int64_t v = 0; v < outer; ++v)
      for (int64_t c = path.cg_begin; c < path.cg_end; ++c) {
        const T* xi = xt + cg.ijk[3 * c] * pairs;
        const T* gk = gz + (v * path.d3 + cg.ijk[3 * c + 2]) * pairs;
        T total = T(0);
        HAMFAST_SIMD_SUM(total)
        for (int64_t p = team.rank(); p < pairs; p += team.size()) total += xi[p] * gk[p];
        total = team.sum(total);
        if (team.rank() == 0)
          out[path.offset2 + v * path.d2 + cg.ijk[3 * c + 1]] += T(cg.value[c]) * total;
      }
    return;
  }
  const bool to_x = slot == slot_x;
  fill_zero(team, grad, (to_x ? path.d1 : path.d2) * pairs);
  team.sync();
  for (int64_t v = 0; v < outer; ++v)
    for (int64_t c = path.cg_begin; c < path.cg_end; ++c) {
      const int64_t i = cg.ijk[3 * c], j = cg.ijk[3 * c + 1];
      const T* gk = gz + (v * path.d3 + cg.ijk[3 * c + 2]) * pairs;
      T* to = grad + (to_x ? i : j) * pairs;
      if (tied) {
        const T value = T(cg.value[c]);
        const T* other = to_x ? yt + j * pairs : xt + i * pairs;
        HAMFAST_SIMD
        for (int64_t p = team.rank(); p < pairs; p += team.size())
          to[p] += value * other[p] * gk[p];
      } else {
        const T value = T(cg.value[c]) * y[path.offset2 + v * path.d2 + j];
        HAMFAST_SIMD
        for (int64_t p = team.rank(); p < pairs; p += team.size()) to[p] += value * gk[p];
      }
    }
  team.sync();
  if (to_x)
    add_channels_slow(team, grad, pairs, path.n1, path.d1, triangular, false, out + path.offset1);
  else
    add_channels_slow(team, grad, pairs, path.n2, path.d2, triangular, true, out + path.offset2);
}

// Adds dF/d(slot) of one row to `out`. `scratch`: as many elements as `scratch_size` of the plan's
// table says.
template <class T, class Team>
HAMFAST_HD inline void add_row(const Team& team, const Path* paths, int64_t num_paths,
                               const CouplingList& cg, Slot slot, bool weighted_only,
                               const RowOperands<T>& in, T* out, T* scratch) {
  for (int64_t n = 0; n < num_paths; ++n) {
    const Path& path = paths[n];
    const bool tied = path.pairing != int64_t(Pairing::outer);
    const bool triangular = path.pairing == int64_t(Pairing::triangular);
    const int64_t pairs = triangular ? path.n1 * (path.n1 - 1) / 2 : path.n1;
    const int64_t outer = tied ? 1 : path.n2;
    if (pairs * outer * path.n3 == 0) continue;
    if ((slot == slot_w || weighted_only) && path.weight_offset < 0) continue;
    T* xt = scratch;
    T* yt = xt + path.d1 * pairs;
    T* z = yt + (tied ? path.d2 * pairs : 0);
    T* mixed = z + outer * path.d3 * pairs;
    T* grad = mixed + (path.mixing ? path.d3 * path.n3 : 0);
    if (slot != slot_x)
      load_channels_fast(team, in.x + path.offset1, path.n1, path.d1, triangular, false, xt, pairs);
    if (slot != slot_y && tied)
      load_channels_fast(team, in.y + path.offset2, path.n2, path.d2, triangular, true, yt, pairs);
    team.sync();
    if (slot == slot_g || slot == slot_w) {
      couple(team, path, cg, xt, yt, in.y, pairs, outer, z);
      if (slot == slot_g)
        add_output(team, path, in.w, z, pairs, outer, mixed, out);
      else
        add_weight(team, path, z, in.g, pairs, outer, mixed, out);
    } else {
      pull_back(team, path, in.w, in.g, pairs, outer, mixed, z);
      add_operand(team, path, cg, slot, xt, yt, in.y, z, pairs, outer, grad, out);
    }
    team.sync();
  }
}

template <class T, class Team>
HAMFAST_HD inline void general_row(const Team& team, const GeneralCall<T>& call, int64_t row,
                                   T* scratch) {
  T* out = call.out + row * call.out_dim;
  int64_t begin = row, end = row + 1;
  if (call.ptr) {
    begin = call.ptr[row];
    end = call.ptr[row + 1];
  } else if (call.chunk > 0) {
    begin = row * call.chunk;
    end = begin + call.chunk < call.edges ? begin + call.chunk : call.edges;
  }
  for (int64_t n = begin; n < end; ++n) {
    const int64_t e = call.order ? call.order[n] : n;
    const T* in[4];
    for (int a = 0; a < 4; ++a) {
      in[a] = nullptr;
      if (call.operand[a])
        in[a] = call.operand[a] + (call.index[a] ? call.index[a][e] : e) * call.dim[a];
    }
    add_row(team, call.paths, call.num_paths, call.cg, call.slot, call.weighted_only,
            RowOperands<T>{in[0], in[1], in[2], in[3]}, out, scratch);
  }
}

}  // namespace HAMFAST_ISA

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

template <class T>
__global__ void general_kernel(GeneralCall<T> call, int64_t rows, T* scratch) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x)
    HAMFAST_ISA::general_row(HAMFAST_ISA::Warp{}, call, row,
                             scratch + blockIdx.x * call.scratch_size);
}

#endif

}  // namespace hamfast
