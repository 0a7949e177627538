// Tables of records (kernels/records.cuh) in tensors and lists of integers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "records.cuh"

namespace hamfast {

// The rows of a table, [rows, columns] int64.
template <class Row>
const Row* rows_of(const torch::stable::Tensor& table) {
  constexpr int64_t columns = sizeof(Row) / sizeof(int64_t);
  STD_TORCH_CHECK(table.size(0) == 0 || table.size(1) == columns, "expected a table of ", columns,
                  " columns, found ", table.size(1));
  return reinterpret_cast<const Row*>(table.const_data_ptr<int64_t>());
}

// A list that is one row.
template <class Row>
Row row_of(const std::vector<int64_t>& values, const char* name) {
  constexpr size_t columns = sizeof(Row) / sizeof(int64_t);
  STD_TORCH_CHECK(values.size() == columns, name, ": expected ", columns, " integers, found ",
                  values.size());
  return *reinterpret_cast<const Row*>(values.data());
}

}  // namespace hamfast
