// Compiled once per instruction set. A node's edges are the rows of a matrix product.
#include "edge_outer/edge_outer_isa.h"

#include "common/small_matmul.h"

namespace hamfast::HAMFAST_ISA {

// A node and its edges.
template <class T>
struct NodeOfOuter {
  NodeOfOuter(const EdgeOuterCall<T>& call_, int64_t node_)
      : call(call_),
        node(node_),
        first(call.order + call.ptr[node]),
        edges(call.ptr[node + 1] - call.ptr[node]) {}
  const EdgeOuterCall<T>& call;
  const int64_t node;
  const int64_t* first;
  const int64_t edges;
  T* factor(int64_t k) const { return call.factor + first[k] * call.width; }
  T* channels(const OuterRow& at, int64_t k) const {
    return call.channels + at.channels + first[k] * at.channels_stride;
  }
  T* matrix_row(const OuterRow& at, int64_t h) const {
    return call.node + at.node + node * at.node_stride + h * at.n;
  }
};

template <class T>
static void make_node(const EdgeOuterCall<T>& call, int64_t begin, int64_t end) {
  for (int64_t node = begin; node < end; ++node) {
    const NodeOfOuter<T> at(call, node);
    for (int64_t i = 0; i < call.count; ++i) {
      const OuterRow& row = call.outer_rows[i];
      multiply_rows<T>(
          call.width, row.n, at.edges, false, [&](int64_t h, int64_t k) { return at.factor(k)[h]; },
          [&](int64_t k) -> const T* { return at.channels(row, k); },
          [&](int64_t h) { return at.matrix_row(row, h); });
    }
  }
}

template <class T>
static void make_channels(const EdgeOuterCall<T>& call, int64_t begin, int64_t end) {
  for (int64_t node = begin; node < end; ++node) {
    const NodeOfOuter<T> at(call, node);
    for (int64_t i = 0; i < call.count; ++i) {
      const OuterRow& row = call.outer_rows[i];
      multiply_rows<T>(
          at.edges, row.n, call.width, false, [&](int64_t k, int64_t h) { return at.factor(k)[h]; },
          [&](int64_t h) -> const T* { return at.matrix_row(row, h); },
          [&](int64_t k) { return at.channels(row, k); });
    }
  }
}

template <class T>
static void make_factor(const EdgeOuterCall<T>& call, int64_t begin, int64_t end) {
  for (int64_t node = begin; node < end; ++node) {
    const NodeOfOuter<T> at(call, node);
    sums_of_products<T>(
        at.edges, call.width, call.count,
        [&](int64_t i) {
          const OuterRow& row = call.outer_rows[i];
          return Stretch{[&at, &row](int64_t k) -> const T* { return at.channels(row, k); },
                         [&at, &row](int64_t h) -> const T* { return at.matrix_row(row, h); },
                         row.n};
        },
        [&](int64_t k) { return at.factor(k); });
  }
}

#define HAMFAST_DEFINE_FOR(T)                                                          \
  void edge_outer_node(const EdgeOuterCall<T>& call, int64_t begin, int64_t end) {     \
    make_node(call, begin, end);                                                       \
  }                                                                                    \
  void edge_outer_factor(const EdgeOuterCall<T>& call, int64_t begin, int64_t end) {   \
    make_factor(call, begin, end);                                                     \
  }                                                                                    \
  void edge_outer_channels(const EdgeOuterCall<T>& call, int64_t begin, int64_t end) { \
    make_channels(call, begin, end);                                                   \
  }
HAMFAST_DEFINE_FOR(float)
HAMFAST_DEFINE_FOR(double)
#undef HAMFAST_DEFINE_FOR

}  // namespace hamfast::HAMFAST_ISA
