// Attention of graph nodes over their incoming edges: what a call is, for the CPU's and the GPU's kernels.
//
// Per head and edge e = (sender -> receiver), with q, k, v each a sum of an edge, a sender and a receiver part:
//   z = <q, k> + <qe, edge>   or   <vector, act(q + k)>   or   0       qe: the query on edges' features, per receiver
//   s = clip(scale score_scale z + bias)
//   p = f exp(s) / (sum f exp(s) + epsilon)   or   f act(s)            f: envelope
//   w = gate dropout p,   out = sum w v,   out_on_edge = sum w edge,   lse = log(sum f exp(s) + epsilon)
// Both terms of the edge's features are linear in them, so their weights are applied to rows of nodes, outside.
// Backward, with g the gradient of out: a = <g, v> + <g_on_edge, edge>, u = gate dropout a, A = sum p u:
//   ds = p (u - A),  df = (u - A) p / f,  dgate = dropout p a,  dz = scale score_scale ds,
//   dq = dz k,  dk = dz q,  dv = w g,  dqe = dz edge,  dedge = dz qe + w g_on_edge.
// Sums over a receiver's and over a sender's edges are two passes, each in the order of a list: no atomics.
// Double backward: along directions x' of the operands, D = <gradients of the results, change of the results>, with
//   z' = <q', k> + <q, k'> + ...   or   <vector', act(q + k)> + <vector, act'(q + k) (q' + k')>,
//   s' = ds/dz z' + scale z score_scale' + bias' (0 where clipped),  b = <g, v'> + <g_on_edge, edge'>,
//   r = (gate' a + gate b) dropout,
//   P = exp(s) / (sum ...) or act(s), P1 and P2 its derivatives in s as if the sum were fixed (softmax: P itself),
//   p = f P,  t = f P1 s' + P f',  and for softmax (else 0)
//   m = sum t,  B = sum p u,  A = B - g_lse,  K = sum t u - m B,  R = sum p r:
//   dD/ds = (f P2 s' + P1 f' - p m) (u - A) + f P1 (r - R - K),   dD/ds' = f P1 (u - A) + g_logits,
//   dD/df = (P1 s' - P m) (u - A) + P (r - R - K),   dD/dgate = dropout ((t - p m) a + p b),
//   dD/da = w' = (t - p m) gate dropout + p gate' dropout,   dD/db = w,
// and the operands' gradients follow from those of z, z', a, b. The gradients in g, g_lse and g_logits are
// sum w' v + w v', m and s'.
#pragma once

#include "activations.cuh"
#include "edge_sum.cuh"

namespace hamfast {

// A number per edge and head, or none.
template <class T>
struct EdgeScalar {
  Maybe<const T> data;
  int64_t edge_stride, head_stride;
  HAMFAST_HD T at(int64_t edge, int64_t head) const { return data[edge * edge_stride + head * head_stride]; }
};

// [receivers, heads, features] with contiguous features, or none.
template <class T>
struct NodeRows {
  Maybe<const T> data;
  int64_t node_stride, head_stride;
  HAMFAST_HD const T* row(int64_t node) const { return data + node * node_stride; }
};

// T: of numbers, and what is computed in. Stored: of rows of q, k, v and the edges' features, and of their gradients.
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

  // Results; those not wanted are absent.
  Stored* out;           // [receivers, heads, value width]
  Maybe<T> out_on_edge;  // [receivers, heads, features]
  T* lse;                // [receivers, heads]: log(sum f exp(s) + epsilon)
  Maybe<T> weights;      // [edges, heads]: w
  Maybe<T> logits;       // [edges, heads]: s

  // Gradients of the results (absent: zero), and those of the operands (absent: not wanted).
  Maybe<const Stored> grad_out;
  const T* lse_before;
  Maybe<const T> grad_lse, grad_weights, grad_logits;
  NodeRows<T> grad_out_on_edge;
  Maybe<Stored> grad_query[3], grad_key[3], grad_value[3], grad_edge;
  Maybe<T> grad_query_on_edge, grad_vector;  // grad_vector: [parts, heads, width]
  Maybe<T> grad_bias, grad_score_scale, grad_envelope, grad_gate;
  Maybe<T> grad_z, kept_weight;  // [edges, heads]: dz and w, from the first pass to the second

  // Double backward: directions of the operands (absent: zero), and the gradients of the gradients of the results.
  // There kept_weight is w'.
  EdgeSum<Stored> tangent_query, tangent_key, tangent_value;
  NodeRows<T> tangent_query_on_edge;
  Maybe<const Stored> tangent_edge;
  Maybe<const T> tangent_vector;
  EdgeScalar<T> tangent_bias, tangent_score_scale, tangent_envelope, tangent_gate;
  Maybe<Stored> grad_grad_out;
  Maybe<T> grad_grad_out_on_edge, grad_grad_lse, grad_grad_weights, grad_grad_logits;
  Maybe<T> grad_tangent_z;  // [edges, heads]: the gradient of z', from the first pass to the second

  // The GPU's numbers per edge and head between its kernels: z (then dz), a, z' and b; and whether all rows of q, k, v
  // and features consist of whole, aligned vectors (columns.cuh).
  Maybe<T> at_z, at_a, tangent_at_z, at_b;
  bool packed;

  HAMFAST_HD bool softmax() const { return weighting == weight_softmax; }
  HAMFAST_HD bool additive() const { return score == score_additive; }
  HAMFAST_HD bool by_sender() const {
    return grad_query[row_of_sender] || grad_key[row_of_sender] || grad_value[row_of_sender];
  }
};

namespace HAMFAST_ISA {

// 0 or 1 / (1 - p), from a counter: the mask is made again where it is needed. SplitMix64 (Steele, Lea, Flood 2014).
template <class T, class Stored>
HAMFAST_HD inline T dropout_factor(const AttentionCall<T, Stored>& call, int64_t edge, int64_t head) {
  uint64_t z = static_cast<uint64_t>(call.seed[0]) +
               static_cast<uint64_t>(edge * call.heads + head + 1) * uint64_t(0x9E3779B97F4A7C15);
  z = (z ^ (z >> 30)) * uint64_t(0xBF58476D1CE4E5B9);
  z = (z ^ (z >> 27)) * uint64_t(0x94D049BB133111EB);
  z ^= z >> 31;
  const double uniform = static_cast<double>(z >> 11) * (1.0 / 9007199254740992.0);
  return uniform < call.dropout ? T(0) : static_cast<T>(1.0 / (1.0 - call.dropout));
}

// The weight's activation and its derivatives.
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
