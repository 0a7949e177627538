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
  const int64_t *path_ptr, *term_ptr;
  const ContractionEntry *by_path, *by_term;
  const T *by_path_value, *by_term_value;
  const ContractionBlock* blocks;
  int64_t num_products, num_groups, terms, entries, num_blocks;

  ContractionDims dims;
  int64_t nodes, channels, species;

  HAMFAST_HD int64_t monomials() const { return 1 + dims.x + num_products; }
};

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

// A thread's node and channel. Its numbers are rows of memory in which the threads of a block are
// neighbours: monomials, their derivatives along the direction, gradients in both, and the result;
// rows that a call does not need are not there.
template <class T>
struct ContractionLane {
  const ContractionCall<T>& call;
  T* memory;
  int64_t stride;

  HAMFAST_HD static int64_t rows(const ContractionCall<T>& call) {
    const int64_t along = call.direction.given() ? 2 : 1, pulled = call.grad_x.given() ? 2 : 1;
    return along * pulled * call.monomials() + (call.grad_g.given() ? call.dims.g : 0);
  }

  __device__ T& value(int64_t m) const { return memory[m * stride]; }
  __device__ T& tangent(int64_t m) const { return memory[(call.monomials() + m) * stride]; }
  __device__ T& grad_value(int64_t m) const {
    return memory[((call.direction ? 2 : 1) * call.monomials() + m) * stride];
  }
  __device__ T& grad_tangent(int64_t m) const {
    return memory[(3 * call.monomials() + m) * stride];
  }
  __device__ T& out(int64_t i) const { return memory[(rows(call) - call.dims.g + i) * stride]; }

  __device__ void make_monomials(int64_t node, int64_t channel) const {
    const int64_t at = (node * call.channels + channel) * call.dims.x;
    const bool along = call.direction.given();
    value(0) = T(1);
    if (along) tangent(0) = T(0);
    for (int64_t j = 0; j < call.dims.x; ++j) {
      value(1 + j) = call.x[at + j];
      if (along) tangent(1 + j) = call.direction[at + j];
    }
    for (int64_t p = 0; p < call.num_products; ++p) {
      const Product product = call.products[p];
      const int64_t to = 1 + call.dims.x + p;
      const T a = value(product.parent), f = value(product.factor);
      value(to) = a * f;
      if (along) tangent(to) = a * tangent(product.factor) + tangent(product.parent) * f;
    }
  }

  // Calls `visit(group, terms, sum, sum_along)` for every group: its terms' coefficients and
  // factors, their sum without the prefix, and its derivative along the direction. What comes from
  // memory is read one group ahead, its place two groups ahead.
  template <class Coefficient, class Visit>
  __device__ void for_each_group(const Coefficient& coefficient, const Visit& visit) const {
    const auto group_at = [&](int64_t n) { return call.groups[n < call.num_groups ? n : 0]; };
    if (call.num_groups == 0) return;
    ContractionGroup group = group_at(0), next_group = group_at(1);
    Terms terms = read(group, coefficient);
    for (int64_t n = 0; n < call.num_groups; ++n) {
      const ContractionGroup after = group_at(n + 2);
      const Terms next = read(next_group, coefficient);
      T sum = T(0), sum_along = T(0);
      HAMFAST_UNROLL
      for (int t = 0; t < kMostTerms; ++t) {
        if (t >= group.terms) continue;
        sum += terms.coefficient[t] * value(terms.factor[t]);
        if (call.direction) sum_along += terms.coefficient[t] * tangent(terms.factor[t]);
      }
      visit(group, terms, sum, sum_along);
      group = next_group;
      next_group = after;
      terms = next;
    }
  }

  // A group's share in the result, or in its derivative along the direction.
  __device__ T with_prefix(const ContractionGroup& group, T sum, T sum_along) const {
    if (!call.direction) return value(group.prefix) * sum;
    return value(group.prefix) * sum_along + tangent(group.prefix) * sum;
  }

  __device__ void pull_products() const {
    const bool along = call.direction.given();
    for (int64_t p = call.num_products - 1; p >= 0; --p) {
      const Product product = call.products[p];
      const int64_t from = 1 + call.dims.x + p;
      const T grad = grad_value(from);
      const T a = value(product.parent), f = value(product.factor);
      grad_value(product.parent) += grad * f;
      grad_value(product.factor) += grad * a;
      if (!along) continue;
      const T grad_along = grad_tangent(from);
      grad_value(product.parent) += grad_along * tangent(product.factor);
      grad_value(product.factor) += grad_along * tangent(product.parent);
      grad_tangent(product.parent) += grad_along * f;
    }
  }

  // Of one group.
  struct Terms {
    T coefficient[kMostTerms];
    int64_t factor[kMostTerms];
  };

  template <class Coefficient>
  __device__ Terms read(const ContractionGroup& group, const Coefficient& coefficient) const {
    Terms terms{};
    HAMFAST_UNROLL
    for (int t = 0; t < kMostTerms; ++t) {
      if (t >= group.terms) continue;
      terms.coefficient[t] = coefficient(group.first + t);
      terms.factor[t] = call.factors[group.first + t];
    }
    return terms;
  }
};

// The memory of a block's lanes: shared memory, or where that is too small a part of `scratch`.
template <bool kShared, class T>
__device__ inline T* contraction_memory(const ContractionCall<T>& call, T* scratch) {
  T* rows = nullptr;
  if constexpr (kShared)
    rows = reinterpret_cast<T*>(HAMFAST_ISA::shared_memory());
  else
    rows = scratch + blockIdx.x * kWarp * ContractionLane<T>::rows(call);
  return rows + threadIdx.x;
}

// Where component i of a channel lies in the node's row of the result.
template <class T>
__device__ inline int64_t contraction_column(const ContractionCall<T>& call, int64_t channel,
                                             int64_t i) {
  int64_t n = call.num_blocks - 1;
  while (call.blocks[n].first > i) --n;
  const ContractionBlock& block = call.blocks[n];
  return block.first * call.channels + channel * block.d + i - block.first;
}

// to[s, n, c] = sum over the entries e of n of values[e] from[s, entries[e].target, c]: from
// weights to coefficients, by the entries of terms; from their gradients to those of weights, by
// the entries of paths.
template <class T>
__global__ void contraction_entries_kernel(const ContractionEntry* entries, const T* values,
                                           const int64_t* ptr, const T* from, int64_t sources,
                                           T* to, int64_t targets, int64_t species,
                                           int64_t channels) {
  const int64_t elements = species * targets * channels;
  for (int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; n < elements;
       n += int64_t(gridDim.x) * blockDim.x) {
    const int64_t c = n % channels, target = n / channels % targets, s = n / channels / targets;
    T total = T(0);
    for (int64_t e = ptr[target]; e < ptr[target + 1]; ++e)
      total += values[e] * from[(s * sources + entries[e].target) * channels + c];
    to[n] = total;
  }
}

// A warp per node and 32 channels: the result, and the gradient in x. coefficients: [species,
// terms, channels].
template <class T, bool kShared>
__global__ void contraction_kernel(ContractionCall<T> call, const T* HAMFAST_RESTRICT coefficients,
                                   T* scratch) {
  const int64_t tiles = (call.channels + kWarp - 1) / kWarp;
  const ContractionLane<T> lane{call, contraction_memory<kShared>(call, scratch), kWarp};
  for (int64_t task = blockIdx.x; task < call.nodes * tiles; task += gridDim.x) {
    const int64_t node = task / tiles, channel = task % tiles * kWarp + threadIdx.x;
    if (channel >= call.channels) continue;
    const T* y = call.y + node * call.species;
    int64_t first = 0, last = call.species;  // the species that are there
    while (first < last && y[first] == T(0)) ++first;
    while (first < last && y[last - 1] == T(0)) --last;
    const auto coefficient = [&](int64_t t) {
      T total = T(0);
      for (int64_t s = first; s < last; ++s)
        if (y[s] != T(0))
          total += y[s] * coefficients[(s * call.terms + t) * call.channels + channel];
      return total;
    };
    lane.make_monomials(node, channel);
    const bool along = call.direction.given();
    if (call.grad_g)
      for (int64_t i = 0; i < call.dims.g; ++i) lane.out(i) = T(0);
    if (call.grad_x)
      for (int64_t m = 0; m < call.monomials(); ++m) {
        lane.grad_value(m) = T(0);
        if (along) lane.grad_tangent(m) = T(0);
      }
    lane.for_each_group(
        coefficient, [&](const ContractionGroup& group, const auto& terms, T sum, T sum_along) {
          if (call.grad_g) lane.out(group.component) += lane.with_prefix(group, sum, sum_along);
          if (!call.grad_x) return;
          const T g = call.g[node * call.channels * call.dims.g +
                             contraction_column(call, channel, group.component)];
          const T pull = g * (along ? lane.tangent(group.prefix) : lane.value(group.prefix));
          lane.grad_value(group.prefix) += g * (along ? sum_along : sum);
          if (along) lane.grad_tangent(group.prefix) += g * sum;
          HAMFAST_UNROLL
          for (int t = 0; t < kMostTerms; ++t) {
            if (t >= group.terms) continue;
            lane.grad_value(terms.factor[t]) += pull * terms.coefficient[t];
          }
        });
    if (call.grad_g)
      for (int64_t i = 0; i < call.dims.g; ++i)
        call.grad_g[node * call.channels * call.dims.g + contraction_column(call, channel, i)] =
            lane.out(i);
    if (!call.grad_x) continue;
    lane.pull_products();
    for (int64_t j = 0; j < call.dims.x; ++j)
      call.grad_x[(node * call.channels + channel) * call.dims.x + j] = lane.grad_value(1 + j);
  }
}

// The gradient in y: a warp per node and species, lanes are channels.
template <class T, bool kShared>
__global__ void contraction_species_kernel(ContractionCall<T> call,
                                           const T* HAMFAST_RESTRICT coefficients, T* scratch) {
  const HAMFAST_ISA::Warp warp;
  const ContractionLane<T> lane{call, contraction_memory<kShared>(call, scratch), kWarp};
  for (int64_t task = blockIdx.x; task < call.nodes * call.species; task += gridDim.x) {
    const int64_t node = task / call.species, s = task % call.species;
    T total = T(0);
    for (int64_t channel = warp.rank(); channel < call.channels; channel += warp.size()) {
      const auto coefficient = [&](int64_t t) {
        return coefficients[(s * call.terms + t) * call.channels + channel];
      };
      lane.make_monomials(node, channel);
      lane.for_each_group(coefficient,
                          [&](const ContractionGroup& group, const auto&, T sum, T sum_along) {
                            total += lane.with_prefix(group, sum, sum_along) *
                                     call.g[node * call.channels * call.dims.g +
                                            contraction_column(call, channel, group.component)];
                          });
    }
    total = warp.sum(total);
    if (warp.rank() == 0) call.grad_y[task] = total;
  }
}

// to[n, j, c] = from[n, c, j]: neighbouring threads then read neighbouring numbers.
template <class T>
__global__ void contraction_transpose_kernel(const T* from, T* to, int64_t nodes, int64_t channels,
                                             int64_t dim) {
  const int64_t elements = nodes * channels * dim;
  for (int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; n < elements;
       n += int64_t(gridDim.x) * blockDim.x)
    to[n] = from[(n / channels / dim * channels + n % channels) * dim + n / channels % dim];
}

// Gradients in the coefficients, [species, terms, channels]: a warp per species, group and 32
// channels, which walks over the nodes and makes what it needs of the monomials again. x,
// direction: [nodes, dims.x, channels].
template <class T>
__global__ void contraction_coefficients_kernel(ContractionCall<T> call,
                                                const T* HAMFAST_RESTRICT x,
                                                const T* HAMFAST_RESTRICT direction, T* grad) {
  constexpr int kChain = 4;  // factors of a prefix that are kept in registers
  const int64_t tiles = (call.channels + kWarp - 1) / kWarp;
  const int64_t tasks = call.species * call.num_groups * tiles;
  const bool along = call.direction.given();
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t channel = task % tiles * kWarp + threadIdx.x;
    const ContractionGroup group = call.groups[task / tiles % call.num_groups];
    const int64_t s = task / tiles / call.num_groups;
    if (channel >= call.channels) continue;
    const int64_t column = contraction_column(call, channel, group.component);
    const auto split = [&](int64_t m) {
      return m > call.dims.x ? call.products[m - 1 - call.dims.x] : Product{0, m};
    };
    int64_t prefix[kChain], factors[kMostTerms], rest = group.prefix;
    HAMFAST_UNROLL
    for (int n = 0; n < kChain; ++n) {
      prefix[n] = -1;
      if (rest == 0) continue;
      const Product pair = split(rest);
      prefix[n] = (pair.factor - 1) * call.channels + channel;
      rest = pair.parent;
    }
    HAMFAST_UNROLL
    for (int t = 0; t < kMostTerms; ++t)
      factors[t] =
          t < group.terms ? (call.factors[group.first + t] - 1) * call.channels + channel : channel;
    T total[kMostTerms] = {};
    for (int64_t node = 0; node < call.nodes; ++node) {
      const T y = call.y[node * call.species + s];
      if (y == T(0)) continue;
      const int64_t at = node * call.channels * call.dims.x;
      T value = y * call.g[node * call.channels * call.dims.g + column], tangent = T(0);
      const auto multiply = [&](int64_t place) {
        if (along) tangent = tangent * x[at + place] + value * direction[at + place];
        value *= x[at + place];
      };
      HAMFAST_UNROLL
      for (int n = 0; n < kChain; ++n)
        if (prefix[n] >= 0) multiply(prefix[n]);
      for (int64_t m = rest; m > 0;) {
        const Product pair = split(m);
        multiply((pair.factor - 1) * call.channels + channel);
        m = pair.parent;
      }
      HAMFAST_UNROLL
      for (int t = 0; t < kMostTerms; ++t) {
        total[t] += (along ? tangent : value) * x[at + factors[t]];
        if (along) total[t] += value * direction[at + factors[t]];
      }
    }
    HAMFAST_UNROLL
    for (int t = 0; t < kMostTerms; ++t)
      if (t < group.terms)
        grad[(s * call.terms + group.first + t) * call.channels + channel] = total[t];
  }
}

#endif

}  // namespace hamfast
