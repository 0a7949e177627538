// Linear maps of the channels of irreps: torch's matrix products on blocks of rows.
//
// Where a block's channels lie side by side, a product reads and writes the rows where they are.
// Else some rows at a time are brought into a matrix, which stays in the cache.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/host_pool.h"
#include "common/matmul.h"
#include "common/op_records.h"
#include "common/tables.h"
#include "irreps_linear/irreps_linear_isa.h"

namespace hamfast {

using torch::stable::narrow;

// Numbers that a matrix of some rows' channels may have: half of a core's cache of its own.
constexpr int64_t kPacked = 1 << 17;

static Tensor columns_of(const Tensor& t, int64_t first, int64_t count) {
  return narrow(const_cast<Tensor&>(t), 1, first, count);
}
static Tensor lines_of(const Tensor& t, int64_t first, int64_t count) {
  return narrow(const_cast<Tensor&>(t), 0, first, count);
}
static Tensor transposed(const Tensor& t) {
  return torch::stable::transpose(const_cast<Tensor&>(t), 0, 1);
}

// One side of the products: rows of A or of C, and a task's block in them.
struct Side {
  Tensor rows;
  int64_t dim;
  int64_t LinearTask::*offset, LinearTask::*channels;
};

class IrrepsLinear {
 public:
  explicit IrrepsLinear(const IrrepsLinearArguments& args)
      : left_(torch::stable::contiguous(args.left)),
        right_(torch::stable::contiguous(args.right)),
        table_(torch::stable::contiguous(args.tasks)),
        dims_(row_of<LinearDims>(args.dims, "irreps_linear: dims")),
        product_(static_cast<MatrixProduct>(args.product)),
        channels_fast_(args.layout == static_cast<int64_t>(Layout::ir_mul)),
        rows_(left_.size(0)),
        tasks_(rows_of<LinearTask>(table_), rows_of<LinearTask>(table_) + table_.size(0)) {
    using enum MatrixProduct;
    if (args.order) order_ = torch::stable::contiguous(*args.order);
    if (args.ptr) ptr_ = torch::stable::contiguous(*args.ptr);
    STD_TORCH_CHECK(order_.has_value() == ptr_.has_value(),
                    "irreps_linear: expected order and ptr, or neither");
    auto is = [&](const Tensor& t, MatrixProduct of) {
      return of == b
                 ? t.numel() == dims_.b
                 : t.dim() == 2 && t.size(0) == rows_ && t.size(1) == (of == a ? dims_.a : dims_.c);
    };
    STD_TORCH_CHECK(is(left_, product_ == a ? c : a) && is(right_, product_ == b ? c : b),
                    "irreps_linear: expected ", rows_, " rows of ", dims_.a, " and ", dims_.c,
                    " elements and ", dims_.b, " weights, found ", left_.numel(), " and ",
                    right_.numel(), " elements");
  }

  Tensor run() {
    using enum MatrixProduct;
    const ScalarType type = left_.scalar_type();
    Tensor out = product_ == b ? pooled_empty({dims_.b}, type)
                               : pooled_empty({rows_, product_ == a ? dims_.a : dims_.c}, type);
    const bool covered = product_ == c   ? dims_.covers_c && rows_covered()
                         : product_ == a ? dims_.covers_a && rows_covered()
                                         : false;
    if (!covered) torch::stable::zero_(out);
    dispatch_real(type, "irreps_linear", [&](auto zero) {
      using T = decltype(zero);
      for_species([&](int64_t species, const int64_t* index, int64_t count) {
        if (!count) return;
        if (product_ == b) {
          for (const LinearTask& task : tasks_) add_outer<T>(task, species, index, count, out);
          return;
        }
        // Tasks that make one block are one matrix product.
        const int64_t LinearTask::* made =
            product_ == c ? &LinearTask::c_offset : &LinearTask::a_offset;
        std::vector<bool> done(tasks_.size());
        for (size_t first = 0; first < tasks_.size(); ++first) {
          std::vector<LinearTask> set;
          for (size_t n = first; n < tasks_.size(); ++n)
            if (!done[n] && tasks_[n].*made == tasks_[first].*made) {
              set.push_back(tasks_[n]);
              done[n] = true;
            }
          if (!set.empty()) make_block<T>(set, species, index, count, out);
        }
      });
    });
    return out;
  }

 private:
  bool rows_covered() const { return !order_ || order_->numel() == rows_; }

  template <class F>
  void for_species(F&& f) const {
    if (!order_) return f(0, nullptr, rows_);
    const int64_t* order = order_->const_data_ptr<int64_t>();
    const int64_t* ptr = ptr_->const_data_ptr<int64_t>();
    for (int64_t s = 0; s + 1 < ptr_->size(0); ++s) f(s, order + ptr[s], ptr[s + 1] - ptr[s]);
  }

  // [k, n] in the flat weights.
  Tensor matrix(const Tensor& flat, const LinearTask& task, int64_t species) const {
    if (task.b_stride == task.n)
      return torch::stable::reshape(narrow(const_cast<Tensor&>(flat), 0,
                                           task.b_offset + species * task.b_step, task.k * task.n),
                                    {task.k, task.n});
    Tensor all = torch::stable::reshape(
        narrow(const_cast<Tensor&>(flat), 0, task.b_offset, task.k * task.b_stride),
        {task.k, task.b_stride});
    return columns_of(all, species * task.b_step, task.n);
  }

  int64_t chunk(int64_t d, int64_t channels) const {
    return std::max<int64_t>(16, kPacked / std::max<int64_t>(1, d * channels));
  }

  template <class T>
  void pack(const Side& side, const LinearTask& task, const int64_t* index, int64_t begin,
            int64_t count, const Tensor& matrix, int64_t column, bool back = false) const {
    PackCall<T> call{const_cast<T*>(side.rows.const_data_ptr<T>()) + task.*side.offset,
                     side.dim,
                     index ? index + begin : nullptr,
                     task.d,
                     task.*side.channels,
                     channels_fast_,
                     const_cast<T*>(matrix.const_data_ptr<T>()) + column,
                     matrix.size(1)};
    if (!index) call.rows += begin * side.dim;
    for_balanced_rows(Maybe<const int64_t>(), count, [&](int64_t first, int64_t last, int64_t) {
      if (back)
        HAMFAST_ISA_CALL(unpack_irreps, call, first, last);
      else
        HAMFAST_ISA_CALL(pack_irreps, call, first, last);
    });
  }

  // A block of C (or of A) from all blocks of A (of C) that lead to it.
  template <class T>
  void make_block(const std::vector<LinearTask>& set, int64_t species, const int64_t* index,
                  int64_t count, const Tensor& out) const {
    const bool forward = product_ == MatrixProduct::c;
    const Side of_a{forward ? left_ : out, dims_.a, &LinearTask::a_offset, &LinearTask::k};
    const Side of_c{forward ? out : left_, dims_.c, &LinearTask::c_offset, &LinearTask::n};
    const Side &from = forward ? of_a : of_c, &to = forward ? of_c : of_a;
    auto operand = [&](const LinearTask& task) {
      Tensor m = matrix(right_, task, species);
      return forward ? m : transposed(m);
    };
    const int64_t d = set[0].d, width = set[0].*to.channels;
    int64_t total = 0;
    for (const LinearTask& task : set) total += task.*from.channels;
    if (set.size() == 1 && !index && (d == 1 || channels_fast_)) {
      const Tensor m = operand(set[0]);
      for (int64_t i = 0; i < d; ++i)
        multiply_into(columns_of(from.rows, set[0].*from.offset + i * total, total), m,
                      columns_of(to.rows, set[0].*to.offset + i * width, width));
      return;
    }
    const ScalarType type = left_.scalar_type();
    Tensor m;
    if (set.size() == 1) {
      m = operand(set[0]);
    } else {
      m = pooled_empty({total, width}, type);
      int64_t at = 0;
      for (const LinearTask& task : set) {
        Tensor lines = lines_of(m, at, task.*from.channels);
        torch::stable::copy_(lines, operand(task));
        at += task.*from.channels;
      }
    }
    const int64_t most = std::min(count, chunk(d, total + width));
    Tensor packed = pooled_empty({most * d, total}, type),
           made = pooled_empty({most * d, width}, type);
    for (int64_t begin = 0; begin < count; begin += most) {
      const int64_t now = std::min(most, count - begin);
      int64_t at = 0;
      for (const LinearTask& task : set) {
        pack<T>(from, task, index, begin, now, packed, at);
        at += task.*from.channels;
      }
      multiply_into(lines_of(packed, 0, now * d), m, lines_of(made, 0, now * d));
      pack<T>(to, set[0], index, begin, now, made, 0, true);
    }
  }

  // Adds A^T C to the matrix of one task.
  template <class T>
  void add_outer(const LinearTask& task, int64_t species, const int64_t* index, int64_t count,
                 const Tensor& out) const {
    const Side of_a{left_, dims_.a, &LinearTask::a_offset, &LinearTask::k};
    const Side of_c{right_, dims_.c, &LinearTask::c_offset, &LinearTask::n};
    if (task.d == 1 && !index) {
      multiply_into(transposed(columns_of(left_, task.a_offset, task.k)),
                    columns_of(right_, task.c_offset, task.n), matrix(out, task, species));
      return;
    }
    const int64_t most = std::min(count, chunk(task.d, task.k + task.n));
    const ScalarType type = left_.scalar_type();
    Tensor a = pooled_empty({most * task.d, task.k}, type),
           c = pooled_empty({most * task.d, task.n}, type),
           made = pooled_empty({task.k, task.n}, type);
    T* to = out.mutable_data_ptr<T>() + task.b_offset + species * task.b_step;
    for (int64_t begin = 0; begin < count; begin += most) {
      const int64_t now = std::min(most, count - begin);
      pack<T>(of_a, task, index, begin, now, a, 0);
      pack<T>(of_c, task, index, begin, now, c, 0);
      multiply_into(transposed(lines_of(a, 0, now * task.d)), lines_of(c, 0, now * task.d), made);
      const T* part = made.const_data_ptr<T>();
      for (int64_t u = 0; u < task.k; ++u)
        for (int64_t w = 0; w < task.n; ++w) to[u * task.b_stride + w] += part[u * task.n + w];
    }
  }

  const Tensor left_, right_, table_;
  const LinearDims dims_;
  const MatrixProduct product_;
  const bool channels_fast_;
  const int64_t rows_;
  const std::vector<LinearTask> tasks_;
  std::optional<Tensor> order_, ptr_;
};

Tensor irreps_linear(const IrrepsLinearArguments& args) { return IrrepsLinear(args).run(); }

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("irreps_linear", TORCH_BOX(&hamfast::irreps_linear_boxed<hamfast::irreps_linear>));
}
