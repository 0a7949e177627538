// Attention's kernels in two halves: scalars per edge and head, by
// kernels/graph_attention_scores.cuh, then sums of rows times these scalars, by
// kernels/weighted_sum.cuh.
#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "graph_attention/graph_attention_call.h"
#include "weighted_sum.cuh"

namespace hamfast {

// Puts together and launches the sums of one call. Functions are called by what they make.
template <class T, class Stored>
class WeightedSums {
 public:
  WeightedSums(const AttentionCall<T, Stored>& call, int32_t device)
      : call_(call), device_(device) {}

  // value_weight: w, or tangent_w in the double backward pass.
  void gradients(const T* value_weight) const {
    grad_query_or_key(call_.grad_query, true);
    grad_query_or_key(call_.grad_key, false);
    grad_value(value_weight);
    grad_query_on_edge();
    grad_edge(value_weight);
    grad_vector();
  }

  // sum weight v, and the same of the edges' features; plus sum tangents_weight tangent_v.
  void aggregate(Maybe<Stored> out, Maybe<T> out_on_edge, const T* weight,
                 Maybe<const T> tangents_weight) const {
    if (out && call_.value.width > 0) {
      auto sum = new_sum(out.data, row_of_receiver, call_.value.width);
      add(sum, summand_rows, weight, call_.value);
      if (tangents_weight && call_.tangent_value.any())
        add(sum, summand_rows, tangents_weight.data, call_.tangent_value);
      run(sum);
    }
    if (out_on_edge) {
      auto sum = new_sum(out_on_edge.data, row_of_receiver, call_.features);
      add_features(sum, weight, call_.edge.data);
      if (tangents_weight && call_.tangent_edge)
        add_features(sum, tangents_weight.data, call_.tangent_edge.data);
      run(sum);
    }
  }

 private:
  // to: of every part.
  void grad_query_or_key(const Maybe<Stored> (&to)[3], bool is_query) const {
    for (int row_of = 0; row_of < 3; ++row_of) {
      if (!to[row_of]) continue;
      auto sum = new_sum(to[row_of].data, row_of, call_.query.width);
      if (call_.additive()) {
        add(sum, summand_vector_slope, call_.grad_z.data, call_.query, call_.key);
        if (additive_scores_have_tangents())
          add(sum, summand_tangent_vector_slope, call_.grad_tangent_z.data, call_.query, call_.key);
      } else {
        add(sum, summand_rows, call_.grad_z.data, is_query ? call_.key : call_.query);
        const EdgeSum<Stored>& tangent = is_query ? call_.tangent_key : call_.tangent_query;
        if (tangent.any()) add(sum, summand_rows, call_.grad_tangent_z.data, tangent);
      }
      run(sum);
    }
  }

  void grad_value(const T* value_weight) const {
    for (int row_of = 0; row_of < 3; ++row_of) {
      if (!call_.grad_value[row_of]) continue;
      auto sum = new_sum(call_.grad_value[row_of].data, row_of, call_.value.width);
      if (call_.grad_out) {
        EdgeSum<Stored> grad_out{};
        grad_out.part[row_of_receiver] = call_.grad_out;
        grad_out.width = call_.value.width;
        add(sum, summand_rows, value_weight, grad_out);
      }
      run(sum);
    }
  }

  void grad_query_on_edge() const {
    if (!call_.grad_query_on_edge) return;
    auto sum = new_sum(call_.grad_query_on_edge.data, row_of_receiver, call_.features);
    add_features(sum, call_.grad_z.data, call_.edge.data);
    if (call_.tangent_edge) add_features(sum, call_.grad_tangent_z.data, call_.tangent_edge.data);
    run(sum);
  }

  void grad_edge(const T* value_weight) const {
    if (!call_.grad_edge) return;
    auto sum = new_sum(call_.grad_edge.data, row_of_edge, call_.features);
    sum.over_heads = true;
    add_nodes(sum, call_.grad_z.data, call_.query_on_edge);
    add_nodes(sum, call_.grad_tangent_z.data, call_.tangent_query_on_edge);
    add_nodes(sum, value_weight, call_.grad_out_on_edge);
    run(sum);
  }

  void grad_vector() const {
    if (!call_.grad_vector) return;
    auto sum = new_sum(call_.grad_vector.data, row_of_edge, call_.query.width);
    sum.rows = sum.chunks = kChunks;
    add(sum, summand_activation, call_.grad_z.data, call_.query, call_.key);
    if (additive_scores_have_tangents())
      add(sum, summand_tangent_activation, call_.grad_tangent_z.data, call_.query, call_.key);
    run(sum);
  }

  bool additive_scores_have_tangents() const {
    return call_.tangent_query.any() || call_.tangent_key.any() || call_.tangent_vector.given();
  }

  template <class Out>
  WeightedSum<T, Stored, Out> new_sum(Out* out, int row_of, int64_t width) const {
    WeightedSum<T, Stored, Out> sum{};
    sum.out = out;
    sum.heads = call_.heads, sum.width = width, sum.edges = call_.edges;
    sum.rows = row_of == row_of_edge     ? call_.edges
               : row_of == row_of_sender ? call_.num_senders
                                         : call_.num_receivers;
    if (row_of != row_of_edge) {
      sum.order = row_of == row_of_sender ? call_.sender_order : call_.receiver_order;
      sum.ptr = row_of == row_of_sender ? call_.sender_ptr : call_.receiver_ptr;
    }
    sum.senders = call_.senders, sum.receivers = call_.receivers;
    sum.tangent_a = call_.tangent_query, sum.tangent_b = call_.tangent_key;
    sum.vector = call_.vector, sum.tangent_vector = call_.tangent_vector,
    sum.activation = call_.activation, sum.slope = call_.slope;
    sum.packed = call_.packed;
    return sum;
  }
  template <class Out>
  static void add(WeightedSum<T, Stored, Out>& sum, Summand summand, const T* weight,
                  const EdgeSum<Stored>& a, const EdgeSum<Stored>& b = EdgeSum<Stored>{}) {
    sum.term[sum.count++] = {summand, weight, a, b, nullptr, {}};
  }
  template <class Out>
  static void add_features(WeightedSum<T, Stored, Out>& sum, const T* weight,
                           const Stored* features) {
    sum.term[sum.count++] = {summand_features, weight, {}, {}, features, {}};
  }
  template <class Out>
  static void add_nodes(WeightedSum<T, Stored, Out>& sum, const T* weight,
                        const NodeRows<T>& nodes) {
    if (nodes.data) sum.term[sum.count++] = {summand_nodes, weight, {}, {}, nullptr, nodes};
  }
  template <class Out>
  void run(const WeightedSum<T, Stored, Out>& sum) const {
    const int64_t items = sum.cut().items;
    if (items == 0) return;
    launch("graph_attention",
           sum.activations() ? weighted_sum_kernel<T, Stored, Out, true>
                             : weighted_sum_kernel<T, Stored, Out, false>,
           Grid{blocks_for((items + kSumWarps - 1) / kSumWarps)}, kWarp * kSumWarps, device_, sum);
  }

  const AttentionCall<T, Stored>& call_;
  const int32_t device_;
};

template <class T>
bool are_aligned(const NodeRows<T>& nodes) {
  return are_aligned(nodes.data) && nodes.node_stride % kColumns == 0 &&
         nodes.head_stride % kColumns == 0;
}

// Do all rows of q, k, v and features, and of their gradients, consist of whole, aligned vectors?
template <class T, class Stored>
bool is_packed(const AttentionCall<T, Stored>& c) {
  bool packed =
      c.query.width % kColumns == 0 && c.value.width % kColumns == 0 && c.features % kColumns == 0;
  for (int n = 0; n < 3; ++n)  // the parts
    packed = packed &&
             are_aligned(c.query.part[n], c.key.part[n], c.value.part[n], c.grad_query[n],
                         c.grad_key[n], c.grad_value[n]) &&
             are_aligned(c.tangent_query.part[n], c.tangent_key.part[n], c.tangent_value.part[n]);
  return packed && are_aligned(c.query_on_edge) && are_aligned(c.tangent_query_on_edge) &&
         are_aligned(c.grad_out_on_edge) &&
         are_aligned(c.edge, c.tangent_edge, c.grad_edge, c.grad_out, c.grad_grad_out, c.out) &&
         are_aligned(c.vector, c.tangent_vector, c.grad_vector, c.out_on_edge, c.grad_query_on_edge,
                     c.grad_grad_out_on_edge);
}

struct AttentionOnCuda : OnCuda {
  static constexpr bool reads_half = true;

  // Scalars [edges, heads] that one kernel leaves for the next, besides those that the op has made.
  template <class T>
  class Scalars {
   public:
    template <class Stored>
    Scalars(const Tensor& like, const AttentionCall<T, Stored>& call)
        : like_(like), sizes_{call.edges, call.heads} {}
    void make(Maybe<T>& scalars) {
      if (scalars) return;
      kept_.push_back(new_result(
          like_, sizes_, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float));
      scalars = kept_.back().template mutable_data_ptr<T>();
    }

   private:
    const Tensor& like_;
    std::vector<int64_t> sizes_;
    std::vector<Tensor> kept_;
  };

  template <int pass, class T, class Stored>
  static void scores(const AttentionCall<T, Stored>& call, int32_t device) {
    const int64_t items = call.num_receivers * call.heads;
    if (items == 0) return;
    launch("graph_attention", attention_scores_kernel<T, Stored, pass>,
           Grid{blocks_for((items + kAttentionWarps - 1) / kAttentionWarps)},
           kWarp * kAttentionWarps, device, call);
  }

  template <class T, class Stored>
  static void forward(AttentionCall<T, Stored> call, const Tensor& like) {
    call.packed = is_packed(call);
    Scalars<T> scalars(like, call);
    for (Maybe<T>* made : {&call.z, &call.w}) scalars.make(*made);
    scores<pass_forward>(call, like.get_device_index());
    WeightedSums<T, Stored>(call, like.get_device_index())
        .aggregate(call.out, call.out_on_edge, call.w.data, {});
  }

  template <class T, class Stored>
  static void backward(AttentionCall<T, Stored> call, const Tensor& like) {
    call.packed = is_packed(call);
    Scalars<T> scalars(like, call);
    for (Maybe<T>* made : {&call.z, &call.row_grad_w, &call.grad_z, &call.w}) scalars.make(*made);
    scores<pass_backward>(call, like.get_device_index());
    WeightedSums<T, Stored>(call, like.get_device_index()).gradients(call.w.data);
  }

  template <class T, class Stored>
  static void double_backward(AttentionCall<T, Stored> call, const Tensor& like) {
    call.packed = is_packed(call);
    Scalars<T> scalars(like, call);
    for (Maybe<T>* made : {&call.z, &call.row_grad_w, &call.tangent_z, &call.tangent_grad_w,
                           &call.grad_z, &call.grad_tangent_z, &call.tangent_w})
      scalars.make(*made);
    call.w = call.row_grad_w;  // takes its place, edge by edge
    scores<pass_double>(call, like.get_device_index());
    const WeightedSums<T, Stored> sums(call, like.get_device_index());
    sums.gradients(call.tangent_w.data);
    sums.aggregate(call.grad_grad_out, call.grad_grad_out_on_edge, call.tangent_w.data, call.w);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  using Ops = hamfast::AttentionOps<hamfast::AttentionOnCuda>;
  m.impl("graph_attention", TORCH_BOX(&hamfast::graph_attention_boxed<Ops::forward>));
  m.impl("graph_attention_backward",
         TORCH_BOX(&hamfast::graph_attention_backward_boxed<Ops::backward>));
  m.impl("graph_attention_double_backward",
         TORCH_BOX(&hamfast::graph_attention_double_backward_boxed<Ops::double_backward>));
}
