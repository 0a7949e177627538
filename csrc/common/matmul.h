// torch's matrix product into memory that is there already.
#pragma once

#include <array>

#include "common/dispatch.h"

namespace hamfast {

// out = left @ right
inline void multiply_into(const Tensor& left, const Tensor& right, const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(left),
                                    torch::stable::detail::from(right),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes ownership of the returned reference
}

}  // namespace hamfast
