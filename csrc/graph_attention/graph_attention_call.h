// The ops on tensors, for any launcher: Launch::forward, backward and double_backward (call, a tensor of the call's
// device), Launch::new_result and sum_parts, and Launch::reads_half. Rows of half precision that a launcher does
// not read are converted before it, and its results after it; numbers per edge and head, and rows that meet the edges'
// features, are never of half precision.
#pragma once

#include <array>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "common/balance.h"
#include "common/stored_rows.h"
#include "graph_attention.cuh"

namespace hamfast {

using Optional = std::optional<Tensor>;

// What every op takes after its own arguments, in the order of the schema.
#define HAMFAST_ATTENTION_PARAMETERS                                                                                  \
  Optional query_edge, Optional query_sender, Optional query_receiver, Optional key_edge, Optional key_sender,        \
      Optional key_receiver, Optional value_edge, Optional value_sender, Optional value_receiver,                     \
      Optional query_on_edge, Optional edge, Optional vector, Optional bias, Optional score_scale, Optional envelope, \
      Optional gate, Optional seed, Tensor senders, Tensor sender_order, Tensor sender_ptr, Tensor receivers,         \
      Tensor receiver_order, Tensor receiver_ptr, std::vector<int64_t> kinds, std::vector<double> numbers,            \
      int64_t wanted
#define HAMFAST_ATTENTION_DIRECTIONS                                                                          \
  Optional dot_query_edge, Optional dot_query_sender, Optional dot_query_receiver, Optional dot_key_edge,     \
      Optional dot_key_sender, Optional dot_key_receiver, Optional dot_value_edge, Optional dot_value_sender, \
      Optional dot_value_receiver, Optional dot_query_on_edge, Optional dot_edge, Optional dot_vector,        \
      Optional dot_bias, Optional dot_score_scale, Optional dot_envelope, Optional dot_gate
#define HAMFAST_ATTENTION_ARGUMENTS                                                                             \
  {query_edge,     query_sender,  query_receiver, key_edge, key_sender, key_receiver, value_edge, value_sender, \
   value_receiver, query_on_edge, edge,           vector,   bias,       score_scale,  envelope,   gate},        \
      seed, {senders, sender_order, sender_ptr, receivers, receiver_order, receiver_ptr}, kinds, numbers

struct AttentionArguments {
  // Operands in the order of the schema.
  enum { query = 0, key = 3, value = 6, on_edge = 9, edge = 10, vector = 11, bias = 12, count = 16 };

  std::array<Optional, count> operand;
  Optional seed;
  std::array<Tensor, 6> graph;  // senders, order, ptr; receivers, order, ptr
  std::vector<int64_t> kinds;   // heads, score, activation, weight
  std::vector<double> numbers;  // slope, scale, clip, epsilon, dropout

  AttentionArguments(std::array<Optional, count> operand_, Optional seed_, std::array<Tensor, 6> graph_,
                     std::vector<int64_t> kinds_, std::vector<double> numbers_)
      : operand(std::move(operand_)), seed(seed_), graph(graph_), kinds(kinds_), numbers(numbers_) {
    make_contiguous(operand);
    for (Tensor& t : graph) t = torch::stable::contiguous(t);
  }

  int64_t edges() const { return graph[0].numel(); }
  int64_t num_senders() const { return graph[2].numel() - 1; }
  int64_t num_receivers() const { return graph[5].numel() - 1; }
  int64_t heads() const { return kinds[0]; }
  int64_t features() const { return operand[edge].has_value() ? operand[edge]->size(1) : 0; }
  // Of query (and key) or value: 0 if no part is given.
  int64_t width(int first) const {
    for (int n = first; n < first + 3; ++n)
      if (operand[n].has_value()) return operand[n]->size(2);
    return 0;
  }
  const Tensor& any() const {
    for (const Optional& t : operand)
      if (t.has_value()) return *t;
    STD_TORCH_CHECK(false, "graph_attention: expected at least one operand");
  }
  // Is it made of rows that may be stored in half precision?
  static bool is_stored(int n) { return n < on_edge || n == edge; }
  ScalarType stored() const {
    for (int n = 0; n < count; ++n)
      if (is_stored(n) && operand[n].has_value()) return operand[n]->scalar_type();
    return any().scalar_type();
  }
  // Of operand n, and of its gradient.
  ScalarType type(int n) const { return is_stored(n) || !is_half(stored()) ? stored() : ScalarType::Float; }
  ScalarType number_type() const { return type(bias); }
  static void widen_all(std::array<Optional, count>& tensors) {
    for (Optional& t : tensors) widen(t);
  }
  // Shape of an operand's gradient.
  std::vector<int64_t> shape(int n) const {
    const int64_t rows[3] = {edges(), num_senders(), num_receivers()};
    if (n < on_edge) return {rows[n % 3], heads(), width(n / 3 * 3)};
    if (n == on_edge) return {num_receivers(), heads(), features()};
    if (n == edge) return {edges(), features()};
    if (n == vector) return {heads(), width(query)};
    return {edges(), heads()};
  }

  template <class T, class Stored>
  AttentionCall<T, Stored> call() const {
    AttentionCall<T, Stored> c{};
    c.query = sum<Stored>(operand, query), c.key = sum<Stored>(operand, key), c.value = sum<Stored>(operand, value);
    c.query_on_edge = node_rows<T>(operand[on_edge]);
    c.edge = maybe_rows<Stored>(operand[edge]);
    c.features = features();
    c.vector = maybe_data<T>(operand[vector]).data;
    c.bias = scalar<T>(operand[bias]), c.score_scale = scalar<T>(operand[bias + 1]);
    c.envelope = scalar<T>(operand[bias + 2]), c.gate = scalar<T>(operand[bias + 3]);
    c.senders = graph[0].const_data_ptr<int64_t>();
    c.sender_order = graph[1].const_data_ptr<int64_t>();
    c.sender_ptr = graph[2].const_data_ptr<int64_t>();
    c.receivers = graph[3].const_data_ptr<int64_t>();
    c.receiver_order = graph[4].const_data_ptr<int64_t>();
    c.receiver_ptr = graph[5].const_data_ptr<int64_t>();
    c.heads = heads(), c.edges = edges(), c.num_senders = num_senders(), c.num_receivers = num_receivers();
    c.score = kinds[1], c.activation = kinds[2], c.weight = kinds[3];
    c.slope = T(numbers[0]), c.scale = T(numbers[1]), c.clip = T(numbers[2]), c.epsilon = T(numbers[3]);
    c.seed = maybe_data<int64_t>(seed);
    c.dropout = numbers[4];
    return c;
  }

  template <class T, class Stored>
  void set_directions(const std::array<Optional, count>& direction, AttentionCall<T, Stored>& c) const {
    c.query_dot = sum<Stored>(direction, query), c.key_dot = sum<Stored>(direction, key);
    c.value_dot = sum<Stored>(direction, value);
    c.query_on_edge_dot = node_rows<T>(direction[on_edge]);
    c.vector_dot = maybe_data<T>(direction[vector]);
    c.edge_dot = maybe_rows<Stored>(direction[edge]);
    c.bias_dot = scalar<T>(direction[bias]), c.score_scale_dot = scalar<T>(direction[bias + 1]);
    c.envelope_dot = scalar<T>(direction[bias + 2]), c.gate_dot = scalar<T>(direction[bias + 3]);
  }

  // As the kernels read them.
  static void make_contiguous(std::array<Optional, count>& tensors) {
    for (int n = 0; n < bias; ++n)
      tensors[n] = n == on_edge ? with_contiguous_rows(tensors[n]) : contiguous(tensors[n]);
  }
  // NodeRows may lie anywhere, but not their elements.
  static Optional with_contiguous_rows(const Optional& t) {
    return t.has_value() && t->stride(2) == 1 ? t : contiguous(t);
  }

  template <class Stored>
  EdgeSum<Stored> sum(const std::array<Optional, count>& from, int first) const {
    EdgeSum<Stored> s{};
    for (int p = 0; p < 3; ++p) s.part[p] = maybe_rows<Stored>(from[first + p]);
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

// Not a list: torch's batched gradients take ops apart that return so many tensors, but none that returns a list.
template <size_t count>
using Tensors = decltype(std::tuple_cat(std::declval<std::array<Tensor, count>>()));

template <size_t count>
Tensors<count> as_tuple(const std::vector<Tensor>& tensors) {
  return [&]<size_t... n>(std::index_sequence<n...>) {
    return Tensors<count>(tensors[n]...);
  }(std::make_index_sequence<count>{});
}

template <class Launch>
struct AttentionOps {
  using Args = AttentionArguments;
  enum { want_weights = 1, want_logits = 2, want_on_edge = 4 };

  // out, out_on_edge, lse, weights, logits; what is not wanted is empty. `edge_key_weight`: what the query on the
  // edges' features was made with; read by the backward pass alone.
  static Tensors<5> forward(Optional edge_key_weight, HAMFAST_ATTENTION_PARAMETERS) {
    Args args(HAMFAST_ATTENTION_ARGUMENTS);
    const typename Launch::Guard guard(args.any().get_device_index());
    const ScalarType stored = readable(args);
    const Tensor like = args.any();
    auto made = [&](bool is_wanted, std::vector<int64_t> sizes, ScalarType type) {
      return Launch::new_result(like, is_wanted ? sizes : std::vector<int64_t>{0}, type);
    };
    const int64_t rows = args.num_receivers(), heads = args.heads();
    const ScalarType number = args.number_type();
    std::vector<Tensor> out{made(true, {rows, heads, args.width(Args::value)}, args.stored()),
                            made(wanted & want_on_edge, {rows, heads, args.features()}, number),
                            made(true, {rows, heads}, number),
                            made(wanted & want_weights, {args.edges(), heads}, number),
                            made(wanted & want_logits, {args.edges(), heads}, number)};
    dispatch(args, "graph_attention", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      AttentionCall<T, Stored> call = args.template call<T, Stored>();
      call.out = new_rows<Stored>(out[0]);
      if (wanted & want_on_edge) call.out_on_edge = out[1].mutable_data_ptr<T>();
      call.lse = out[2].mutable_data_ptr<T>();
      if (wanted & want_weights) call.weights = out[3].mutable_data_ptr<T>();
      if (wanted & want_logits) call.logits = out[4].mutable_data_ptr<T>();
      Launch::forward(call, like);
    });
    out[0] = converted(out[0], stored);
    return as_tuple<5>(out);
  }

  // Gradients of the operands in the order of the schema, those whose bit is set in `wanted`; the others are empty.
  static Tensors<Args::count> backward(Optional grad_out, Optional grad_on_edge, Optional grad_lse,
                                       Optional grad_weights, Optional grad_logits, Tensor lse_any,
                                       HAMFAST_ATTENTION_PARAMETERS) {
    Args args(HAMFAST_ATTENTION_ARGUMENTS);
    const typename Launch::Guard guard(args.any().get_device_index());
    const ScalarType stored = readable(args, {&grad_out});
    const Tensor like = args.any();
    const Tensor lse = torch::stable::contiguous(lse_any);
    const Optional g = contiguous(grad_out), g_lse = contiguous(grad_lse), g_weights = contiguous(grad_weights),
                   g_logits = contiguous(grad_logits);
    grad_on_edge = Args::with_contiguous_rows(grad_on_edge);
    std::vector<Tensor> gradient = new_gradients(args, like, wanted);
    dispatch(args, "graph_attention_backward", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      AttentionCall<T, Stored> call = args.template call<T, Stored>();
      call.lse_before = lse.const_data_ptr<T>();
      call.grad_out = maybe_rows<Stored>(g);
      call.grad_on_edge = Args::node_rows<T>(grad_on_edge);
      call.grad_lse = maybe_data<T>(g_lse);
      call.grad_weights = maybe_data<T>(g_weights);
      call.grad_logits = maybe_data<T>(g_logits);
      std::vector<Tensor> kept = set_gradients(args, like, wanted, gradient, call);
      Launch::backward(call, like);
      if (wanted >> Args::vector & 1) gradient[Args::vector] = Launch::sum_parts(kept.back());
    });
    for (int n = 0; n < Args::count; ++n)
      if (Args::is_stored(n)) gradient[n] = converted(gradient[n], stored);
    return as_tuple<Args::count>(gradient);
  }

  // Gradients of the five gradients (from bit 16 of `wanted`), then those of the operands, of the backward pass along
  // directions of its results.
  static Tensors<5 + Args::count> double_backward(HAMFAST_ATTENTION_DIRECTIONS, Optional grad_out,
                                                  Optional grad_on_edge, Optional grad_lse, Optional grad_weights,
                                                  Optional grad_logits, Tensor lse_any, HAMFAST_ATTENTION_PARAMETERS) {
    Args args(HAMFAST_ATTENTION_ARGUMENTS);
    const typename Launch::Guard guard(args.any().get_device_index());
    std::array<Optional, Args::count> direction{
        dot_query_edge, dot_query_sender, dot_query_receiver, dot_key_edge,      dot_key_sender, dot_key_receiver,
        dot_value_edge, dot_value_sender, dot_value_receiver, dot_query_on_edge, dot_edge,       dot_vector,
        dot_bias,       dot_score_scale,  dot_envelope,       dot_gate};
    Args::make_contiguous(direction);
    const ScalarType stored = readable(args, {&grad_out});
    if (stored != args.stored()) Args::widen_all(direction);
    const Tensor like = args.any();
    const Tensor lse = torch::stable::contiguous(lse_any);
    const Optional g = contiguous(grad_out), g_lse = contiguous(grad_lse), g_weights = contiguous(grad_weights),
                   g_logits = contiguous(grad_logits);
    grad_on_edge = Args::with_contiguous_rows(grad_on_edge);
    const int64_t rows = args.num_receivers(), heads = args.heads();
    const std::vector<int64_t> shapes[5] = {{rows, heads, args.width(Args::value)},
                                            {rows, heads, args.features()},
                                            {rows, heads},
                                            {args.edges(), heads},
                                            {args.edges(), heads}};
    std::vector<Tensor> result;
    for (int n = 0; n < 5; ++n)
      result.push_back(Launch::new_result(like, wanted >> (Args::count + n) & 1 ? shapes[n] : std::vector<int64_t>{0},
                                          n == 0 ? args.stored() : args.number_type()));
    const std::vector<Tensor> gradient = new_gradients(args, like, wanted);
    result.insert(result.end(), gradient.begin(), gradient.end());
    dispatch(args, "graph_attention_double_backward", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      AttentionCall<T, Stored> call = args.template call<T, Stored>();
      args.set_directions(direction, call);
      call.lse_before = lse.const_data_ptr<T>();
      call.grad_out = maybe_rows<Stored>(g);
      call.grad_on_edge = Args::node_rows<T>(grad_on_edge);
      call.grad_lse = maybe_data<T>(g_lse);
      call.grad_weights = maybe_data<T>(g_weights);
      call.grad_logits = maybe_data<T>(g_logits);
      auto is_wanted = [&](int n) { return wanted >> (Args::count + n) & 1; };
      if (is_wanted(0)) call.to_grad_out = new_rows<Stored>(result[0]);
      if (is_wanted(1)) call.to_grad_on_edge = result[1].mutable_data_ptr<T>();
      if (is_wanted(2)) call.to_grad_lse = result[2].mutable_data_ptr<T>();
      if (is_wanted(3)) call.to_grad_weights = result[3].mutable_data_ptr<T>();
      if (is_wanted(4)) call.to_grad_logits = result[4].mutable_data_ptr<T>();
      std::vector<Tensor> kept = set_gradients(args, like, wanted, gradient, call);
      Tensor along;
      if (call.d_score) {
        along = Launch::new_result(like, {args.edges(), heads}, args.number_type());
        call.d_score_dot = along.mutable_data_ptr<T>();
      }
      Launch::double_backward(call, like);
      if (wanted >> Args::vector & 1) result[5 + Args::vector] = Launch::sum_parts(kept.back());
    });
    result[0] = converted(result[0], stored);
    for (int n = 0; n < Args::count; ++n)
      if (Args::is_stored(n)) result[5 + n] = converted(result[5 + n], stored);
    return as_tuple<5 + Args::count>(result);
  }

 private:
  // Widens what the launcher does not read; the type that results are given in.
  static ScalarType readable(Args& args, std::initializer_list<Optional*> more = {}) {
    const ScalarType stored = args.stored();
    if (!reads<Launch>(stored)) {
      Args::widen_all(args.operand);
      for (Optional* t : more) widen(*t);
    }
    return stored;
  }
  template <class F>
  static void dispatch(const Args& args, const char* op, F&& f) {
    dispatch_stored<Launch>(args.stored(), op, f);
  }

  static std::vector<Tensor> new_gradients(const Args& args, const Tensor& like, int64_t wanted) {
    std::vector<Tensor> gradient;
    for (int n = 0; n < Args::count; ++n)
      gradient.push_back(
          Launch::new_result(like, wanted >> n & 1 ? args.shape(n) : std::vector<int64_t>{0}, args.type(n)));
    return gradient;
  }

  // Where gradients go, and what the first pass leaves for the second: the tensors returned must live that long.
  template <class T, class Stored>
  static std::vector<Tensor> set_gradients(const Args& args, const Tensor& like, int64_t wanted,
                                           const std::vector<Tensor>& gradient, AttentionCall<T, Stored>& call) {
    auto to = [&](int n) {
      return wanted >> n & 1 ? Maybe<T>(gradient[n].template mutable_data_ptr<T>()) : Maybe<T>();
    };
    auto to_rows = [&](int n) {
      return wanted >> n & 1 ? Maybe<Stored>(new_rows<Stored>(gradient[n])) : Maybe<Stored>();
    };
    for (int p = 0; p < 3; ++p) {
      call.d_query[p] = to_rows(Args::query + p);
      call.d_key[p] = to_rows(Args::key + p);
      call.d_value[p] = to_rows(Args::value + p);
    }
    call.d_query_on_edge = to(Args::on_edge);
    call.d_edge = to_rows(Args::edge);
    call.d_bias = to(Args::bias), call.d_score_scale = to(Args::bias + 1);
    call.d_envelope = to(Args::bias + 2), call.d_gate = to(Args::bias + 3);
    std::vector<Tensor> kept;
    auto numbers_per_edge = [&] {
      kept.push_back(Launch::new_result(like, {args.edges(), args.heads()}, args.number_type()));
      return kept.back().template mutable_data_ptr<T>();
    };
    if (call.d_query[part_sender] || call.d_key[part_sender]) call.d_score = numbers_per_edge();
    if (call.d_value[part_sender]) call.kept_weight = numbers_per_edge();
    if (wanted >> Args::vector & 1) {
      kept.push_back(
          torch::stable::new_zeros(like, {kParts, args.heads(), args.width(Args::query)}, args.number_type()));
      call.d_vector = kept.back().template mutable_data_ptr<T>();
    }
    return kept;
  }
};

}  // namespace hamfast
