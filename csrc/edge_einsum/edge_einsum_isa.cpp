// Compiled once per instruction set. Operands that have the last axis are vectors, the others factors of a scalar.
#include "common/simd.h"
#include "edge_einsum.cuh"

namespace hamfast::HAMFAST_ISA {

// The product of `vectors` rows at column c, n numbers.
template <class T, int vectors>
static inline Vector<T> product_at(const T* const* row, int64_t c, int64_t n) {
  Vector<T> p = load_first(row[0] + c, n);
  for (int i = 1; i < vectors; ++i) p *= load_first(row[i] + c, n);
  return p;
}

template <class T, int vectors>
static inline void add_product(const T* const* row, T factor, int64_t width, bool out_wide, T* out) {
  if constexpr (vectors == 0) {
    if (!out_wide) {
      *out += factor * static_cast<T>(width);
    } else {
      for (int64_t c = 0; c < width; ++c) out[c] += factor;
    }
  } else {
    int64_t c = 0;
    if (out_wide) {
      for (; c + kLanes<T> <= width; c += kLanes<T>)
        store(out + c, load(out + c) + factor * product_at<T, vectors>(row, c, kLanes<T>));
      if (c < width)
        store_first(out + c, load_first(out + c, width - c) + factor * product_at<T, vectors>(row, c, width - c),
                    width - c);
      return;
    }
    Vector<T> sum{};
    for (; c + kLanes<T> <= width; c += kLanes<T>) sum += product_at<T, vectors>(row, c, kLanes<T>);
    if (c < width) sum += product_at<T, vectors>(row, c, width - c);
    T total = T(0);
    for (int i = 0; i < kLanes<T>; ++i) total += sum[i];
    *out += factor * total;
  }
}

template <class T, int vectors>
static void rows_of(const EdgeEinsumCall<T>& call, int64_t begin, int64_t end) {
  const EdgeOperand<T>* wide[3];
  const EdgeOperand<T>* narrow[3];
  int narrows = 0, wides = 0;
  for (int i = 0; i < call.count; ++i) (call.operand[i].wide ? wide[wides++] : narrow[narrows++]) = &call.operand[i];
  for (int64_t r = begin; r < end; ++r) {
    T* out = call.out + r * call.out_row;
    for (int64_t i = 0; i < call.out_row; ++i) out[i] = T(0);
    const int64_t first = call.order ? call.ptr[r] : r, last = call.order ? call.ptr[r + 1] : r + 1;
    for (int64_t n = first; n < last; ++n) {
      const int64_t edge = call.order ? call.order[n] : n;
      const T *rows[3], *scalars[3], *at[3];
      for (int i = 0; i < vectors; ++i) rows[i] = wide[i]->data + call.row_of(wide[i]->place, edge) * wide[i]->row;
      for (int i = 0; i < narrows; ++i)
        scalars[i] = narrow[i]->data + call.row_of(narrow[i]->place, edge) * narrow[i]->row;
      for (int64_t h = 0; h < call.heads; ++h)
        for (int64_t m = 0; m < call.components; ++m) {
          T factor = T(1);
          for (int i = 0; i < narrows; ++i) factor *= scalars[i][h * narrow[i]->head + m * narrow[i]->component];
          for (int i = 0; i < vectors; ++i) at[i] = rows[i] + h * wide[i]->head + m * wide[i]->component;
          add_product<T, vectors>(at, factor, call.width, call.out_wide,
                                  out + h * call.out_head + m * call.out_component);
        }
    }
  }
}

template <class T>
static void any_rows(const EdgeEinsumCall<T>& call, int64_t begin, int64_t end) {
  int vectors = 0;
  for (int i = 0; i < call.count; ++i) vectors += call.operand[i].wide;
  if (vectors == 0) return rows_of<T, 0>(call, begin, end);
  if (vectors == 1) return rows_of<T, 1>(call, begin, end);
  if (vectors == 2) return rows_of<T, 2>(call, begin, end);
  rows_of<T, 3>(call, begin, end);
}

void edge_einsum_rows(const EdgeEinsumCall<float>& call, int64_t begin, int64_t end) { any_rows(call, begin, end); }
void edge_einsum_rows(const EdgeEinsumCall<double>& call, int64_t begin, int64_t end) { any_rows(call, begin, end); }

}  // namespace hamfast::HAMFAST_ISA
