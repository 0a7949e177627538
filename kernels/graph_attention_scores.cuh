// Attention on the GPU, first half: all that is a scalar per edge and head. The sums over edges
// that follow are in weighted_sum.cuh. A warp has one receiver and head. For products of rows a
// group of its lanes has an edge, so that rows are read in full sectors. For what follows each lane
// has one. The formulas and their symbols stand in graph_attention.cuh.
#pragma once

#include "columns.cuh"
#include "graph_attention.cuh"

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

namespace hamfast {

constexpr int kAttentionWarps =
    4;  // per block; how many blocks a multiprocessor is to hold sets the registers
constexpr int kGroup = 8;  // lanes per edge

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
  HAMFAST_INLINE int64_t offset(int64_t edge) const { return edge * call.heads + head; }

  static HAMFAST_INLINE T add_all(T x) { return HAMFAST_ISA::Warp{}.sum(x); }
  static HAMFAST_INLINE T largest(T x) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(0xffffffffu, x, step);
      x = other > x ? other : x;
    }
    return x;
  }

  // to[edge, head] = term(row), summed over the lanes of a group. row, here and below: of the edge,
  // its sender and its receiver, by RowOf.
  template <class F>
  HAMFAST_INLINE void dots(Maybe<T> to, F&& term) const {
    const Maybe<const int64_t> no_receivers;  // there is one
    walk_edges(call.receiver_order, call.senders, no_receivers, first(), last(), lane, kGroup,
               [&](const int64_t (&at)[3], bool is_edge) {
                 T total = T(0);
                 if (is_edge) {
                   const int64_t row[3] = {at[row_of_edge], at[row_of_sender], receiver};
                   total = term(row);
                 }
                 for (int step = kGroup / 2; step > 0; step /= 2)
                   total += __shfl_xor_sync(0xffffffffu, total, step);
                 if (is_edge && lane % kGroup == 0) to[offset(at[row_of_edge])] = total;
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
  HAMFAST_INLINE Columns<T> columns(const EdgeSum<Stored>& sum, const int64_t (&row)[3],
                                    int64_t c) const {
    return row_columns<T>(sum, call.heads, row, head, c, call.packed);
  }

  HAMFAST_INLINE Columns<T> columns(const EdgeSum<Stored>& a, const EdgeSum<Stored>& b,
                                    const int64_t (&row)[3], int64_t c) const {
    return row_columns<T>(a, b, call.heads, row, head, c, call.packed);
  }
  HAMFAST_INLINE Columns<T> vector_columns(Maybe<const T> vector, int64_t c) const {
    const int64_t width = call.query.width;
    return vector ? load_columns<T>(vector + head * width + c, width - c, call.packed)
                  : Columns<T>{};
  }

  // The product of the receiver's row with the edge's features; of q with k; of grad_out with v.
  // What is absent has none.
  HAMFAST_INLINE T product(const NodeRows<T>& nodes, Maybe<const Stored> edges,
                           const int64_t (&row)[3]) const {
    if (!nodes.data || !edges) return T(0);
    const T* node = nodes.row(receiver) + head * nodes.head_stride;
    const Stored* edge = edges + row[row_of_edge] * call.features;
    return over_columns(call.features, [&](int64_t f) {
      return dot_columns(load_columns<T>(node + f, call.features - f, call.packed),
                         load_columns<T>(edge + f, call.features - f, call.packed));
    });
  }
  HAMFAST_INLINE T product(const EdgeSum<Stored>& a, const EdgeSum<Stored>& b,
                           const int64_t (&row)[3]) const {
    if (!a.any() || !b.any()) return T(0);
    return over_columns(
        a.width, [&](int64_t c) { return dot_columns(columns(a, row, c), columns(b, row, c)); });
  }
  HAMFAST_INLINE T grad_out_product(const EdgeSum<Stored>& value, const int64_t (&row)[3]) const {
    if (!call.grad_out || !value.any()) return T(0);
    const Stored* grad_out = call.grad_out + (receiver * call.heads + head) * value.width;
    return over_columns(value.width, [&](int64_t c) {
      return dot_columns(load_columns<T>(grad_out + c, value.width - c, call.packed),
                         columns(value, row, c));
    });
  }

  HAMFAST_INLINE void make_z() const {
    dots(call.z, [&](const int64_t (&row)[3]) {
      if (call.score == score_given) return T(0);
      const T total = product(call.query_on_edge, call.edge, row);
      if (call.score == score_dot) return total + product(call.query, call.key, row);
      return total + over_columns(call.query.width, [&](int64_t c) {
               Columns<T> x = columns(call.query, call.key, row, c);
               HAMFAST_UNROLL
               for (int i = 0; i < kColumns; ++i)
                 x.at[i] = score_activation(call.activation, call.slope, x.at[i]);
               return dot_columns(vector_columns(call.vector, c), x);
             });
    });
  }
  HAMFAST_INLINE void make_row_grad_w() const {
    dots(call.row_grad_w, [&](const int64_t (&row)[3]) {
      return grad_out_product(call.value, row) + product(call.grad_out_on_edge, call.edge, row);
    });
  }
  // <tangent_vector, act(q + k)> + <vector, act'(q + k) (tangent_q + tangent_k)>
  HAMFAST_INLINE T tangent_of_additive_score(const int64_t (&row)[3]) const {
    return over_columns(call.query.width, [&](int64_t c) {
      Columns<T> x = columns(call.query, call.key, row, c),
                 tangent_x = columns(call.tangent_query, call.tangent_key, row, c);
      HAMFAST_UNROLL
      for (int i = 0; i < kColumns; ++i) {
        tangent_x.at[i] *= score_activation_slope(call.activation, call.slope, x.at[i]);
        x.at[i] = score_activation(call.activation, call.slope, x.at[i]);
      }
      return dot_columns(vector_columns(call.tangent_vector, c), x) +
             dot_columns(vector_columns(call.vector, c), tangent_x);
    });
  }
  HAMFAST_INLINE void make_tangents() const {
    dots(call.tangent_z, [&](const int64_t (&row)[3]) {
      const T of_rows = call.additive() ? tangent_of_additive_score(row)
                                        : product(call.tangent_query, call.key, row) +
                                              product(call.query, call.tangent_key, row);
      return of_rows + product(call.tangent_query_on_edge, call.edge, row) +
             product(call.query_on_edge, call.tangent_edge, row);
    });
    dots(call.tangent_grad_w, [&](const int64_t (&row)[3]) {
      return grad_out_product(call.tangent_value, row) +
             product(call.grad_out_on_edge, call.tangent_edge, row);
    });
  }

  // An edge of a lane.
  struct Edge {
    int64_t edge, offset;  // offset: in [edges, heads]
    T z, ds_dz, s, envelope, gate, drop;
    bool is_clipped;
  };
  static HAMFAST_INLINE T at(const EdgeScalar<T>& x, T absent, int64_t edge, int64_t head) {
    return x.data ? x.at(edge, head) : absent;
  }
  HAMFAST_INLINE Edge load(int64_t n) const {
    Edge e;
    e.edge = call.receiver_order[n];
    e.offset = offset(e.edge);
    e.z = call.z[e.offset];
    e.ds_dz = call.scale * at(call.score_scale, T(1), e.edge, head);
    const T s = e.ds_dz * e.z + at(call.bias, T(0), e.edge, head);
    e.s = HAMFAST_ISA::clipped(s, call.clip);
    e.is_clipped = s > call.clip || s < -call.clip;
    if (e.is_clipped) e.ds_dz = T(0);
    e.envelope = at(call.envelope, T(1), e.edge, head);
    e.gate = at(call.gate, T(1), e.edge, head);
    e.drop = call.seed ? HAMFAST_ISA::dropout_factor(call, e.edge, head) : T(1);
    return e;
  }
  template <class F>
  HAMFAST_INLINE void each(F&& f) const {
    for (int64_t n = first() + lane; n < last(); n += kWarp) f(load(n));
  }

  // exp(s - lse), or the activation.
  HAMFAST_INLINE T plain_of(const Edge& e, T lse) const {
    if (!call.softmax()) return HAMFAST_ISA::weight_value(call.weighting, e.s);
    // Finite also where an envelope of 0 took the edge out of lse: 0 times it is 0.
    constexpr T kMost = T(88);
    const T x = e.s - lse;
    return lse == T(-HUGE_VAL) ? T(0) : T(exp(x > kMost ? kMost : x));
  }
  HAMFAST_INLINE T lse_before() const { return call.lse_before[receiver * call.heads + head]; }

  HAMFAST_INLINE void forward() const {
    make_z();
    T top = T(0), inverse = T(1);
    if (call.softmax()) {
      const T log_epsilon = call.epsilon > T(0) ? T(log(call.epsilon)) : T(-HUGE_VAL);
      T total = T(0);
      top = log_epsilon;
      each([&](const Edge& e) { top = e.envelope != T(0) && e.s > top ? e.s : top; });
      top = largest(top);
      if (top == T(-HUGE_VAL)) top = T(0);
      each([&](const Edge& e) {
        if (e.envelope != T(0)) total += e.envelope * T(exp(e.s - top));
      });
      total = add_all(total) + T(exp(log_epsilon - top));
      inverse = total == T(0) ? T(0) : T(1) / total;
      if (lane == 0) call.lse[receiver * call.heads + head] = top + T(log(total));
    } else if (lane == 0) {
      call.lse[receiver * call.heads + head] = T(0);
    }
    each([&](const Edge& e) {
      // Not exp(s - lse): of large scores that would lose the digits of lse.
      const T plain = call.softmax() ? T(exp(e.s - top)) * inverse
                                     : HAMFAST_ISA::weight_value(call.weighting, e.s);
      call.w[e.offset] = e.envelope == T(0) ? T(0) : e.envelope * plain * e.gate * e.drop;
      if (call.logits) call.logits[e.offset] = e.s;
    });
  }

  HAMFAST_INLINE T grad_w_of(const Edge& e) const {
    return call.row_grad_w[e.offset] + (call.grad_weights ? call.grad_weights[e.offset] : T(0));
  }

  HAMFAST_INLINE void backward() const {
    make_z();
    make_row_grad_w();
    const bool softmax = call.softmax();
    const T lse = lse_before();
    T mean_u = T(0), centre = T(0);
    if (softmax) {
      each([&](const Edge& e) {
        mean_u += e.envelope * plain_of(e, lse) * e.gate * e.drop * grad_w_of(e);
      });
      centre = add_all(mean_u);
      if (call.grad_lse) centre -= call.grad_lse[receiver * call.heads + head];
    }
    each([&](const Edge& e) {
      const T plain = plain_of(e, lse), grad_w = grad_w_of(e),
              centred = e.gate * e.drop * grad_w - centre;
      T grad_s =
          e.envelope * centred * (softmax ? plain : HAMFAST_ISA::weight_slope(call.weighting, e.s));
      if (call.grad_logits) grad_s += call.grad_logits[e.offset];
      if (e.is_clipped) grad_s = T(0);
      if (call.grad_bias) call.grad_bias[e.offset] = grad_s;
      if (call.grad_gate) call.grad_gate[e.offset] = e.drop * e.envelope * plain * grad_w;
      if (call.grad_envelope) call.grad_envelope[e.offset] = plain * centred;
      if (call.grad_score_scale) call.grad_score_scale[e.offset] = grad_s * call.scale * e.z;
      call.grad_z[e.offset] = grad_s * e.ds_dz;
      call.w[e.offset] = e.envelope * plain * e.gate * e.drop;
    });
  }

  // What the derivative along tangents is made of at an edge.
  struct Tangents {
    T plain, plain_slope, p, u, t, grad_w, tangent_s, tangent_envelope, tangent_score_scale,
        tangent_gate, tangent_u;
  };
  HAMFAST_INLINE Tangents tangents(const Edge& e, T lse) const {
    Tangents d;
    d.plain = plain_of(e, lse), d.p = e.envelope * d.plain;
    d.plain_slope = call.softmax() ? d.plain : HAMFAST_ISA::weight_slope(call.weighting, e.s);
    d.grad_w = grad_w_of(e);
    d.tangent_gate = at(call.tangent_gate, T(0), e.edge, head);
    d.tangent_score_scale = at(call.tangent_score_scale, T(0), e.edge, head);
    d.tangent_s = e.ds_dz * call.tangent_z[e.offset] + call.scale * e.z * d.tangent_score_scale +
                  at(call.tangent_bias, T(0), e.edge, head);
    if (e.is_clipped) d.tangent_s = T(0);
    d.tangent_envelope = at(call.tangent_envelope, T(0), e.edge, head);
    d.t = e.envelope * d.plain_slope * d.tangent_s + d.plain * d.tangent_envelope;
    d.u = e.gate * e.drop * d.grad_w;
    d.tangent_u = e.drop * (d.tangent_gate * d.grad_w + e.gate * call.tangent_grad_w[e.offset]);
    return d;
  }

  HAMFAST_INLINE void double_backward() const {
    make_z();
    make_row_grad_w();
    make_tangents();
    const T lse = lse_before();
    const int64_t at_head = receiver * call.heads + head;
    T mean_u = T(0), tangent_lse = T(0), mean_tangent_u = T(0), sum_t_u = T(0),
      sum_tangent_p_u = T(0), centre = T(0);
    if (call.softmax()) {
      each([&](const Edge& e) {
        const Tangents d = tangents(e, lse);
        mean_u += d.p * d.u, tangent_lse += d.t, mean_tangent_u += d.p * d.tangent_u,
            sum_t_u += d.t * d.u;
      });
      mean_u = add_all(mean_u), tangent_lse = add_all(tangent_lse),
      mean_tangent_u = add_all(mean_tangent_u);
      sum_tangent_p_u = add_all(sum_t_u) - mean_u * tangent_lse;
      centre = mean_u;
      if (call.grad_lse) centre -= call.grad_lse[at_head];
    }
    if (call.grad_grad_lse && lane == 0) call.grad_grad_lse[at_head] = tangent_lse;
    each([&](const Edge& e) {
      const Tangents d = tangents(e, lse);
      const T plain_curvature =
          call.softmax() ? d.plain : HAMFAST_ISA::weight_curvature(call.weighting, e.s);
      const T tangent_p = d.t - d.p * tangent_lse, centred = d.u - centre;
      const T tangent_centred = d.tangent_u - mean_tangent_u - sum_tangent_p_u;
      const T tangent_p_slope = e.envelope * plain_curvature * d.tangent_s +
                                d.plain_slope * d.tangent_envelope - d.p * tangent_lse;
      T grad_s = tangent_p_slope * centred + e.envelope * d.plain_slope * tangent_centred;
      T grad_tangent_s = e.envelope * d.plain_slope * centred;
      if (call.grad_logits) grad_tangent_s += call.grad_logits[e.offset];
      if (e.is_clipped) grad_s = grad_tangent_s = T(0);
      const T tangent_w = tangent_p * e.gate * e.drop + d.p * d.tangent_gate * e.drop;
      if (call.grad_bias) call.grad_bias[e.offset] = grad_s;
      if (call.grad_score_scale)
        call.grad_score_scale[e.offset] =
            call.scale * (e.z * grad_s + call.tangent_z[e.offset] * grad_tangent_s);
      if (call.grad_envelope) {
        const T tangent_plain = d.plain_slope * d.tangent_s - d.plain * tangent_lse;
        call.grad_envelope[e.offset] = tangent_plain * centred + d.plain * tangent_centred;
      }
      if (call.grad_gate)
        call.grad_gate[e.offset] =
            e.drop * (tangent_p * d.grad_w + d.p * call.tangent_grad_w[e.offset]);
      if (call.grad_grad_weights) call.grad_grad_weights[e.offset] = tangent_w;
      if (call.grad_grad_logits) call.grad_grad_logits[e.offset] = d.tangent_s;
      call.grad_z[e.offset] =
          e.ds_dz * grad_s + call.scale * d.tangent_score_scale * grad_tangent_s;
      call.grad_tangent_z[e.offset] = e.ds_dz * grad_tangent_s;
      call.tangent_w[e.offset] = tangent_w;
      call.w[e.offset] = d.p * e.gate * e.drop;
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
    const ScoreWarp<T, Stored> at{call, item / call.heads, item % call.heads,
                                  static_cast<int>(threadIdx.x) % kWarp};
    if constexpr (pass == pass_forward) at.forward();
    if constexpr (pass == pass_backward) at.backward();
    if constexpr (pass == pass_double) at.double_backward();
  }
}

}  // namespace hamfast

#endif
