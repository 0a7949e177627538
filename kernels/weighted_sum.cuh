// Attention on the GPU, second half: sums over edges, or over heads, of rows times scalars per edge
// and head. A lane owns a few columns of the result. Where a row has fewer columns than a warp has
// lanes, its edges are dealt to groups of lanes, whose sums are added in a fixed order: no atomics.
#pragma once

#include "graph_attention_scores.cuh"

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

namespace hamfast {

// What a term adds up, times its weight.
enum Summand : int64_t {
  summand_rows = 0,          // a
  summand_features = 1,      // rows of the edges' features, the same for all heads
  summand_nodes = 2,         // rows of the receivers
  summand_activation = 3,    // act(a + b)
  summand_vector_slope = 4,  // vector act'(a + b)
  // The changes of the last two along tangents of a, b and the vector.
  summand_tangent_activation = 5,
  summand_tangent_vector_slope = 6,
};

template <class T, class Stored>
struct WeightedTerm {
  int64_t summand;
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
  Maybe<const int64_t> order, ptr;  // absent: a row is an edge
  int64_t chunks, edges;            // chunks > 0: a row is one of so many chunks of all edges
  const int64_t *senders, *receivers;
  EdgeSum<Stored> tangent_a, tangent_b;
  const T* vector;
  Maybe<const T> tangent_vector;
  int64_t activation;
  T slope;
  bool packed;

  // How a warp is cut: into groups of `lanes` lanes, which share the `units` of a row's columns. A
  // group has edges of one row. Where a row is an edge, it has a row of its own.
  struct Cut {
    int64_t chunks, units, tiles, items;
    int lanes, groups;
  };
  HAMFAST_HD bool activations() const { return count > 0 && term[0].summand >= summand_activation; }
  HAMFAST_HD bool lists() const { return ptr || chunks > 0; }
  HAMFAST_HD Cut cut() const {
    Cut c;
    c.chunks = (width + kColumns - 1) / kColumns;
    c.units = (over_heads ? 1 : heads) * c.chunks;
    c.lanes = kWarp;
    while (c.lanes / 2 >= c.units && c.lanes > 1) c.lanes /= 2;
    c.groups = kWarp / c.lanes;
    c.tiles = (c.units + c.lanes - 1) / c.lanes;
    c.items = (lists() ? rows : (rows + c.groups - 1) / c.groups) * c.tiles;
    return c;
  }
};

// Columns of additive scores: the summands from summand_activation on.
template <class T, class Stored, class Out>
HAMFAST_INLINE Columns<T> activation_columns(const WeightedSum<T, Stored, Out>& sum,
                                             const WeightedTerm<T, Stored>& term,
                                             const int64_t (&row)[3], int64_t h, int64_t c) {
  const int64_t summand = term.summand, offset = h * sum.width + c, left = sum.width - c;
  Columns<T> x = row_columns<T>(term.a, term.b, sum.heads, row, h, c, sum.packed), tangent_x{},
             vector{}, tangent_vector{};
  if (summand == summand_tangent_activation || summand == summand_tangent_vector_slope)
    tangent_x = row_columns<T>(sum.tangent_a, sum.tangent_b, sum.heads, row, h, c, sum.packed);
  if (summand == summand_vector_slope || summand == summand_tangent_vector_slope)
    vector = load_columns<T>(sum.vector + offset, left, sum.packed);
  if (summand == summand_tangent_vector_slope && sum.tangent_vector)
    tangent_vector = load_columns<T>(sum.tangent_vector + offset, left, sum.packed);
  HAMFAST_UNROLL
  for (int i = 0; i < kColumns; ++i) {
    const T at = x.at[i];
    if (summand == summand_activation) {
      x.at[i] = score_activation(sum.activation, sum.slope, at);
      continue;
    }
    const T slope = score_activation_slope(sum.activation, sum.slope, at);
    if (summand == summand_vector_slope)
      x.at[i] = vector.at[i] * slope;
    else if (summand == summand_tangent_activation)
      x.at[i] = slope * tangent_x.at[i];
    else
      x.at[i] = tangent_vector.at[i] * slope +
                vector.at[i] * score_activation_curvature(sum.activation, sum.slope, at) *
                    tangent_x.at[i];
  }
  return x;
}

// total += the terms of one edge, in the columns of head h from c. activations: all summands are
// those of additive scores.
template <bool activations, class T, class Stored, class Out>
HAMFAST_INLINE void add_edge(const WeightedSum<T, Stored, Out>& sum, const int64_t (&row)[3],
                             int64_t h, int64_t c, Columns<T>& total) {
  const bool packed = sum.packed;
  const int64_t heads = sum.heads, width = sum.width, last = sum.over_heads ? heads : h + 1;
  for (; h < last; ++h)
    for (int t = 0; t < sum.count; ++t) {
      const WeightedTerm<T, Stored>& term = sum.term[t];
      const T weight = term.weight[row[row_of_edge] * heads + h];
      if constexpr (activations) {
        add_columns(weight, activation_columns(sum, term, row, h, c), total);
      } else if (term.summand == summand_rows) {
        add_columns(weight, row_columns<T>(term.a, heads, row, h, c, packed), total);
      } else if (term.summand == summand_features) {
        add_columns(
            weight,
            load_columns<T>(term.features + row[row_of_edge] * width + c, width - c, packed),
            total);
      } else {
        const T* node = term.nodes.row(row[row_of_receiver]) + h * term.nodes.head_stride + c;
        add_columns(weight, load_columns<T>(node, width - c, packed), total);
      }
    }
}

// Edges first ... last of a list, dealt to the groups of the warp; afterwards every group has the
// whole sum.
template <bool activations, class T, class Stored, class Out>
HAMFAST_INLINE void add_list(const WeightedSum<T, Stored, Out>& sum, int64_t first, int64_t last,
                             int lanes, int lane, bool is_active, int64_t h, int64_t c,
                             Columns<T>& total) {
  walk_edges(sum.order, sum.senders, sum.receivers, first, last, lane, lanes,
             [&](const int64_t (&row)[3], bool is_edge) {
               if (is_active && is_edge) add_edge<activations>(sum, row, h, c, total);
             });
  for (int step = lanes; step < kWarp; step *= 2) {
    HAMFAST_UNROLL
    for (int i = 0; i < kColumns; ++i)
      total.at[i] += __shfl_xor_sync(0xffffffffu, total.at[i], step);
  }
}

constexpr int kSumWarps = 8;  // per block
// Blocks that a multiprocessor is to hold: as many as the registers of a sum allow.
constexpr int sum_blocks(bool activations, size_t real) {
  return (real == 8 ? 2 : 3) - (activations ? 1 : 0);
}

template <class T, class Stored, class Out, bool activations>
__global__ void __launch_bounds__(kWarp* kSumWarps, sum_blocks(activations, sizeof(T)))
    weighted_sum_kernel(WeightedSum<T, Stored, Out> sum) {
  const auto cut = sum.cut();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, group = lane / cut.lanes;
  for (int64_t item =
           static_cast<int64_t>(blockIdx.x) * kSumWarps + static_cast<int>(threadIdx.x) / kWarp;
       item < cut.items; item += static_cast<int64_t>(gridDim.x) * kSumWarps) {
    const int64_t unit = item % cut.tiles * cut.lanes + lane % cut.lanes;
    const int64_t h = unit / cut.chunks, c = unit % cut.chunks * kColumns;
    const bool lists = sum.lists();
    const int64_t r = lists ? item / cut.tiles : item / cut.tiles * cut.groups + group;
    const bool is_active = unit < cut.units && r < sum.rows;
    Columns<T> total{};
    if (lists) {
      const int64_t first = sum.ptr ? sum.ptr[r] : sum.edges * r / sum.chunks;
      const int64_t last = sum.ptr ? sum.ptr[r + 1] : sum.edges * (r + 1) / sum.chunks;
      add_list<activations>(sum, first, last, cut.lanes, lane, is_active, h, c, total);
    } else if (is_active) {
      const int64_t row[3] = {r, sum.senders[r], sum.receivers[r]};
      add_edge<activations>(sum, row, h, c, total);
    }
    if (is_active && (!lists || group == 0)) {
      const int64_t head_rows = sum.over_heads ? r : r * sum.heads + h;
      store_columns(total, sum.out + head_rows * sum.width + c, sum.width - c, sum.packed);
    }
  }
}

}  // namespace hamfast

#endif
