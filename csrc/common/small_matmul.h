// Products of small matrices whose rows lie anywhere: a functor says where. Columns are the lanes
// of vectors. For *_isa.cpp files only.
#pragma once

#include "common/simd.h"

namespace hamfast::HAMFAST_ISA {

// Rows i ... i + rows - 1 of the result, and `vectors` vectors of columns from c on; with
// `masked`, of the last vector the first `lanes`.
template <class T, int rows, int vectors, bool masked, class Left, class Right, class Out>
inline void product_tile(int64_t i, int64_t c, int64_t lanes, int64_t terms, bool adds,
                         const Left& left, const Right& right, const Out& out) {
  Vector<T> sum[rows][vectors] = {};
  for (int64_t k = 0; k < terms; ++k) {
    const T* row = right(k) + c;
    Vector<T> v[vectors];
    for (int j = 0; j < vectors; ++j)
      v[j] = masked ? load_first(row + j * kLanes<T>, lanes) : load(row + j * kLanes<T>);
    for (int r = 0; r < rows; ++r) {
      const T factor = left(i + r, k);
      for (int j = 0; j < vectors; ++j) sum[r][j] += factor * v[j];
    }
  }
  for (int r = 0; r < rows; ++r) {
    T* to = out(i + r) + c;
    for (int j = 0; j < vectors; ++j, to += kLanes<T>) {
      if (masked)
        store_first(to, adds ? load_first(to, lanes) + sum[r][j] : sum[r][j], lanes);
      else
        store(to, adds ? load(to) + sum[r][j] : sum[r][j]);
    }
  }
}

template <class T, int vectors, bool masked, class Left, class Right, class Out>
inline void product_columns(int64_t rows, int64_t c, int64_t lanes, int64_t terms, bool adds,
                            const Left& left, const Right& right, const Out& out) {
  constexpr int most = 6;
  auto tile = [&](auto size, int64_t i) {
    product_tile<T, decltype(size){}(), vectors, masked>(i, c, lanes, terms, adds, left, right,
                                                         out);
  };
  int64_t i = 0;
  for (; i + most <= rows; i += most) tile(Size<most>{}, i);
  switch (rows - i) {
    case 1:
      return tile(Size<1>{}, i);
    case 2:
      return tile(Size<2>{}, i);
    case 3:
      return tile(Size<3>{}, i);
    case 4:
      return tile(Size<4>{}, i);
    case 5:
      return tile(Size<5>{}, i);
  }
}

// out(i)[c] = sum over k < terms of left(i, k) right(k)[c], or adds to it, for i < rows and
// c < columns. left gives a number, right and out give pointers to rows.
template <class T, class Left, class Right, class Out>
inline void multiply_rows(int64_t rows, int64_t columns, int64_t terms, bool adds, const Left& left,
                          const Right& right, const Out& out) {
  constexpr int n = kLanes<T>;
  int64_t c = 0;
  for (; c + 2 * n <= columns; c += 2 * n)
    product_columns<T, 2, false>(rows, c, n, terms, adds, left, right, out);
  for (; c + n <= columns; c += n)
    product_columns<T, 1, false>(rows, c, n, terms, adds, left, right, out);
  if (c < columns) product_columns<T, 1, true>(rows, c, columns - c, terms, adds, left, right, out);
}

// A stretch of columns of both operands of sums_of_products.
template <class Left, class Right>
struct Stretch {
  Left left;
  Right right;
  int64_t columns;
};

// out(i)[j] = sum over all columns of all stretches s < count of stretch(s).left(i)[c] times
// stretch(s).right(j)[c], for i < rows and j < width.
template <class T, class Stretches, class Out>
inline void sums_of_products(int64_t rows, int64_t width, int64_t count, const Stretches& stretch,
                             const Out& out) {
  constexpr int lanes = kLanes<T>,
                across = lanes / 2;  // two rows i, as many rows j as fill a vector
  for (int64_t i = 0; i < rows; i += 2) {
    const int64_t second = i + 1 < rows ? i + 1 : i;
    for (int64_t j = 0; j < width; j += across) {
      const int64_t there = width - j < across ? width - j : across;
      Vector<T> sum[2][across] = {};
      for (int64_t s = 0; s < count; ++s) {
        const auto at = stretch(s);
        const T *left0 = at.left(i), *left1 = at.left(second), *right[across];
        for (int r = 0; r < across; ++r) right[r] = at.right(j + (r < there ? r : 0));
        int64_t c = 0;
        for (; c + lanes <= at.columns; c += lanes) {
          const Vector<T> a = load(left0 + c), b = load(left1 + c);
          for (int r = 0; r < across; ++r) {
            const Vector<T> v = load(right[r] + c);
            sum[0][r] += a * v;
            sum[1][r] += b * v;
          }
        }
        if (const int64_t rest = at.columns - c; rest > 0) {
          const Vector<T> a = load_first(left0 + c, rest), b = load_first(left1 + c, rest);
          for (int r = 0; r < across; ++r) {
            const Vector<T> v = load_first(right[r] + c, rest);
            sum[0][r] += a * v;
            sum[1][r] += b * v;
          }
        }
      }
      // Lanes of the total: the sums of row i, then those of the next.
      Vector<T> pair[across];
      if constexpr (across == 1)
        pair[0] = fold_pair<T>(sum[0][0], sum[1][0]);
      else
        for (int r = 0; r < across; ++r) {
          const auto& row = sum[2 * r / across];
          pair[r] = fold_pair<T>(row[2 * r % across], row[2 * r % across + 1]);
        }
      T total[lanes];
      store(total, sum_pairs<T>(pair));
      for (int64_t r = 0; r < there; ++r) out(i)[j + r] = total[r];
      if (second != i)
        for (int64_t r = 0; r < there; ++r) out(second)[j + r] = total[across + r];
    }
  }
}

}  // namespace hamfast::HAMFAST_ISA
