// Attention of one node over its incoming edges, with first and second derivatives.
//
// Per head and edge e = (source -> target), with q_e, k_e, v_e each a sum of an edge, a source and a target part:
//   s_e = clip(scale <q_e, k_e>),  p_e = exp(s_e) / sum over edges into the target,  out = sum_e p_e v_e.
// Backward, g the gradient of out: a_e = <g, v_e>, A = sum p a:  dv = p g,  ds = p (a - A),  dq = ds scale k,  dk = ds
// scale q. Double backward: along a direction (s', v') of scores and values, with mu = sum p s', b = <g, v'>, B = sum p
// b, K = sum p s' a - mu A:  d out = sum p ((s' - mu) v + v'),
//   d/ds = p ((s' - mu)(a - A) + b - B - K),  d/dv = p (s' - mu) g.
#pragma once

#if !defined(__CUDACC__)
#include <cmath>
#endif

#include "common.cuh"

namespace hamfast {

// One part of q, k or v, [rows, heads, width]. A part that is absent is a row of zeros with stride 0: adding it costs
// less than asking for it in the innermost loop.
template <class T>
struct Part {
  const T* data;
  int64_t stride;
};

// q, k or v.
template <class T>
struct EdgeSum {
  Part<T> edge, source, target;
  int64_t width;
};

template <class T>
struct AttentionCall {
  EdgeSum<T> query, key, value;
  const int64_t* senders;
  const int64_t* order;  // edges by target
  const int64_t* ptr;    // [targets + 1]
  int64_t heads;
  T scale;
  T clip;                // infinity: none
  const T* grad;         // [targets, heads, value width]
  const T* direction_q;  // [edges, heads, width]: the gradients that arrive at dq, dk, dv
  const T* direction_k;
  const T* direction_v;
  T* out;  // [targets, heads, value width]; forward and double backward
  T* dq;   // [edges, heads, width]; backward and double backward
  T* dk;
  T* dv;
};

namespace HAMFAST_ISA {

template <class T>
struct EdgeRow {
  const T *edge, *source, *target;
  HAMFAST_HD T at(int64_t c) const { return edge[c] + source[c] + target[c]; }
};

template <class T>
HAMFAST_HD inline EdgeRow<T> edge_row(const EdgeSum<T>& sum, int64_t h, int64_t e, int64_t source, int64_t target) {
  const int64_t head = h * sum.width;
  return {sum.edge.data + e * sum.edge.stride + head, sum.source.data + source * sum.source.stride + head,
          sum.target.data + target * sum.target.stride + head};
}

// Score before clipping.
template <class T, class Team>
HAMFAST_HD inline T raw_score(const Team& team, const AttentionCall<T>& call, const EdgeRow<T>& q,
                              const EdgeRow<T>& k) {
  T total = T(0);
  for (int64_t c = team.rank(); c < call.query.width; c += team.size()) total += q.at(c) * k.at(c);
  return team.sum(total) * call.scale;
}

template <class T>
HAMFAST_HD inline T clipped(T s, T clip) {
  return s > clip ? clip : (s < -clip ? -clip : s);
}

// The maximum and the sum of exp(s - maximum) over the incoming edges.
template <class T, class Team>
HAMFAST_HD inline void softmax_statistics(const Team& team, const AttentionCall<T>& call, int64_t node, int64_t h,
                                          T& maximum, T& total) {
  maximum = T(0);
  total = T(0);
  for (int64_t n = call.ptr[node]; n < call.ptr[node + 1]; ++n) {
    const int64_t e = call.order[n], source = call.senders[e];
    const T s =
        clipped(raw_score(team, call, edge_row(call.query, h, e, source, node), edge_row(call.key, h, e, source, node)),
                call.clip);
    if (n == call.ptr[node] || s > maximum) {
      total = n == call.ptr[node] ? T(0) : total * exp(maximum - s);
      maximum = s;
    }
    total += exp(s - maximum);
  }
}

template <class T, class Team>
HAMFAST_HD inline void attention_forward(const Team& team, const AttentionCall<T>& call, int64_t node) {
  const int64_t width = call.value.width;
  for (int64_t h = 0; h < call.heads; ++h) {
    T* out = call.out + (node * call.heads + h) * width;
    for (int64_t c = team.rank(); c < width; c += team.size()) out[c] = T(0);
    T maximum, total;
    softmax_statistics(team, call, node, h, maximum, total);
    for (int64_t n = call.ptr[node]; n < call.ptr[node + 1]; ++n) {
      const int64_t e = call.order[n], source = call.senders[e];
      const T s =
          raw_score(team, call, edge_row(call.query, h, e, source, node), edge_row(call.key, h, e, source, node));
      const T p = exp(clipped(s, call.clip) - maximum) / total;
      const EdgeRow<T> v = edge_row(call.value, h, e, source, node);
      for (int64_t c = team.rank(); c < width; c += team.size()) out[c] += p * v.at(c);
    }
  }
}

template <class T, class Team>
HAMFAST_HD inline void attention_backward(const Team& team, const AttentionCall<T>& call, int64_t node, bool twice) {
  const int64_t width = call.value.width, dot = call.query.width;
  for (int64_t h = 0; h < call.heads; ++h) {
    const T* g = call.grad + (node * call.heads + h) * width;
    T maximum, total;
    softmax_statistics(team, call, node, h, maximum, total);
    T mean_a = T(0), mu = T(0), mean_b = T(0), mean_sa = T(0);
    // Two sweeps: the node's means first, then the gradients of each edge.
    for (int sweep = 0; sweep < 2; ++sweep) {
      const T k_term = mean_sa - mu * mean_a;
      T* out = twice ? call.out + (node * call.heads + h) * width : nullptr;
      if (twice && sweep == 1)
        for (int64_t c = team.rank(); c < width; c += team.size()) out[c] = T(0);
      for (int64_t n = call.ptr[node]; n < call.ptr[node + 1]; ++n) {
        const int64_t e = call.order[n], source = call.senders[e];
        const EdgeRow<T> q = edge_row(call.query, h, e, source, node);
        const EdgeRow<T> k = edge_row(call.key, h, e, source, node);
        const EdgeRow<T> v = edge_row(call.value, h, e, source, node);
        const T raw = raw_score(team, call, q, k), s = clipped(raw, call.clip);
        const T slope = raw == s ? call.scale : T(0);
        const T p = exp(s - maximum) / total;
        const T* direction_q = twice ? call.direction_q + (e * call.heads + h) * dot : nullptr;
        const T* direction_k = twice ? call.direction_k + (e * call.heads + h) * dot : nullptr;
        const T* direction_v = twice ? call.direction_v + (e * call.heads + h) * width : nullptr;
        T a = T(0), b = T(0), s_dot = T(0);
        for (int64_t c = team.rank(); c < width; c += team.size()) {
          a += g[c] * v.at(c);
          if (twice) b += g[c] * direction_v[c];
        }
        a = team.sum(a);
        if (twice) {
          for (int64_t c = team.rank(); c < dot; c += team.size())
            s_dot += direction_q[c] * k.at(c) + q.at(c) * direction_k[c];
          s_dot = team.sum(s_dot) * slope;
          b = team.sum(b);
        }
        if (sweep == 0) {
          mean_a += p * a;
          mu += p * s_dot;
          mean_b += p * b;
          mean_sa += p * s_dot * a;
          continue;
        }
        T* dq = call.dq + (e * call.heads + h) * dot;
        T* dk = call.dk + (e * call.heads + h) * dot;
        T* dv = call.dv + (e * call.heads + h) * width;
        const T ds = p * (a - mean_a) * slope;
        if (!twice) {
          for (int64_t c = team.rank(); c < dot; c += team.size()) {
            dq[c] = ds * k.at(c);
            dk[c] = ds * q.at(c);
          }
          for (int64_t c = team.rank(); c < width; c += team.size()) dv[c] = p * g[c];
        } else {
          const T dds = p * ((s_dot - mu) * (a - mean_a) + b - mean_b - k_term) * slope;
          for (int64_t c = team.rank(); c < dot; c += team.size()) {
            dq[c] = dds * k.at(c) + ds * direction_k[c];
            dk[c] = dds * q.at(c) + ds * direction_q[c];
          }
          for (int64_t c = team.rank(); c < width; c += team.size()) {
            dv[c] = p * (s_dot - mu) * g[c];
            out[c] += p * ((s_dot - mu) * v.at(c) + direction_v[c]);
          }
        }
      }
    }
  }
}

}  // namespace HAMFAST_ISA

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

template <class T>
__global__ void attention_kernel(AttentionCall<T> call, int64_t targets, int derivative) {
  for (int64_t node = blockIdx.x; node < targets; node += gridDim.x) {
    if (derivative == 0)
      HAMFAST_ISA::attention_forward(HAMFAST_ISA::Warp{}, call, node);
    else
      HAMFAST_ISA::attention_backward(HAMFAST_ISA::Warp{}, call, node, derivative == 2);
  }
}

#endif

}  // namespace hamfast
