// Compiled once per instruction set. The output channels are the lanes of vectors.
#include "row_matmul/row_matmul_isa.h"

#include "common/small_matmul.h"

namespace hamfast::HAMFAST_ISA {

// Where a task's matrices lie for one row.
template <class T>
struct TaskOfRow {
  TaskOfRow(const RowMatmulCall<T>& call, const RowTask& task_, int64_t row)
      : task(task_),
        a(call.a + call.rows * task.a_block + row * task.d * task.a_columns + task.a_first),
        b(call.b + row * call.dims.b + task.b_offset),
        c(call.c + call.rows * task.c_block + row * task.d * task.c_columns) {}
  const RowTask& task;
  T *a, *b, *c;
  T* a_row(int64_t m) const { return a + m * task.a_columns; }
  T* b_row(int64_t u) const { return b + u * task.b_stride; }
  T* c_row(int64_t m) const { return c + m * task.c_columns; }
};

template <class T, class F>
inline void for_tasks(const RowMatmulCall<T>& call, int64_t begin, int64_t end, F&& f) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t n = 0; n < call.count; ++n) f(TaskOfRow<T>(call, call.tasks[n], row));
}

template <class T>
static void make_c(const RowMatmulCall<T>& call, int64_t begin, int64_t end) {
  for_tasks(call, begin, end, [](const TaskOfRow<T>& at) {
    const RowTask& task = at.task;
    multiply_rows<T>(
        task.d, task.c_columns, task.n, !task.begins,
        [&](int64_t m, int64_t u) { return at.a_row(m)[u]; },
        [&](int64_t u) -> const T* { return at.b_row(u); }, [&](int64_t m) { return at.c_row(m); });
  });
}

template <class T>
static void make_a(const RowMatmulCall<T>& call, int64_t begin, int64_t end) {
  for_tasks(call, begin, end, [](const TaskOfRow<T>& at) {
    const RowTask& task = at.task;
    const auto c_row = [&](int64_t m) -> const T* { return at.c_row(m); };
    const auto b_row = [&](int64_t u) -> const T* { return at.b_row(u); };
    sums_of_products<T>(
        task.d, task.n, 1, [&](int64_t) { return Stretch{c_row, b_row, task.c_columns}; },
        [&](int64_t m) { return at.a_row(m); });
  });
}

template <class T>
static void make_b(const RowMatmulCall<T>& call, int64_t begin, int64_t end) {
  if (!call.dims.covers_weights)
    for (int64_t i = begin * call.dims.b; i < end * call.dims.b; ++i) call.b[i] = T(0);
  for_tasks(call, begin, end, [](const TaskOfRow<T>& at) {
    const RowTask& task = at.task;
    multiply_rows<T>(
        task.n, task.c_columns, task.d, false, [&](int64_t u, int64_t m) { return at.a_row(m)[u]; },
        [&](int64_t m) -> const T* { return at.c_row(m); }, [&](int64_t u) { return at.b_row(u); });
  });
}

#define HAMFAST_DEFINE_FOR(T)                                                   \
  void row_matmul_c(const RowMatmulCall<T>& call, int64_t begin, int64_t end) { \
    make_c(call, begin, end);                                                   \
  }                                                                             \
  void row_matmul_a(const RowMatmulCall<T>& call, int64_t begin, int64_t end) { \
    make_a(call, begin, end);                                                   \
  }                                                                             \
  void row_matmul_b(const RowMatmulCall<T>& call, int64_t begin, int64_t end) { \
    make_b(call, begin, end);                                                   \
  }
HAMFAST_DEFINE_FOR(float)
HAMFAST_DEFINE_FOR(double)
#undef HAMFAST_DEFINE_FOR

}  // namespace hamfast::HAMFAST_ISA
