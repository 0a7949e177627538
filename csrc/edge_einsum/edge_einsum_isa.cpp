// Compiled once per instruction set. Operands that have the last axis are rows of vectors, the
// others factors of a number.
#include "common/simd.h"
#include "common/streamed.h"
#include "edge_einsum.cuh"

namespace hamfast::HAMFAST_ISA {

// How an element of the result comes to its place: it is the only term, once and for all or past
// the caches, or one of several.
enum class Put { set, stream, add };

// Numbers that are sums over the lanes of a vector, kLanes of them made at once.
template <class T>
class LaneSums {
 public:
  explicit LaneSums(bool sets) : sets_(sets) {}
  void add(Vector<T> v, T* to) {
    to_[count_] = to;
    store(rows_ + count_ * kLanes<T>, v);
    if (++count_ == kLanes<T>) flush();
  }
  void flush() {
    T sums[kLanes<T>];
    store(sums, sum_lanes<T>(rows_));
    for (int i = 0; i < count_; ++i) *to_[i] = sets_ ? sums[i] : *to_[i] + sums[i];
    count_ = 0;
  }

 private:
  alignas(kVectorBytes) T rows_[kLanes<T> * kLanes<T>] = {};
  T* to_[kLanes<T>];
  int count_ = 0;
  const bool sets_;
};

// vectors: full ones along the last axis, 0 for any number.
template <class T, int wides, int narrows, int vectors>
class Rows {
 public:
  explicit Rows(const EdgeEinsumCall<T>& call) : call_(call) {
    int w = 0, n = 0;
    for (int i = 0; i < call.count; ++i)
      (call.operand[i].wide ? wide_[w++] : narrow_[n++]) = call.operand[i];
    const bool has_all =
        (call.out_head > 0 || call.heads == 1) && (call.out_component > 0 || call.components == 1);
    const bool streams = is_streamed(call.rows * call.out_row, sizeof(T));
    put_ = call.order || !has_all ? Put::add : streams ? Put::stream : Put::set;
  }

  void run(int64_t begin, int64_t end) {
    LaneSums<T> sums(put_ != Put::add);
    last_ = call_.order ? call_.ptr[end] : end;
    for (int64_t r = begin; r < end; ++r) {
      T* out = call_.out + r * call_.out_row;
      if (put_ == Put::add)
        for (int64_t i = 0; i < call_.out_row; ++i) out[i] = T(0);
      const int64_t first = call_.order ? call_.ptr[r] : r,
                    last = call_.order ? call_.ptr[r + 1] : r + 1;
      for (int64_t n = first; n < last; ++n) add_edge(n, out, sums);
    }
    sums.flush();
    stream_fence();
  }

 private:
  static constexpr int64_t kAhead = 16;  // edges from the asking for a row to its use

  int64_t edge_at(int64_t n) const { return call_.order ? call_.order[n] : n; }
  void ask_for(const EdgeOperand<T>& x, int64_t edge) const {
    if (x.row_of != row_of_edge) return;
    const int64_t last = (call_.heads - 1) * x.head + (call_.components - 1) * x.component;
    prefetch(x.data + edge * x.row, last + (x.wide ? call_.width : 1));
  }

  void add_edge(int64_t n, T* out, LaneSums<T>& sums) {
    const int64_t edge = edge_at(n), later = edge_at(n + kAhead < last_ ? n + kAhead : last_ - 1);
    const T *row[wides + 1], *factor[narrows + 1];
    for (int i = 0; i < wides; ++i) {
      row[i] = wide_[i].data + call_.row_at(wide_[i].row_of, edge) * wide_[i].row;
      ask_for(wide_[i], later);
    }
    for (int i = 0; i < narrows; ++i) {
      factor[i] = narrow_[i].data + call_.row_at(narrow_[i].row_of, edge) * narrow_[i].row;
      ask_for(narrow_[i], later);
    }
    const T *at[wides + 1], *number[narrows + 1];
    for (int64_t h = 0; h < call_.heads; ++h) {
      for (int i = 0; i < wides; ++i) at[i] = row[i] + h * wide_[i].head;
      for (int i = 0; i < narrows; ++i) number[i] = factor[i] + h * narrow_[i].head;
      T* to = out + h * call_.out_head;
      if (vectors > 0 && call_.out_wide && call_.out_component == 0) {
        add_components(at, number, to);
        continue;
      }
      for (int64_t m = 0; m < call_.components; ++m) {
        const T product = next_product(number);
        if (call_.out_wide)
          add_row(at, product, to);
        else
          add_number(at, product, to, sums);
        for (int i = 0; i < wides; ++i) at[i] += wide_[i].component;
        to += call_.out_component;
      }
    }
  }

  // Of the factors at a component; they move on to the next.
  T next_product(const T** number) const {
    T product = T(1);
    for (int i = 0; i < narrows; ++i) product *= *number[i], number[i] += narrow_[i].component;
    return product;
  }

  // The product of the rows at column c, n numbers.
  static Vector<T> product_at(const T* const* at, int64_t c, int64_t n) {
    Vector<T> p = Vector<T>{} + T(1);
    for (int i = 0; i < wides; ++i)
      p = i == 0 ? load_first(at[0] + c, n) : p * load_first(at[i] + c, n);
    return p;
  }

  void put(Vector<T> v, T* to) const {
    if (put_ == Put::add) v += load(to);
    if (put_ == Put::stream && aligned(to))
      stream(to, v);
    else
      store(to, v);
  }

  // A row that is a sum over components: in registers.
  void add_components(const T** at, const T** number, T* to) const {
    Vector<T> sum[vectors + 1] = {};
    for (int64_t m = 0; m < call_.components; ++m) {
      const T product = next_product(number);
      for (int i = 0; i < vectors; ++i)
        sum[i] += product_at(at, i * kLanes<T>, kLanes<T>) * product;
      for (int i = 0; i < wides; ++i) at[i] += wide_[i].component;
    }
    for (int i = 0; i < vectors; ++i) put(sum[i], to + i * kLanes<T>);
  }

  void add_row(const T* const* at, T product, T* to) const {
    const int64_t width = vectors > 0 ? vectors * kLanes<T> : call_.width;
    int64_t c = 0;
    for (; c + kLanes<T> <= width; c += kLanes<T>)
      put(product_at(at, c, kLanes<T>) * product, to + c);
    for (; vectors == 0 && c < width; c += kLanes<T>) {
      const int64_t left = width - c;
      Vector<T> v = product_at(at, c, left) * product;
      if (put_ == Put::add) v += load_first(to + c, left);
      store_first(to + c, v, left);
    }
  }

  void add_number(const T* const* at, T product, T* to, LaneSums<T>& sums) const {
    if constexpr (wides == 0) {
      const T total = product * static_cast<T>(call_.width);
      *to = put_ == Put::add ? *to + total : total;
    } else {
      const int64_t width = vectors > 0 ? vectors * kLanes<T> : call_.width;
      Vector<T> sum{};
      int64_t c = 0;
      for (; c + kLanes<T> <= width; c += kLanes<T>) sum += product_at(at, c, kLanes<T>);
      if (vectors == 0 && c < width) sum += product_at(at, c, width - c);
      sums.add(sum * product, to);
    }
  }

  const EdgeEinsumCall<T>& call_;
  EdgeOperand<T> wide_[wides + 1], narrow_[narrows + 1];
  Put put_;
  int64_t last_ = 0;
};

template <class T, int wides, int narrows>
static void rows_of(const EdgeEinsumCall<T>& call, int64_t begin, int64_t end) {
  if constexpr (wides == 0)
    Rows<T, wides, narrows, 0>(call).run(begin, end);
  else
    for_vectors<T>(call.width,
                   [&](auto vectors) { Rows<T, wides, narrows, vectors()>(call).run(begin, end); });
}

template <class T>
static void any_rows(const EdgeEinsumCall<T>& call, int64_t begin, int64_t end) {
  int wides = 0;
  for (int i = 0; i < call.count; ++i) wides += call.operand[i].wide;
  switch (4 * wides + call.count - wides) {
    case 1:
      return rows_of<T, 0, 1>(call, begin, end);
    case 2:
      return rows_of<T, 0, 2>(call, begin, end);
    case 3:
      return rows_of<T, 0, 3>(call, begin, end);
    case 4:
      return rows_of<T, 1, 0>(call, begin, end);
    case 5:
      return rows_of<T, 1, 1>(call, begin, end);
    case 6:
      return rows_of<T, 1, 2>(call, begin, end);
    case 8:
      return rows_of<T, 2, 0>(call, begin, end);
    case 9:
      return rows_of<T, 2, 1>(call, begin, end);
    default:
      return rows_of<T, 3, 0>(call, begin, end);
  }
}

void edge_einsum_rows(const EdgeEinsumCall<float>& call, int64_t begin, int64_t end) {
  any_rows(call, begin, end);
}
void edge_einsum_rows(const EdgeEinsumCall<double>& call, int64_t begin, int64_t end) {
  any_rows(call, begin, end);
}

}  // namespace hamfast::HAMFAST_ISA
