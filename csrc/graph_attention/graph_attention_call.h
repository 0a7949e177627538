// The two ops on tensors, for any launcher: Launch::forward(call), Launch::backward(call, parts) and
// Launch::backward_senders(call), each with the device.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "common/balance.h"
#include "common/host_pool.h"
#include "graph_attention.cuh"

namespace hamfast {

using Optional = std::optional<Tensor>;

// What both ops take after their own arguments, in the order of the schema.
#define HAMFAST_ATTENTION_PARAMETERS                                                                                  \
  Optional query_edge, Optional query_sender, Optional query_receiver, Optional key_edge, Optional key_sender,        \
      Optional key_receiver, Optional value_edge, Optional value_sender, Optional value_receiver,                     \
      Optional query_on_edge, Optional edge, Optional vector, Optional bias, Optional score_scale, Optional envelope, \
      Optional gate, Optional seed, Tensor senders, Tensor sender_order, Tensor sender_ptr, Tensor receivers,         \
      Tensor receiver_order, Tensor receiver_ptr, std::vector<int64_t> kinds, std::vector<double> numbers,            \
      int64_t wanted
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
    for (int n = 0; n < bias; ++n)
      if (operand[n].has_value() && (n != on_edge || operand[n]->stride(2) != 1))
        operand[n] = torch::stable::contiguous(*operand[n]);
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
    auto sum = [&](int first) {
      EdgeSum<T> s{};
      for (int p = 0; p < 3; ++p) s.part[p] = data_or_null<T>(operand[first + p]);
      s.width = width(first);
      return s;
    };
    auto scalar = [&](int n) {
      const Optional& t = operand[n];
      if (!t.has_value()) return EdgeScalar<T>{};
      return EdgeScalar<T>{t->const_data_ptr<T>(), t->stride(0), t->stride(1)};
    };
    AttentionCall<T> c{};
    c.query = sum(query), c.key = sum(key), c.value = sum(value);
    c.query_on_edge = node_rows<T>(operand[on_edge]);
    c.edge = data_or_null<T>(operand[edge]);
    c.features = features();
    c.vector = data_or_null<T>(operand[vector]);
    c.bias = scalar(bias), c.score_scale = scalar(bias + 1), c.envelope = scalar(bias + 2), c.gate = scalar(bias + 3);
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
      Launch::forward(call, like.get_device_index());
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
    if (grad_on_edge.has_value() && grad_on_edge->stride(2) != 1)
      grad_on_edge = torch::stable::contiguous(*grad_on_edge);
    auto is_wanted = [&](int n) { return (wanted >> n & 1) != 0; };
    std::vector<Tensor> gradient;
    for (int n = 0; n < Args::count; ++n) {
      std::vector<int64_t> sizes = is_wanted(n) ? args.shape(n) : std::vector<int64_t>{0};
      gradient.push_back(Launch::new_result(like, sizes));
    }
    dispatch_real(like.scalar_type(), "graph_attention_backward", [&](auto zero) {
      using T = decltype(zero);
      AttentionCall<T> call = args.call<T>();
      call.lse_before = lse.const_data_ptr<T>();
      call.grad_out = data_or_null<T>(g);
      call.grad_on_edge = Args::node_rows<T>(grad_on_edge);
      call.grad_lse = data_or_null<T>(g_lse);
      call.grad_weights = data_or_null<T>(g_weights);
      call.grad_logits = data_or_null<T>(g_logits);
      auto to = [&](int n) { return is_wanted(n) ? gradient[n].template mutable_data_ptr<T>() : nullptr; };
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
      if (is_wanted(Args::vector)) {
        kept.push_back(torch::stable::new_zeros(like, {kParts, args.heads(), args.width(Args::query)}));
        call.d_vector = kept.back().template mutable_data_ptr<T>();
      }
      Launch::backward(call, like.get_device_index());
      if (is_wanted(Args::vector)) {
        const int64_t parts_axis = 0;
        gradient[Args::vector] =
            torch::stable::sum(kept.back(), torch::headeronly::IntHeaderOnlyArrayRef(&parts_axis, 1));
      }
    });
    return gradient;
  }
};

}  // namespace hamfast
