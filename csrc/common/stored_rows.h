// Rows that may be stored in half precision, for launchers with `reads_half`. For those without,
// operands are converted before and results after them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common.cuh"
#include "common/dispatch.h"

namespace hamfast {

inline bool is_half(ScalarType type) {
  return type == ScalarType::BFloat16 || type == ScalarType::Half;
}

inline Tensor converted(const Tensor& t, ScalarType to) {
  return t.scalar_type() == to ? t : torch::stable::to(t, to);
}
inline void widen(Tensor& t) {
  if (is_half(t.scalar_type())) t = converted(t, ScalarType::Float);
}
inline void widen(std::optional<Tensor>& t) {
  if (t.has_value()) widen(*t);
}

// What torch calls the type.
template <class Stored>
struct ElementOf {
  using type = Stored;
};
template <>
struct ElementOf<BFloat16> {
  using type = torch::headeronly::BFloat16;
};
template <>
struct ElementOf<Float16> {
  using type = torch::headeronly::Half;
};
template <class Stored>
using Element = typename ElementOf<Stored>::type;
template <class Stored>
Maybe<const Stored> maybe_rows(const std::optional<Tensor>& t) {
  if (!t.has_value()) return {};
  return reinterpret_cast<const Stored*>(t->template const_data_ptr<Element<Stored>>());
}
template <class Stored>
Stored* new_rows(const Tensor& t) {
  return reinterpret_cast<Stored*>(t.template mutable_data_ptr<Element<Stored>>());
}

template <class Launch>
bool reads(ScalarType stored) {
  return !is_half(stored) || Launch::reads_half;
}

// f(a number, an element of a row)
template <class Launch, class F>
void dispatch_stored(ScalarType stored, const char* op, F&& f) {
  if constexpr (Launch::reads_half) {
    if (stored == ScalarType::BFloat16) return f(float{}, BFloat16{});
    if (stored == ScalarType::Half) return f(float{}, Float16{});
  }
  dispatch_real(stored, op, [&](auto zero) { f(zero, zero); });
}

}  // namespace hamfast
