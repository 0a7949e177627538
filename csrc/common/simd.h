// Vectors of the instruction set a file is compiled for (GCC and clang vector extensions). For
// *_isa.cpp files only.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if !defined(HAMFAST_ISA)
#error "simd.h belongs into files that are compiled once per instruction set"
#endif

namespace hamfast::HAMFAST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
inline Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
inline void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Past the caches. `p` must be aligned to the vector.
template <class T>
inline void stream(T* p, Vector<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    _mm512_stream_ps(p, (__m512)v);
  else
    _mm512_stream_pd(p, (__m512d)v);
#elif defined(__AVX__)
  if constexpr (sizeof(T) == 4)
    _mm256_stream_ps(p, (__m256)v);
  else
    _mm256_stream_pd(p, (__m256d)v);
#else
  store(p, v);
#endif
}

template <class T>
inline bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
}

// Streamed data become visible to other threads.
inline void stream_fence() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

// For rows that come from memory in bursts (of edges), and rows that will be written. Not for rows
// that are gathered out of the caches: the processor itself is quicker there (measured). The empty
// assembly is an effect: GCC drops loops without any, and a prefetch is none to it.
enum Purpose { to_read = 0, to_write = 1 };
template <Purpose purpose = to_read, class T>
inline void prefetch(const T* row, int64_t n) {
  for (int64_t c = 0; c < n; c += static_cast<int64_t>(64 / sizeof(T))) {
    __builtin_prefetch(row + c, purpose);
    asm volatile("");
  }
}

// Copies n numbers, past the caches if asked and possible.
template <class T>
inline void copy_row(const T* from, int64_t n, T* to, bool streamed) {
  int64_t i = 0;
  if (streamed) {
    for (; i < n && !aligned(to + i); ++i) to[i] = from[i];
    for (; i + kLanes<T> <= n; i += kLanes<T>) stream(to + i, load(from + i));
  }
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = from[i];
}

// The first n lanes (more: all); the others are 0, or not stored.
template <class T>
inline Vector<T> load_first(const T* p, int64_t n) {
  if (n >= kLanes<T>) return load(p);
#if defined(__AVX512F__)
  const unsigned mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
  else
    return (Vector<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
#else
  Vector<T> v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

template <class T>
inline void store_first(T* p, Vector<T> v, int64_t n) {
  if (n >= kLanes<T>) return store(p, v);
#if defined(__AVX512F__)
  const unsigned mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), (__m512d)v);
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// Lane i of the result: lane index[i] of a, or of b from kLanes on.
template <class T, int... index>
inline Vector<T> pick(Vector<T> a, Vector<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, index...);
#else
  return __builtin_shuffle(a, b, typename VectorOf<T>::mask{index...});
#endif
}

// Adds the two halves of every block of 2 x group lanes: a's sums into the block's first half, b's
// into its second. What stays in its lane is a blend, so that one shuffle is enough.
template <class T, int group, int... i>
inline Vector<T> add_blocks(Vector<T> a, Vector<T> b, std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  constexpr auto stays = [](int lane) { return (lane / group) % 2 == 0 ? lane : n + lane; };
  constexpr auto moves = [](int lane) {
    return (lane / group) % 2 == 0 ? lane + group : n + lane - group;
  };
  return pick<T, stays(i)...>(a, b) + pick<T, moves(i)...>(a, b);
}

// Two vectors folded into one, and as many of those as make a vector of sums: lane 2 i is the sum
// of the lanes of the i-th pair's first, lane 2 i + 1 of its second. kLanes - 1 additions of
// vectors in place of as many sums of lanes.
template <class T>
inline Vector<T> fold_pair(Vector<T> a, Vector<T> b) {
  return add_blocks<T, 1>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}
template <class T>
inline Vector<T> sum_pairs(Vector<T> (&pair)[kLanes<T> / 2]) {
  constexpr int n = kLanes<T>;
  using Lanes = std::make_integer_sequence<int, n>;
  if constexpr (n >= 4)
    for (int i = 0; i < n / 4; ++i)
      pair[i] = add_blocks<T, 2>(pair[2 * i], pair[2 * i + 1], Lanes{});
  if constexpr (n >= 8)
    for (int i = 0; i < n / 8; ++i)
      pair[i] = add_blocks<T, 4>(pair[2 * i], pair[2 * i + 1], Lanes{});
  if constexpr (n >= 16) pair[0] = add_blocks<T, 8>(pair[0], pair[1], Lanes{});
  return pair[0];
}

// Lane i of the result is the sum of the lanes of row i.
template <class T>
inline Vector<T> sum_lanes(const T* rows) {
  constexpr int n = kLanes<T>;
  Vector<T> pair[n / 2];
  for (int i = 0; i < n / 2; ++i)
    pair[i] = fold_pair<T>(load(rows + 2 * i * n), load(rows + (2 * i + 1) * n));
  return sum_pairs<T>(pair);
}

// Selects a where the mask's lanes are -1, else b.
template <class T>
inline Vector<T> select(typename VectorOf<T>::mask mask, Vector<T> a, Vector<T> b) {
  return mask ? a : b;
}

// exp by 2^n times the Taylor series of the rest, |rest| <= log(2) / 2: within 2 units in the last
// place (float and double). Below the smallest normal number 0, above the largest finite one that;
// NaN stays NaN.
template <class T>
inline Vector<T> exp_of(Vector<T> x) {
  typedef typename VectorOf<T>::mask Mask;
  constexpr bool single = sizeof(T) == 4;
  constexpr T high = single ? T(88.3762626647949) : T(709.436139303104);
  constexpr T low = single ? T(-87.3365447504021) : T(-708.396418532264);
  constexpr T shifter =
      single ? T(12582912.0) : T(6755399441055744.0);  // 1.5 x 2^23, 2^52: adding it rounds
  // log(2) in two parts; the first has so few digits that n times it is exact.
  constexpr T log2_high = single ? T(0.693359375) : T(0.693145751953125);
  constexpr T log2_low = single ? T(-2.12194440054690583e-4) : T(1.42860682030941723212e-6);
  const Vector<T> zero{};
  const Mask under = x < low;
  x = select<T>(x > high, zero + high, x);
  const Vector<T> shifted = select<T>(under, zero, x) * T(1.44269504088896340736) + shifter;
  const Vector<T> n = shifted - shifter;
  const Vector<T> r = (x - n * log2_high) - n * log2_low;
  // 1 / i!
  constexpr T series[] = {T(1),
                          T(1),
                          T(1.0 / 2),
                          T(1.0 / 6),
                          T(1.0 / 24),
                          T(1.0 / 120),
                          T(1.0 / 720),
                          T(1.0 / 5040),
                          T(1.0 / 40320),
                          T(1.0 / 362880),
                          T(1.0 / 3628800),
                          T(1.0 / 39916800),
                          T(1.0 / 479001600),
                          T(1.0 / 6227020800)};
  constexpr int last = single ? 7 : 13;
  Vector<T> sum = zero + series[last];
  for (int i = last - 1; i >= 0; --i) sum = sum * r + series[i];
  constexpr int digits = single ? 23 : 52;
  const Mask exponent = ((Mask)shifted - (Mask)(zero + shifter)) << digits;
  const Vector<T> result = (Vector<T>)((Mask)sum + exponent);
  return select<T>(under, zero, select<T>(x != x, x, result));
}

template <class T>
inline Vector<T> sigmoid_of(Vector<T> x) {
  return T(1) / (T(1) + exp_of<T>(Vector<T>{} - x));
}
template <class T>
inline Vector<T> silu_slope_of(Vector<T> x) {
  const Vector<T> y = sigmoid_of<T>(x);
  return y * (T(1) + x * (T(1) - y));
}
template <class T>
inline Vector<T> silu_curvature_of(Vector<T> x) {
  const Vector<T> y = sigmoid_of<T>(x);
  return y * (T(1) - y) * (T(2) + x * (T(1) - T(2) * y));
}

// Of all lanes, by halves.
template <class T, int half, int... i>
inline Vector<T> add_halves(Vector<T> v, std::integer_sequence<int, i...>) {
  return v + pick<T, (i < half ? i + half : i)...>(v, v);
}
template <class T>
inline T sum_of(Vector<T> v) {
  constexpr int n = kLanes<T>;
  using Lanes = std::make_integer_sequence<int, n>;
  if constexpr (n >= 16) v = add_halves<T, 8>(v, Lanes{});
  if constexpr (n >= 8) v = add_halves<T, 4>(v, Lanes{});
  if constexpr (n >= 4) v = add_halves<T, 2>(v, Lanes{});
  return v[0] + v[1];
}

// A number as a type, and f called with the size 2 l + 1 of an irrep as such a type: l up to 6,
// else 0.
template <int n>
struct Size {
  constexpr int operator()() const { return n; }
};

template <class F>
inline void for_irrep_size(int64_t d, F&& f) {
  switch (d) {
    case 1:
      return f(Size<1>{});
    case 3:
      return f(Size<3>{});
    case 5:
      return f(Size<5>{});
    case 7:
      return f(Size<7>{});
    case 9:
      return f(Size<9>{});
    case 11:
      return f(Size<11>{});
    case 13:
      return f(Size<13>{});
    default:
      return f(Size<0>{});
  }
}

// f(Size<n>{}) for n full vectors, or for 0: any number.
template <class T, class F>
inline void for_vectors(int64_t width, F&& f) {
  switch (width % kLanes<T> == 0 ? width / kLanes<T> : 0) {
    case 1:
      return f(Size<1>{});
    case 2:
      return f(Size<2>{});
    case 4:
      return f(Size<4>{});
    default:
      return f(Size<0>{});
  }
}

// Interleaved rows of D numbers: from[lane * D + i] <-> vector i, lane. D vectors each way.
template <class T, int D, int which, int from, int... i>
inline Vector<T> merge_component(Vector<T> so_far, Vector<T> source,
                                 std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  return pick<T, ((i * D + which) / n == from ? n + (i * D + which) % n : i)...>(so_far, source);
}

// From the first two sources at once.
template <class T, int D, int which, int... i>
inline Vector<T> first_component(const Vector<T>* source, std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  if constexpr (D == 1)
    return source[0];
  else
    return pick<T, (i * D + which) % (2 * n)...>(source[0], source[1]);
}

template <class T, int D, int which, int... from>
inline Vector<T> gather_component(const Vector<T>* source, std::integer_sequence<int, from...>) {
  Vector<T> out = source[0];
  ((out = from == 0
              ? first_component<T, D, which>(source, std::make_integer_sequence<int, kLanes<T>>{})
          : from == 1 ? out
                      : merge_component<T, D, which, from>(
                            out, source[from], std::make_integer_sequence<int, kLanes<T>>{})),
   ...);
  return out;
}

template <class T, int D, int... which>
inline void deinterleave_all(const T* from, T* to, int64_t stride,
                             std::integer_sequence<int, which...> all) {
  Vector<T> source[D];
  for (int i = 0; i < D; ++i) source[i] = load(from + i * kLanes<T>);
  (store(to + which * stride, gather_component<T, D, which>(source, all)), ...);
}

template <class T, int D, int which, int from, int... i>
inline Vector<T> merge_flat(Vector<T> so_far, Vector<T> source, std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  return pick<T, ((which * n + i) % D == from ? n + (which * n + i) / D : i)...>(so_far, source);
}

template <class T, int D, int which, int... i>
inline Vector<T> first_flat(const Vector<T>* source, std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  if constexpr (D == 1)
    return source[0];
  else
    return pick<T, ((which * n + i) / D + ((which * n + i) % D == 1 ? n : 0))...>(source[0],
                                                                                  source[1]);
}

template <class T, int D, int which, int... from>
inline Vector<T> gather_flat(const Vector<T>* source, std::integer_sequence<int, from...>) {
  Vector<T> out = source[0];
  ((out = from == 0 ? first_flat<T, D, which>(source, std::make_integer_sequence<int, kLanes<T>>{})
          : from == 1 ? out
                      : merge_flat<T, D, which, from>(
                            out, source[from], std::make_integer_sequence<int, kLanes<T>>{})),
   ...);
  return out;
}

template <class T, int D, int... which>
inline void interleave_all(const T* from, int64_t stride, T* to, bool streamed,
                           std::integer_sequence<int, which...> all) {
  Vector<T> source[D];
  for (int i = 0; i < D; ++i) source[i] = load(from + i * stride);
  if (streamed)
    (stream(to + which * kLanes<T>, gather_flat<T, D, which>(source, all)), ...);
  else
    (store(to + which * kLanes<T>, gather_flat<T, D, which>(source, all)), ...);
}

// to[i * stride + u] = from[u * D + i] for u < n
template <class T, int D>
inline void deinterleave(const T* from, int64_t n, T* to, int64_t stride) {
  int64_t u = 0;
  for (; u + kLanes<T> <= n; u += kLanes<T>)
    deinterleave_all<T, D>(from + u * D, to + u, stride, std::make_integer_sequence<int, D>{});
  for (; u < n; ++u)
    for (int i = 0; i < D; ++i) to[i * stride + u] = from[u * D + i];
}

// The reverse, past the caches if asked and possible.
template <class T, int D>
inline void interleave(const T* from, int64_t stride, int64_t n, T* to, bool streamed) {
  int64_t u = 0;
  streamed = streamed && aligned(to);
  for (; u + kLanes<T> <= n; u += kLanes<T>)
    interleave_all<T, D>(from + u, stride, to + u * D, streamed,
                         std::make_integer_sequence<int, D>{});
  for (; u < n; ++u)
    for (int i = 0; i < D; ++i) to[u * D + i] = from[i * stride + u];
}

}  // namespace hamfast::HAMFAST_ISA
