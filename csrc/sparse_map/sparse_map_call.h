// The op on tensors, for any launcher: `Launch::run(call, device)`.
#pragma once

#include "common/dispatch.h"
#include "common/op_records.h"
#include "sparse_map.cuh"

namespace hamfast {

template <class Launch>
struct SparseMapOp {
  static Tensor run(const SparseMapArguments& args) {
    const Tensor x = torch::stable::contiguous(args.x);
    const typename Launch::Guard guard(x.get_device_index());
    const int64_t dim_out = args.ptr.numel() - 1;
    Tensor out = Launch::new_result(x, {x.size(0), dim_out});
    dispatch_real(x.scalar_type(), "sparse_map", [&](auto zero) {
      using T = decltype(zero);
      const SparseMapCall<T> call{x.const_data_ptr<T>(),
                                  args.ptr.const_data_ptr<int64_t>(),
                                  args.column.const_data_ptr<int64_t>(),
                                  args.value.const_data_ptr<T>(),
                                  out.mutable_data_ptr<T>(),
                                  x.size(0),
                                  x.size(1),
                                  dim_out};
      Launch::run(call, x.get_device_index());
    });
    return out;
  }
};

}  // namespace hamfast
