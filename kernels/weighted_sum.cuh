// Attention on the GPU, second half: sums over edges (or over heads) of numbers per edge and head times rows. One
// thread per element of the result, which adds in the order of the list: no atomics.
#pragma once

#include "graph_attention_scores.cuh"

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

namespace hamfast {

enum RowKind : int64_t {
  rows_sum = 0,               // a: the sum of its parts
  rows_features = 1,          // rows of edge features, the same for all heads
  rows_nodes = 2,             // rows of the receiver
  rows_activation = 3,        // act(a + b)
  rows_activation_slope = 4,  // vector act'(a + b)
};

template <class T, class Stored>
struct WeightedTerm {
  int64_t kind;
  const T* weight;  // [edges, heads]
  EdgeSum<Stored> a, b;
  const Stored* features;
  NodeRows<T> nodes;
};

template <class T, class Stored, class Out>
struct WeightedSum {
  WeightedTerm<T, Stored> term[4];
  int count;
  Out* out;  // [rows, heads, width], or [rows, width] if summed over heads
  int64_t rows, heads, width;
  bool over_heads;
  const int64_t *order, *ptr;  // null: a row is an edge
  int64_t parts, edges;        // parts > 0: a row is that part of all edges
  const int64_t *senders, *receivers;
  const T* vector;
  int64_t activation;
  T slope;
};

template <class T, class Stored, class Out>
HAMFAST_INLINE T weighted_element(const WeightedSum<T, Stored, Out>& sum, const WeightedTerm<T, Stored>& term,
                                  const int64_t (&row)[3], int64_t h, int64_t c) {
  if (term.kind == rows_sum) return row_element<T>(term.a, sum.heads, row, h, c);
  if (term.kind == rows_features) return HAMFAST_ISA::widen(term.features[row[0] * sum.width + c]);
  if (term.kind == rows_nodes) return term.nodes.row(row[2])[h * term.nodes.head_stride + c];
  const T x = row_element<T>(term.a, sum.heads, row, h, c) + row_element<T>(term.b, sum.heads, row, h, c);
  if (term.kind == rows_activation) return score_activation(sum.activation, sum.slope, x);
  return sum.vector[h * sum.width + c] * score_activation_slope(sum.activation, sum.slope, x);
}

template <class T, class Stored, class Out>
__global__ void weighted_sum_kernel(WeightedSum<T, Stored, Out> sum) {
  const int64_t heads_out = sum.over_heads ? 1 : sum.heads;
  const int64_t elements = sum.rows * heads_out * sum.width;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < elements;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t c = i % sum.width, h_out = i / sum.width % heads_out, r = i / sum.width / heads_out;
    int64_t first = r, last = r + 1;
    if (sum.ptr) first = sum.ptr[r], last = sum.ptr[r + 1];
    if (sum.parts > 0) first = sum.edges * r / sum.parts, last = sum.edges * (r + 1) / sum.parts;
    T total = T(0);
    for (int64_t n = first; n < last; ++n) {
      const int64_t edge = sum.order ? sum.order[n] : n;
      const int64_t row[3] = {edge, sum.senders[edge], sum.receivers[edge]};
      for (int64_t h = h_out; h < (sum.over_heads ? sum.heads : h_out + 1); ++h)
        for (int t = 0; t < sum.count; ++t)
          total += sum.term[t].weight[edge * sum.heads + h] * weighted_element(sum, sum.term[t], row, h, c);
    }
    HAMFAST_ISA::narrow(total, sum.out + i);
  }
}

}  // namespace hamfast

#endif
