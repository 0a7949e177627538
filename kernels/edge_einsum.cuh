// Sums over edges of products of up to three operands, the einsum of a graph:
//   out[r, h, m, c] = sum over the edges e whose row of out is r, and over the axes that out lacks,
//   of
//                     prod_i operand_i[row_i(e), h, m, c],   row(e): e itself, e's sender or e's
//                     receiver.
// The derivative in any operand is the same sum with out's gradient in the operand's place, so it
// is closed.
#pragma once

#include "common.cuh"
#include "records.cuh"

namespace hamfast {

// Rows [rows, heads, components, width]; an axis it lacks has stride 0. `wide`: it has the last
// axis, with stride 1.
template <class T>
struct EdgeOperand {
  const T* data;
  int64_t row_of, row, head, component;  // RowOf; strides
  bool wide;
};

template <class T>
struct EdgeEinsumCall {
  EdgeOperand<T> operand[3];
  int count;
  T* out;  // rows are contiguous
  int64_t out_row, out_head, out_component;
  bool out_wide;
  int64_t heads, components, width;
  int64_t rows;  // of out
  const int64_t* senders;
  const int64_t* receivers;
  Maybe<const int64_t> order;  // edges by out's row; absent: out has a row per edge
  Maybe<const int64_t> ptr;    // [rows of out + 1], with an order

  HAMFAST_HD int64_t row_at(int64_t row_of, int64_t edge) const {
    return row_of == row_of_edge ? edge : row_of == row_of_sender ? senders[edge] : receivers[edge];
  }
};

#if defined(__CUDACC__) || defined(HAMFAST_SIMT)

// One warp per row of out. Lanes are elements of the row; where out lacks the last axis they are
// its elements, and are summed.
template <class T>
__global__ void edge_einsum_kernel(EdgeEinsumCall<T> call) {
  const HAMFAST_ISA::Warp warp;
  const int64_t out_heads = call.out_head > 0 ? call.heads : 1;
  const int64_t out_components = call.out_component > 0 ? call.components : 1;
  const int64_t inner_heads = call.heads / out_heads,
                inner_components = call.components / out_components;
  const int64_t columns = call.out_wide ? call.width : 1;
  const int64_t elements = out_heads * out_components * columns;
  for (int64_t row = blockIdx.x; row < call.rows; row += gridDim.x) {
    const int64_t first = call.order ? call.ptr[row] : row,
                  last = call.order ? call.ptr[row + 1] : row + 1;
    const int64_t step = call.out_wide ? warp.size() : 1;
    for (int64_t element = call.out_wide ? warp.rank() : 0; element < elements; element += step) {
      const int64_t column = element % columns, h0 = element / columns / out_components,
                    m0 = element / columns % out_components;
      T total = T(0);
      for (int64_t n = first; n < last; ++n) {
        const int64_t edge = call.order ? call.order[n] : n;
        const T* data[3] = {};
        HAMFAST_UNROLL
        for (int i = 0; i < 3;
             ++i)  // known to the compiler, or the pointers would go through memory
          if (i < call.count)
            data[i] = call.operand[i].data +
                      call.row_at(call.operand[i].row_of, edge) * call.operand[i].row;
        for (int64_t ih = 0; ih < inner_heads; ++ih)
          for (int64_t im = 0; im < inner_components; ++im) {
            const int64_t h = h0 + ih, m = m0 + im;
            const int64_t begin = call.out_wide ? column : warp.rank();
            const int64_t end = call.out_wide ? column + 1 : call.width;
            for (int64_t c = begin; c < end; c += warp.size()) {
              T product = T(1);
              HAMFAST_UNROLL
              for (int i = 0; i < 3; ++i) {
                const EdgeOperand<T>& o = call.operand[i];
                if (i < call.count)
                  product *= data[i][h * o.head + m * o.component + (o.wide ? c : 0)];
              }
              total += product;
            }
          }
      }
      if (!call.out_wide) total = warp.sum(total);
      if (call.out_wide || warp.rank() == 0) call.out[row * call.out_row + element] = total;
    }
  }
}

#endif

}  // namespace hamfast
