// The update of an edge's features from those of the nodes it joins:
//   x[e] = edge[e] + sender[s] + receiver[t],  n = (x - mean) / sqrt(variance + epsilon),  u =
//   weight n + bias, y[e] = act(u);   mean and variance are a row's own (layer normalisation: Ba,
//   Kiros, Hinton 2016).
// Backward; grad is the gradient of y, v = weight grad act'(u), <> is the mean over a row:
//   grad_x      = (v - <v> - n <v n>) / sqrt(variance + epsilon)
//   grad_weight = sum over edges of n grad act'(u)
//   grad_bias   = sum over edges of grad act'(u)
// Double backward, along tangents x', w', b' of these three: D = sum of grad act'(u) u', where
//   n' = (x' - <x'> - n <x' n>) / sqrt(variance + epsilon)
//   u' = weight n' + w' n + b'
//   t  = grad act''(u) u'
//   h  = weight t + w' grad act'(u) - (v <x' n> + x' <v n>) / sqrt(variance + epsilon)
//   dD/dgrad   = act'(u) u'
//   dD/dx      = (h - <h> - n (<h n> + <v n'>)) / sqrt(variance + epsilon)
//   dD/dweight = sum over edges of t n + grad act'(u) n'
//   dD/dbias   = sum over edges of t
// x, mean and variance are made again: nothing but the operands is kept. Sums over the edges of a
// node are edge_einsum's.
#pragma once

#include "activations.cuh"
#include "edge_sum.cuh"

namespace hamfast {

// T: what is computed in, and of weight and bias. Stored: of rows, and of their gradients.
template <class T, class Stored = T>
struct EdgeUpdateCall {
  EdgeSum<Stored> sum;
  Maybe<const T> weight, bias;  // [width]; absent: x is not normalised
  T epsilon;
  bool silu;  // or the identity
  const int64_t *senders, *receivers;
  int64_t edges;
  bool packed;  // columns.cuh

  Stored* out;  // [edges, width]

  const Stored* grad;
  Stored* grad_sum;  // [edges, width]: of x
  T* grad_norm;      // [chunks, 2, width]: of weight and bias, summed over a chunk of the edges
  int64_t chunks;

  // Double backward: directions, absent for zero, and the gradient of grad.
  Maybe<const Stored> tangent_sum;  // [edges, width]
  Maybe<const T> tangent_norm;      // [2, width]
  Stored* grad_grad;                // [edges, width]

  HAMFAST_HD int64_t width() const { return sum.width; }
  HAMFAST_HD Maybe<T> grad_norm_of(int64_t chunk) const {
    return weight ? Maybe<T>(grad_norm + chunk * 2 * sum.width) : Maybe<T>();
  }
};

}  // namespace hamfast

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

#include "columns.cuh"

namespace hamfast {

constexpr int kUpdateWarps = 8;  // per block

// Of a group: the fewest, a power of 2, that have a row's columns once.
HAMFAST_HD inline int update_lanes(int64_t width) {
  int lanes = kWarp;
  while (lanes > 1 && lanes / 2 * kColumns >= width) lanes /= 2;
  return lanes;
}

// A group of lanes at the row of one edge. All lanes of the warp take every step; those without an
// edge add nothing.
template <class T, class Stored>
struct UpdateRow {
  // What a lane holds of a row. Rows that are longer are read again from there on.
  static constexpr int kHeld = 2;

  const EdgeUpdateCall<T, Stored>& call;
  int lanes, lane;  // of the group
  bool is_active;
  int64_t row[3];
  Columns<T> held[kHeld];
  T mean, scale;

  HAMFAST_INLINE UpdateRow(const EdgeUpdateCall<T, Stored>& call_)
      : call(call_),
        lanes(update_lanes(call_.width())),
        lane(static_cast<int>(threadIdx.x) % lanes) {}

  HAMFAST_INLINE int64_t left(int64_t c) const { return call.width() - c; }
  HAMFAST_INLINE int64_t column(int k) const {
    return (static_cast<int64_t>(k) * lanes + lane) * kColumns;
  }
  HAMFAST_INLINE Columns<T> read(int64_t c) const {
    return row_columns<T>(call.sum, 1, row, 0, c, call.packed);
  }
  HAMFAST_INLINE Columns<T> factors(const T* from, int64_t c) const {
    return load_columns<T>(from + c, left(c), call.packed);
  }

  // f(k, c, x) for the lane's columns from c on: the k-th that are held, or, k = kHeld, any of the
  // others.
  template <class F>
  HAMFAST_INLINE void each(F&& f) const {
    if (!is_active) return;
    HAMFAST_UNROLL
    for (int k = 0; k < kHeld; ++k)
      if (column(k) < call.width()) f(k, column(k), held[k]);
    for (int64_t c = column(kHeld); c < call.width(); c += lanes * kColumns) f(kHeld, c, read(c));
  }
  HAMFAST_INLINE void add_in_memory(const Columns<T>& x, T* to, int64_t c) const {
    Columns<T> total = load_columns<T>(to, left(c), call.packed);
    add_columns(T(1), x, total);
    store_columns(total, to, left(c), call.packed);
  }
  HAMFAST_INLINE T over_group(T x) const {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
  }

  HAMFAST_INLINE void start(int64_t edge) {
    is_active = edge < call.edges;
    mean = T(0), scale = T(1);
    if (is_active) {
      row[0] = edge, row[1] = call.senders[edge], row[2] = call.receivers[edge];
      HAMFAST_UNROLL
      for (int k = 0; k < kHeld; ++k)
        if (column(k) < call.width()) held[k] = read(column(k));
    }
    if (!call.weight) return;
    T total = T(0);
    each([&](int, int64_t, const Columns<T>& x) {
      HAMFAST_UNROLL
      for (int i = 0; i < kColumns; ++i) total += x.at[i];
    });
    mean = over_group(total) / static_cast<T>(call.width());
    total = T(0);
    each([&](int, int64_t c, const Columns<T>& x) {
      HAMFAST_UNROLL
      for (int i = 0; i < kColumns; ++i)
        if (i < left(c)) total += (x.at[i] - mean) * (x.at[i] - mean);
    });
    scale = T(1) / sqrt(over_group(total) / static_cast<T>(call.width()) + call.epsilon);
  }

  // n and u.
  HAMFAST_INLINE void normalise(int64_t c, const Columns<T>& x, Columns<T>& n,
                                Columns<T>& u) const {
    n = u = x;
    if (!call.weight) return;
    const Columns<T> weight = factors(call.weight.data, c), bias = factors(call.bias.data, c);
    HAMFAST_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      n.at[i] = (x.at[i] - mean) * scale;
      u.at[i] = n.at[i] * weight.at[i] + bias.at[i];
    }
  }

  HAMFAST_INLINE void forward() const {
    each([&](int, int64_t c, const Columns<T>& x) {
      Columns<T> n, u;
      normalise(c, x, n, u);
      if (call.silu) {
        HAMFAST_UNROLL
        for (int i = 0; i < kColumns; ++i) u.at[i] = HAMFAST_ISA::silu(u.at[i]);
      }
      store_columns(u, call.out + row[0] * call.width() + c, left(c), call.packed);
    });
  }

  // n and g act'(u).
  HAMFAST_INLINE void incoming(int64_t c, const Columns<T>& x, Columns<T>& n,
                               Columns<T>& grad) const {
    Columns<T> u;
    normalise(c, x, n, u);
    grad = load_columns<T>(call.grad + row[0] * call.width() + c, left(c), call.packed);
    if (!call.silu) return;
    HAMFAST_UNROLL
    for (int i = 0; i < kColumns; ++i) grad.at[i] *= HAMFAST_ISA::silu_slope(u.at[i]);
  }

  // add(k, c, of_weight, of_bias): what the row's columns add to the gradients of weight and bias.
  template <class F>
  HAMFAST_INLINE void backward(F&& add) const {
    T of_v = T(0), of_vn = T(0);
    if (call.weight) {
      each([&](int, int64_t c, const Columns<T>& x) {
        Columns<T> n, grad;
        incoming(c, x, n, grad);
        const Columns<T> weight = factors(call.weight.data, c);
        HAMFAST_UNROLL
        for (int i = 0; i < kColumns; ++i) {  // beyond the row the weight is 0
          of_v += weight.at[i] * grad.at[i];
          of_vn += weight.at[i] * grad.at[i] * n.at[i];
        }
      });
      of_v = over_group(of_v) / static_cast<T>(call.width());
      of_vn = over_group(of_vn) / static_cast<T>(call.width());
    }
    each([&](int k, int64_t c, const Columns<T>& x) {
      Columns<T> n, grad;
      incoming(c, x, n, grad);
      if (call.weight) {
        Columns<T> of_weight;
        HAMFAST_UNROLL
        for (int i = 0; i < kColumns; ++i) of_weight.at[i] = n.at[i] * grad.at[i];
        add(k, c, of_weight, grad);
        const Columns<T> weight = factors(call.weight.data, c);
        HAMFAST_UNROLL
        for (int i = 0; i < kColumns; ++i)
          grad.at[i] = (weight.at[i] * grad.at[i] - of_v - n.at[i] * of_vn) * scale;
      }
      store_columns(grad, call.grad_sum + row[0] * call.width() + c, left(c), call.packed);
    });
  }

  // Of the direction of a row's gradient.
  HAMFAST_INLINE Columns<T> along(int64_t c) const {
    return call.tangent_sum
               ? load_columns<T>(call.tangent_sum + row[0] * call.width() + c, left(c), call.packed)
               : Columns<T>{};
  }
  // Columns of what the second derivative is made of: see the top of the file.
  struct Second {
    Columns<T> n, tangent_n, to_grad, q, t, v,
        h;  // q = g act'(u), v = weight q; h without the terms of <v n> and <x' n>
  };
  HAMFAST_INLINE Second second(int64_t c, const Columns<T>& x, T tangent_mean,
                               T tangent_slope) const {
    Second s;
    Columns<T> u;
    normalise(c, x, s.n, u);
    const bool has_norm = call.weight.given();
    Columns<T> weight{}, tangent_weight{}, tangent_bias{};
    if (has_norm) weight = factors(call.weight.data, c);
    if (has_norm && call.tangent_norm) {
      tangent_weight = factors(call.tangent_norm.data, c);
      tangent_bias = factors(call.tangent_norm + call.width(), c);
    }
    const Columns<T> tangent_x = along(c);
    const Columns<T> grad =
        load_columns<T>(call.grad + row[0] * call.width() + c, left(c), call.packed);
    HAMFAST_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      const T slope = call.silu ? HAMFAST_ISA::silu_slope(u.at[i]) : T(1);
      const T curvature = call.silu ? HAMFAST_ISA::silu_curvature(u.at[i]) : T(0);
      s.tangent_n.at[i] = has_norm
                              ? (tangent_x.at[i] - tangent_mean - s.n.at[i] * tangent_slope) * scale
                              : tangent_x.at[i];
      const T tangent_u = has_norm ? weight.at[i] * s.tangent_n.at[i] +
                                         tangent_weight.at[i] * s.n.at[i] + tangent_bias.at[i]
                                   : s.tangent_n.at[i];
      s.to_grad.at[i] = slope * tangent_u;
      s.q.at[i] = slope * grad.at[i];
      s.t.at[i] = curvature * grad.at[i] * tangent_u;
      s.v.at[i] = weight.at[i] * s.q.at[i];
      s.h.at[i] =
          has_norm ? weight.at[i] * s.t.at[i] + tangent_weight.at[i] * s.q.at[i] : s.t.at[i];
    }
    return s;
  }

  // add: as in backward.
  template <class F>
  HAMFAST_INLINE void double_backward(F&& add) const {
    const T share = T(1) / static_cast<T>(call.width());
    T tangent_mean = T(0), tangent_slope = T(0), of_vn = T(0), of_change = T(0), of_h = T(0),
      of_hn = T(0);
    auto mean_over = [&](T& total) { total = over_group(total) * share; };
    if (call.weight) {
      each([&](int, int64_t c, const Columns<T>& x) {
        const Columns<T> tangent_x = along(c);
        HAMFAST_UNROLL
        for (int i = 0; i < kColumns; ++i)
          tangent_mean += tangent_x.at[i],
              tangent_slope += tangent_x.at[i] * (x.at[i] - mean) * scale;
      });
      mean_over(tangent_mean), mean_over(tangent_slope);
    }
    each([&](int k, int64_t c, const Columns<T>& x) {
      const Second s = second(c, x, tangent_mean, tangent_slope);
      const int64_t at = row[0] * call.width() + c;
      store_columns(s.to_grad, call.grad_grad + at, left(c), call.packed);
      if (!call.weight) return store_columns(s.h, call.grad_sum + at, left(c), call.packed);
      Columns<T> of_weight;
      HAMFAST_UNROLL
      for (int i = 0; i < kColumns; ++i) {  // beyond the row v, q and t are 0
        of_weight.at[i] = s.t.at[i] * s.n.at[i] + s.q.at[i] * s.tangent_n.at[i];
        of_vn += s.v.at[i] * s.n.at[i], of_change += s.v.at[i] * s.tangent_n.at[i];
      }
      add(k, c, of_weight, s.t);
    });
    if (!call.weight) return;
    mean_over(of_vn), mean_over(of_change);
    auto mixed = [&](int64_t c, const Second& s, int i) {
      return s.h.at[i] - (s.v.at[i] * tangent_slope + along(c).at[i] * of_vn) * scale;
    };
    each([&](int, int64_t c, const Columns<T>& x) {
      const Second s = second(c, x, tangent_mean, tangent_slope);
      HAMFAST_UNROLL
      for (int i = 0; i < kColumns; ++i) {
        const T h = mixed(c, s, i);
        of_h += h, of_hn += h * s.n.at[i];
      }
    });
    mean_over(of_h), mean_over(of_hn);
    of_hn += of_change;
    each([&](int, int64_t c, const Columns<T>& x) {
      const Second s = second(c, x, tangent_mean, tangent_slope);
      Columns<T> out;
      HAMFAST_UNROLL
      for (int i = 0; i < kColumns; ++i)
        out.at[i] = (mixed(c, s, i) - of_h - s.n.at[i] * of_hn) * scale;
      store_columns(out, call.grad_sum + row[0] * call.width() + c, left(c), call.packed);
    });
  }
};

// Groups of lanes walk over edges.
template <class T, class Stored>
__global__ void __launch_bounds__(kWarp* kUpdateWarps)
    edge_update_kernel(EdgeUpdateCall<T, Stored> call) {
  UpdateRow<T, Stored> row(call);
  const int64_t groups = static_cast<int64_t>(gridDim.x) * blockDim.x / row.lanes;
  const int64_t own = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / row.lanes;
  for (int64_t first = own - own % (kWarp / row.lanes); first < call.edges; first += groups) {
    row.start(first + own % (kWarp / row.lanes));
    row.forward();
  }
}

// The backward pass, or its derivative: a group of lanes has a chunk of the edges, and sums the
// gradients of weight and bias over it.
template <class T, class Stored, bool second>
__global__ void __launch_bounds__(kWarp* kUpdateWarps, second && sizeof(T) == 8 ? 1 : 2)
    edge_update_gradients_kernel(EdgeUpdateCall<T, Stored> call) {
  using Row = UpdateRow<T, Stored>;
  Row row(call);
  const int64_t chunk = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / row.lanes;
  const int64_t first = chunk < call.chunks ? call.edges * chunk / call.chunks : call.edges;
  const int64_t last = chunk < call.chunks ? call.edges * (chunk + 1) / call.chunks : call.edges;
  const int64_t longest =
      (call.edges + call.chunks - 1) / call.chunks;  // the same for all lanes of a warp
  const Maybe<T> to_weight = chunk < call.chunks ? call.grad_norm_of(chunk) : Maybe<T>();
  Columns<T> weight[Row::kHeld] = {}, bias[Row::kHeld] = {};
  for (int64_t n = 0; n < longest; ++n) {
    row.start(first + n < last ? first + n : call.edges);
    auto add = [&](int k, int64_t c, const Columns<T>& of_weight, const Columns<T>& of_bias) {
      if (k < Row::kHeld) {
        add_columns(T(1), of_weight, weight[k]);
        add_columns(T(1), of_bias, bias[k]);
      } else {
        row.add_in_memory(of_weight, to_weight + c, c);
        row.add_in_memory(of_bias, to_weight + call.width() + c, c);
      }
    };
    if constexpr (second)
      row.double_backward(add);
    else
      row.backward(add);
  }
  if (!to_weight) return;
  HAMFAST_UNROLL
  for (int k = 0; k < Row::kHeld; ++k) {
    const int64_t c = row.column(k);
    if (c >= call.width()) break;
    store_columns(weight[k], to_weight + c, row.left(c), call.packed);
    store_columns(bias[k], to_weight + call.width() + c, row.left(c), call.packed);
  }
}

}  // namespace hamfast

#endif
