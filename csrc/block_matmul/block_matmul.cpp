// Several matrix products at once, on flat buffers that hold one matrix after another: torch's own products, without
// the copies that splitting and joining those buffers would cost.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/dispatch.h"
#include "common/host_pool.h"
#include "common/matmul.h"

namespace hamfast {

// With matrices A [m, k], B [k, n] and C [m, n], m = rows * rows_per_row: which of them comes out.
enum class Product : int64_t { c = 0, a = 1, b = 2 };  // C = A B;  A = C B^T (from C, B);  B = A^T C (from A, C)

static Tensor matrix_at(const Tensor& flat, int64_t offset, int64_t rows, int64_t columns) {
  return torch::stable::reshape(torch::stable::narrow(const_cast<Tensor&>(flat), 0, offset, rows * columns),
                                {rows, columns});
}

// shapes: rows_per_row, k, n of each block.
Tensor block_matmul(Tensor left_any, Tensor right_any, int64_t rows, std::vector<int64_t> shapes, int64_t which) {
  const Tensor left = torch::stable::contiguous(left_any), right = torch::stable::contiguous(right_any);
  const Product product = static_cast<Product>(which);
  auto numel = [&](Product of, const int64_t* s) {
    return of == Product::a ? rows * s[0] * s[1] : of == Product::b ? s[1] * s[2] : rows * s[0] * s[2];
  };
  const Product first = product == Product::a ? Product::c : Product::a;
  const Product second = product == Product::b ? Product::c : Product::b;
  int64_t total = 0;
  for (size_t i = 0; i + 2 < shapes.size(); i += 3) total += numel(product, &shapes[i]);
  Tensor out = left.is_cpu() ? pooled_empty({total}, left.scalar_type()) : torch::stable::new_empty(left, {total});
  int64_t at_left = 0, at_right = 0, at_out = 0;
  for (size_t i = 0; i + 2 < shapes.size(); i += 3) {
    const int64_t m = rows * shapes[i], k = shapes[i + 1], n = shapes[i + 2];
    if (product == Product::c)
      multiply_into(matrix_at(left, at_left, m, k), matrix_at(right, at_right, k, n), matrix_at(out, at_out, m, n));
    else if (product == Product::a)
      multiply_into(matrix_at(left, at_left, m, n), torch::stable::transpose(matrix_at(right, at_right, k, n), 0, 1),
                    matrix_at(out, at_out, m, k));
    else
      multiply_into(torch::stable::transpose(matrix_at(left, at_left, m, k), 0, 1), matrix_at(right, at_right, m, n),
                    matrix_at(out, at_out, k, n));
    at_left += numel(first, &shapes[i]);
    at_right += numel(second, &shapes[i]);
    at_out += numel(product, &shapes[i]);
  }
  return out;
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) { m.impl("block_matmul", TORCH_BOX(&hamfast::block_matmul)); }
STABLE_TORCH_LIBRARY_IMPL(hamfast, CUDA, m) { m.impl("block_matmul", TORCH_BOX(&hamfast::block_matmul)); }
STABLE_TORCH_LIBRARY_IMPL(hamfast, XPU, m) { m.impl("block_matmul", TORCH_BOX(&hamfast::block_matmul)); }
