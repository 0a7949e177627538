// The op on tensors, for any launcher: `Launch::run(call, device)`.
#pragma once

#include <vector>

#include "common/dispatch.h"
#include "edge_einsum.cuh"

namespace hamfast {

template <class Launch>
struct EdgeEinsumOp {
  // `places`: of out, then of each operand. `shape`: out's heads, components, width. Operands are 4-D; an axis of
  // length 1 is one they lack.
  static Tensor run(Tensor a, std::optional<Tensor> b, std::optional<Tensor> c, std::vector<int64_t> places,
                    std::vector<int64_t> shape, Tensor senders, Tensor sender_order, Tensor sender_ptr,
                    Tensor receivers, Tensor receiver_order, Tensor receiver_ptr) {
    std::vector<Tensor> operands{a};
    if (b.has_value()) operands.push_back(*b);
    if (c.has_value()) operands.push_back(*c);
    const int64_t edges = senders.numel();
    const int64_t count[3] = {edges, sender_ptr.numel() - 1, receiver_ptr.numel() - 1};
    int64_t axes[3] = {shape[0], shape[1], shape[2]};
    for (size_t i = 0; i < operands.size(); ++i) {
      Tensor& t = operands[i];
      STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == count[places[i + 1]], "edge_einsum: operand ", i, ": expected [",
                      count[places[i + 1]], ", heads, components, width]");
      if (t.size(3) > 1 && t.stride(3) != 1) t = torch::stable::contiguous(t);
      for (int d = 0; d < 3; ++d)
        if (t.size(d + 1) != 1) axes[d] = t.size(d + 1);
    }
    for (const Tensor& t : operands)
      for (int d = 0; d < 3; ++d)
        STD_TORCH_CHECK((t.size(d + 1) == 1 || t.size(d + 1) == axes[d]) && (shape[d] == 1 || shape[d] == axes[d]),
                        "edge_einsum: axis ", d + 1, ": expected 1 or ", axes[d], ", found ", t.size(d + 1),
                        " in an operand and ", shape[d], " in the result");
    const typename Launch::Guard guard(a.get_device_index());
    const std::vector<int64_t> sizes{count[places[0]], shape[0], shape[1], shape[2]};
    // An axis of no elements: the kernels' strides do not tell it from one that is lacking.
    if (edges == 0 || axes[0] == 0 || axes[1] == 0 || axes[2] == 0) return torch::stable::new_zeros(a, sizes);
    Tensor out = Launch::new_result(a, sizes);
    dispatch_real(a.scalar_type(), "edge_einsum", [&](auto zero) {
      using T = decltype(zero);
      EdgeEinsumCall<T> call{};
      call.count = static_cast<int>(operands.size());
      for (int i = 0; i < call.count; ++i) {
        const Tensor& t = operands[i];
        auto stride = [&](int d) { return t.size(d) == 1 ? int64_t(0) : t.stride(d); };
        call.operand[i] = {t.const_data_ptr<T>(), places[i + 1], t.stride(0), stride(1), stride(2), t.size(3) > 1};
      }
      call.out = out.mutable_data_ptr<T>();
      call.out_row = shape[0] * shape[1] * shape[2];
      call.out_head = shape[0] > 1 ? shape[1] * shape[2] : 0;
      call.out_component = shape[1] > 1 ? shape[2] : 0;
      call.out_wide = shape[2] > 1;
      call.heads = axes[0], call.components = axes[1], call.width = axes[2];
      call.rows = count[places[0]];
      call.senders = senders.const_data_ptr<int64_t>();
      call.receivers = receivers.const_data_ptr<int64_t>();
      const bool by_sender = places[0] == place_sender;
      if (places[0] != place_edge) {
        call.order = (by_sender ? sender_order : receiver_order).const_data_ptr<int64_t>();
        call.ptr = (by_sender ? sender_ptr : receiver_ptr).const_data_ptr<int64_t>();
      }
      Launch::run(call, a.get_device_index());
    });
    return out;
  }
};

}  // namespace hamfast
