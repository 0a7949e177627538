// Loops over the rows of edges that attention is made of. For *_isa.cpp: compiled once per
// instruction set. Symbols are those of kernels/graph_attention.cuh.
#pragma once

#include "common/simd.h"
#include "graph_attention.cuh"

namespace hamfast::HAMFAST_ISA {

// Edges of one node that are worked on together.
constexpr int kBatch = 32;
// Rows that are added at once: the sum is loaded and stored once for all of them.
constexpr int kTogether = 4;

struct Batch {
  int count;
  int64_t edge[kBatch], sender[kBatch], receiver[kBatch];
};

// f(offset, count) for the vectors of n elements: full ones, and the first `count` lanes of the
// last.
template <class T, class F>
inline void for_lanes(int64_t n, F&& f) {
  int64_t c = 0;
  for (; c + kLanes<T> <= n; c += kLanes<T>) f(c, Size<kLanes<T>>{});
  if (c < n) f(c, n - c);
}
template <class T, int n>
inline Vector<T> load_lanes(const T* p, Size<n>) {
  return load(p);
}
template <class T>
inline Vector<T> load_lanes(const T* p, int64_t n) {
  return load_first(p, n);
}
template <class T, int n>
inline void store_lanes(T* p, Vector<T> v, Size<n>) {
  store(p, v);
}
template <class T>
inline void store_lanes(T* p, Vector<T> v, int64_t n) {
  store_first(p, v, n);
}

template <class T>
inline void set_zero(T* to, int64_t n) {
  for (int64_t c = 0; c < n; ++c) to[c] = T(0);
}

// The row [heads, width] of query, key or value for every edge of a batch: where it lies if it is
// one part, else a sum, in `buffer`.
template <class T>
inline void resolve(const EdgeSum<T>& sum, int64_t size, const Batch& batch, T* buffer,
                    const T** rows) {
  const int64_t* index[3] = {batch.edge, batch.sender, batch.receiver};  // by RowOf
  int parts = 0, last = 0;
  for (int p = 0; p < 3; ++p)
    if (sum.part[p]) ++parts, last = p;
  if (parts == 1 || size == 0) {
    for (int i = 0; i < batch.count; ++i)
      rows[i] = parts ? sum.part[last] + index[last][i] * size : buffer;
    return;
  }
  if (parts == 0) {  // a row for each: what is made of them may take their place
    set_zero(buffer, batch.count * size);
    for (int i = 0; i < batch.count; ++i) rows[i] = buffer + i * size;
    return;
  }
  for (int i = 0; i < batch.count; ++i) {
    const T* part[3];
    int count = 0;
    for (int p = 0; p < 3; ++p)
      if (sum.part[p]) part[count++] = sum.part[p] + index[p][i] * size;
    const T *first = part[0], *second = part[1], *third = count > 2 ? part[2] : nullptr;
    T* row = buffer + i * size;
    for_lanes<T>(size, [=](int64_t c, auto n) {
      Vector<T> v = load_lanes(first + c, n) + load_lanes(second + c, n);
      if (third) v += load_lanes(third + c, n);
      store_lanes(row + c, v, n);
    });
    rows[i] = row;
  }
}

template <class T, int vectors>
inline Vector<T> add_dot(const T* a, const T* b, int64_t n, Vector<T> sum) {
  if constexpr (vectors > 0) {
    for (int i = 0; i < vectors; ++i) sum += load(a + i * kLanes<T>) * load(b + i * kLanes<T>);
  } else {
    int64_t c = 0;
    for (; c + kLanes<T> <= n; c += kLanes<T>) sum += load(a + c) * load(b + c);
    if (c < n) sum += load_first(a + c, n - c) * load_first(b + c, n - c);
  }
  return sum;
}

// sum_j[h] = <a_j[h], b_j[h]> + <node[h], edge_j> for n edges, as vectors whose lanes are still to
// be summed, two heads folded into one: partial[j, h / 2]. `wide`, `featured`: how many full
// vectors there are, 0 for any. same: all edges have one a. Pointers are copied: the compiler must
// take every store for a change of what it reaches through memory.
template <class T, int n, int wide, int featured, bool same>
inline void partial_dots(int64_t heads, const T* const* a_rows, const T* const* b_rows,
                         int64_t width, const T* node, const T* const* edge_rows, int64_t features,
                         T* partial) {
  const T *a[n], *b[n], *edge[n];
  for (int j = 0; j < n; ++j) a[j] = a_rows[j], b[j] = b_rows[j], edge[j] = edge_rows[j];
  Vector<T> shared[n][featured > 0 ? featured : 1];
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < featured; ++i) shared[j][i] = load(edge[j] + i * kLanes<T>);
  auto add_head = [&](int64_t h, Vector<T>(&sum)[n]) {
    if (width) {
      if constexpr (wide > 0 && same) {
        for (int i = 0; i < wide; ++i) {
          const Vector<T> common = load(a[0] + h * width + i * kLanes<T>);
          for (int j = 0; j < n; ++j) sum[j] += common * load(b[j] + h * width + i * kLanes<T>);
        }
      } else {
        for (int j = 0; j < n; ++j)
          sum[j] = add_dot<T, wide>(a[j] + h * width, b[j] + h * width, width, sum[j]);
      }
    }
    if constexpr (featured > 0) {
      for (int i = 0; i < featured; ++i) {
        const Vector<T> common = load(node + h * features + i * kLanes<T>);
        for (int j = 0; j < n; ++j) sum[j] += common * shared[j][i];
      }
    } else if (node) {
      for (int j = 0; j < n; ++j)
        sum[j] = add_dot<T, 0>(node + h * features, edge[j], features, sum[j]);
    }
  };
  const int64_t pairs = (heads + 1) / 2;
  for (int64_t p = 0; p < pairs; ++p) {
    Vector<T> first[n] = {}, second[n] = {};
    add_head(2 * p, first);
    if (2 * p + 1 < heads) add_head(2 * p + 1, second);
    for (int j = 0; j < n; ++j)
      store(partial + (j * pairs + p) * kLanes<T>, fold_pair<T>(first[j], second[j]));
  }
}

// The sums of n edges, in `partial` to begin with: to[j, h].
template <class T>
inline void sum_partial(int n, int64_t heads, T* partial, T* to) {
  constexpr int at_once = kLanes<T> / 2;
  const int64_t pairs = (heads + 1) / 2, rows = n * pairs;
  // With a gap after an odd number of heads. Row i is read before sum i is written.
  T* sums = heads % 2 ? partial : to;
  for (int64_t i = 0; i < rows; i += at_once) {
    Vector<T> pair[at_once];
    for (int j = 0; j < at_once; ++j)
      pair[j] = i + j < rows ? load(partial + (i + j) * kLanes<T>) : Vector<T>{};
    store_first(sums + 2 * i, sum_pairs<T>(pair), 2 * (rows - i));
  }
  for (int j = 0; heads % 2 && j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) to[j * heads + h] = sums[j * 2 * pairs + h];
}

// to[i, h] = <a_i[h], b_i[h]> + <node[h], edge_i>; a width of 0 or no node leaves a term out.
// partial: working memory of partial_size() elements. later: as many rows of features that will be
// needed soon, or null.
template <class T>
inline void head_dots(int count, int64_t heads, const T* const* a, const T* const* b, int64_t width,
                      Maybe<const T> node, const T* const* edge, int64_t features, T* partial,
                      T* to, const T* const* later = nullptr) {
  bool same = true;
  for (int i = 1; i < count; ++i) same = same && a[i] == a[0];
  auto run = [=](auto wide, auto featured, auto one) mutable {
    int i = 0;
    auto dots = [&](auto n) {
      partial_dots<T, n(), wide(), featured(), one()>(heads, a + i, b + i, width, node.data,
                                                      edge + i, features, partial);
      sum_partial(n(), heads, partial, to + i * heads);
      i += n();
    };
    while (i + kTogether <= count) {
      for (int j = i; later && j < i + kTogether; ++j) prefetch(later[j], features);
      dots(Size<kTogether>{});
    }
    while (i < count) dots(Size<1>{});
  };
  for_vectors<T>(width, [&](auto wide) {
    for_vectors<T>(node ? features : 0, [&](auto featured) {
      same ? run(wide, featured, Size<1>{}) : run(wide, featured, Size<0>{});
    });
  });
}
template <class T>
inline int64_t partial_size(int64_t heads) {
  return kTogether * (heads + 1) / 2 * kLanes<T>;
}

// sum[h] += sum_j weight_j[h] row_j[h] for n rows.
template <class T, int n, int vectors>
inline void accumulate_rows(int64_t heads, const T* const* weight, const T* const* row,
                            int64_t width, int64_t stride, T* sum) {
  const T *weights[n], *rows[n];
  for (int j = 0; j < n; ++j) weights[j] = weight[j], rows[j] = row[j];
  for (int64_t h = 0; h < heads; ++h) {
    T w[n];
    const T* from[n];
    for (int j = 0; j < n; ++j) w[j] = weights[j][h], from[j] = rows[j] + h * stride;
    T* to = sum + h * width;
    const int64_t full = vectors > 0 ? vectors * kLanes<T> : width / kLanes<T> * kLanes<T>;
    for (int64_t c = 0; c < full; c += kLanes<T>) {
      Vector<T> v = load(to + c);
      for (int j = 0; j < n; ++j) v += w[j] * load(from[j] + c);
      store(to + c, v);
    }
    if (vectors == 0 && full < width) {
      Vector<T> v = load_first(to + full, width - full);
      for (int j = 0; j < n; ++j) v += w[j] * load_first(from[j] + full, width - full);
      store_first(to + full, v, width - full);
    }
  }
}

// The same where all heads read the same rows, which then stay in registers.
template <class T, int vectors>
inline void accumulate_shared(int64_t heads, const T* const* weight, const T* const* row, T* sum) {
  const T* weights[kTogether];
  Vector<T> shared[kTogether][vectors];
  for (int j = 0; j < kTogether; ++j) {
    weights[j] = weight[j];
    for (int i = 0; i < vectors; ++i) shared[j][i] = load(row[j] + i * kLanes<T>);
  }
  for (int64_t h = 0; h < heads; ++h) {
    T* to = sum + h * vectors * kLanes<T>;
    Vector<T> v[vectors];
    for (int i = 0; i < vectors; ++i) v[i] = load(to + i * kLanes<T>);
    for (int j = 0; j < kTogether; ++j)
      for (int i = 0; i < vectors; ++i) v[i] += weights[j][h] * shared[j][i];
    for (int i = 0; i < vectors; ++i) store(to + i * kLanes<T>, v[i]);
  }
}

// sum[h] += sum_i weight_i[h] row_i[h]. stride: of the rows' heads, 0 if all heads read the same
// row.
template <class T>
inline void accumulate(int count, int64_t heads, const T* const* weight, const T* const* rows,
                       int64_t width, int64_t stride, T* sum) {
  for_vectors<T>(width, [=](auto vectors) {
    int i = 0;
    for (; i + kTogether <= count; i += kTogether) {
      if constexpr (vectors() > 0) {
        if (stride == 0) {
          accumulate_shared<T, vectors()>(heads, weight + i, rows + i, sum);
          continue;
        }
      }
      accumulate_rows<T, kTogether, vectors()>(heads, weight + i, rows + i, width, stride, sum);
    }
    for (; i < count; ++i)
      accumulate_rows<T, 1, vectors()>(heads, weight + i, rows + i, width, stride, sum);
  });
}

// to[h] = weight[h] row[h]
template <class T>
inline void scale_heads(int64_t heads, const T* weight, const T* row, int64_t width, T* to) {
  for (int64_t h = 0; h < heads; ++h) {
    int64_t c = 0;
    for (; c + kLanes<T> <= width; c += kLanes<T>)
      store(to + h * width + c, weight[h] * load(row + h * width + c));
    for (; c < width; ++c) to[h * width + c] = weight[h] * row[h * width + c];
  }
}

// A term of spread_all: sum_h factor_i[h] row[h]; without a row: no term.
template <class T>
struct SpreadTerm {
  const T* const* factor;
  Maybe<const T> row;
};
constexpr int kSpreadTerms = 3;

// to_i[c ...] = the terms, for n edges and `vectors` vectors.
template <class T, int n, int vectors>
inline void spread_vectors(int64_t heads, const SpreadTerm<T> (&terms)[kSpreadTerms], int first,
                           int64_t c, int64_t width, bool streamed, T* const* to) {
  Vector<T> sum[n][vectors] = {};
  for (const SpreadTerm<T>& term : terms) {
    if (!term.row) continue;
    const T* factor[n];
    for (int j = 0; j < n; ++j) factor[j] = term.factor[first + j];
    for (int64_t h = 0; h < heads; ++h) {
      const T* row = term.row + h * width + c;
      Vector<T> v[vectors];
      for (int i = 0; i < vectors; ++i)
        v[i] = vectors == 1 ? load_first(row, width - c) : load(row + i * kLanes<T>);
      for (int j = 0; j < n; ++j)
        for (int i = 0; i < vectors; ++i) sum[j][i] += factor[j][h] * v[i];
    }
  }
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < vectors; ++i) {
      T* at = to[first + j] + c + i * kLanes<T>;
      if (vectors == 1)
        store_first(at, sum[j][i], width - c);
      else if (streamed && aligned(at))
        stream(at, sum[j][i]);
      else
        store(at, sum[j][i]);
    }
}

template <class T>
inline void spread_all(int count, int64_t heads, const SpreadTerm<T> (&terms)[kSpreadTerms],
                       int64_t width, bool streamed, T* const* to) {
  auto columns = [&](auto n, int first) {
    int64_t c = 0;
    for (; c + 4 * kLanes<T> <= width; c += 4 * kLanes<T>)
      spread_vectors<T, n(), 4>(heads, terms, first, c, width, streamed, to);
    for (; c < width; c += kLanes<T>)
      spread_vectors<T, n(), 1>(heads, terms, first, c, width, streamed, to);
  };
  int i = 0;
  for (; i + kTogether <= count; i += kTogether) columns(Size<kTogether>{}, i);
  for (; i < count; ++i) columns(Size<1>{}, i);
}

// The activation of additive scores, and its derivatives.
template <class T>
inline Vector<T> score_activation(int64_t activation, T slope, Vector<T> x) {
  if (activation == act_leaky_relu) return select<T>(x > T(0), x, slope * x);
  const Vector<T> y = sigmoid_of<T>(x);
  if (activation == act_silu) return x * y;
  // Equiformer's smooth leaky ReLU: (1 + a) / 2 x + (1 - a) / 2 x (2 sigmoid(x) - 1)
  return x * (slope + (T(1) - slope) * y);
}
template <class T>
inline Vector<T> score_activation_slope(int64_t activation, T slope, Vector<T> x) {
  const Vector<T> zero{};
  if (activation == act_leaky_relu) return select<T>(x > T(0), zero + T(1), zero + slope);
  const Vector<T> silu_slope = silu_slope_of<T>(x);
  if (activation == act_silu) return silu_slope;
  return slope + (T(1) - slope) * silu_slope;
}
template <class T>
inline Vector<T> score_activation_curvature(int64_t activation, T slope, Vector<T> x) {
  if (activation == act_leaky_relu) return Vector<T>{};
  return activation == act_silu ? silu_curvature_of<T>(x)
                                : (T(1) - slope) * silu_curvature_of<T>(x);
}

// The activation of a weighting that is no softmax, and its derivatives.
template <class T>
inline Vector<T> weight_values(int64_t weighting, Vector<T> s) {
  if (weighting == weight_silu) return s * sigmoid_of<T>(s);
  if (weighting == weight_sigmoid) return sigmoid_of<T>(s);
  if (weighting == weight_softplus)
    for (int i = 0; i < kLanes<T>; ++i) s[i] = weight_value(weighting, s[i]);
  return s;
}
template <class T>
inline Vector<T> weight_slopes(int64_t weighting, Vector<T> s) {
  if (weighting == weight_identity) return Vector<T>{} + T(1);
  if (weighting == weight_silu) return silu_slope_of<T>(s);
  const Vector<T> y = sigmoid_of<T>(s);
  return weighting == weight_sigmoid ? y * (T(1) - y) : y;
}
template <class T>
inline Vector<T> weight_curvatures(int64_t weighting, Vector<T> s) {
  if (weighting == weight_identity) return Vector<T>{};
  if (weighting == weight_silu) return silu_curvature_of<T>(s);
  const Vector<T> y = sigmoid_of<T>(s), bell = y * (T(1) - y);
  return weighting == weight_sigmoid ? bell * (T(1) - T(2) * y) : bell;
}

// f(activation as a constant): the loops inside have no branch then.
template <class F>
inline void for_activation(int64_t activation, F&& f) {
  if (activation == act_leaky_relu) return f(Size<act_leaky_relu>{});
  if (activation == act_silu) return f(Size<act_silu>{});
  f(Size<act_smooth_leaky_relu>{});
}

// activation_i = act(query_i + key_i) and vector_slope_i = vector act'(query_i + key_i), into
// buffers; either may be absent.
template <class T>
inline void activate(const AttentionCall<T>& call, int count, const T* const* query,
                     const T* const* key, Maybe<T> activation, Maybe<T> vector_slope) {
  const int64_t size = call.heads * call.query.width;
  const T leak = call.slope, *vector = call.vector;
  for_activation(call.activation, [&](auto act) {
    for (int i = 0; i < count; ++i) {
      const T *q = query[i], *k = key[i];
      T* const to_activation = activation ? activation + i * size : nullptr;
      T* const to_slope = vector_slope ? vector_slope + i * size : nullptr;
      for_lanes<T>(size, [=](int64_t c, auto n) {
        const Vector<T> x = load_lanes(q + c, n) + load_lanes(k + c, n);
        if (to_activation) store_lanes(to_activation + c, score_activation(act(), leak, x), n);
        if (to_slope)
          store_lanes(to_slope + c,
                      load_lanes(vector + c, n) * score_activation_slope(act(), leak, x), n);
      });
    }
  });
}

// Their changes along the tangents of query, key and vector. With tangent_x = tangent_query +
// tangent_key they are act' tangent_x, and tangent_vector act' + vector act'' tangent_x.
template <class T>
inline void activate_tangents(const AttentionCall<T>& call, int count, const T* const* query,
                              const T* const* key, const T* const* tangent_query,
                              const T* const* tangent_key, T* tangent_activation,
                              T* tangent_vector_slope) {
  const int64_t size = call.heads * call.query.width;
  const T leak = call.slope, *vector = call.vector;
  const Maybe<const T> tangent_vector = call.tangent_vector;
  for_activation(call.activation, [&](auto act) {
    for (int i = 0; i < count; ++i) {
      const T *q = query[i], *k = key[i], *tangent_q = tangent_query[i],
              *tangent_k = tangent_key[i];
      T *to_activation = tangent_activation + i * size, *to_slope = tangent_vector_slope + i * size;
      for_lanes<T>(size, [=](int64_t c, auto n) {
        const Vector<T> x = load_lanes(q + c, n) + load_lanes(k + c, n);
        const Vector<T> tangent_x = load_lanes(tangent_q + c, n) + load_lanes(tangent_k + c, n);
        const Vector<T> slope = score_activation_slope(act(), leak, x);
        Vector<T> change{};
        if (act() != act_leaky_relu)
          change =
              load_lanes(vector + c, n) * score_activation_curvature(act(), leak, x) * tangent_x;
        if (tangent_vector) change += load_lanes(tangent_vector + c, n) * slope;
        store_lanes(to_activation + c, slope * tangent_x, n);
        store_lanes(to_slope + c, change, n);
      });
    }
  });
}

// Scalars per edge and head, [degree, heads], worked on as one row of vectors: what belongs to a
// head repeats with a period of whole vectors. The row is padded to whole vectors.
template <class T>
class HeadPattern {
 public:
  HeadPattern(int64_t heads) : heads_(heads), period_(heads) {
    int64_t common = kLanes<T>;
    while (period_ % common) common /= 2;
    period_ /= common;
  }
  int64_t size() const { return period_ * kLanes<T>; }

  void repeat(const T* head, T* pattern) const {
    for (int64_t i = 0; i < size(); i += heads_)
      for (int64_t h = 0; h < heads_; ++h) pattern[i + h] = head[h];
  }
  void fill(T value, T* pattern) const {
    for (int64_t i = 0; i < size(); ++i) pattern[i] = value;
  }
  template <class F>
  void fold(const T* pattern, T* head, F&& join) const {
    for (int64_t h = 0; h < heads_; ++h) head[h] = pattern[h];
    for (int64_t i = heads_; i < size(); i += heads_)
      for (int64_t h = 0; h < heads_; ++h) head[h] = join(head[h], pattern[i + h]);
  }
  // f(offset in the row, offset in the pattern) for every vector. What belongs to one offset in the
  // pattern stays in registers.
  template <class F>
  void each(int64_t count, F&& f) const {
    for (int64_t at = 0; at < size(); at += kLanes<T>)
      for (int64_t i = at; i < count * heads_; i += size()) f(i, at);
  }
  // pattern = join(... join(start, offset in the row) ...)
  template <class F>
  void reduce(int64_t count, T start, T* pattern, F&& join) const {
    for (int64_t at = 0; at < size(); at += kLanes<T>) {
      Vector<T> so_far = Vector<T>{} + start;
      for (int64_t i = at; i < count * heads_; i += size()) so_far = join(so_far, i);
      store(pattern + at, so_far);
    }
  }
  void pad(int64_t count, T value, T* row) const {
    for (int64_t i = count * heads_; i % kLanes<T> != 0; ++i) row[i] = value;
  }

 private:
  int64_t heads_, period_;
};

}  // namespace hamfast::HAMFAST_ISA
