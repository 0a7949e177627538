// Rows that may be stored in half precision, for launchers with `reads_bfloat16`. What a launcher does not read is
// converted before it, and its results after it.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <type_traits>

#include "common.cuh"
#include "common/dispatch.h"

namespace hamfast {

inline bool is_half(ScalarType type) { return type == ScalarType::BFloat16 || type == ScalarType::Half; }

inline Tensor converted(const Tensor& t, ScalarType to) { return t.scalar_type() == to ? t : torch::stable::to(t, to); }
inline void widen(Tensor& t) {
  if (is_half(t.scalar_type())) t = converted(t, ScalarType::Float);
}
inline void widen(std::optional<Tensor>& t) {
  if (t.has_value()) widen(*t);
}

// What torch calls the type.
template <class Stored>
using Element = std::conditional_t<std::is_same_v<Stored, BFloat16>, torch::headeronly::BFloat16, Stored>;
template <class Stored>
const Stored* rows_or_null(const std::optional<Tensor>& t) {
  return reinterpret_cast<const Stored*>(data_or_null<Element<Stored>>(t));
}
template <class Stored>
Stored* new_rows(const Tensor& t) {
  return reinterpret_cast<Stored*>(t.template mutable_data_ptr<Element<Stored>>());
}

template <class Launch>
bool reads(ScalarType stored) {
  return !is_half(stored) || (Launch::reads_bfloat16 && stored == ScalarType::BFloat16);
}

// f(a number, an element of a row)
template <class Launch, class F>
void dispatch_stored(ScalarType stored, const char* op, F&& f) {
  if constexpr (Launch::reads_bfloat16)
    if (stored == ScalarType::BFloat16) return f(float{}, BFloat16{});
  dispatch_real(stored, op, [&](auto zero) { f(zero, zero); });
}

}  // namespace hamfast
