// Attention on the GPU, first half: everything that is a number per edge and head. The sums over edges that follow are
// in weighted_sum.cuh. One warp per receiver and head. Scores: a group of lanes per edge, so that rows are read in full
// sectors. What follows: a lane per edge.
#pragma once

#include "columns.cuh"
#include "graph_attention.cuh"

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

namespace hamfast {

constexpr int kAttentionWarps = 4;  // per block; how many blocks a multiprocessor is to hold sets the registers
constexpr int kGroup = 8;           // lanes per edge

template <class T>
HAMFAST_INLINE T score_activation(int64_t activation, T slope, T x) {
  if (activation == act_leaky_relu) return x > T(0) ? x : slope * x;
  const T y = HAMFAST_ISA::sigmoid(x);
  return activation == act_silu ? x * y : x * (slope + (T(1) - slope) * y);
}
template <class T>
HAMFAST_INLINE T score_activation_slope(int64_t activation, T slope, T x) {
  if (activation == act_leaky_relu) return x > T(0) ? T(1) : slope;
  const T silu = HAMFAST_ISA::silu_slope(x);
  return activation == act_silu ? silu : slope + (T(1) - slope) * silu;
}

template <class T>
HAMFAST_INLINE T score_activation_curvature(int64_t activation, T slope, T x) {
  if (activation == act_leaky_relu) return T(0);
  const T silu = HAMFAST_ISA::silu_curvature(x);
  return activation == act_silu ? silu : (T(1) - slope) * silu;
}

// One warp at one receiver and head.
template <class T, class Stored>
struct ScoreWarp {
  const AttentionCall<T, Stored>& call;
  int64_t receiver, head;
  int lane;

  HAMFAST_INLINE int64_t first() const { return call.receiver_ptr[receiver]; }
  HAMFAST_INLINE int64_t last() const { return call.receiver_ptr[receiver + 1]; }
  HAMFAST_INLINE int64_t place(int64_t edge) const { return edge * call.heads + head; }

  static HAMFAST_INLINE T add_all(T x) { return HAMFAST_ISA::Warp{}.sum(x); }
  static HAMFAST_INLINE T largest(T x) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(0xffffffffu, x, step);
      x = other > x ? other : x;
    }
    return x;
  }

  // term(rows of the edge) -> to[edge, head], summed over the lanes of a group.
  template <class F>
  HAMFAST_INLINE void dots(Maybe<T> to, F&& term) const {
    const Maybe<const int64_t> no_receivers;  // there is one
    walk_edges(call.receiver_order, call.senders, no_receivers, first(), last(), lane, kGroup,
               [&](const int64_t (&at)[3], bool is_edge) {
                 T total = T(0);
                 if (is_edge) {
                   const int64_t row[3] = {at[0], at[1], receiver};
                   total = term(row);
                 }
                 for (int step = kGroup / 2; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
                 if (is_edge && lane % kGroup == 0) to[place(at[0])] = total;
               });
    __syncwarp();
  }

  // The sum of f(first column) over the lane's share of a row.
  template <class F>
  HAMFAST_INLINE T over_columns(int64_t width, F&& f) const {
    T total = T(0);
    for (int64_t c = lane % kGroup * kColumns; c < width; c += kGroup * kColumns) total += f(c);
    return total;
  }
  HAMFAST_INLINE Columns<T> columns(const EdgeSum<Stored>& sum, const int64_t (&row)[3], int64_t c) const {
    return row_columns<T>(sum, call.heads, row, head, c, call.packed);
  }

  HAMFAST_INLINE Columns<T> both(const EdgeSum<Stored>& a, const EdgeSum<Stored>& b, const int64_t (&row)[3],
                                 int64_t c) const {
    return row_columns<T>(a, b, call.heads, row, head, c, call.packed);
  }
  HAMFAST_INLINE Columns<T> of_vector(Maybe<const T> vector, int64_t c) const {
    const int64_t width = call.query.width;
    return vector ? load_columns<T>(vector + head * width + c, width - c, call.packed) : Columns<T>{};
  }

  HAMFAST_INLINE T on_edge(const NodeRows<T>& nodes, Maybe<const Stored> edges, const int64_t (&row)[3]) const {
    if (!nodes.data || !edges) return T(0);
    const T* node = nodes.row(receiver) + head * nodes.head_stride;
    const Stored* edge = edges + row[0] * call.features;
    return over_columns(call.features, [&](int64_t f) {
      return dot_columns(load_columns<T>(node + f, call.features - f, call.packed),
                         load_columns<T>(edge + f, call.features - f, call.packed));
    });
  }
  HAMFAST_INLINE T product(const EdgeSum<Stored>& a, const EdgeSum<Stored>& b, const int64_t (&row)[3]) const {
    if (!a.any() || !b.any()) return T(0);
    return over_columns(a.width, [&](int64_t c) { return dot_columns(columns(a, row, c), columns(b, row, c)); });
  }
  HAMFAST_INLINE T with_gradient(const EdgeSum<Stored>& value, const int64_t (&row)[3]) const {
    if (!call.grad_out || !value.any()) return T(0);
    const Stored* g = call.grad_out + (receiver * call.heads + head) * value.width;
    return over_columns(value.width, [&](int64_t c) {
      return dot_columns(load_columns<T>(g + c, value.width - c, call.packed), columns(value, row, c));
    });
  }

  HAMFAST_INLINE void all_z() const {
    dots(call.at_z, [&](const int64_t (&row)[3]) {
      if (call.score == score_given) return T(0);
      const T total = on_edge(call.query_on_edge, call.edge, row);
      if (call.score == score_dot) return total + product(call.query, call.key, row);
      return total + over_columns(call.query.width, [&](int64_t c) {
               Columns<T> x = both(call.query, call.key, row, c);
               HAMFAST_UNROLL
               for (int i = 0; i < kColumns; ++i) x.at[i] = score_activation(call.activation, call.slope, x.at[i]);
               return dot_columns(of_vector(call.vector, c), x);
             });
    });
  }
  HAMFAST_INLINE void all_a() const {
    dots(call.at_a, [&](const int64_t (&row)[3]) {
      return with_gradient(call.value, row) + on_edge(call.grad_out_on_edge, call.edge, row);
    });
  }
  // <vector', act(q + k)> + <vector, act'(q + k) (q' + k')>
  HAMFAST_INLINE T activation_along(const int64_t (&row)[3]) const {
    return over_columns(call.query.width, [&](int64_t c) {
      Columns<T> x = both(call.query, call.key, row, c), tangent_x = both(call.tangent_query, call.tangent_key, row, c);
      HAMFAST_UNROLL
      for (int i = 0; i < kColumns; ++i) {
        tangent_x.at[i] *= score_activation_slope(call.activation, call.slope, x.at[i]);
        x.at[i] = score_activation(call.activation, call.slope, x.at[i]);
      }
      return dot_columns(of_vector(call.tangent_vector, c), x) + dot_columns(of_vector(call.vector, c), tangent_x);
    });
  }
  HAMFAST_INLINE void all_along() const {
    dots(call.tangent_at_z, [&](const int64_t (&row)[3]) {
      const T of_rows = call.additive()
                            ? activation_along(row)
                            : product(call.tangent_query, call.key, row) + product(call.query, call.tangent_key, row);
      return of_rows + on_edge(call.tangent_query_on_edge, call.edge, row) +
             on_edge(call.query_on_edge, call.tangent_edge, row);
    });
    dots(call.at_b, [&](const int64_t (&row)[3]) {
      return with_gradient(call.tangent_value, row) + on_edge(call.grad_out_on_edge, call.tangent_edge, row);
    });
  }

  // Of one edge; a lane each.
  struct Edge {
    int64_t edge, place;
    T z, slope, s, f, gate, drop;  // slope: ds/dz, 0 where clipped
    bool is_clipped;
  };
  static HAMFAST_INLINE T at(const EdgeScalar<T>& x, T absent, int64_t edge, int64_t head) {
    return x.data ? x.at(edge, head) : absent;
  }
  HAMFAST_INLINE Edge load(int64_t n) const {
    Edge e;
    e.edge = call.receiver_order[n];
    e.place = place(e.edge);
    e.z = call.at_z[e.place];
    e.slope = call.scale * at(call.score_scale, T(1), e.edge, head);
    const T s = e.slope * e.z + at(call.bias, T(0), e.edge, head);
    e.s = HAMFAST_ISA::clipped(s, call.clip);
    e.is_clipped = s > call.clip || s < -call.clip;
    if (e.is_clipped) e.slope = T(0);
    e.f = at(call.envelope, T(1), e.edge, head);
    e.gate = at(call.gate, T(1), e.edge, head);
    e.drop = call.seed ? HAMFAST_ISA::dropout_factor(call, e.edge, head) : T(1);
    return e;
  }
  template <class F>
  HAMFAST_INLINE void each(F&& f) const {
    for (int64_t n = first() + lane; n < last(); n += kWarp) f(load(n));
  }

  // exp(s - lse), or the activation.
  HAMFAST_INLINE T plain(const Edge& e, T lse) const {
    if (!call.softmax()) return HAMFAST_ISA::weight_value(call.weighting, e.s);
    // Finite also where an envelope of 0 took the edge out of lse: 0 times it is 0.
    constexpr T kMost = T(88);
    const T x = e.s - lse;
    return lse == T(-HUGE_VAL) ? T(0) : T(exp(x > kMost ? kMost : x));
  }
  HAMFAST_INLINE T lse_before() const { return call.lse_before[receiver * call.heads + head]; }

  HAMFAST_INLINE void forward() const {
    all_z();
    T top = T(0), inverse = T(1);
    if (call.softmax()) {
      const T log_epsilon = call.epsilon > T(0) ? T(log(call.epsilon)) : T(-HUGE_VAL);
      T total = T(0);
      top = log_epsilon;
      each([&](const Edge& e) { top = e.f != T(0) && e.s > top ? e.s : top; });
      top = largest(top);
      if (top == T(-HUGE_VAL)) top = T(0);
      each([&](const Edge& e) {
        if (e.f != T(0)) total += e.f * T(exp(e.s - top));
      });
      total = add_all(total) + T(exp(log_epsilon - top));
      inverse = total == T(0) ? T(0) : T(1) / total;
      if (lane == 0) call.lse[receiver * call.heads + head] = top + T(log(total));
    } else if (lane == 0) {
      call.lse[receiver * call.heads + head] = T(0);
    }
    each([&](const Edge& e) {
      // Not exp(s - lse): of large scores that would lose the digits of lse.
      const T value = call.softmax() ? T(exp(e.s - top)) * inverse : HAMFAST_ISA::weight_value(call.weighting, e.s);
      call.kept_weight[e.place] = e.f == T(0) ? T(0) : e.f * value * e.gate * e.drop;
      if (call.logits) call.logits[e.place] = e.s;
    });
  }

  HAMFAST_INLINE void backward() const {
    all_z();
    all_a();
    const bool softmax = call.softmax();
    const T lse = lse_before();
    auto incoming = [&](const Edge& e) {
      return call.at_a[e.place] + (call.grad_weights ? call.grad_weights[e.place] : T(0));
    };
    T mean = T(0);
    if (softmax) {
      each([&](const Edge& e) { mean += e.f * plain(e, lse) * e.gate * e.drop * incoming(e); });
      mean = add_all(mean);
      if (call.grad_lse) mean -= call.grad_lse[receiver * call.heads + head];
    }
    each([&](const Edge& e) {
      const T value = plain(e, lse), a = incoming(e), centred = e.gate * e.drop * a - mean;
      T ds = e.f * centred * (softmax ? value : HAMFAST_ISA::weight_slope(call.weighting, e.s));
      if (call.grad_logits) ds += call.grad_logits[e.place];
      if (e.is_clipped) ds = T(0);
      if (call.grad_bias) call.grad_bias[e.place] = ds;
      if (call.grad_gate) call.grad_gate[e.place] = e.drop * e.f * value * a;
      if (call.grad_envelope) call.grad_envelope[e.place] = value * centred;
      if (call.grad_score_scale) call.grad_score_scale[e.place] = ds * call.scale * e.z;
      call.grad_z[e.place] = ds * e.slope;
      call.kept_weight[e.place] = e.f * value * e.gate * e.drop;
    });
  }

  // What D is made of at one edge; see graph_attention.cuh.
  struct Second {
    T value, slope, p, tangent_s, tangent_f, change, a, u, r, tangent_gate, tangent_scale;
  };
  HAMFAST_INLINE Second second(const Edge& e, T lse) const {
    Second x;
    x.value = plain(e, lse), x.p = e.f * x.value;
    x.slope = call.softmax() ? x.value : HAMFAST_ISA::weight_slope(call.weighting, e.s);
    x.a = call.at_a[e.place] + (call.grad_weights ? call.grad_weights[e.place] : T(0));
    x.tangent_gate = at(call.tangent_gate, T(0), e.edge, head);
    x.tangent_scale = at(call.tangent_score_scale, T(0), e.edge, head);
    x.tangent_s = e.slope * call.tangent_at_z[e.place] + call.scale * e.z * x.tangent_scale +
                  at(call.tangent_bias, T(0), e.edge, head);
    if (e.is_clipped) x.tangent_s = T(0);
    x.tangent_f = at(call.tangent_envelope, T(0), e.edge, head);
    x.change = e.f * x.slope * x.tangent_s + x.value * x.tangent_f;
    x.u = e.gate * e.drop * x.a;
    x.r = e.drop * (x.tangent_gate * x.a + e.gate * call.at_b[e.place]);
    return x;
  }

  HAMFAST_INLINE void double_backward() const {
    all_z();
    all_a();
    all_along();
    const T lse = lse_before();
    const int64_t at_head = receiver * call.heads + head;
    T mean_u = T(0), mean_s = T(0), mean_r = T(0), k = T(0);
    if (call.softmax()) {
      each([&](const Edge& e) {
        const Second x = second(e, lse);
        mean_u += x.p * x.u, mean_s += x.change, mean_r += x.p * x.r, k += x.change * x.u;
      });
      mean_u = add_all(mean_u), mean_s = add_all(mean_s), mean_r = add_all(mean_r);
      k = add_all(k) - mean_u * mean_s;
      if (call.grad_lse) mean_u -= call.grad_lse[at_head];
    }
    if (call.grad_grad_lse && lane == 0) call.grad_grad_lse[at_head] = mean_s;
    each([&](const Edge& e) {
      const Second x = second(e, lse);
      const T curvature = call.softmax() ? x.value : HAMFAST_ISA::weight_curvature(call.weighting, e.s);
      const T moved = x.change - x.p * mean_s, centred = x.u - mean_u, rest = x.r - mean_r - k;
      T ds = (e.f * curvature * x.tangent_s + x.slope * x.tangent_f - x.p * mean_s) * centred + e.f * x.slope * rest;
      T tangent_ds = e.f * x.slope * centred;
      if (call.grad_logits) tangent_ds += call.grad_logits[e.place];
      if (e.is_clipped) ds = tangent_ds = T(0);
      const T tangent_w = moved * e.gate * e.drop + x.p * x.tangent_gate * e.drop;
      if (call.grad_bias) call.grad_bias[e.place] = ds;
      if (call.grad_score_scale)
        call.grad_score_scale[e.place] = call.scale * (e.z * ds + call.tangent_at_z[e.place] * tangent_ds);
      if (call.grad_envelope)
        call.grad_envelope[e.place] = (x.slope * x.tangent_s - x.value * mean_s) * centred + x.value * rest;
      if (call.grad_gate) call.grad_gate[e.place] = e.drop * (moved * x.a + x.p * call.at_b[e.place]);
      if (call.grad_grad_weights) call.grad_grad_weights[e.place] = tangent_w;
      if (call.grad_grad_logits) call.grad_grad_logits[e.place] = x.tangent_s;
      call.grad_z[e.place] = e.slope * ds + call.scale * x.tangent_scale * tangent_ds;
      call.grad_tangent_z[e.place] = e.slope * tangent_ds;
      call.kept_weight[e.place] = tangent_w;
      call.at_a[e.place] = x.p * e.gate * e.drop;  // w
    });
  }
};

enum AttentionPass : int { pass_forward = 0, pass_backward = 1, pass_double = 2 };

template <class T, class Stored, int pass>
__global__ void __launch_bounds__(kWarp* kAttentionWarps, sizeof(T) == 8        ? 4
                                                          : pass == pass_double ? 5
                                                                                : 6)
    attention_scores_kernel(AttentionCall<T, Stored> call) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t items = call.num_receivers * call.heads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kAttentionWarps + warp; item < items;
       item += static_cast<int64_t>(gridDim.x) * kAttentionWarps) {
    const ScoreWarp<T, Stored> at{call, item / call.heads, item % call.heads, static_cast<int>(threadIdx.x) % kWarp};
    if constexpr (pass == pass_forward) at.forward();
    if constexpr (pass == pass_backward) at.backward();
    if constexpr (pass == pass_double) at.double_backward();
  }
}

}  // namespace hamfast

#endif
