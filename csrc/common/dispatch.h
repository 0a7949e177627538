// dtypes, and access to tensors with messages that name the argument.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common.cuh"

namespace hamfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f(float{}) or f(double{}): the one place where the supported dtypes are listed.
template <class F>
void dispatch_real(ScalarType type, const char* op, F&& f) {
  if (type == ScalarType::Float) return f(float{});
  if (type == ScalarType::Double) return f(double{});
  STD_TORCH_CHECK(false, op, ": expected float32 or float64");
}

// Contiguous, or absent.
inline std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  if (!t.has_value()) return std::nullopt;
  return torch::stable::contiguous(*t);
}

template <class T>
Maybe<const T> maybe_data(const std::optional<Tensor>& t) {
  return t.has_value() ? Maybe<const T>(t->const_data_ptr<T>()) : Maybe<const T>();
}

// The CPU's stand-in for torch's DeviceGuard.
struct NoGuard {
  explicit NoGuard(int32_t) {}
};

}  // namespace hamfast
