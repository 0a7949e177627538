// channel_kernel_source: what the CUDA backend would compile, for tests, and for whoever wants to
// read it.
#include "tensor_product/channel_source_op.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

namespace hamfast {

template <class Row>
std::vector<Row> vector_of(const Tensor& table) {
  const Row* first = rows_of<Row>(table);
  return {first, first + table.size(0)};
}

ChannelTables channel_tables(const Tensor& tasks, const Tensor& x_blocks, const Tensor& g_blocks,
                             const Tensor& entries, const Tensor& coupling,
                             const ProductDims& dims) {
  ChannelTables tables{vector_of<ChannelTask>(tasks),
                       vector_of<ChannelBlock>(x_blocks),
                       vector_of<ChannelBlock>(g_blocks),
                       vector_of<CouplingEntry>(entries),
                       {},
                       dims};
  for (const ChannelTask& task : tables.tasks) {
    const bool inside = task.x_block >= 0 && task.x_block < x_blocks.size(0) && task.g_block >= 0 &&
                        task.g_block < g_blocks.size(0);
    STD_TORCH_CHECK(inside && task.d1 == tables.x_blocks[task.x_block].d &&
                        task.d3 == tables.g_blocks[task.g_block].d,
                    "tensor_product: expected tasks that name a block of x and of g with as many "
                    "components, found ",
                    task.x_block, " and ", task.g_block);
  }
  dispatch_real(coupling.scalar_type(), "tensor_product", [&](auto zero) {
    const auto* values = coupling.const_data_ptr<decltype(zero)>();
    tables.coupling.assign(values, values + coupling.numel());
  });
  return tables;
}

std::tuple<Tensor, Tensor> channel_kernel_source(const ChannelKernelSourceArguments& args) {
  const ChannelTables tables =
      channel_tables(args.tasks, args.x_blocks, args.g_blocks, args.entries, args.coupling,
                     row_of<ProductDims>(args.dims, "dims"));
  const ChannelSource made =
      channel_source(tables, row_of<ChannelVariant>(args.variant, "variant"));
  Tensor text = torch::stable::new_empty(args.tasks, {static_cast<int64_t>(made.header.size())},
                                         torch::headeronly::ScalarType::Byte);
  std::memcpy(text.mutable_data_ptr(), made.header.data(), made.header.size());
  Tensor sizes = torch::stable::new_empty(args.tasks, {2});
  sizes.mutable_data_ptr<int64_t>()[0] = made.units;
  sizes.mutable_data_ptr<int64_t>()[1] = made.shared_bytes;
  return {text, sizes};
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("channel_kernel_source",
         TORCH_BOX(&hamfast::channel_kernel_source_boxed<hamfast::channel_kernel_source>));
}
