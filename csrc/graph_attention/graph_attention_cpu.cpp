#include <torch/csrc/stable/library.h>

#include "common/host_pool.h"
#include "common/scratch.h"
#include "graph_attention/graph_attention_call.h"
#include "graph_attention/graph_attention_isa.h"

namespace hamfast {

struct AttentionOnCpu : OnCpu {
  static constexpr bool reads_half = false;

  template <class T>
  static void forward(const AttentionCall<T>& call, const Tensor&) {
    for_rows(call, call.receiver_ptr, call.num_receivers,
             [&](int64_t begin, int64_t end, int64_t, T* scratch) {
               HAMFAST_ISA_CALL(attention_forward, call, begin, end, scratch);
             });
  }

  template <class T>
  static void backward(const AttentionCall<T>& call, const Tensor&) {
    for_rows(call, call.receiver_ptr, call.num_receivers,
             [&](int64_t begin, int64_t end, int64_t chunk, T* scratch) {
               HAMFAST_ISA_CALL(attention_backward, call, begin, end, chunk, scratch);
             });
    if (!call.by_sender()) return;
    for_rows(call, call.sender_ptr, call.num_senders,
             [&](int64_t begin, int64_t end, int64_t, T* scratch) {
               HAMFAST_ISA_CALL(attention_backward_senders, call, begin, end, scratch);
             });
  }

  template <class T>
  static void double_backward(const AttentionCall<T>& call, const Tensor&) {
    for_rows(call, call.receiver_ptr, call.num_receivers,
             [&](int64_t begin, int64_t end, int64_t chunk, T* scratch) {
               HAMFAST_ISA_CALL(attention_double_backward, call, begin, end, chunk, scratch);
             });
    if (!call.by_sender()) return;
    for_rows(call, call.sender_ptr, call.num_senders,
             [&](int64_t begin, int64_t end, int64_t, T* scratch) {
               HAMFAST_ISA_CALL(attention_double_backward_senders, call, begin, end, scratch);
             });
  }

 private:
  template <class T, class F>
  static void for_rows(const AttentionCall<T>& call, const int64_t* ptr, int64_t rows, F&& f) {
    for_balanced_rows(ptr, rows, [&](int64_t begin, int64_t end, int64_t chunk) {
      int64_t degree = 0;
      for (int64_t r = begin; r < end; ++r) degree = std::max(degree, ptr[r + 1] - ptr[r]);
      Scratch<T> scratch(HAMFAST_ISA_CALL(attention_scratch, call, degree));
      f(begin, end, chunk, scratch.data());
    });
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  using Ops = hamfast::AttentionOps<hamfast::AttentionOnCpu>;
  m.impl("graph_attention", TORCH_BOX(&hamfast::graph_attention_boxed<Ops::forward>));
  m.impl("graph_attention_backward",
         TORCH_BOX(&hamfast::graph_attention_backward_boxed<Ops::backward>));
  m.impl("graph_attention_double_backward",
         TORCH_BOX(&hamfast::graph_attention_double_backward_boxed<Ops::double_backward>));
}
