// channel_kernel_source: what the CUDA backend would compile, for tests, and for whoever wants to read it.
#include "tensor_product/channel_source_op.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

namespace hamfast {

template <class Row>
std::vector<Row> rows_of(const Tensor& table) {
  const Row* first = reinterpret_cast<const Row*>(table.const_data_ptr<int64_t>());
  return {first, first + table.size(0)};
}

ChannelTables channel_tables(const Tensor& tasks, const Tensor& x_blocks, const Tensor& g_blocks, const Tensor& entries,
                             const Tensor& coupling, const std::vector<int64_t>& dims) {
  ChannelTables tables{rows_of<ChannelTask>(tasks),
                       rows_of<ChannelBlock>(x_blocks),
                       rows_of<ChannelBlock>(g_blocks),
                       rows_of<CouplingEntry>(entries),
                       {},
                       dims[0],
                       dims[1],
                       dims[2],
                       dims[3]};
  dispatch_real(coupling.scalar_type(), "tensor_product", [&](auto zero) {
    const auto* values = coupling.const_data_ptr<decltype(zero)>();
    tables.coupling.assign(values, values + coupling.numel());
  });
  return tables;
}

ChannelCallKind channel_call_kind(const std::vector<int64_t>& kind) {
  return {kind[0] != 0,
          static_cast<int>(kind[1]),
          static_cast<int>(kind[2]),
          static_cast<int>(kind[3]),
          static_cast<Storage>(kind[4]),
          static_cast<Layout>(kind[5]),
          static_cast<Layout>(kind[6]),
          kind[7] != 0,
          static_cast<int>(kind[8]),
          static_cast<int>(kind[9])};
}

std::tuple<Tensor, Tensor> channel_kernel_source(Tensor tasks, Tensor x_blocks, Tensor g_blocks, Tensor entries,
                                                 Tensor coupling, std::vector<int64_t> dims,
                                                 std::vector<int64_t> kind) {
  STD_TORCH_CHECK(kind.size() == 10, "channel_kernel_source: kind: expected 10 numbers, found ", kind.size());
  const ChannelSource made =
      channel_source(channel_tables(tasks, x_blocks, g_blocks, entries, coupling, dims), channel_call_kind(kind));
  Tensor text =
      torch::stable::new_empty(tasks, {static_cast<int64_t>(made.header.size())}, torch::headeronly::ScalarType::Byte);
  std::memcpy(text.mutable_data_ptr(), made.header.data(), made.header.size());
  Tensor sizes = torch::stable::new_empty(tasks, {2});
  sizes.mutable_data_ptr<int64_t>()[0] = made.units;
  sizes.mutable_data_ptr<int64_t>()[1] = made.shared_bytes;
  return {text, sizes};
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("channel_kernel_source", TORCH_BOX(&hamfast::channel_kernel_source));
}
