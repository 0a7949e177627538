#include <torch/csrc/stable/library.h>

#include "common/host_pool.h"
#include "common/op_records.h"
#include "common/tables.h"
#include "row_matmul/row_matmul_isa.h"

namespace hamfast {

Tensor row_matmul(const RowMatmulArguments& args) {
  using enum MatrixProduct;
  const Tensor left = torch::stable::contiguous(args.left),
               right = torch::stable::contiguous(args.right),
               tasks = torch::stable::contiguous(args.tasks);
  const RowDims dims = row_of<RowDims>(args.dims, "row_matmul: dims");
  const MatrixProduct product = static_cast<MatrixProduct>(args.product);
  const int64_t rows = args.rows;
  auto numel = [&](MatrixProduct of) {
    return rows * (of == a ? dims.a : of == b ? dims.b : dims.c);
  };
  STD_TORCH_CHECK(
      left.numel() == numel(product == a ? c : a) && right.numel() == numel(product == b ? c : b),
      "row_matmul: expected ", rows, " rows of ", dims.a, ", ", dims.b, " and ", dims.c,
      " elements, found ", left.numel(), " and ", right.numel(), " elements");
  Tensor out = product == b ? pooled_empty({rows, dims.b}, left.scalar_type())
                            : pooled_empty({numel(product)}, left.scalar_type());
  dispatch_real(left.scalar_type(), "row_matmul", [&](auto zero) {
    using T = decltype(zero);
    // Two of the three are only read.
    T *first = const_cast<T*>(left.const_data_ptr<T>()),
      *second = const_cast<T*>(right.const_data_ptr<T>()), *made = out.mutable_data_ptr<T>();
    const RowMatmulCall<T> call{product == a ? made : first,
                                product == b ? made : second,
                                product == c   ? made
                                : product == a ? first
                                               : second,
                                rows_of<RowTask>(tasks),
                                tasks.size(0),
                                rows,
                                dims};
    for_balanced_rows(Maybe<const int64_t>(), rows, [&](int64_t begin, int64_t end, int64_t) {
      if (product == c)
        HAMFAST_ISA_CALL(row_matmul_c, call, begin, end);
      else if (product == a)
        HAMFAST_ISA_CALL(row_matmul_a, call, begin, end);
      else
        HAMFAST_ISA_CALL(row_matmul_b, call, begin, end);
    });
  });
  return out;
}

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("row_matmul", TORCH_BOX(&hamfast::row_matmul_boxed<hamfast::row_matmul>));
}
