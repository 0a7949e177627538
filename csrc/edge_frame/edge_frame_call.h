// The ops on tensors, for any launcher: `Launch::rotate` and `Launch::add_terms`.
#pragma once

#include "common/dispatch.h"
#include "edge_frame.cuh"

namespace hamfast {

// The numbers of a FrameCall that do not depend on the direction of the rotation.
template <class T>
FrameCall<T> frame_call(const Tensor& table, const Tensor& wigner, int64_t dim, bool channels_fast) {
  FrameCall<T> call{};
  call.table = table.const_data_ptr<int64_t>();
  call.num_blocks = table.size(0);
  call.table_stride = table.size(1);
  call.channels_fast = channels_fast;
  call.edges = wigner.size(0);
  call.dim = dim;
  call.wigner_dim = wigner.size(1);
  call.wigner = wigner.const_data_ptr<T>();
  return call;
}

template <class Launch>
struct EdgeFrameOps {
  static Tensor rotate_to_edge(Tensor x_any, Tensor wigner_any, Tensor table, int64_t frame_dim, bool channels_fast) {
    const Tensor x = torch::stable::contiguous(x_any), wigner = torch::stable::contiguous(wigner_any);
    const typename Launch::Guard guard(x.get_device_index());
    Tensor frame = torch::stable::new_empty(x, {wigner.size(0) * frame_dim});
    dispatch_real(x.scalar_type(), "rotate_to_edge", [&](auto zero) {
      using T = decltype(zero);
      auto call = frame_call<T>(table, wigner, x.size(1), channels_fast);
      call.x_in = x.const_data_ptr<T>();
      call.frame_out = frame.mutable_data_ptr<T>();
      Launch::rotate(call, true, x.get_device_index());
    });
    return frame;
  }

  static Tensor rotate_from_edge(Tensor frame_any, Tensor wigner_any, Tensor table, int64_t dim, bool channels_fast) {
    const Tensor frame = torch::stable::contiguous(frame_any), wigner = torch::stable::contiguous(wigner_any);
    const typename Launch::Guard guard(frame.get_device_index());
    Tensor x = torch::stable::new_empty(frame, {wigner.size(0), dim});
    dispatch_real(frame.scalar_type(), "rotate_from_edge", [&](auto zero) {
      using T = decltype(zero);
      auto call = frame_call<T>(table, wigner, dim, channels_fast);
      call.frame_in = frame.const_data_ptr<T>();
      call.x_out = x.mutable_data_ptr<T>();
      Launch::rotate(call, false, frame.get_device_index());
    });
    return x;
  }

  static Tensor weights(Tensor weight_any, Tensor terms, Tensor factors, int64_t numel, bool transpose) {
    const Tensor weight = torch::stable::contiguous(weight_any);
    const typename Launch::Guard guard(weight.get_device_index());
    Tensor out = torch::stable::new_zeros(weight, {numel});
    dispatch_real(weight.scalar_type(), "edge_frame_weights", [&](auto zero) {
      using T = decltype(zero);
      Launch::add_terms(reinterpret_cast<const MatrixTerm*>(terms.const_data_ptr<int64_t>()),
                        factors.const_data_ptr<double>(), terms.size(0), transpose, weight.const_data_ptr<T>(),
                        out.mutable_data_ptr<T>(), weight.get_device_index());
    });
    return out;
  }
};

}  // namespace hamfast
