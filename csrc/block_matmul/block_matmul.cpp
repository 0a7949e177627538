// Several matrix products at once, on flat buffers that hold one matrix after another: torch's own
// products, without the copies that splitting and joining those buffers would cost.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/dispatch.h"
#include "common/host_pool.h"
#include "common/matmul.h"
#include "common/op_records.h"

namespace hamfast {

static Tensor matrix_at(const Tensor& flat, int64_t offset, int64_t rows, int64_t columns) {
  return torch::stable::reshape(
      torch::stable::narrow(const_cast<Tensor&>(flat), 0, offset, rows * columns), {rows, columns});
}

// Of matrices A [m, k], B [k, n] and C [m, n], m = rows * rows_per_row, from the two others. A = C
// B^T is made from C and B, B = A^T C from A and C. shapes: rows_per_row, k, n of each block.
Tensor block_matmul(const BlockMatmulArguments& args) {
  using enum MatrixProduct;
  const Tensor left = torch::stable::contiguous(args.left),
               right = torch::stable::contiguous(args.right);
  const std::vector<int64_t>& shapes = args.shapes;
  const int64_t rows = args.rows;
  const MatrixProduct product = static_cast<MatrixProduct>(args.product);
  auto numel = [&](MatrixProduct of, const int64_t* s) {
    return of == a ? rows * s[0] * s[1] : of == b ? s[1] * s[2] : rows * s[0] * s[2];
  };
  const MatrixProduct first = product == a ? c : a;
  const MatrixProduct second = product == b ? c : b;
  int64_t total = 0;
  for (size_t i = 0; i + 2 < shapes.size(); i += 3) total += numel(product, &shapes[i]);
  Tensor out = left.is_cpu() ? pooled_empty({total}, left.scalar_type())
                             : torch::stable::new_empty(left, {total});
  int64_t at_left = 0, at_right = 0, at_out = 0;
  for (size_t i = 0; i + 2 < shapes.size(); i += 3) {
    const int64_t m = rows * shapes[i], k = shapes[i + 1], n = shapes[i + 2];
    if (product == c)
      multiply_into(matrix_at(left, at_left, m, k), matrix_at(right, at_right, k, n),
                    matrix_at(out, at_out, m, n));
    else if (product == a)
      multiply_into(matrix_at(left, at_left, m, n),
                    torch::stable::transpose(matrix_at(right, at_right, k, n), 0, 1),
                    matrix_at(out, at_out, m, k));
    else
      multiply_into(torch::stable::transpose(matrix_at(left, at_left, m, k), 0, 1),
                    matrix_at(right, at_right, m, n), matrix_at(out, at_out, k, n));
    at_left += numel(first, &shapes[i]);
    at_right += numel(second, &shapes[i]);
    at_out += numel(product, &shapes[i]);
  }
  return out;
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("block_matmul", TORCH_BOX(&hamfast::block_matmul_boxed<hamfast::block_matmul>));
}
STABLE_TORCH_LIBRARY_IMPL(hamfast, CUDA, m) {
  m.impl("block_matmul", TORCH_BOX(&hamfast::block_matmul_boxed<hamfast::block_matmul>));
}
STABLE_TORCH_LIBRARY_IMPL(hamfast, XPU, m) {
  m.impl("block_matmul", TORCH_BOX(&hamfast::block_matmul_boxed<hamfast::block_matmul>));
}
