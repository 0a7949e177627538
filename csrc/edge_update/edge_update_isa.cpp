// Compiled once per instruction set. Only <cmath> of the standard library: see kernels/common.cuh.
#include "edge_update/edge_update_isa.h"

#include <cmath>

#include "common/simd.h"

namespace hamfast::HAMFAST_ISA {

constexpr int kTogether = 4;  // edges, whose sums over lanes then overlap

// A few edges' rows at a time, a step for all of them after the other.
template <class T>
class UpdatedRows {
 public:
  UpdatedRows(const EdgeUpdateCall<T>& call, T* scratch)
      : call_(call), width_(call.width()), padded_(padded(call)), scratch_(scratch) {}

  static int64_t padded(const EdgeUpdateCall<T>& call) {
    return (call.width() + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  }
  static int64_t scratch(const EdgeUpdateCall<T>& call) { return 3 * kTogether * padded(call); }

  void forward(int64_t first, int count) {
    read(first, count);
    for (int r = 0; r < count; ++r) {
      const Norm norm = norm_[r];
      const T* x = x_[r];
      T* out = call_.out + (first + r) * width_;
      each([&](int64_t c, int64_t n) {
        const Vector<T> u = affine(normal(x, c, n, norm), c, n);
        store_first(out + c, call_.silu ? u * sigmoid_of<T>(u) : u, n);
      });
    }
  }

  void backward(int64_t first, int count, T* grad_weight, T* grad_bias) {
    read(first, count);
    T of_v[kTogether], of_vn[kTogether];
    for (int r = 0; r < count; ++r) {
      const Norm norm = norm_[r];
      const T* x = x_[r];
      const T* grad = call_.grad + (first + r) * width_;
      T* to = call_.weight ? buffer(kTogether + r) : call_.grad_sum + (first + r) * width_;
      Vector<T> sum_v{}, sum_vn{};
      each([&](int64_t c, int64_t n) {
        const Vector<T> value = normal(x, c, n, norm);
        Vector<T> g = load_first(grad + c, n);
        if (call_.silu) g *= silu_slope_of<T>(affine(value, c, n));
        if (call_.weight) {
          store_first(grad_weight + c, load_first(grad_weight + c, n) + g * value, n);
          store_first(grad_bias + c, load_first(grad_bias + c, n) + g, n);
          g *= load_first(call_.weight + c, n);
          sum_v += g, sum_vn += g * value;  // g is 0 beyond the row
        }
        store_first(to + c, g, n);
      });
      of_v[r] = sum_of<T>(sum_v) / T(width_), of_vn[r] = sum_of<T>(sum_vn) / T(width_);
    }
    if (!call_.weight) return;
    for (int r = 0; r < count; ++r) {
      const Norm norm = norm_[r];
      const T *x = x_[r], *v = buffer(kTogether + r), mean = of_v[r], slope = of_vn[r];
      T* out = call_.grad_sum + (first + r) * width_;
      each([&](int64_t c, int64_t n) {
        store_first(out + c,
                    (load_first(v + c, n) - mean - normal(x, c, n, norm) * slope) * norm.scale, n);
      });
    }
  }

  void double_backward(int64_t first, int count, T* grad_weight, T* grad_bias) {
    read(first, count);
    for (int r = 0; r < count; ++r) {
      const Norm norm = norm_[r];
      const T* x = x_[r];
      const int64_t row = (first + r) * width_;
      const T* grad = call_.grad + row;
      const Maybe<const T> along = call_.tangent_sum.row(first + r, width_);
      T* const to_grad = call_.grad_grad + row;
      T* const out = call_.grad_sum + row;
      if (!call_.weight) {
        each([&](int64_t c, int64_t n) {
          const Vector<T> value = load_first(x + c, n), change = part_of(along, c, n),
                          g = load_first(grad + c, n);
          store_first(to_grad + c, call_.silu ? silu_slope_of<T>(value) * change : change, n);
          store_first(out + c, call_.silu ? g * silu_curvature_of<T>(value) * change : Vector<T>{},
                      n);
        });
        continue;
      }
      T *const v = buffer(kTogether + r), *const h = buffer(2 * kTogether + r);
      Vector<T> sum{}, sum_n{};
      each([&](int64_t c, int64_t n) {
        const Vector<T> change = part_of(along, c, n);
        sum += change, sum_n += change * normal(x, c, n, norm);
      });
      const T mean = sum_of<T>(sum) / T(width_), slope = sum_of<T>(sum_n) / T(width_);
      const Maybe<const T> tangent_weight = call_.tangent_norm,
                           tangent_bias = call_.tangent_norm.row(1, width_);
      Vector<T> of_v{}, of_change{};
      each([&](int64_t c, int64_t n) {
        const Vector<T> value = normal(x, c, n, norm), u = affine(value, c, n),
                        g = load_first(grad + c, n);
        const Vector<T> weight = load_first(call_.weight + c, n),
                        of_weight = part_of(tangent_weight, c, n);
        const Vector<T> change = (part_of(along, c, n) - mean - value * slope) * norm.scale;
        const Vector<T> along_u = weight * change + of_weight * value + part_of(tangent_bias, c, n);
        const Vector<T> act_slope = call_.silu ? silu_slope_of<T>(u) : Vector<T>{} + T(1),
                        q = g * act_slope;
        const Vector<T> t = call_.silu ? g * silu_curvature_of<T>(u) * along_u : Vector<T>{};
        store_first(to_grad + c, act_slope * along_u, n);
        store_first(grad_weight + c, load_first(grad_weight + c, n) + t * value + q * change, n);
        store_first(grad_bias + c, load_first(grad_bias + c, n) + t, n);
        const Vector<T> weighed = weight * q;  // 0 beyond the row
        of_v += weighed * value, of_change += weighed * change;
        store_first(v + c, weighed, n);
        store_first(h + c, weight * t + of_weight * q, n);
      });
      const T slope_v = sum_of<T>(of_v) / T(width_), both = sum_of<T>(of_change) / T(width_);
      Vector<T> of_h{}, of_hn{};
      each([&](int64_t c, int64_t n) {
        const Vector<T> mixed = load_first(v + c, n) * slope + part_of(along, c, n) * slope_v;
        const Vector<T> total = load_first(h + c, n) - mixed * norm.scale;
        of_h += total, of_hn += total * normal(x, c, n, norm);
        store_first(h + c, total, n);
      });
      const T mean_h = sum_of<T>(of_h) / T(width_), slope_h = sum_of<T>(of_hn) / T(width_) + both;
      each([&](int64_t c, int64_t n) {
        const Vector<T> rest = load_first(h + c, n) - mean_h - normal(x, c, n, norm) * slope_h;
        store_first(out + c, rest * norm.scale, n);
      });
    }
  }

 private:
  struct Norm {
    T mean, scale;
  };

  // Zero without any.
  static Vector<T> part_of(const Maybe<const T>& row, int64_t c, int64_t n) {
    return row ? load_first(row + c, n) : Vector<T>{};
  }

  // f(c, n): the vector from column c on, of which n lanes are of the row; those behind are read as
  // 0.
  template <class F>
  void each(F&& f) const {
    int64_t c = 0;
    for (; c + kLanes<T> <= width_; c += kLanes<T>) f(c, int64_t(kLanes<T>));
    if (c < width_) f(c, width_ - c);
  }
  T* buffer(int n) const { return scratch_ + n * padded_; }

  // x, and what the norm takes from it.
  void read(int64_t first, int count) {
    for (int r = 0; r < count; ++r) {
      x_[r] = sum_parts(first + r, buffer(r));
      norm_[r] = {T(0), T(1)};
    }
    if (!call_.weight) return;
    for (int r = 0; r < count; ++r) {
      const T* x = x_[r];
      Vector<T> sum{};
      each([&](int64_t c, int64_t n) { sum += load_first(x + c, n); });
      norm_[r].mean = sum_of<T>(sum) / T(width_);
    }
    for (int r = 0; r < count; ++r) {
      const T *x = x_[r], mean = norm_[r].mean;
      Vector<T> squares{};
      each([&](int64_t c, int64_t n) {
        const Vector<T> rest = first_of(load_first(x + c, n) - mean, n);
        squares += rest * rest;
      });
      norm_[r].scale = T(1) / std::sqrt(sum_of<T>(squares) / T(width_) + call_.epsilon);
    }
  }

  const T* sum_parts(int64_t edge, T* x) const {
    const int64_t row[3] = {edge, call_.senders[edge], call_.receivers[edge]};
    const T* part[3] = {};
    int parts = 0;
    for (int p = 0; p < 3; ++p)
      if (call_.sum.part[p]) part[parts++] = call_.sum.part[p] + row[p] * width_;
    if (parts == 1) return part[0];
    each([&](int64_t c, int64_t n) {
      Vector<T> sum = load_first(part[0] + c, n) + load_first(part[1] + c, n);
      if (parts > 2) sum += load_first(part[2] + c, n);
      store(x + c, sum);
    });
    return x;
  }

  static Vector<T> first_of(Vector<T> v, int64_t n) {
    if (n == kLanes<T>) return v;
    T lanes[kLanes<T>];
    store(lanes, v);
    return load_first(lanes, n);
  }

  static Vector<T> normal(const T* x, int64_t c, int64_t n, Norm norm) {
    return (load_first(x + c, n) - norm.mean) * norm.scale;
  }
  Vector<T> affine(Vector<T> x, int64_t c, int64_t n) const {
    return call_.weight ? x * load_first(call_.weight + c, n) + load_first(call_.bias + c, n) : x;
  }

  const EdgeUpdateCall<T>& call_;
  const int64_t width_, padded_;
  T* const scratch_;
  const T* x_[kTogether];
  Norm norm_[kTogether];
};

// f(first edge, how many)
template <class F>
static void in_batches(int64_t begin, int64_t end, F&& f) {
  for (int64_t edge = begin; edge < end; edge += kTogether)
    f(edge, static_cast<int>(end - edge < kTogether ? end - edge : kTogether));
}

#define HAMFAST_UPDATE_FOR(T)                                                                      \
  int64_t edge_update_scratch(const EdgeUpdateCall<T>& call) {                                     \
    return UpdatedRows<T>::scratch(call);                                                          \
  }                                                                                                \
  void edge_update_rows(const EdgeUpdateCall<T>& call, int64_t begin, int64_t end, T* scratch) {   \
    UpdatedRows<T> rows(call, scratch);                                                            \
    in_batches(begin, end, [&](int64_t first, int count) { rows.forward(first, count); });         \
  }                                                                                                \
  void edge_update_backward_rows(const EdgeUpdateCall<T>& call, int64_t begin, int64_t end,        \
                                 int64_t chunk, T* scratch) {                                      \
    UpdatedRows<T> rows(call, scratch);                                                            \
    const Maybe<T> to = call.grad_norm_of(chunk);                                                  \
    in_batches(begin, end, [&](int64_t first, int count) {                                         \
      rows.backward(first, count, to.data, to.row(1, call.width()).data);                          \
    });                                                                                            \
  }                                                                                                \
  void edge_update_double_backward_rows(const EdgeUpdateCall<T>& call, int64_t begin, int64_t end, \
                                        int64_t chunk, T* scratch) {                               \
    UpdatedRows<T> rows(call, scratch);                                                            \
    const Maybe<T> to = call.grad_norm_of(chunk);                                                  \
    in_batches(begin, end, [&](int64_t first, int count) {                                         \
      rows.double_backward(first, count, to.data, to.row(1, call.width()).data);                   \
    });                                                                                            \
  }
HAMFAST_UPDATE_FOR(float)
HAMFAST_UPDATE_FOR(double)

}  // namespace hamfast::HAMFAST_ISA
