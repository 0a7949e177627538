// Rows on the GPU, a few columns per lane, which are read and written as one vector where every row
// starts at such a vector (`packed`).
#pragma once

#include "edge_sum.cuh"

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

namespace hamfast {

constexpr int kColumns = 4;

template <class T>
struct alignas(sizeof(T) * kColumns < 16 ? sizeof(T) * kColumns : 16) Columns {
  T at[kColumns];
};

// Does each start where a vector may? For launchers.
template <class Row>
bool is_aligned(const Row* rows) {
  return reinterpret_cast<uintptr_t>(rows) % alignof(Columns<Row>) == 0;
}
template <class Row>
bool is_aligned(Maybe<Row> rows) {
  return is_aligned(static_cast<const Row*>(rows.data));
}
template <class... Rows>
bool are_aligned(const Rows&... rows) {
  return (... && is_aligned(rows));
}

// The first `count` columns; 0 for the rest.
template <class T, class Stored>
HAMFAST_INLINE Columns<T> load_columns(const Stored* from, int64_t count, bool packed) {
  Columns<T> x;
  if (packed) {
    const Columns<Stored> stored = *reinterpret_cast<const Columns<Stored>*>(from);
    HAMFAST_UNROLL
    for (int i = 0; i < kColumns; ++i) x.at[i] = HAMFAST_ISA::widen(stored.at[i]);
  } else {
    HAMFAST_UNROLL
    for (int i = 0; i < kColumns; ++i) x.at[i] = i < count ? HAMFAST_ISA::widen(from[i]) : T(0);
  }
  return x;
}

template <class T, class Stored>
HAMFAST_INLINE void store_columns(const Columns<T>& x, Stored* to, int64_t count, bool packed) {
  Columns<Stored> stored;
  HAMFAST_UNROLL
  for (int i = 0; i < kColumns; ++i) HAMFAST_ISA::narrow(x.at[i], stored.at + i);
  if (packed) {
    *reinterpret_cast<Columns<Stored>*>(to) = stored;
  } else {
    HAMFAST_UNROLL
    for (int i = 0; i < kColumns; ++i)
      if (i < count) to[i] = stored.at[i];
  }
}

// total += factor x
template <class T>
HAMFAST_INLINE void add_columns(T factor, const Columns<T>& x, Columns<T>& total) {
  HAMFAST_UNROLL
  for (int i = 0; i < kColumns; ++i) total.at[i] += factor * x.at[i];
}

template <class T>
HAMFAST_INLINE T dot_columns(const Columns<T>& a, const Columns<T>& b) {
  T total = T(0);
  HAMFAST_UNROLL
  for (int i = 0; i < kColumns; ++i) total += a.at[i] * b.at[i];
  return total;
}

// Of the sum of an edge's rows, from column c of head h.
template <class T, class Stored>
HAMFAST_INLINE Columns<T> row_columns(const EdgeSum<Stored>& sum, int64_t heads,
                                      const int64_t (&row)[3], int64_t h, int64_t c, bool packed) {
  Columns<T> total{};
  HAMFAST_UNROLL
  for (int p = 0; p < 3; ++p)
    if (sum.part[p])
      add_columns(T(1),
                  load_columns<T>(sum.part[p] + (row[p] * heads + h) * sum.width + c, sum.width - c,
                                  packed),
                  total);
  return total;
}

template <class T, class Stored>
HAMFAST_INLINE Columns<T> row_columns(const EdgeSum<Stored>& a, const EdgeSum<Stored>& b,
                                      int64_t heads, const int64_t (&row)[3], int64_t h, int64_t c,
                                      bool packed) {
  Columns<T> total = row_columns<T>(a, heads, row, h, c, packed);
  add_columns(T(1), row_columns<T>(b, heads, row, h, c, packed), total);
  return total;
}

// f(row, is there one) for the edges first ... last of a list (without order: the edges
// themselves), by groups of `lanes` lanes: row is the edge, its sender and its receiver (or 0
// without receivers). Where 32 edges lead is read at once, and handed to their groups by shuffles.
// All lanes of the warp take every step, those without an edge too.
template <class F>
HAMFAST_INLINE void walk_edges(Maybe<const int64_t> order, const int64_t* senders,
                               Maybe<const int64_t> receivers, int64_t first, int64_t last,
                               int lane, int lanes, F&& f) {
  for (int64_t begin = first; begin < last; begin += kWarp) {
    const int64_t left = last - begin, own = lane < left ? begin + lane : begin;
    const int64_t own_edge = order ? order[own] : own;
    const int64_t own_sender = senders[own_edge],
                  own_receiver = receivers ? receivers[own_edge] : 0;
    for (int at = 0; at < kWarp && at < left; at += kWarp / lanes) {
      const int n = at + lane / lanes;
      const int64_t row[3] = {__shfl_sync(0xffffffffu, own_edge, n),
                              __shfl_sync(0xffffffffu, own_sender, n),
                              receivers ? __shfl_sync(0xffffffffu, own_receiver, n) : 0};
      f(row, n < left);
    }
  }
}

}  // namespace hamfast

#endif
