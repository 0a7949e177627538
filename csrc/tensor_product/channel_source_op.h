// Tables in tensors of the host to what channel_source.h takes.
#pragma once

#include "common/dispatch.h"
#include "common/op_records.h"
#include "common/tables.h"
#include "tensor_product/channel_source.h"

namespace hamfast {

ChannelTables channel_tables(const Tensor& tasks, const Tensor& x_blocks, const Tensor& g_blocks,
                             const Tensor& entries, const Tensor& coupling,
                             const ProductDims& dims);

}  // namespace hamfast
