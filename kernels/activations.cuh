// Activations that several kernels have, and their derivatives.
#pragma once

#if !defined(__CUDACC__)
#include <cmath>
#endif

#include "common.cuh"

namespace hamfast::HAMFAST_ISA {

template <class T>
HAMFAST_HD inline T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

template <class T>
HAMFAST_HD inline T silu(T x) {
  return x * sigmoid(x);
}
template <class T>
HAMFAST_HD inline T silu_slope(T x) {
  const T y = sigmoid(x);
  return y * (T(1) + x * (T(1) - y));
}
template <class T>
HAMFAST_HD inline T silu_curvature(T x) {
  const T y = sigmoid(x);
  return y * (T(1) - y) * (T(2) + x * (T(1) - T(2) * y));
}

}  // namespace hamfast::HAMFAST_ISA
