// The ops on tensors, for any launcher: Launch::forward, backward and double_backward (call, a tensor of the call's
// device and dtype), and Launch::new_result.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "common/balance.h"
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
  // Shape of an operand's gradient.
  std::vector<int64_t> shape(int n) const {
    const int64_t rows[3] = {edges(), num_senders(), num_receivers()};
    if (n < on_edge) return {rows[n % 3], heads(), width(n / 3 * 3)};
    if (n == on_edge) return {num_receivers(), heads(), features()};
    if (n == edge) return {edges(), features()};
    if (n == vector) return {heads(), width(query)};
    return {edges(), heads()};
  }

  template <class T>
  AttentionCall<T> call() const {
    AttentionCall<T> c{};
    c.query = sum<T>(operand, query), c.key = sum<T>(operand, key), c.value = sum<T>(operand, value);
    c.query_on_edge = node_rows<T>(operand[on_edge]);
    c.edge = data_or_null<T>(operand[edge]);
    c.features = features();
    c.vector = data_or_null<T>(operand[vector]);
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
    c.seed = data_or_null<int64_t>(seed);
    c.dropout = numbers[4];
    return c;
  }

  template <class T>
  void set_directions(const std::array<Optional, count>& direction, AttentionCall<T>& c) const {
    c.query_dot = sum<T>(direction, query), c.key_dot = sum<T>(direction, key);
    c.value_dot = sum<T>(direction, value);
    c.query_on_edge_dot = node_rows<T>(direction[on_edge]);
    c.edge_dot = data_or_null<T>(direction[edge]);
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

  template <class T>
  EdgeSum<T> sum(const std::array<Optional, count>& from, int first) const {
    EdgeSum<T> s{};
    for (int p = 0; p < 3; ++p) s.part[p] = data_or_null<T>(from[first + p]);
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

template <class Launch>
struct AttentionOps {
  enum { want_weights = 1, want_logits = 2, want_on_edge = 4 };

  // out, out_on_edge, lse, weights, logits; what is not wanted is empty. `edge_key_weight`: what the query on the
  // edges' features was made with; read by the backward pass alone.
  static std::vector<Tensor> forward(Optional edge_key_weight, HAMFAST_ATTENTION_PARAMETERS) {
    const AttentionArguments args(HAMFAST_ATTENTION_ARGUMENTS);
    const Tensor& like = args.any();
    const typename Launch::Guard guard(like.get_device_index());
    auto made = [&](bool is_wanted, std::vector<int64_t> sizes) {
      return Launch::new_result(like, is_wanted ? sizes : std::vector<int64_t>{0});
    };
    const int64_t rows = args.num_receivers(), heads = args.heads();
    std::vector<Tensor> out{made(true, {rows, heads, args.width(AttentionArguments::value)}),
                            made(wanted & want_on_edge, {rows, heads, args.features()}), made(true, {rows, heads}),
                            made(wanted & want_weights, {args.edges(), heads}),
                            made(wanted & want_logits, {args.edges(), heads})};
    dispatch_real(like.scalar_type(), "graph_attention", [&](auto zero) {
      using T = decltype(zero);
      AttentionCall<T> call = args.call<T>();
      call.out = out[0].mutable_data_ptr<T>();
      if (wanted & want_on_edge) call.out_on_edge = out[1].mutable_data_ptr<T>();
      call.lse = out[2].mutable_data_ptr<T>();
      if (wanted & want_weights) call.weights = out[3].mutable_data_ptr<T>();
      if (wanted & want_logits) call.logits = out[4].mutable_data_ptr<T>();
      Launch::forward(call, like);
    });
    return out;
  }

  // Gradients of the operands in the order of the schema, those whose bit is set in `wanted`; the others are empty.
  static std::vector<Tensor> backward(Optional grad_out, Optional grad_on_edge, Optional grad_lse,
                                      Optional grad_weights, Optional grad_logits, Tensor lse_any,
                                      HAMFAST_ATTENTION_PARAMETERS) {
    using Args = AttentionArguments;
    const Args args(HAMFAST_ATTENTION_ARGUMENTS);
    const Tensor& like = args.any();
    const typename Launch::Guard guard(like.get_device_index());
    const Tensor lse = torch::stable::contiguous(lse_any);
    const Optional g = contiguous(grad_out), g_lse = contiguous(grad_lse), g_weights = contiguous(grad_weights),
                   g_logits = contiguous(grad_logits);
    grad_on_edge = Args::with_contiguous_rows(grad_on_edge);
    std::vector<Tensor> gradient = new_gradients(args, like, wanted);
    dispatch_real(like.scalar_type(), "graph_attention_backward", [&](auto zero) {
      using T = decltype(zero);
      AttentionCall<T> call = args.call<T>();
      call.lse_before = lse.const_data_ptr<T>();
      call.grad_out = data_or_null<T>(g);
      call.grad_on_edge = Args::node_rows<T>(grad_on_edge);
      call.grad_lse = data_or_null<T>(g_lse);
      call.grad_weights = data_or_null<T>(g_weights);
      call.grad_logits = data_or_null<T>(g_logits);
      std::vector<Tensor> kept = set_gradients(args, like, wanted, gradient, call);
      Launch::backward(call, like);
      if (wanted >> Args::vector & 1) {
        const int64_t parts_axis = 0;
        gradient[Args::vector] =
            torch::stable::sum(kept.back(), torch::headeronly::IntHeaderOnlyArrayRef(&parts_axis, 1));
      }
    });
    return gradient;
  }

  // Gradients of grad_out, grad_on_edge and grad_weights (bits 16 to 18 of `wanted`), then those of the operands, of
  // the backward pass along directions of its results.
  static std::vector<Tensor> double_backward(HAMFAST_ATTENTION_DIRECTIONS, Optional grad_out, Optional grad_on_edge,
                                             Optional grad_weights, Tensor lse_any, HAMFAST_ATTENTION_PARAMETERS) {
    using Args = AttentionArguments;
    const Args args(HAMFAST_ATTENTION_ARGUMENTS);
    const Tensor& like = args.any();
    const typename Launch::Guard guard(like.get_device_index());
    std::array<Optional, Args::count> direction{
        dot_query_edge, dot_query_sender, dot_query_receiver, dot_key_edge,      dot_key_sender, dot_key_receiver,
        dot_value_edge, dot_value_sender, dot_value_receiver, dot_query_on_edge, dot_edge,       dot_vector,
        dot_bias,       dot_score_scale,  dot_envelope,       dot_gate};
    Args::make_contiguous(direction);
    const Tensor lse = torch::stable::contiguous(lse_any);
    const Optional g = contiguous(grad_out), g_weights = contiguous(grad_weights);
    grad_on_edge = Args::with_contiguous_rows(grad_on_edge);
    const int64_t rows = args.num_receivers(), heads = args.heads();
    const std::vector<int64_t> shapes[3] = {
        {rows, heads, args.width(Args::value)}, {rows, heads, args.features()}, {args.edges(), heads}};
    std::vector<Tensor> result;
    for (int n = 0; n < 3; ++n)
      result.push_back(Launch::new_result(like, wanted >> (Args::count + n) & 1 ? shapes[n] : std::vector<int64_t>{0}));
    const std::vector<Tensor> gradient = new_gradients(args, like, wanted);
    result.insert(result.end(), gradient.begin(), gradient.end());
    dispatch_real(like.scalar_type(), "graph_attention_double_backward", [&](auto zero) {
      using T = decltype(zero);
      AttentionCall<T> call = args.call<T>();
      args.set_directions<T>(direction, call);
      call.lse_before = lse.const_data_ptr<T>();
      call.grad_out = data_or_null<T>(g);
      call.grad_on_edge = Args::node_rows<T>(grad_on_edge);
      call.grad_weights = data_or_null<T>(g_weights);
      T** to[3] = {&call.to_grad_out, &call.to_grad_on_edge, &call.to_grad_weights};
      for (int n = 0; n < 3; ++n)
        if (wanted >> (Args::count + n) & 1) *to[n] = result[n].mutable_data_ptr<T>();
      std::vector<Tensor> kept = set_gradients(args, like, wanted, gradient, call);
      if (call.d_score) {
        kept.push_back(Launch::new_result(like, {args.edges(), heads}));
        call.d_score_dot = kept.back().mutable_data_ptr<T>();
      }
      Launch::double_backward(call, like);
    });
    return result;
  }

 private:
  static std::vector<Tensor> new_gradients(const AttentionArguments& args, const Tensor& like, int64_t wanted) {
    std::vector<Tensor> gradient;
    for (int n = 0; n < AttentionArguments::count; ++n)
      gradient.push_back(Launch::new_result(like, wanted >> n & 1 ? args.shape(n) : std::vector<int64_t>{0}));
    return gradient;
  }

  // Where gradients go, and what the first pass leaves for the second: the tensors returned must live that long.
  template <class T>
  static std::vector<Tensor> set_gradients(const AttentionArguments& args, const Tensor& like, int64_t wanted,
                                           const std::vector<Tensor>& gradient, AttentionCall<T>& call) {
    using Args = AttentionArguments;
    auto to = [&](int n) { return wanted >> n & 1 ? gradient[n].template mutable_data_ptr<T>() : nullptr; };
    for (int p = 0; p < 3; ++p) {
      call.d_query[p] = to(Args::query + p);
      call.d_key[p] = to(Args::key + p);
      call.d_value[p] = to(Args::value + p);
    }
    call.d_query_on_edge = to(Args::on_edge);
    call.d_edge = to(Args::edge);
    call.d_bias = to(Args::bias), call.d_score_scale = to(Args::bias + 1);
    call.d_envelope = to(Args::bias + 2), call.d_gate = to(Args::bias + 3);
    std::vector<Tensor> kept;
    auto numbers_per_edge = [&] {
      kept.push_back(Launch::new_result(like, {args.edges(), args.heads()}));
      return kept.back().template mutable_data_ptr<T>();
    };
    if (call.d_query[part_sender] || call.d_key[part_sender]) call.d_score = numbers_per_edge();
    if (call.d_value[part_sender]) call.kept_weight = numbers_per_edge();
    if (wanted >> Args::vector & 1) {
      kept.push_back(torch::stable::new_zeros(like, {kParts, args.heads(), args.width(Args::query)}));
      call.d_vector = kept.back().template mutable_data_ptr<T>();
    }
    return kept;
  }
};

}  // namespace hamfast
