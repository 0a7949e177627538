// The ops on tensors, for any launcher: `Launch::rotate_into`, `rotate_out` and `add_groups`.
#pragma once

#include <vector>

#include "common/dispatch.h"
#include "edge_frame.cuh"

namespace hamfast {

// The numbers of a FrameCall that do not depend on the direction of the rotation.
template <class T>
FrameCall<T> frame_call(const std::optional<Tensor> (&tables)[kMaxSources], const Tensor& wigner, bool channels_fast) {
  FrameCall<T> call{};
  for (int s = 0; s < kMaxSources; ++s) {
    if (!tables[s].has_value()) continue;
    call.table[s] = tables[s]->const_data_ptr<int64_t>();
    call.num_blocks[s] = tables[s]->size(0);
    call.table_stride[s] = tables[s]->size(1);
  }
  call.channels_fast = channels_fast;
  call.edges = wigner.size(0);
  call.wigner_dim = wigner.size(1);
  call.wigner = wigner.const_data_ptr<T>();
  return call;
}

template <class Launch>
struct EdgeFrameOps {
  // The orders and pointers are for the adjoint.
  static Tensor rotate_to_edge(Tensor x0, std::optional<Tensor> x1, std::optional<Tensor> x2, Tensor table0,
                               std::optional<Tensor> table1, std::optional<Tensor> table2, std::optional<Tensor> index0,
                               std::optional<Tensor> index1, std::optional<Tensor> index2, std::optional<Tensor>,
                               std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>,
                               std::optional<Tensor>, std::optional<Tensor>, Tensor wigner_any, int64_t frame_dim,
                               bool channels_fast, bool partial) {
    const std::optional<Tensor> x[kMaxSources] = {contiguous(std::optional<Tensor>(x0)), contiguous(x1),
                                                  contiguous(x2)};
    const std::optional<Tensor> tables[kMaxSources] = {table0, table1, table2};
    const std::optional<Tensor> index[kMaxSources] = {contiguous(index0), contiguous(index1), contiguous(index2)};
    const Tensor wigner = torch::stable::contiguous(wigner_any);
    const typename Launch::Guard guard(x0.get_device_index());
    const std::vector<int64_t> size{wigner.size(0) * frame_dim};
    Tensor frame = partial ? torch::stable::new_zeros(x0, size) : torch::stable::new_empty(x0, size);
    dispatch_real(x0.scalar_type(), "rotate_to_edge", [&](auto zero) {
      using T = decltype(zero);
      auto call = frame_call<T>(tables, wigner, channels_fast);
      for (int s = 0; s < kMaxSources; ++s) {
        call.x_in[s] = maybe_data<T>(x[s]);
        call.index[s] = maybe_data<int64_t>(index[s]);
        call.dim[s] = x[s].has_value() ? x[s]->size(1) : 0;
      }
      call.frame_out = frame.mutable_data_ptr<T>();
      Launch::rotate_into(call, x0.get_device_index());
    });
    return frame;
  }

  // The index and `partial` are for the adjoint.
  static Tensor rotate_from_edge(Tensor frame_any, Tensor table, std::optional<Tensor>, std::optional<Tensor> order_any,
                                 std::optional<Tensor> ptr_any, Tensor wigner_any, int64_t dim, bool channels_fast,
                                 bool) {
    const std::optional<Tensor> tables[kMaxSources] = {table};
    const Tensor frame = torch::stable::contiguous(frame_any), wigner = torch::stable::contiguous(wigner_any);
    const std::optional<Tensor> order = contiguous(order_any), ptr = contiguous(ptr_any);
    const typename Launch::Guard guard(frame.get_device_index());
    const int64_t rows = ptr.has_value() ? ptr->numel() - 1 : wigner.size(0);
    Tensor x = torch::stable::new_empty(frame, {rows, dim});
    dispatch_real(frame.scalar_type(), "rotate_from_edge", [&](auto zero) {
      using T = decltype(zero);
      auto call = frame_call<T>(tables, wigner, channels_fast);
      call.frame_in = frame.const_data_ptr<T>();
      call.x_out = x.mutable_data_ptr<T>();
      call.dim[0] = dim;
      call.order = maybe_data<int64_t>(order);
      call.ptr = maybe_data<int64_t>(ptr);
      Launch::rotate_out(call, rows, frame.get_device_index());
    });
    return x;
  }

  static Tensor weights(std::optional<Tensor> weight, std::optional<Tensor> scale, std::optional<Tensor> matrix,
                        Tensor terms, Tensor factors, Tensor by_matrix, Tensor by_path, Tensor path_order, int64_t slot,
                        int64_t numel) {
    const std::optional<Tensor> operand[3] = {contiguous(weight), contiguous(scale), contiguous(matrix)};
    const Tensor& like = operand[slot == slot_weight ? slot_matrix : slot_weight].value();
    const typename Launch::Guard guard(like.get_device_index());
    Tensor out = torch::stable::new_zeros(like, {numel});
    const Tensor& ptr = slot == slot_matrix ? by_matrix : by_path;
    dispatch_real(like.scalar_type(), "edge_frame_weights", [&](auto zero) {
      using T = decltype(zero);
      MatrixCall<T> call{reinterpret_cast<const MatrixTerm*>(terms.const_data_ptr<int64_t>()),
                         factors.const_data_ptr<double>(),
                         slot == slot_matrix ? Maybe<const int64_t>() : path_order.const_data_ptr<int64_t>(),
                         ptr.const_data_ptr<int64_t>(),
                         ptr.numel() - 1,
                         static_cast<WeightSlot>(slot),
                         {maybe_data<T>(operand[0]), maybe_data<T>(operand[1]), maybe_data<T>(operand[2])},
                         out.mutable_data_ptr<T>()};
      Launch::add_groups(call, like.get_device_index());
    });
    return out;
  }
};

}  // namespace hamfast
