#include <torch/csrc/stable/library.h>

#include "common/host_pool.h"
#include "common/op_records.h"
#include "edge_outer/edge_outer_isa.h"

namespace hamfast {

Tensor edge_outer(const EdgeOuterArguments& args) {
  const Tensor left = torch::stable::contiguous(args.left),
               right = torch::stable::contiguous(args.right),
               order = torch::stable::contiguous(args.order),
               ptr = torch::stable::contiguous(args.ptr);
  const OuterSlot slot = static_cast<OuterSlot>(args.slot);
  const int64_t edges = order.numel(), nodes = ptr.numel() - 1, width = args.width;
  std::vector<OuterRow> rows;
  int64_t channels = 0;  // of an edge, in the blocks so far
  for (size_t i = 0; i + 1 < args.shapes.size(); i += 2) {
    const int64_t d = args.shapes[i], n = args.shapes[i + 1];
    for (int64_t m = 0; m < d; ++m)
      rows.push_back({edges * channels + m * n, d * n, nodes * channels * width + m * width * n,
                      d * width * n, n});
    channels += d * n;
  }
  auto numel = [&](OuterSlot of) {
    return of == outer_node     ? nodes * width * channels
           : of == outer_factor ? edges * width
                                : edges * channels;
  };
  const OuterSlot first = slot == outer_node ? outer_factor : outer_node,
                  second = slot == outer_channels ? outer_factor : outer_channels;
  STD_TORCH_CHECK(left.numel() == numel(first) && right.numel() == numel(second),
                  "edge_outer: expected ", numel(first), " and ", numel(second),
                  " elements, found ", left.numel(), " and ", right.numel());
  Tensor out = slot == outer_factor ? pooled_empty({edges, width}, left.scalar_type())
                                    : pooled_empty({numel(slot)}, left.scalar_type());
  dispatch_real(left.scalar_type(), "edge_outer", [&](auto zero) {
    using T = decltype(zero);
    // Two of the three are only read.
    T* data[3];
    data[first] = const_cast<T*>(left.const_data_ptr<T>());
    data[second] = const_cast<T*>(right.const_data_ptr<T>());
    data[slot] = out.mutable_data_ptr<T>();
    const EdgeOuterCall<T> call{data[outer_node],
                                data[outer_factor],
                                data[outer_channels],
                                rows.data(),
                                static_cast<int64_t>(rows.size()),
                                width,
                                order.const_data_ptr<int64_t>(),
                                ptr.const_data_ptr<int64_t>()};
    for_balanced_rows(call.ptr, nodes, [&](int64_t begin, int64_t end, int64_t) {
      if (slot == outer_node)
        HAMFAST_ISA_CALL(edge_outer_node, call, begin, end);
      else if (slot == outer_factor)
        HAMFAST_ISA_CALL(edge_outer_factor, call, begin, end);
      else
        HAMFAST_ISA_CALL(edge_outer_channels, call, begin, end);
    });
  });
  return out;
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("edge_outer", TORCH_BOX(&hamfast::edge_outer_boxed<hamfast::edge_outer>));
}
