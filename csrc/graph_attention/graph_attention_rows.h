// Loops over the rows of edges that attention is made of. For graph_attention_isa.cpp: compiled once per instruction
// set.
#pragma once

#include "common/simd.h"
#include "graph_attention.cuh"

namespace hamfast::HAMFAST_ISA {

// Edges of one node that are worked on together.
constexpr int kChunk = 32;
// Rows that are added at once: the sum is loaded and stored once for all of them.
constexpr int kTogether = 4;

struct Chunk {
  int count;
  int64_t edge[kChunk], sender[kChunk], receiver[kChunk];
};

template <class T>
inline void add_row(const T* from, int64_t n, T* to) {
  int64_t c = 0;
  for (; c + kLanes<T> <= n; c += kLanes<T>) store(to + c, load(to + c) + load(from + c));
  for (; c < n; ++c) to[c] += from[c];
}

template <class T>
inline void set_zero(T* to, int64_t n) {
  for (int64_t c = 0; c < n; ++c) to[c] = T(0);
}

// The row [heads, width] of q, k or v for every edge of a chunk: where it lies if it is one part, else a sum, in
// `buffer`.
template <class T>
inline void resolve(const EdgeSum<T>& sum, int64_t size, const Chunk& chunk, T* buffer, const T** rows) {
  const int64_t* index[3] = {chunk.edge, chunk.sender, chunk.receiver};
  int parts = 0, last = 0;
  for (int p = 0; p < 3; ++p)
    if (sum.part[p]) ++parts, last = p;
  for (int i = 0; i < chunk.count; ++i) {
    if (parts == 1) {
      rows[i] = sum.part[last] + index[last][i] * size;
      continue;
    }
    T* row = buffer + i * size;
    set_zero(row, size);
    for (int p = 0; p < 3; ++p)
      if (sum.part[p]) add_row(sum.part[p] + index[p][i] * size, size, row);
    rows[i] = row;
  }
}

template <class T>
inline Vector<T> add_dot(const T* a, const T* b, int64_t n, Vector<T> sum) {
  int64_t c = 0;
  for (; c + kLanes<T> <= n; c += kLanes<T>) sum += load(a + c) * load(b + c);
  if (c < n) sum += load_first(a + c, n - c) * load_first(b + c, n - c);
  return sum;
}

// Collects vectors and writes the sums of their lanes, many at a time.
template <class T>
class LaneSums {
 public:
  explicit LaneSums(T* to) : to_(to) {}
  ~LaneSums() { flush(); }
  inline void add(Vector<T> v) {
    store(buffer_ + filled_ * kLanes<T>, v);
    if (++filled_ == kBatch) flush();
  }

 private:
  static constexpr int kBatch = 64;
  void flush() {
    for (int i = 0; i < filled_; i += kLanes<T>) {
      for (int j = filled_; j < i + kLanes<T>; ++j) store(buffer_ + j * kLanes<T>, Vector<T>{});
      store_first(to_ + i, sum_lanes(buffer_ + i * kLanes<T>), filled_ - i);
    }
    to_ += filled_;
    filled_ = 0;
  }
  T* to_;
  int filled_ = 0;
  alignas(kVectorBytes) T buffer_[kBatch * kLanes<T>];
};

// to[i, h] = <a_i[h], b_i[h]> + <node[h], edge_i>; a width of 0 or a null node leaves a term out.
template <class T>
inline void head_dots(int count, int64_t heads, const T* const* a, const T* const* b, int64_t width, const T* node,
                      int64_t node_stride, const T* const* edge, int64_t features, T* to) {
  LaneSums<T> sums(to);
  for (int i = 0; i < count; ++i)
    for (int64_t h = 0; h < heads; ++h) {
      Vector<T> sum{};
      if (width) sum = add_dot(a[i] + h * width, b[i] + h * width, width, sum);
      if (node) sum = add_dot(node + h * node_stride, edge[i], features, sum);
      sums.add(sum);
    }
}

// sum[h] += sum_i weight_i[h] row_i[h]. stride: of the rows' heads, 0 if all heads read the same row.
template <class T>
inline void accumulate(int count, int64_t heads, const T* const* weight, const T* const* rows, int64_t width,
                       int64_t stride, T* sum) {
  for (int first = 0; first < count; first += kTogether) {
    const int n = count - first < kTogether ? count - first : kTogether;
    const T* row[kTogether];
    T none = T(0);
    for (int j = 0; j < kTogether; ++j) row[j] = rows[first + (j < n ? j : 0)];
    for (int64_t h = 0; h < heads; ++h) {
      T w[kTogether];
      for (int j = 0; j < kTogether; ++j) w[j] = j < n ? weight[first + j][h] : none;
      T* to = sum + h * width;
      int64_t c = 0;
      const int64_t from = h * stride;
      // A row that is not there must not be multiplied by zero: it could hold NaN.
      if (n == kTogether) {
        for (; c + kLanes<T> <= width; c += kLanes<T>) {
          Vector<T> v = load(to + c);
          for (int j = 0; j < kTogether; ++j) v += w[j] * load(row[j] + from + c);
          store(to + c, v);
        }
      } else {
        for (; c + kLanes<T> <= width; c += kLanes<T>) {
          Vector<T> v = load(to + c);
          for (int j = 0; j < n; ++j) v += w[j] * load(row[j] + from + c);
          store(to + c, v);
        }
      }
      if (c < width) {
        Vector<T> v = load_first(to + c, width - c);
        for (int j = 0; j < n; ++j) v += w[j] * load_first(row[j] + from + c, width - c);
        store_first(to + c, v, width - c);
      }
    }
  }
}

// to[h] = weight[h] row[h]
template <class T>
inline void scale_heads(int64_t heads, const T* weight, const T* row, int64_t width, T* to) {
  for (int64_t h = 0; h < heads; ++h) {
    int64_t c = 0;
    for (; c + kLanes<T> <= width; c += kLanes<T>) store(to + h * width + c, weight[h] * load(row + h * width + c));
    for (; c < width; ++c) to[h * width + c] = weight[h] * row[h * width + c];
  }
}

// to_i = sum_h a_i[h] x[h] + b_i[h] y[h], for n edges at a time; x or y may be null.
template <class T, int n>
inline void spread(int64_t heads, const T* const* a, const T* x, int64_t x_stride, const T* const* b, const T* y,
                   int64_t y_stride, int64_t width, T* const* to) {
  for (int64_t c = 0; c < width; c += kLanes<T>) {
    Vector<T> sum[n] = {};
    for (int64_t h = 0; h < heads; ++h) {
      if (x) {
        const Vector<T> v = load_first(x + h * x_stride + c, width - c);
        for (int j = 0; j < n; ++j) sum[j] += a[j][h] * v;
      }
      if (y) {
        const Vector<T> v = load_first(y + h * y_stride + c, width - c);
        for (int j = 0; j < n; ++j) sum[j] += b[j][h] * v;
      }
    }
    for (int j = 0; j < n; ++j) store_first(to[j] + c, sum[j], width - c);
  }
}

// The activation of additive scores, and its derivative.
template <class T>
inline Vector<T> score_activation(int64_t kind, T slope, Vector<T> x) {
  const Vector<T> zero{};
  if (kind == act_leaky_relu) return select<T>(x > T(0), x, slope * x);
  const Vector<T> y = T(1) / (T(1) + exp_of<T>(zero - x));
  if (kind == act_silu) return x * y;
  // Equiformer's smooth leaky ReLU: (1 + a) / 2 x + (1 - a) / 2 x (2 sigmoid(x) - 1)
  return x * (slope + (T(1) - slope) * y);
}
template <class T>
inline Vector<T> score_activation_slope(int64_t kind, T slope, Vector<T> x) {
  const Vector<T> zero{};
  if (kind == act_leaky_relu) return select<T>(x > T(0), zero + T(1), zero + slope);
  const Vector<T> y = T(1) / (T(1) + exp_of<T>(zero - x));
  const Vector<T> silu_slope = y * (T(1) + x * (T(1) - y));
  if (kind == act_silu) return silu_slope;
  return slope + (T(1) - slope) * silu_slope;
}

// value_i = act(q_i + k_i) and slope_i = vector act'(q_i + k_i), into buffers; either may be null.
template <class T>
inline void activate(const AttentionCall<T>& call, int count, const T* const* q, const T* const* k, T* value,
                     T* slope) {
  const int64_t size = call.heads * call.query.width;
  for (int i = 0; i < count; ++i)
    for (int64_t c = 0; c < size; c += kLanes<T>) {
      const Vector<T> z = load_first(q[i] + c, size - c) + load_first(k[i] + c, size - c);
      if (value) store_first(value + i * size + c, score_activation(call.activation, call.slope, z), size - c);
      if (slope)
        store_first(slope + i * size + c,
                    load_first(call.vector + c, size - c) * score_activation_slope(call.activation, call.slope, z),
                    size - c);
    }
}

// x[i, h] = exp(x[i, h] - shift[h])
template <class T>
inline void exp_shifted(int64_t count, int64_t heads, const T* shift, T* x) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t h = 0; h < heads; ++h) x[i * heads + h] -= shift[h];
  const int64_t n = count * heads;
  for (int64_t i = 0; i < n; i += kLanes<T>)
    store_first(x + i, exp_of<T>(load_first(x + i, n - i)), n - i);
}

}  // namespace hamfast::HAMFAST_ISA
