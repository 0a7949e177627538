// Attention's ops on tensors, for any launcher. A launcher has forward, backward and
// double_backward, which take a call and a tensor of its device; new_result and sum_chunks; and
// reads_half. Rows of half precision that it does not read are converted before it, and its results
// after it. Scalars per edge and head, and rows that meet the edges' features, are never of half
// precision.
#pragma once

#include <array>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "common/balance.h"
#include "common/op_records.h"
#include "common/stored_rows.h"
#include "graph_attention.cuh"

namespace hamfast {

// A call of any of the ops: operands as the kernels read them.
class AttentionOnTensors {
 public:
  using At = AttentionOperand;
  using Operands = std::array<Optional, At::count>;
  // Operands with three parts, which follow the first in the order of RowOf.
  static constexpr int kWithParts[3] = {At::query_edge, At::key_edge, At::value_edge};
  static_assert(At::query_sender - At::query_edge == int{row_of_sender} &&
                At::query_receiver - At::query_edge == int{row_of_receiver});

  Operands operands;
  Optional seed;
  Graph graph;
  AttentionSettings settings;

  // Arguments: the struct of any of the ops.
  template <class Arguments>
  explicit AttentionOnTensors(const Arguments& args)
      : operands(args.operands), seed(args.seed), graph(args.graph), settings(args.settings) {
    make_contiguous(operands);
    for (Tensor* t : {&graph.senders, &graph.sender_order, &graph.sender_ptr, &graph.receivers,
                      &graph.receiver_order, &graph.receiver_ptr})
      *t = torch::stable::contiguous(*t);
  }

  int64_t edges() const { return graph.senders.numel(); }
  int64_t num_senders() const { return graph.sender_ptr.numel() - 1; }
  int64_t num_receivers() const { return graph.receiver_ptr.numel() - 1; }
  int64_t heads() const { return settings.heads; }
  int64_t features() const {
    return operands[At::edge].has_value() ? operands[At::edge]->size(1) : 0;
  }
  // Of the parts that begin with `first`; 0 if there is none.
  int64_t width(int first) const {
    for (int n = first; n < first + 3; ++n)
      if (operands[n].has_value()) return operands[n]->size(2);
    return 0;
  }
  int64_t query_width() const { return width(At::query_edge); }
  int64_t value_width() const { return width(At::value_edge); }
  const Tensor& any() const {
    for (const Optional& t : operands)
      if (t.has_value()) return *t;
    STD_TORCH_CHECK(false, "graph_attention: expected at least one operand");
  }
  // Is it made of rows that may be stored in half precision?
  static bool is_stored(int n) { return n < At::query_on_edge || n == At::edge; }
  ScalarType stored() const {
    for (int n = 0; n < At::count; ++n)
      if (is_stored(n) && operands[n].has_value()) return operands[n]->scalar_type();
    return any().scalar_type();
  }
  // Of scalars per edge and head, and of all that is computed.
  ScalarType compute() const { return is_half(stored()) ? ScalarType::Float : stored(); }
  static void widen_all(Operands& tensors) {
    for (Optional& t : tensors) widen(t);
  }
  // Shape of an operand's gradient.
  std::vector<int64_t> shape(int n) const {
    const int64_t rows[3] = {edges(), num_senders(), num_receivers()};  // by RowOf
    for (int first : kWithParts)
      if (n >= first && n < first + 3) return {rows[n - first], heads(), width(first)};
    if (n == At::query_on_edge) return {num_receivers(), heads(), features()};
    if (n == At::edge) return {edges(), features()};
    if (n == At::vector) return {heads(), query_width()};
    return {edges(), heads()};
  }

  template <class T, class Stored>
  AttentionCall<T, Stored> call() const {
    AttentionCall<T, Stored> c{};
    c.query = sum<Stored>(operands, At::query_edge), c.key = sum<Stored>(operands, At::key_edge);
    c.value = sum<Stored>(operands, At::value_edge);
    c.query_on_edge = node_rows<T>(operands[At::query_on_edge]);
    c.edge = maybe_rows<Stored>(operands[At::edge]);
    c.features = features();
    c.vector = maybe_data<T>(operands[At::vector]).data;
    c.bias = scalar<T>(operands[At::bias]), c.score_scale = scalar<T>(operands[At::score_scale]);
    c.envelope = scalar<T>(operands[At::envelope]), c.gate = scalar<T>(operands[At::gate]);
    c.senders = graph.senders.const_data_ptr<int64_t>();
    c.sender_order = graph.sender_order.const_data_ptr<int64_t>();
    c.sender_ptr = graph.sender_ptr.const_data_ptr<int64_t>();
    c.receivers = graph.receivers.const_data_ptr<int64_t>();
    c.receiver_order = graph.receiver_order.const_data_ptr<int64_t>();
    c.receiver_ptr = graph.receiver_ptr.const_data_ptr<int64_t>();
    c.heads = heads(), c.edges = edges(), c.num_senders = num_senders(),
    c.num_receivers = num_receivers();
    c.score = settings.score, c.activation = settings.activation, c.weighting = settings.weighting;
    c.slope = T(settings.slope), c.scale = T(settings.scale), c.clip = T(settings.clip);
    c.epsilon = T(settings.epsilon);
    c.seed = maybe_data<int64_t>(seed);
    c.dropout = settings.dropout;
    return c;
  }

  // From here on the call has the tangents of a double backward pass.
  template <class T, class Stored>
  void set_tangents(const Operands& tangents, AttentionCall<T, Stored>& c) const {
    c.tangent_query = sum<Stored>(tangents, At::query_edge),
    c.tangent_key = sum<Stored>(tangents, At::key_edge);
    c.tangent_value = sum<Stored>(tangents, At::value_edge);
    c.tangent_query_on_edge = node_rows<T>(tangents[At::query_on_edge]);
    c.tangent_vector = maybe_data<T>(tangents[At::vector]);
    c.tangent_edge = maybe_rows<Stored>(tangents[At::edge]);
    c.tangent_bias = scalar<T>(tangents[At::bias]),
    c.tangent_score_scale = scalar<T>(tangents[At::score_scale]);
    c.tangent_envelope = scalar<T>(tangents[At::envelope]),
    c.tangent_gate = scalar<T>(tangents[At::gate]);
  }

  // Rows contiguous. Scalars per edge and head have strides of their own.
  static void make_contiguous(Operands& tensors) {
    for (int n = 0; n < At::bias; ++n)
      tensors[n] =
          n == At::query_on_edge ? with_contiguous_rows(tensors[n]) : contiguous(tensors[n]);
  }
  // NodeRows may lie anywhere, but their elements beside one another.
  static Optional with_contiguous_rows(const Optional& t) {
    return t.has_value() && t->stride(2) == 1 ? t : contiguous(t);
  }

  // Of the parts that begin with `first`.
  template <class Stored>
  EdgeSum<Stored> sum(const Operands& from, int first) const {
    EdgeSum<Stored> s{};
    for (int row_of = 0; row_of < 3; ++row_of)
      s.part[row_of] = maybe_rows<Stored>(from[first + row_of]);
    s.width = width(first);
    return s;
  }
  template <class T>
  static EdgeScalar<T> scalar(const Optional& t) {
    if (!t.has_value()) return {};
    return {t->const_data_ptr<T>(), t->stride(0), t->stride(1)};
  }
  template <class T>
  static NodeRows<T> node_rows(const Optional& t) {
    if (!t.has_value()) return {};
    return {t->const_data_ptr<T>(), t->stride(0), t->stride(1)};
  }
};

// Not a list: torch's batched gradients take ops apart that return so many tensors, but none that
// returns a list.
template <size_t count>
using Tensors = decltype(std::tuple_cat(std::declval<std::array<Tensor, count>>()));

template <size_t count>
Tensors<count> as_tuple(const std::vector<Tensor>& tensors) {
  return [&]<size_t... n>(std::index_sequence<n...>) {
    return Tensors<count>(tensors[n]...);
  }(std::make_index_sequence<count>{});
}

// The gradients of a backward pass's results as the kernels read them.
struct AttentionGradients {
  using At = AttentionResult;
  std::array<Optional, At::count> grad;
  Tensor lse;  // of the forward pass

  AttentionGradients(const std::array<Optional, At::count>& given, const Tensor& lse_)
      : grad(given), lse(torch::stable::contiguous(lse_)) {
    for (int n = 0; n < At::count; ++n)
      grad[n] = n == At::out_on_edge ? AttentionOnTensors::with_contiguous_rows(grad[n])
                                     : contiguous(grad[n]);
  }
  template <class T, class Stored>
  void set(AttentionCall<T, Stored>& call) const {
    call.lse_before = lse.const_data_ptr<T>();
    call.grad_out = maybe_rows<Stored>(grad[At::out]);
    call.grad_out_on_edge = AttentionOnTensors::node_rows<T>(grad[At::out_on_edge]);
    call.grad_lse = maybe_data<T>(grad[At::lse]);
    call.grad_weights = maybe_data<T>(grad[At::weights]);
    call.grad_logits = maybe_data<T>(grad[At::logits]);
  }
};

template <class Launch>
struct AttentionOps {
  using Operands = AttentionOperand;
  using Results = AttentionResult;
  static constexpr size_t kSecondResults = size_t{Results::count} + size_t{Operands::count};

  // What is not wanted is empty.
  static Tensors<Results::count> forward(const GraphAttentionArguments& given) {
    AttentionOnTensors args(given);
    const typename Launch::Guard guard(args.any().get_device_index());
    const ScalarType stored = readable(args);
    const Tensor like = args.any();
    std::vector<Tensor> results;
    for (int n = 0; n < Results::count; ++n) {
      const bool is_wanted = n == Results::out_on_edge ? given.wanted & want_out_on_edge
                             : n == Results::weights   ? given.wanted & want_weights
                             : n == Results::logits    ? given.wanted & want_logits
                                                       : true;
      results.push_back(new_result(args, like, n, is_wanted));
    }
    dispatch(args, "graph_attention", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      AttentionCall<T, Stored> call = args.template call<T, Stored>();
      call.out = new_rows<Stored>(results[Results::out]);
      call.lse = results[Results::lse].mutable_data_ptr<T>();
      if (given.wanted & want_out_on_edge)
        call.out_on_edge = results[Results::out_on_edge].mutable_data_ptr<T>();
      if (given.wanted & want_weights) call.w = results[Results::weights].mutable_data_ptr<T>();
      if (given.wanted & want_logits) call.logits = results[Results::logits].mutable_data_ptr<T>();
      Launch::forward(call, like);
    });
    results[Results::out] = converted(results[Results::out], stored);
    return as_tuple<Results::count>(results);
  }

  // Gradients of the operands; those that are not wanted are empty.
  static Tensors<Operands::count> backward(const GraphAttentionBackwardArguments& given) {
    AttentionOnTensors args(given);
    const typename Launch::Guard guard(args.any().get_device_index());
    AttentionGradients gradients(given.gradients, given.lse);
    const ScalarType stored = readable(args, {&gradients.grad[Results::out]});
    const Tensor like = args.any();
    std::vector<Tensor> found = new_gradients(args, like, given.wanted);
    dispatch(args, "graph_attention_backward", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      AttentionCall<T, Stored> call = args.template call<T, Stored>();
      gradients.set(call);
      Kept kept;
      set_gradients(args, like, given.wanted, found, call, kept);
      if (call.grad_value[row_of_sender]) call.w = new_scalars<T>(args, like, kept.scalars);
      Launch::backward(call, like);
      if (given.wanted >> Operands::vector & 1)
        found[Operands::vector] = Launch::sum_chunks(kept.vector_chunks);
    });
    for (int n = 0; n < Operands::count; ++n)
      if (AttentionOnTensors::is_stored(n)) found[n] = converted(found[n], stored);
    return as_tuple<Operands::count>(found);
  }

  // Gradients of the gradients (whose bits come after the operands'), then those of the operands.
  static Tensors<kSecondResults> double_backward(
      const GraphAttentionDoubleBackwardArguments& given) {
    AttentionOnTensors args(given);
    const typename Launch::Guard guard(args.any().get_device_index());
    AttentionOnTensors::Operands tangents = given.tangents;
    AttentionOnTensors::make_contiguous(tangents);
    AttentionGradients gradients(given.gradients, given.lse);
    const ScalarType stored = readable(args, {&gradients.grad[Results::out]});
    if (stored != args.stored()) AttentionOnTensors::widen_all(tangents);
    const Tensor like = args.any();
    auto is_wanted = [&](int n) { return given.wanted >> (Operands::count + n) & 1; };
    std::vector<Tensor> results;
    for (int n = 0; n < Results::count; ++n)
      results.push_back(new_result(args, like, n, is_wanted(n)));
    std::vector<Tensor> found = new_gradients(args, like, given.wanted);
    dispatch(args, "graph_attention_double_backward", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      AttentionCall<T, Stored> call = args.template call<T, Stored>();
      args.set_tangents(tangents, call);
      gradients.set(call);
      auto to = [&](int n) {
        return is_wanted(n) ? Maybe<T>(results[n].mutable_data_ptr<T>()) : Maybe<T>();
      };
      if (is_wanted(Results::out)) call.grad_grad_out = new_rows<Stored>(results[Results::out]);
      call.grad_grad_out_on_edge = to(Results::out_on_edge);
      call.grad_grad_lse = to(Results::lse);
      call.grad_grad_weights = to(Results::weights), call.grad_grad_logits = to(Results::logits);
      Kept kept;
      set_gradients(args, like, given.wanted, found, call, kept);
      if (call.grad_z) call.grad_tangent_z = new_scalars<T>(args, like, kept.scalars);
      if (call.grad_value[row_of_sender]) call.tangent_w = new_scalars<T>(args, like, kept.scalars);
      Launch::double_backward(call, like);
      if (given.wanted >> Operands::vector & 1)
        found[Operands::vector] = Launch::sum_chunks(kept.vector_chunks);
    });
    results[Results::out] = converted(results[Results::out], stored);
    for (int n = 0; n < Operands::count; ++n)
      results.push_back(AttentionOnTensors::is_stored(n) ? converted(found[n], stored) : found[n]);
    return as_tuple<kSecondResults>(results);
  }

 private:
  // What one pass leaves for the next.
  struct Kept {
    std::vector<Tensor> scalars;
    Tensor vector_chunks;  // of the gradient of the vector
  };

  // Widens what the launcher does not read; the type that results are given in.
  static ScalarType readable(AttentionOnTensors& args, std::initializer_list<Optional*> more = {}) {
    const ScalarType stored = args.stored();
    if (!reads<Launch>(stored)) {
      AttentionOnTensors::widen_all(args.operands);
      for (Optional* t : more) widen(*t);
    }
    return stored;
  }
  // One of the results, or the gradient of its gradient.
  static Tensor new_result(const AttentionOnTensors& args, const Tensor& like, int n,
                           bool is_wanted) {
    const int64_t rows = args.num_receivers(), edges = args.edges(), heads = args.heads();
    std::vector<int64_t> sizes{0};
    if (is_wanted && n == Results::out) sizes = {rows, heads, args.value_width()};
    if (is_wanted && n == Results::out_on_edge) sizes = {rows, heads, args.features()};
    if (is_wanted && n == Results::lse) sizes = {rows, heads};
    if (is_wanted && (n == Results::weights || n == Results::logits)) sizes = {edges, heads};
    return Launch::new_result(like, sizes, n == Results::out ? args.stored() : args.compute());
  }
  template <class F>
  static void dispatch(const AttentionOnTensors& args, const char* op, F&& f) {
    dispatch_stored<Launch>(args.stored(), op, f);
  }

  static std::vector<Tensor> new_gradients(const AttentionOnTensors& args, const Tensor& like,
                                           int64_t wanted) {
    std::vector<Tensor> gradients;
    for (int n = 0; n < Operands::count; ++n) {
      const ScalarType type = AttentionOnTensors::is_stored(n) ? args.stored() : args.compute();
      gradients.push_back(Launch::new_result(
          like, wanted >> n & 1 ? args.shape(n) : std::vector<int64_t>{0}, type));
    }
    return gradients;
  }

  // Where gradients go, and what the first pass leaves for the second: `kept` must live that long.
  template <class T, class Stored>
  static void set_gradients(const AttentionOnTensors& args, const Tensor& like, int64_t wanted,
                            const std::vector<Tensor>& gradients, AttentionCall<T, Stored>& call,
                            Kept& kept) {
    auto to = [&](int n) {
      return wanted >> n & 1 ? Maybe<T>(gradients[n].template mutable_data_ptr<T>()) : Maybe<T>();
    };
    auto to_rows = [&](int n) {
      return wanted >> n & 1 ? Maybe<Stored>(new_rows<Stored>(gradients[n])) : Maybe<Stored>();
    };
    for (int row_of = 0; row_of < 3; ++row_of) {
      call.grad_query[row_of] = to_rows(Operands::query_edge + row_of);
      call.grad_key[row_of] = to_rows(Operands::key_edge + row_of);
      call.grad_value[row_of] = to_rows(Operands::value_edge + row_of);
    }
    call.grad_query_on_edge = to(Operands::query_on_edge);
    call.grad_edge = to_rows(Operands::edge);
    call.grad_bias = to(Operands::bias), call.grad_score_scale = to(Operands::score_scale);
    call.grad_envelope = to(Operands::envelope), call.grad_gate = to(Operands::gate);
    if (call.grad_query[row_of_sender] || call.grad_key[row_of_sender])
      call.grad_z = new_scalars<T>(args, like, kept.scalars);
    if (wanted >> Operands::vector & 1) {
      kept.vector_chunks = torch::stable::new_zeros(
          like, {kChunks, args.heads(), args.query_width()}, args.compute());
      call.grad_vector = kept.vector_chunks.template mutable_data_ptr<T>();
    }
  }
  template <class T>
  static T* new_scalars(const AttentionOnTensors& args, const Tensor& like,
                        std::vector<Tensor>& kept) {
    kept.push_back(Launch::new_result(like, {args.edges(), args.heads()}, args.compute()));
    return kept.back().template mutable_data_ptr<T>();
  }
};

}  // namespace hamfast
