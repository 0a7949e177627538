// Attention of graph nodes over their incoming edges: what a call is, for the CPU's and the GPU's
// kernels. The code of all backends has the names of these formulas.
//
// Symbols, per edge and head where nothing else is said:
//   query, key, value            each the sum of an edge's, a sender's and a receiver's part
//   edge, query_on_edge          the edge's features, and the query on them, which a receiver has
//   z, s                         raw score and score
//   envelope, gate, drop         factors of a weight; drop is dropout's: 0 or 1 / (1 - probability)
//   plain                        softmax's weight, or act(s), without these factors
//   plain_slope, plain_curvature its derivatives in s as if the softmax's sum were fixed: for the
//                                softmax both are plain itself
//   p, w                         weight before gate and dropout, and after
//   u                            gradient in p
//   grad_x                       gradient in x
//   tangent_x                    change of x along the tangents of the operands
//
// Forward. A sum is over the edges into a receiver, and has a value per receiver and head.
//   z = <query, key> + <query_on_edge, edge>   or   <vector, act(query + key)> + ...   or   0
//   s = clip(scale score_scale z + bias),   ds_dz = scale score_scale, 0 where clipped
//   plain = exp(s) / (sum envelope exp(s) + epsilon)   or   act(s)
//   p = envelope plain,   w = gate drop p
//   out = sum w value,   out_on_edge = sum w edge,   lse = log(sum envelope exp(s) + epsilon)
// Both terms of the edge's features are linear in them, so their weights are applied to rows of
// nodes, outside.
//
// Backward, for gradients of all results (weights is w, logits is s):
//   grad_w = <grad_out, value> + <grad_out_on_edge, edge> + grad_weights
//   u = gate drop grad_w,   mean_u = sum p u (softmax; else 0)
//   centre = mean_u - grad_lse (softmax; else 0),   centred = u - centre
//   grad_s = envelope plain_slope centred + grad_logits, 0 where clipped
//   grad_bias = grad_s,   grad_score_scale = scale z grad_s,   grad_z = ds_dz grad_s
//   grad_envelope = plain centred,   grad_gate = drop p grad_w
//   grad_query = grad_z key,   grad_key = grad_z query,   grad_value = w grad_out
//   grad_query_on_edge = grad_z edge,   grad_edge = grad_z query_on_edge + w grad_out_on_edge
//   of additive scores: grad_query = grad_key = grad_z vector act'(query + key), the vector_slope,
//   and grad_vector = sum over all edges of grad_z act(query + key), the activation
// Sums over a receiver's and over a sender's edges are two passes, each in the order of a list:
// no atomics.
//
// Double backward. Along the tangents of the operands the results change, and D is the sum of all
// gradients of results times these changes. Wanted are the gradients of D.
//   tangent_z = <tangent_query, key> + <query, tangent_key>
//     + <tangent_query_on_edge, edge> + <query_on_edge, tangent_edge>
//   of additive scores, in place of the first two terms:
//     <tangent_vector, activation> + <vector, act'(query + key) (tangent_query + tangent_key)>
//   tangent_s = ds_dz tangent_z + scale z tangent_score_scale + tangent_bias, 0 where clipped
//   tangent_grad_w = <grad_out, tangent_value> + <grad_out_on_edge, tangent_edge>
//   tangent_u = drop (tangent_gate grad_w + gate tangent_grad_w)
//   t = envelope plain_slope tangent_s + plain tangent_envelope: the change of p at a fixed sum
//   tangent_lse = sum t (softmax; else 0)
//   tangent_plain = plain_slope tangent_s - plain tangent_lse
//   tangent_p = t - p tangent_lse
//   tangent_p_slope, the change of envelope plain_slope:
//     envelope plain_curvature tangent_s + plain_slope tangent_envelope - p tangent_lse
//   tangent_w = gate drop tangent_p + drop tangent_gate p
//   mean_tangent_u = sum p tangent_u (softmax; else 0)
//   sum_tangent_p_u = sum t u - mean_u tangent_lse (softmax; else 0)
//   tangent_centred = tangent_u - mean_tangent_u - sum_tangent_p_u
// The gradients of D in s, tangent_s, and in the scalars:
//   grad_s = tangent_p_slope centred + envelope plain_slope tangent_centred, 0 where clipped
//   grad_tangent_s = envelope plain_slope centred + grad_logits, 0 where clipped
//   grad_bias = grad_s,   grad_score_scale = scale (z grad_s + tangent_z grad_tangent_s)
//   grad_z = ds_dz grad_s + scale tangent_score_scale grad_tangent_s
//   grad_tangent_z = ds_dz grad_tangent_s
//   grad_envelope = tangent_plain centred + plain tangent_centred
//   grad_gate = drop (tangent_p grad_w + p tangent_grad_w)
// That in grad_w is tangent_w, and that in tangent_grad_w is w. The gradients of rows follow from
// those of z, tangent_z, grad_w and tangent_grad_w. The gradients of the gradients of the results:
//   grad_grad_out = sum tangent_w value + w tangent_value, and alike for out_on_edge
//   grad_grad_lse = tangent_lse,   grad_grad_weights = tangent_w,   grad_grad_logits = tangent_s
#pragma once

#include "activations.cuh"
#include "edge_sum.cuh"

namespace hamfast {

// A scalar per edge and head, or none.
template <class T>
struct EdgeScalar {
  Maybe<const T> data;
  int64_t edge_stride, head_stride;
  HAMFAST_HD T at(int64_t edge, int64_t head) const {
    return data[edge * edge_stride + head * head_stride];
  }
};

// [receivers, heads, features] with contiguous features, or none.
template <class T>
struct NodeRows {
  Maybe<const T> data;
  int64_t node_stride, head_stride;
  HAMFAST_HD const T* row(int64_t node) const { return data + node * node_stride; }
};

// T: the type of scalars, in which all is computed. Stored: the type of the rows of query, key,
// value and edge, and of their gradients. Results and gradients that are absent are not wanted.
// Gradients of results and tangents that are absent are zero.
template <class T, class Stored = T>
struct AttentionCall {
  EdgeSum<Stored> query, key, value;
  NodeRows<T> query_on_edge;
  Maybe<const Stored> edge;  // [edges, features]
  int64_t features;
  const T* vector;  // [heads, width], of additive scores
  EdgeScalar<T> bias, score_scale, envelope, gate;
  const int64_t *senders, *sender_order, *sender_ptr, *receivers, *receiver_order, *receiver_ptr;
  int64_t heads, num_senders, num_receivers, edges;
  int64_t score, activation, weighting;  // Score, ScoreActivation, Weighting
  T slope;                               // of the score's activation
  T scale, clip, epsilon;                // clip: infinity for none
  Maybe<const int64_t> seed;             // of dropout; absent: none
  double dropout;

  // Results.
  Stored* out;           // [receivers, heads, value width]
  Maybe<T> out_on_edge;  // [receivers, heads, features]
  T* lse;                // [receivers, heads]
  Maybe<T> logits;       // [edges, heads]: s
  // [edges, heads]. A result of the forward pass; else a pass leaves it for the next one.
  Maybe<T> w;

  // Gradients of the results, and those of the operands.
  Maybe<const Stored> grad_out;
  const T* lse_before;  // of the forward pass
  Maybe<const T> grad_lse, grad_weights, grad_logits;
  NodeRows<T> grad_out_on_edge;
  Maybe<Stored> grad_query[3], grad_key[3], grad_value[3], grad_edge;  // three parts: by RowOf
  Maybe<T> grad_query_on_edge;
  Maybe<T> grad_vector;  // [chunks, heads, width]
  Maybe<T> grad_bias, grad_score_scale, grad_envelope, grad_gate;
  Maybe<T> grad_z;  // [edges, heads], from the first pass to the next

  // Double backward: tangents of the operands, and the gradients of the gradients of the results.
  EdgeSum<Stored> tangent_query, tangent_key, tangent_value;
  NodeRows<T> tangent_query_on_edge;
  Maybe<const Stored> tangent_edge;
  Maybe<const T> tangent_vector;
  EdgeScalar<T> tangent_bias, tangent_score_scale, tangent_envelope, tangent_gate;
  Maybe<Stored> grad_grad_out;
  Maybe<T> grad_grad_out_on_edge, grad_grad_lse, grad_grad_weights, grad_grad_logits;
  Maybe<T> grad_tangent_z, tangent_w;  // [edges, heads], from the first pass to the next

  // For the GPU: [edges, heads], between its kernels. row_grad_w is grad_w without grad_weights. In
  // the double backward pass w takes its memory.
  Maybe<T> z, row_grad_w, tangent_z, tangent_grad_w;
  bool packed;  // do all rows consist of whole, aligned vectors (columns.cuh)?

  HAMFAST_HD bool softmax() const { return weighting == weight_softmax; }
  HAMFAST_HD bool additive() const { return score == score_additive; }
  HAMFAST_HD bool by_sender() const {
    return grad_query[row_of_sender] || grad_key[row_of_sender] || grad_value[row_of_sender];
  }
};

namespace HAMFAST_ISA {

// drop: 0 or 1 / (1 - probability), from a counter, so that it is made again where it is needed.
// SplitMix64 (Steele, Lea, Flood 2014).
template <class T, class Stored>
HAMFAST_HD inline T dropout_factor(const AttentionCall<T, Stored>& call, int64_t edge,
                                   int64_t head) {
  uint64_t mixed =
      static_cast<uint64_t>(call.seed[0]) +
      static_cast<uint64_t>(edge * call.heads + head + 1) * uint64_t(0x9E3779B97F4A7C15);
  mixed = (mixed ^ (mixed >> 30)) * uint64_t(0xBF58476D1CE4E5B9);
  mixed = (mixed ^ (mixed >> 27)) * uint64_t(0x94D049BB133111EB);
  mixed ^= mixed >> 31;
  const double uniform = static_cast<double>(mixed >> 11) * (1.0 / 9007199254740992.0);
  return uniform < call.dropout ? T(0) : static_cast<T>(1.0 / (1.0 - call.dropout));
}

// The activation of a weighting that is no softmax, and its derivatives.
template <class T>
HAMFAST_HD inline T weight_value(int64_t weighting, T s) {
  if (weighting == weight_silu) return silu(s);
  if (weighting == weight_sigmoid) return sigmoid(s);
  if (weighting == weight_softplus) return s > T(0) ? s + log1p(exp(-s)) : log1p(exp(s));
  return s;
}
template <class T>
HAMFAST_HD inline T weight_slope(int64_t weighting, T s) {
  const T y = sigmoid(s);
  if (weighting == weight_silu) return silu_slope(s);
  if (weighting == weight_sigmoid) return y * (T(1) - y);
  if (weighting == weight_softplus) return y;
  return T(1);
}
template <class T>
HAMFAST_HD inline T weight_curvature(int64_t weighting, T s) {
  const T y = sigmoid(s), bell = y * (T(1) - y);
  if (weighting == weight_silu) return silu_curvature(s);
  if (weighting == weight_sigmoid) return bell * (T(1) - T(2) * y);
  if (weighting == weight_softplus) return bell;
  return T(0);
}

template <class T>
HAMFAST_HD inline T clipped(T s, T clip) {
  return s > clip ? clip : (s < -clip ? -clip : s);
}

}  // namespace HAMFAST_ISA
}  // namespace hamfast
