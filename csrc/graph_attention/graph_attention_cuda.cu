// Numbers per edge and head first, then the sums they weigh: kernels/graph_attention_scores.cuh,
// kernels/weighted_sum.cuh.
#include <torch/csrc/stable/library.h>

#include "common/grid.h"
#include "graph_attention/graph_attention_call.h"
#include "weighted_sum.cuh"

namespace hamfast {

// Puts together and launches the sums of one call.
template <class T, class Stored>
class WeightedSums {
 public:
  WeightedSums(const AttentionCall<T, Stored>& call, int32_t device) : call_(call), device_(device) {}

  // Gradients of q and k (or of one, `of_query`): of every part, from dz and, along directions, dz'.
  void of_scores(const Maybe<Stored> (&to)[3], bool of_query) const {
    for (int part = 0; part < 3; ++part) {
      if (!to[part]) continue;
      auto sum = new_sum(to[part].data, part, call_.query.width);
      if (call_.additive()) {
        add(sum, rows_activation_slope, call_.grad_z.data, call_.query, call_.key);
        if (along_activation())
          add(sum, rows_activation_slope_along, call_.grad_tangent_z.data, call_.query, call_.key);
      } else {
        add(sum, rows_sum, call_.grad_z.data, of_query ? call_.key : call_.query);
        const EdgeSum<Stored>& along = of_query ? call_.tangent_key : call_.tangent_query;
        if (along.any()) add(sum, rows_sum, call_.grad_tangent_z.data, along);
      }
      run(sum);
    }
  }

  // Gradients of v: a weight times the row of grad_out.
  void of_value() const {
    for (int part = 0; part < 3; ++part) {
      if (!call_.grad_value[part]) continue;
      auto sum = new_sum(call_.grad_value[part].data, part, call_.value.width);
      if (call_.grad_out) {
        EdgeSum<Stored> grad{};
        grad.part[row_of_receiver] = call_.grad_out;
        grad.width = call_.value.width;
        add(sum, rows_sum, call_.kept_weight.data, grad);
      }
      run(sum);
    }
  }

  void of_query_on_edge() const {
    if (!call_.grad_query_on_edge) return;
    auto sum = new_sum(call_.grad_query_on_edge.data, row_of_receiver, call_.features);
    add_features(sum, call_.grad_z.data, call_.edge.data);
    if (call_.tangent_edge) add_features(sum, call_.grad_tangent_z.data, call_.tangent_edge.data);
    run(sum);
  }

  void of_edge() const {
    if (!call_.grad_edge) return;
    auto sum = new_sum(call_.grad_edge.data, row_of_edge, call_.features);
    sum.over_heads = true;
    add_nodes(sum, call_.grad_z.data, call_.query_on_edge);
    add_nodes(sum, call_.grad_tangent_z.data, call_.tangent_query_on_edge);
    add_nodes(sum, call_.kept_weight.data, call_.grad_out_on_edge);
    run(sum);
  }

  void of_vector() const {
    if (!call_.grad_vector) return;
    auto sum = new_sum(call_.grad_vector.data, row_of_edge, call_.query.width);
    sum.rows = sum.chunks = kChunks;
    add(sum, rows_activation, call_.grad_z.data, call_.query, call_.key);
    if (along_activation()) add(sum, rows_activation_along, call_.grad_tangent_z.data, call_.query, call_.key);
    run(sum);
  }

  // sum weight v (+ more v'), and the same of the edges' features.
  void aggregate(Maybe<Stored> out, Maybe<T> on_edge, const T* weight, Maybe<const T> more) const {
    if (out && call_.value.width > 0) {
      auto sum = new_sum(out.data, row_of_receiver, call_.value.width);
      add(sum, rows_sum, weight, call_.value);
      if (more && call_.tangent_value.any()) add(sum, rows_sum, more.data, call_.tangent_value);
      run(sum);
    }
    if (on_edge) {
      auto sum = new_sum(on_edge.data, row_of_receiver, call_.features);
      add_features(sum, weight, call_.edge.data);
      if (more && call_.tangent_edge) add_features(sum, more.data, call_.tangent_edge.data);
      run(sum);
    }
  }

  void gradients() const {
    of_scores(call_.grad_query, true);
    of_scores(call_.grad_key, false);
    of_value();
    of_query_on_edge();
    of_edge();
    of_vector();
  }

 private:
  bool along_activation() const {
    return call_.tangent_query.any() || call_.tangent_key.any() || call_.tangent_vector.given();
  }

  template <class Out>
  WeightedSum<T, Stored, Out> new_sum(Out* out, int part, int64_t width) const {
    WeightedSum<T, Stored, Out> sum{};
    sum.out = out;
    sum.heads = call_.heads, sum.width = width, sum.edges = call_.edges;
    sum.rows = part == row_of_edge ? call_.edges : part == row_of_sender ? call_.num_senders : call_.num_receivers;
    if (part != row_of_edge) {
      sum.order = part == row_of_sender ? call_.sender_order : call_.receiver_order;
      sum.ptr = part == row_of_sender ? call_.sender_ptr : call_.receiver_ptr;
    }
    sum.senders = call_.senders, sum.receivers = call_.receivers;
    sum.tangent_a = call_.tangent_query, sum.tangent_b = call_.tangent_key;
    sum.vector = call_.vector, sum.tangent_vector = call_.tangent_vector, sum.activation = call_.activation,
    sum.slope = call_.slope;
    sum.packed = call_.packed;
    return sum;
  }
  template <class Out>
  static void add(WeightedSum<T, Stored, Out>& sum, int64_t weighed, const T* weight, const EdgeSum<Stored>& a,
                  const EdgeSum<Stored>& b = EdgeSum<Stored>{}) {
    sum.term[sum.count++] = {weighed, weight, a, b, nullptr, {}};
  }
  template <class Out>
  static void add_features(WeightedSum<T, Stored, Out>& sum, const T* weight, const Stored* features) {
    sum.term[sum.count++] = {rows_features, weight, {}, {}, features, {}};
  }
  template <class Out>
  static void add_nodes(WeightedSum<T, Stored, Out>& sum, const T* weight, const NodeRows<T>& nodes) {
    if (nodes.data) sum.term[sum.count++] = {rows_nodes, weight, {}, {}, nullptr, nodes};
  }
  template <class Out>
  void run(const WeightedSum<T, Stored, Out>& sum) const {
    const int64_t items = sum.cut().items;
    if (items == 0) return;
    launch("graph_attention",
           sum.activations() ? weighted_sum_kernel<T, Stored, Out, true> : weighted_sum_kernel<T, Stored, Out, false>,
           Grid{blocks_for((items + kSumWarps - 1) / kSumWarps)}, kWarp * kSumWarps, device_, sum);
  }

  const AttentionCall<T, Stored>& call_;
  const int32_t device_;
};

template <class T>
bool are_aligned(const NodeRows<T>& nodes) {
  return are_aligned(nodes.data) && nodes.node_stride % kColumns == 0 && nodes.head_stride % kColumns == 0;
}

// Do all rows of q, k, v and features, and of their gradients, consist of whole, aligned vectors?
template <class T, class Stored>
bool is_packed(const AttentionCall<T, Stored>& c) {
  bool packed = c.query.width % kColumns == 0 && c.value.width % kColumns == 0 && c.features % kColumns == 0;
  for (int p = 0; p < 3; ++p)
    packed =
        packed &&
        are_aligned(c.query.part[p], c.key.part[p], c.value.part[p], c.grad_query[p], c.grad_key[p], c.grad_value[p]) &&
        are_aligned(c.tangent_query.part[p], c.tangent_key.part[p], c.tangent_value.part[p]);
  return packed && are_aligned(c.query_on_edge) && are_aligned(c.tangent_query_on_edge) &&
         are_aligned(c.grad_out_on_edge) &&
         are_aligned(c.edge, c.tangent_edge, c.grad_edge, c.grad_out, c.grad_grad_out, c.out) &&
         are_aligned(c.vector, c.tangent_vector, c.grad_vector, c.out_on_edge, c.grad_query_on_edge,
                     c.grad_grad_out_on_edge);
}

struct AttentionOnCuda : OnCuda {
  static constexpr bool reads_half = true;

  // Numbers per edge and head that one kernel leaves for the next, besides those the op has made already.
  template <class T>
  class Numbers {
   public:
    template <class Stored>
    Numbers(const Tensor& like, const AttentionCall<T, Stored>& call) : like_(like), sizes_{call.edges, call.heads} {}
    void make(Maybe<T>& numbers) {
      if (numbers) return;
      kept_.push_back(new_result(like_, sizes_, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float));
      numbers = kept_.back().template mutable_data_ptr<T>();
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
           Grid{blocks_for((items + kAttentionWarps - 1) / kAttentionWarps)}, kWarp * kAttentionWarps, device, call);
  }

  template <class T, class Stored>
  static void forward(AttentionCall<T, Stored> call, const Tensor& like) {
    call.packed = is_packed(call);
    Numbers<T> numbers(like, call);
    numbers.make(call.at_z);
    call.kept_weight = call.weights;
    numbers.make(call.kept_weight);
    scores<pass_forward>(call, like.get_device_index());
    WeightedSums<T, Stored>(call, like.get_device_index())
        .aggregate(call.out, call.out_on_edge, call.kept_weight.data, {});
  }

  template <class T, class Stored>
  static void backward(AttentionCall<T, Stored> call, const Tensor& like) {
    call.packed = is_packed(call);
    Numbers<T> numbers(like, call);
    for (Maybe<T>* kept : {&call.at_z, &call.at_a, &call.grad_z, &call.kept_weight}) numbers.make(*kept);
    scores<pass_backward>(call, like.get_device_index());
    WeightedSums<T, Stored>(call, like.get_device_index()).gradients();
  }

  template <class T, class Stored>
  static void double_backward(AttentionCall<T, Stored> call, const Tensor& like) {
    call.packed = is_packed(call);
    Numbers<T> numbers(like, call);
    for (Maybe<T>* kept : {&call.at_z, &call.at_a, &call.tangent_at_z, &call.at_b, &call.grad_z, &call.grad_tangent_z,
                           &call.kept_weight})
      numbers.make(*kept);
    scores<pass_double>(call, like.get_device_index());
    const WeightedSums<T, Stored> sums(call, like.get_device_index());
    sums.gradients();
    sums.aggregate(call.grad_grad_out, call.grad_grad_out_on_edge, call.kept_weight.data, call.at_a);
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, HAMFAST_CUDA_KEY, m) {
  using Ops = hamfast::AttentionOps<hamfast::AttentionOnCuda>;
  m.impl("graph_attention", TORCH_BOX(&hamfast::graph_attention_boxed<Ops::forward>));
  m.impl("graph_attention_backward", TORCH_BOX(&hamfast::graph_attention_backward_boxed<Ops::backward>));
  m.impl("graph_attention_double_backward",
         TORCH_BOX(&hamfast::graph_attention_double_backward_boxed<Ops::double_backward>));
}
