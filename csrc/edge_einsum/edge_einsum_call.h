// The op on tensors, for any launcher: `Launch::run(call, device)`.
#pragma once

#include <vector>

#include "common/dispatch.h"
#include "common/op_records.h"
#include "edge_einsum.cuh"

namespace hamfast {

template <class Launch>
struct EdgeEinsumOp {
  // An axis of length 1 is one that an operand, or the result, lacks.
  static Tensor run(const EdgeEinsumArguments& args) {
    std::vector<Tensor> operands;
    for (const Optional& t : args.operands)
      if (t.has_value()) operands.push_back(*t);
    const Graph& graph = args.graph;
    const std::vector<int64_t>&shape = args.shape, &rows_of = args.rows_of;
    const Tensor like = operands[0];
    const int64_t edges = graph.senders.numel();
    const int64_t count[3] = {edges, graph.sender_ptr.numel() - 1, graph.receiver_ptr.numel() - 1};
    int64_t axes[3] = {shape[0], shape[1], shape[2]};
    for (size_t i = 0; i < operands.size(); ++i) {
      Tensor& t = operands[i];
      STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == count[rows_of[i + 1]], "edge_einsum: operand ",
                      i, ": expected [", count[rows_of[i + 1]], ", heads, components, width]");
      if (t.size(3) > 1 && t.stride(3) != 1) t = torch::stable::contiguous(t);
      for (int d = 0; d < 3; ++d)
        if (t.size(d + 1) != 1) axes[d] = t.size(d + 1);
    }
    for (const Tensor& t : operands)
      for (int d = 0; d < 3; ++d)
        STD_TORCH_CHECK((t.size(d + 1) == 1 || t.size(d + 1) == axes[d]) &&
                            (shape[d] == 1 || shape[d] == axes[d]),
                        "edge_einsum: axis ", d + 1, ": expected 1 or ", axes[d], ", found ",
                        t.size(d + 1), " in an operand and ", shape[d], " in the result");
    const typename Launch::Guard guard(like.get_device_index());
    const std::vector<int64_t> sizes{count[rows_of[0]], shape[0], shape[1], shape[2]};
    // An axis of no elements: the kernels' strides do not tell it from one that is lacking.
    if (edges == 0 || axes[0] == 0 || axes[1] == 0 || axes[2] == 0)
      return torch::stable::new_zeros(like, sizes);
    Tensor out = Launch::new_result(like, sizes);
    dispatch_real(like.scalar_type(), "edge_einsum", [&](auto zero) {
      using T = decltype(zero);
      EdgeEinsumCall<T> call{};
      call.count = static_cast<int>(operands.size());
      for (int i = 0; i < call.count; ++i) {
        const Tensor& t = operands[i];
        auto stride = [&](int d) { return t.size(d) == 1 ? int64_t(0) : t.stride(d); };
        call.operand[i] = {t.const_data_ptr<T>(), rows_of[i + 1], t.stride(0), stride(1), stride(2),
                           t.size(3) > 1};
      }
      call.out = out.mutable_data_ptr<T>();
      call.out_row = shape[0] * shape[1] * shape[2];
      call.out_head = shape[0] > 1 ? shape[1] * shape[2] : 0;
      call.out_component = shape[1] > 1 ? shape[2] : 0;
      call.out_wide = shape[2] > 1;
      call.heads = axes[0], call.components = axes[1], call.width = axes[2];
      call.rows = count[rows_of[0]];
      call.senders = graph.senders.const_data_ptr<int64_t>();
      call.receivers = graph.receivers.const_data_ptr<int64_t>();
      const bool by_sender = rows_of[0] == row_of_sender;
      if (rows_of[0] != row_of_edge) {
        call.order =
            (by_sender ? graph.sender_order : graph.receiver_order).const_data_ptr<int64_t>();
        call.ptr = (by_sender ? graph.sender_ptr : graph.receiver_ptr).const_data_ptr<int64_t>();
      }
      Launch::run(call, like.get_device_index());
    });
    return out;
  }
};

}  // namespace hamfast
