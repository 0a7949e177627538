// Compiled once per instruction set. The lanes of a vector are channels. The coefficients of a
// run's nodes are made once; then some nodes go through the terms together, so that a coefficient
// is read once for all of them.
#include "symmetric_contraction/symmetric_contraction_isa.h"

#include <algorithm>

#include "common/scratch.h"
#include "common/simd.h"

namespace hamfast::HAMFAST_ISA {

// Square transposes of kLanes vectors, by pairs of rows at growing distance.
template <class T, int step, int... i>
inline void exchange(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  const Vector<T> first = pick<T, ((i / step) % 2 == 0 ? i : n + i - step)...>(a, b);
  b = pick<T, ((i / step) % 2 == 0 ? i + step : n + i)...>(a, b);
  a = first;
}
template <class T, int step = 1>
inline void transpose(Vector<T>* rows) {
  if constexpr (step < kLanes<T>) {
    for (int r = 0; r < kLanes<T>; ++r)
      if ((r & step) == 0)
        exchange<T, step>(rows[r], rows[r + step], std::make_integer_sequence<int, kLanes<T>>{});
    transpose<T, 2 * step>(rows);
  }
}

// rows[lane * d + i] <-> to[i * stride + lane], of n lanes; the other lanes become 0.
template <class T>
inline void to_components(const T* rows, int64_t n, int64_t d, T* to, int64_t stride) {
  constexpr int64_t kN = kLanes<T>;
  for (int64_t i = 0; i < d; i += kN) {
    Vector<T> block[kN];
    for (int64_t r = 0; r < kN; ++r)
      block[r] = r < n ? load_first(rows + r * d + i, d - i) : Vector<T>{};
    transpose<T>(block);
    for (int64_t q = 0; q < kN && i + q < d; ++q) store(to + (i + q) * stride, block[q]);
  }
}
template <class T>
inline void from_components(const T* from, int64_t stride, int64_t n, int64_t d, T* rows) {
  constexpr int64_t kN = kLanes<T>;
  for (int64_t i = 0; i < d; i += kN) {
    Vector<T> block[kN];
    for (int64_t q = 0; q < kN; ++q)
      block[q] = i + q < d ? load(from + (i + q) * stride) : Vector<T>{};
    transpose<T>(block);
    for (int64_t r = 0; r < kN && r < n; ++r) store_first(rows + r * d + i, block[r], d - i);
  }
}

// What a pass makes: the result (or its derivative along the direction), and gradients of it.
struct Makes {
  bool along, out, x, w;
};

template <class T>
class Contraction {
  static constexpr int64_t kN = kLanes<T>;
#if defined(__AVX512F__)
  static constexpr int kNodes = 4;
#else
  static constexpr int kNodes = 2;  // half as many registers
#endif

 public:
  Contraction(const ContractionCall<T>& call, const ContractionRuns<T>& runs)
      : call_(call),
        runs_(runs),
        monomials_(call.monomials()),
        scratch_(kN * (2 * call.terms + 2 * call.dims.paths +
                       kNodes * (4 * monomials_ + 2 * call.dims.g))) {
    T* at = scratch_.data();
    const auto take = [&](int64_t vectors) {
      T* from = at;
      at += vectors * kN;
      return from;
    };
    coefficient_ = take(call.terms), grad_coefficient_ = take(call.terms);
    weight_ = take(call.dims.paths), grad_weight_ = take(call.dims.paths);
    value_ = take(kNodes * monomials_), tangent_ = take(kNodes * monomials_);
    grad_value_ = take(kNodes * monomials_), grad_tangent_ = take(kNodes * monomials_);
    g_ = take(kNodes * call.dims.g), out_ = take(kNodes * call.dims.g);
    std::fill(scratch_.data(), at, T(0));
  }

  void task(int64_t number) {
    const int64_t blocks = tasks_of<T>(call_.channels);
    const int64_t run = number / blocks, first = number % blocks * kTaskChannels<T>;
    for (int64_t c = first; c < std::min(first + kTaskChannels<T>, call_.channels); c += kN)
      channels_of(run, c);
  }

 private:
  void channels_of(int64_t number, int64_t channel) {
    const ContractionRun& run = runs_.runs[number];
    channel_ = channel;
    lanes_ = std::min(kN, call_.channels - channel);
    load_weights(run);
    make_coefficients();
    if (runs_.grad) std::fill(grad_coefficient_, grad_coefficient_ + kN * call_.terms, T(0));
    const int64_t* nodes = runs_.order + run.first;
    int64_t left = run.last - run.first;
    for (; left >= kNodes; left -= kNodes, nodes += kNodes) pass<kNodes>(nodes, kNodes);
    // The rest: a node alone, or together with empty places.
    if (left > 1)
      pass<kNodes>(nodes, left);
    else if (left == 1)
      pass<1>(nodes, 1);
    if (runs_.grad) store_grad_weights(number);
  }

  void load_weights(const ContractionRun& run) {
    const int64_t paths = call_.dims.paths;
    const auto row = [&](int64_t species, int64_t k) {
      return load_first(call_.w + (species * paths + k) * call_.channels + channel_, lanes_);
    };
    if (run.species >= 0) {
      for (int64_t k = 0; k < paths; ++k) store(weight_ + k * kN, row(run.species, k));
      return;
    }
    std::fill(weight_, weight_ + paths * kN, T(0));
    const T* y = call_.y + runs_.order[run.first] * call_.species;
    for (int64_t s = 0; s < call_.species; ++s) {
      if (y[s] == T(0)) continue;
      for (int64_t k = 0; k < paths; ++k)
        store(weight_ + k * kN, load(weight_ + k * kN) + row(s, k) * y[s]);
    }
  }

  void make_coefficients() {
    std::fill(coefficient_, coefficient_ + kN * call_.terms, T(0));
    add_entries(call_.by_path, call_.by_path_value, weight_, coefficient_);
  }

  void store_grad_weights(int64_t run) {
    const int64_t paths = call_.dims.paths;
    std::fill(grad_weight_, grad_weight_ + paths * kN, T(0));
    add_entries(call_.by_term, call_.by_term_value, grad_coefficient_, grad_weight_);
    T* rows = runs_.grad + run * paths * call_.channels + channel_;
    for (int64_t k = 0; k < paths; ++k)
      store_first(rows + k * call_.channels, load(grad_weight_ + k * kN), lanes_);
  }

  // Neighbours in the tables have different targets: no sum waits for the last.
  void add_entries(const ContractionEntry* entries, const T* values, const T* from, T* to) const {
    for (int64_t n = 0, count = call_.entries; n < count; ++n) {
      T* const at = to + entries[n].target * kN;
      store(at, load(at) + load(from + entries[n].source * kN) * values[n]);
    }
  }

  // Up to `nodes` nodes, `count` of them there.
  template <int nodes>
  void pass(const int64_t* node, int64_t count) {
    const bool w = runs_.grad.given(), x = call_.grad_x.given(), out = call_.grad_g.given();
    if (call_.direction)
      w   ? pass_of<nodes, Makes{true, true, true, true}>(node, count)
      : x ? pass_of<nodes, Makes{true, true, true, false}>(node, count)
          : pass_of<nodes, Makes{true, true, false, false}>(node, count);
    else if (out && !x && !w)
      pass_of<nodes, Makes{false, true, false, false}>(node, count);
    else if (out)
      pass_of<nodes, Makes{false, true, true, true}>(node, count);
    else if (w)
      pass_of<nodes, Makes{false, false, true, true}>(node, count);
    else
      pass_of<nodes, Makes{false, false, true, false}>(node, count);
  }

  template <int nodes, Makes makes>
  void pass_of(const int64_t* node, int64_t count) {
    constexpr int64_t kStep = nodes * kN;
    for (int b = 0; b < nodes; ++b) load_node<nodes, makes>(b, b < count ? node[b] : -1);
    for (int b = 0; b < nodes; ++b) store(value_ + b * kN, Vector<T>{} + T(1));
    if constexpr (makes.along)
      for (int b = 0; b < nodes; ++b) store(tangent_ + b * kN, Vector<T>{});
    make_products<nodes, makes>();
    if constexpr (makes.out) std::fill(out_, out_ + call_.dims.g * kStep, T(0));
    if constexpr (makes.x) {
      std::fill(grad_value_, grad_value_ + monomials_ * kStep, T(0));
      if constexpr (makes.along) std::fill(grad_tangent_, grad_tangent_ + monomials_ * kStep, T(0));
    }
    groups_up_to<nodes, makes, kMostTerms>();
    if constexpr (makes.x) pull_products<nodes, makes>();
    for (int b = 0; b < count; ++b) store_node<nodes, makes>(b, node[b]);
  }

  template <int nodes, Makes makes>
  void make_products() {
    constexpr int64_t kStep = nodes * kN;
    T *const value = value_, *const tangent = tangent_;
    const Product* const products = call_.products;
    const int64_t first = 1 + call_.dims.x, count = call_.num_products;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t to = (first + p) * kStep, a = products[p].parent * kStep,
                    f = products[p].factor * kStep;
      for (int64_t i = 0; i < kStep; i += kN) {
        const Vector<T> va = load(value + a + i), vf = load(value + f + i);
        store(value + to + i, va * vf);
        if constexpr (makes.along)
          store(tangent + to + i, va * load(tangent + f + i) + load(tangent + a + i) * vf);
      }
    }
  }

  template <int nodes, Makes makes, int n>
  void groups_up_to() {
    if constexpr (n > 1) groups_up_to<nodes, makes, n - 1>();
    groups_of<nodes, makes, n>();
  }

  // Groups of n terms. All that is read in the loop is local: a store of a vector could change
  // members, as far as the compiler knows.
  template <int nodes, Makes makes, int n>
  void groups_of() {
    constexpr int64_t kStep = nodes * kN;
    constexpr bool kPulls = makes.x || makes.w;
    using V = Vector<T>;
    const T *const coefficients = coefficient_, *const value = value_, *const tangent = tangent_,
                   *const g = g_;
    T *const out = out_, *const grad_value = grad_value_, *const grad_tangent = grad_tangent_,
             *const grad_coefficient = grad_coefficient_;
    const ContractionGroup* at = call_.groups + call_.buckets[n - 1];
    const ContractionGroup* const end = call_.groups + call_.buckets[n];
    const int64_t* factors = call_.factors + (at == end ? 0 : at->first);
    for (; at < end; ++at, factors += n) {
      const int64_t prefix = at->prefix * kStep, component = at->component * kStep;
      const int64_t first = at->first * kN;
      int64_t factor[n];
      for (int t = 0; t < n; ++t) factor[t] = factors[t] * kStep;
      // The terms' sum without the prefix, and its derivative along the direction.
      V sum[nodes] = {}, sum_along[nodes] = {};
      for (int t = 0; t < n; ++t) {
        const V c = load(coefficients + first + t * kN);
        for (int b = 0; b < nodes; ++b) {
          if constexpr (makes.out || makes.x) sum[b] += c * load(value + factor[t] + b * kN);
          if constexpr (makes.along) sum_along[b] += c * load(tangent + factor[t] + b * kN);
        }
      }
      V pull[nodes], pull_along[nodes];  // gradients in the sum, and in its derivative
      for (int b = 0; b < nodes; ++b) {
        const V common = load(value + prefix + b * kN);
        V common_along{};
        if constexpr (makes.along) common_along = load(tangent + prefix + b * kN);
        if constexpr (makes.out) {
          T* const to = out + component + b * kN;
          V total = load(to);
          if constexpr (makes.along)
            total += common * sum_along[b] + common_along * sum[b];
          else
            total += common * sum[b];
          store(to, total);
        }
        if constexpr (kPulls) {
          const V grad = load(g + component + b * kN);
          pull[b] = grad * (makes.along ? common_along : common);
          if constexpr (makes.along) pull_along[b] = grad * common;
          if constexpr (makes.x) {
            T* const to = grad_value + prefix + b * kN;
            store(to, load(to) + grad * (makes.along ? sum_along[b] : sum[b]));
            if constexpr (makes.along) {
              T* const also = grad_tangent + prefix + b * kN;
              store(also, load(also) + grad * sum[b]);
            }
          }
        }
      }
      for (int t = 0; kPulls && t < n; ++t) {
        if constexpr (makes.x) {
          const V c = load(coefficients + first + t * kN);
          for (int b = 0; b < nodes; ++b) {
            T* const to = grad_value + factor[t] + b * kN;
            store(to, load(to) + c * pull[b]);
          }
        }
        if constexpr (makes.w) {
          T* const to = grad_coefficient + first + t * kN;
          V total = load(to);
          for (int b = 0; b < nodes; ++b) {
            total += pull[b] * load(value + factor[t] + b * kN);
            if constexpr (makes.along) total += pull_along[b] * load(tangent + factor[t] + b * kN);
          }
          store(to, total);
        }
      }
    }
  }

  // From the gradients in products to those in the components of x.
  template <int nodes, Makes makes>
  void pull_products() {
    constexpr int64_t kStep = nodes * kN;
    const T *const value = value_, *const tangent = tangent_;
    T *const grad_value = grad_value_, *const grad_tangent = grad_tangent_;
    const Product* const products = call_.products;
    const int64_t first = 1 + call_.dims.x;
    for (int64_t p = call_.num_products - 1; p >= 0; --p) {
      const int64_t from = (first + p) * kStep, a = products[p].parent * kStep,
                    f = products[p].factor * kStep;
      for (int64_t i = 0; i < kStep; i += kN) {
        const Vector<T> grad = load(grad_value + from + i);
        const Vector<T> va = load(value + a + i), vf = load(value + f + i);
        Vector<T> to_a = grad * vf, to_f = grad * va;
        if constexpr (makes.along) {
          const Vector<T> along = load(grad_tangent + from + i);
          to_a += along * load(tangent + f + i);
          to_f += along * load(tangent + a + i);
          T* const more = grad_tangent + a + i;
          store(more, load(more) + along * vf);
        }
        store(grad_value + a + i, load(grad_value + a + i) + to_a);
        store(grad_value + f + i, load(grad_value + f + i) + to_f);
      }
    }
  }

  // A place without a node is 0, and so are its gradients.
  template <int nodes, Makes makes>
  void load_node(int b, int64_t node) {
    constexpr int64_t kStep = nodes * kN;
    const int64_t dim = call_.dims.x;
    T* value = value_ + kStep + b * kN;
    T* tangent = tangent_ + kStep + b * kN;
    T* g = g_ + b * kN;
    if (node < 0) {
      for (int64_t i = 0; i < dim; ++i) {
        store(value + i * kStep, Vector<T>{});
        if constexpr (makes.along) store(tangent + i * kStep, Vector<T>{});
      }
      for (int64_t i = 0; i < call_.dims.g; ++i) store(g + i * kStep, Vector<T>{});
      return;
    }
    const int64_t at = (node * call_.channels + channel_) * dim;
    to_components(call_.x + at, lanes_, dim, value, kStep);
    if constexpr (makes.along) to_components(call_.direction + at, lanes_, dim, tangent, kStep);
    if constexpr (makes.x || makes.w)
      for (int64_t n = 0; n < call_.num_blocks; ++n) {
        const ContractionBlock& block = call_.blocks[n];
        const T* from = call_.g + block_at(node, block);
        T* to = g + block.first * kStep;
        for_irrep_size(block.d, [&](auto d) {
          if constexpr (d() > 0)
            deinterleave<T, d()>(from, lanes_, to, kStep);
          else
            to_components(from, lanes_, block.d, to, kStep);
        });
      }
  }

  template <int nodes, Makes makes>
  void store_node(int b, int64_t node) {
    constexpr int64_t kStep = nodes * kN;
    if constexpr (makes.x)
      if (call_.grad_x)
        from_components(grad_value_ + kStep + b * kN, kStep, lanes_, call_.dims.x,
                        call_.grad_x + (node * call_.channels + channel_) * call_.dims.x);
    if constexpr (makes.out)
      if (call_.grad_g)
        for (int64_t n = 0; n < call_.num_blocks; ++n) {
          const ContractionBlock& block = call_.blocks[n];
          const T* from = out_ + block.first * kStep + b * kN;
          T* to = call_.grad_g + block_at(node, block);
          for_irrep_size(block.d, [&](auto d) {
            if constexpr (d() > 0)
              interleave<T, d()>(from, kStep, lanes_, to, false);
            else
              from_components(from, kStep, lanes_, block.d, to);
          });
        }
  }

  // Where the channels' components of a block begin in rows of the result.
  int64_t block_at(int64_t node, const ContractionBlock& block) const {
    return node * call_.channels * call_.dims.g + block.first * call_.channels + channel_ * block.d;
  }

  const ContractionCall<T>& call_;
  const ContractionRuns<T>& runs_;
  const int64_t monomials_;
  const Scratch<T> scratch_;
  int64_t channel_ = 0, lanes_ = 0;
  // Vectors: per term, and per path.
  T *coefficient_, *grad_coefficient_, *weight_, *grad_weight_;
  // Per monomial and node, and per component of the result and node.
  T *value_, *tangent_, *grad_value_, *grad_tangent_, *g_, *out_;
};

template <class T>
static void any_tasks(const ContractionCall<T>& call, const ContractionRuns<T>& runs, int64_t begin,
                      int64_t end) {
  Contraction<T> contraction(call, runs);
  for (int64_t task = begin; task < end; ++task) contraction.task(task);
}

void contraction_tasks(const ContractionCall<float>& call, const ContractionRuns<float>& runs,
                       int64_t begin, int64_t end) {
  any_tasks(call, runs, begin, end);
}
void contraction_tasks(const ContractionCall<double>& call, const ContractionRuns<double>& runs,
                       int64_t begin, int64_t end) {
  any_tasks(call, runs, begin, end);
}

}  // namespace hamfast::HAMFAST_ISA
