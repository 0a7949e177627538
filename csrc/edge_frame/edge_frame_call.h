// The ops on tensors, for any launcher: `Launch::rotate_into`, `rotate_out` and `add_groups`.
#pragma once

#include <vector>

#include "common/dispatch.h"
#include "common/op_records.h"
#include "common/tables.h"
#include "edge_frame.cuh"

namespace hamfast {

// What a FrameCall has whichever way it rotates.
template <class T>
FrameCall<T> frame_call(const std::array<Optional, kMaxSources>& tables, const Tensor& wigner,
                        bool channels_fast) {
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
  static Tensor rotate_to_edge(const RotateToEdgeArguments& args) {
    std::array<Optional, kMaxSources> x, index;
    for (int s = 0; s < kMaxSources; ++s)
      x[s] = contiguous(args.x[s]), index[s] = contiguous(args.index[s]);
    const Tensor like = x[0].value(), wigner = torch::stable::contiguous(args.wigner);
    const typename Launch::Guard guard(like.get_device_index());
    const std::vector<int64_t> size{wigner.size(0) * args.frame_dim};
    Tensor frame =
        args.partial ? torch::stable::new_zeros(like, size) : torch::stable::new_empty(like, size);
    dispatch_real(like.scalar_type(), "rotate_to_edge", [&](auto zero) {
      using T = decltype(zero);
      auto call = frame_call<T>(args.tables, wigner, args.channels_fast);
      for (int s = 0; s < kMaxSources; ++s) {
        call.x_in[s] = maybe_data<T>(x[s]);
        call.index[s] = maybe_data<int64_t>(index[s]);
        call.dim[s] = x[s].has_value() ? x[s]->size(1) : 0;
      }
      call.frame_out = frame.mutable_data_ptr<T>();
      Launch::rotate_into(call, like.get_device_index());
    });
    return frame;
  }

  static Tensor rotate_from_edge(const RotateFromEdgeArguments& args) {
    const Tensor frame = torch::stable::contiguous(args.frame),
                 wigner = torch::stable::contiguous(args.wigner);
    const Optional order = contiguous(args.order), ptr = contiguous(args.ptr);
    const typename Launch::Guard guard(frame.get_device_index());
    const int64_t rows = ptr.has_value() ? ptr->numel() - 1 : wigner.size(0);
    Tensor x = torch::stable::new_empty(frame, {rows, args.dim});
    dispatch_real(frame.scalar_type(), "rotate_from_edge", [&](auto zero) {
      using T = decltype(zero);
      auto call = frame_call<T>({args.table}, wigner, args.channels_fast);
      call.frame_in = frame.const_data_ptr<T>();
      call.x_out = x.mutable_data_ptr<T>();
      call.dim[0] = args.dim;
      call.order = maybe_data<int64_t>(order);
      call.ptr = maybe_data<int64_t>(ptr);
      Launch::rotate_out(call, rows, frame.get_device_index());
    });
    return x;
  }

  static Tensor weights(const EdgeFrameWeightsArguments& args) {
    std::array<Optional, 3> operands;
    for (int n = 0; n < 3; ++n) operands[n] = contiguous(args.operands[n]);
    const Tensor& like = operands[args.slot == slot_weight ? slot_matrix : slot_weight].value();
    const typename Launch::Guard guard(like.get_device_index());
    Tensor out = torch::stable::new_zeros(like, {args.numel});
    const Tensor& ptr = args.slot == slot_matrix ? args.by_matrix : args.by_path;
    dispatch_real(like.scalar_type(), "edge_frame_weights", [&](auto zero) {
      using T = decltype(zero);
      MatrixCall<T> call{rows_of<MatrixTerm>(args.terms),
                         args.factors.const_data_ptr<double>(),
                         args.slot == slot_matrix ? Maybe<const int64_t>()
                                                  : args.path_order.const_data_ptr<int64_t>(),
                         ptr.const_data_ptr<int64_t>(),
                         ptr.numel() - 1,
                         static_cast<WeightSlot>(args.slot),
                         {maybe_data<T>(operands[slot_weight]), maybe_data<T>(operands[slot_scale]),
                          maybe_data<T>(operands[slot_matrix])},
                         out.mutable_data_ptr<T>()};
      Launch::add_groups(call, like.get_device_index());
    });
    return out;
  }
};

}  // namespace hamfast
