// Symmetric contraction: per node n and channel c, polynomials in the components of x, whose
// coefficients are sums over paths k of weights, mixed by the node's species:
//   out[n, c, i] = sum over terms t of component i of  C_t  product of t's factors x[n, c, j]
//   C_t          = sum over k of  U_tk w[k],      w[k] = sum over s of y[n, s] W[s, k, c]
// Terms are summed in groups that share a prefix, all factors but one (see
// hamfast/plan/symmetric_contraction.py). With a direction x' of x it is the derivative along it.
#pragma once

#include "common.cuh"
#include "records.cuh"

namespace hamfast {

constexpr int kMostTerms = 4;  // of a group: MOST of hamfast/plan/symmetric_contraction.py

template <class T>
struct ContractionCall {
  const T* x;                // [nodes, channels, dims.x]
  const T* y;                // [nodes, species]
  const T* w;                // [species, paths, channels]
  Maybe<const T> g;          // [nodes, channels * dims.g]
  Maybe<const T> direction;  // as x
  // Results; absent what is not wanted.
  Maybe<T> grad_x, grad_y, grad_w, grad_g;

  const Product* products;
  const ContractionGroup* groups;
  const int64_t* buckets;  // where the groups of more than n terms begin, n = 0 ... kMostTerms
  const int64_t* factors;
  const ContractionPath *by_path, *by_term;
  const T *by_path_value, *by_term_value;
  const ContractionBlock* blocks;
  int64_t num_products, num_groups, terms, entries, num_blocks;

  ContractionDims dims;
  int64_t nodes, channels, species;

  HAMFAST_HD int64_t monomials() const { return 1 + dims.x + num_products; }
};

}  // namespace hamfast
