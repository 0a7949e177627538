// The op on tensors, for any launcher: `Launch::run(call, x, w, grad_y)`.
#pragma once

#include <tuple>
#include <vector>

#include "common/op_records.h"
#include "common/tables.h"
#include "symmetric_contraction.cuh"

namespace hamfast {

template <class Launch>
struct SymmetricContractionOp {
  static std::tuple<Tensor, Tensor, Tensor, Tensor> run(const SymmetricContractionArguments& args) {
    const auto contiguous = [](const Tensor& t) { return torch::stable::contiguous(t); };
    const Tensor x = contiguous(args.operands.x), y = contiguous(args.operands.y),
                 w = contiguous(args.operands.w);
    const Optional g = hamfast::contiguous(args.operands.g),
                   direction = hamfast::contiguous(args.direction);
    const auto dims = row_of<ContractionDims>(args.dims, "dims");
    const int64_t nodes = x.size(0), channels = x.size(1), species = y.size(1);
    const auto expect = [](const Tensor& t, const char* name, const std::vector<int64_t>& sizes) {
      bool fits = t.dim() == static_cast<int64_t>(sizes.size());
      for (size_t i = 0; fits && i < sizes.size(); ++i)
        fits = t.size(static_cast<int64_t>(i)) == sizes[i];
      STD_TORCH_CHECK(fits, "symmetric_contraction: ", name,
                      " has another shape than x, y and the ", "plan ask for");
    };
    expect(x, "x", {nodes, channels, dims.x});
    expect(y, "y", {nodes, species});
    expect(w, "w", {species, dims.paths, channels});
    if (g.has_value()) expect(*g, "g", {nodes, channels * dims.g});
    if (direction.has_value()) expect(*direction, "direction", {nodes, channels, dims.x});
    const auto wants = [&](int slot) { return (args.wanted >> slot & 1) != 0; };
    STD_TORCH_CHECK(g.has_value() || !(args.wanted & ~(1 << slot_g)),
                    "symmetric_contraction: g: expected a tensor, found none");
    const typename Launch::Guard guard(x.get_device_index());
    const auto result = [&](int slot, const std::vector<int64_t>& sizes) {
      return wants(slot) ? Launch::new_result(x, sizes) : torch::stable::new_empty(x, {0});
    };
    Tensor grad_x = result(slot_x, {nodes, channels, dims.x}),
           grad_y = result(slot_y, {nodes, species}),
           grad_w = result(slot_w, {species, dims.paths, channels}),
           grad_g = result(slot_g, {nodes, channels * dims.g});
    const ContractionTables& tables = args.tables;
    STD_TORCH_CHECK(tables.buckets.numel() == kMostTerms + 1,
                    "symmetric_contraction: buckets: ", "expected ", kMostTerms + 1,
                    " numbers, found ", tables.buckets.numel());
    dispatch_real(x.scalar_type(), "symmetric_contraction", [&](auto zero) {
      using T = decltype(zero);
      ContractionCall<T> call{};
      call.x = x.const_data_ptr<T>();
      call.y = y.const_data_ptr<T>();
      call.w = w.const_data_ptr<T>();
      call.g = maybe_data<T>(g);
      call.direction = maybe_data<T>(direction);
      if (wants(slot_x)) call.grad_x = grad_x.mutable_data_ptr<T>();
      if (wants(slot_y)) call.grad_y = grad_y.mutable_data_ptr<T>();
      if (wants(slot_w)) call.grad_w = grad_w.mutable_data_ptr<T>();
      if (wants(slot_g)) call.grad_g = grad_g.mutable_data_ptr<T>();
      call.products = rows_of<Product>(tables.products);
      call.groups = rows_of<ContractionGroup>(tables.groups);
      call.buckets = tables.buckets.const_data_ptr<int64_t>();
      call.factors = tables.factors.const_data_ptr<int64_t>();
      call.path_ptr = tables.path_ptr.const_data_ptr<int64_t>();
      call.term_ptr = tables.term_ptr.const_data_ptr<int64_t>();
      call.by_path = rows_of<ContractionEntry>(tables.by_path);
      call.by_term = rows_of<ContractionEntry>(tables.by_term);
      call.by_path_value = tables.by_path_value.const_data_ptr<T>();
      call.by_term_value = tables.by_term_value.const_data_ptr<T>();
      call.blocks = rows_of<ContractionBlock>(tables.blocks);
      call.num_products = tables.products.size(0);
      call.num_groups = tables.groups.size(0);
      call.terms = tables.factors.numel();
      call.entries = tables.by_path.size(0);
      call.num_blocks = tables.blocks.size(0);
      call.dims = dims;
      call.nodes = nodes;
      call.channels = channels;
      call.species = species;
      Launch::run(call, x, w, grad_y);
    });
    return {grad_x, grad_y, grad_w, grad_g};
  }
};

}  // namespace hamfast
