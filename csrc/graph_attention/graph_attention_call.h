// The three ops on tensors, for any launcher: `Launch::run(call, targets, derivative, device)`, derivative 0, 1 or 2.
#pragma once

#include <array>
#include <vector>

#include "common/dispatch.h"
#include "graph_attention.cuh"

namespace hamfast {

using OptionalPart = std::optional<Tensor>;

struct AttentionArguments {
  std::vector<OptionalPart> parts;  // query, key, value, each: edge, source, target
  Tensor senders, order, ptr;
  Tensor zeros;  // stands for every absent part
  double scale, clip;

  AttentionArguments(const std::array<OptionalPart, 9>& parts_any, Tensor senders_any, Tensor order_any, Tensor ptr_any,
                     double scale_, double clip_)
      : senders(torch::stable::contiguous(senders_any)),
        order(torch::stable::contiguous(order_any)),
        ptr(torch::stable::contiguous(ptr_any)),
        scale(scale_),
        clip(clip_) {
    for (const auto& part : parts_any) parts.push_back(contiguous(part));
    zeros = torch::stable::new_zeros(any_part(2), {heads() * (width(0) > width(2) ? width(0) : width(2))});
  }

  // 0: query, 1: key, 2: value
  const Tensor& any_part(int operand) const {
    for (int p = 0; p < 3; ++p)
      if (parts[3 * operand + p].has_value()) return *parts[3 * operand + p];
    STD_TORCH_CHECK(false, "graph_attention: query, key and value each need at least one part");
  }
  int64_t targets() const { return ptr.numel() - 1; }
  int64_t edges() const { return senders.numel(); }
  int64_t heads() const { return any_part(0).size(1); }
  int64_t width(int operand) const { return any_part(operand).size(2); }

  Tensor new_output() const { return torch::stable::new_empty(any_part(2), {targets(), heads(), width(2)}); }
  Tensor new_edge_gradient(int operand) const {
    return torch::stable::new_empty(any_part(operand), {edges(), heads(), width(operand)});
  }

  template <class T>
  AttentionCall<T> call() const {
    auto part = [&](int n) {
      if (!parts[n].has_value()) return Part<T>{zeros.const_data_ptr<T>(), 0};
      return Part<T>{parts[n]->const_data_ptr<T>(), parts[n]->size(1) * parts[n]->size(2)};
    };
    auto sum = [&](int operand) {
      return EdgeSum<T>{part(3 * operand), part(3 * operand + 1), part(3 * operand + 2), width(operand)};
    };
    AttentionCall<T> c{};
    c.query = sum(0);
    c.key = sum(1);
    c.value = sum(2);
    c.senders = senders.const_data_ptr<int64_t>();
    c.order = order.const_data_ptr<int64_t>();
    c.ptr = ptr.const_data_ptr<int64_t>();
    c.heads = heads();
    c.scale = T(scale);
    c.clip = T(clip);
    return c;
  }
};

template <class Launch>
struct AttentionOps {
  static Tensor forward(OptionalPart query_edge, OptionalPart query_source, OptionalPart query_target,
                        OptionalPart key_edge, OptionalPart key_source, OptionalPart key_target,
                        OptionalPart value_edge, OptionalPart value_source, OptionalPart value_target, Tensor senders,
                        Tensor receivers, Tensor order, Tensor ptr, double scale, double clip) {
    const AttentionArguments args({query_edge, query_source, query_target, key_edge, key_source, key_target, value_edge,
                                   value_source, value_target},
                                  senders, order, ptr, scale, clip);
    const typename Launch::Guard guard(args.senders.get_device_index());
    Tensor out = args.new_output();
    dispatch_real(out.scalar_type(), "graph_attention", [&](auto zero) {
      using T = decltype(zero);
      auto call = args.call<T>();
      call.out = out.mutable_data_ptr<T>();
      Launch::run(call, args.targets(), 0, out.get_device_index());
    });
    return out;
  }

  static std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_any, OptionalPart query_edge,
                                                     OptionalPart query_source, OptionalPart query_target,
                                                     OptionalPart key_edge, OptionalPart key_source,
                                                     OptionalPart key_target, OptionalPart value_edge,
                                                     OptionalPart value_source, OptionalPart value_target,
                                                     Tensor senders, Tensor receivers, Tensor order, Tensor ptr,
                                                     double scale, double clip) {
    const AttentionArguments args({query_edge, query_source, query_target, key_edge, key_source, key_target, value_edge,
                                   value_source, value_target},
                                  senders, order, ptr, scale, clip);
    const typename Launch::Guard guard(args.senders.get_device_index());
    const Tensor grad = torch::stable::contiguous(grad_any);
    Gradients to(args);
    dispatch_real(grad.scalar_type(), "graph_attention_backward", [&](auto zero) {
      using T = decltype(zero);
      auto call = args.call<T>();
      call.grad = grad.const_data_ptr<T>();
      to.set(call);
      Launch::run(call, args.targets(), 1, grad.get_device_index());
    });
    return {to.q, to.k, to.v};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(
      Tensor direction_q_any, Tensor direction_k_any, Tensor direction_v_any, Tensor grad_any, OptionalPart query_edge,
      OptionalPart query_source, OptionalPart query_target, OptionalPart key_edge, OptionalPart key_source,
      OptionalPart key_target, OptionalPart value_edge, OptionalPart value_source, OptionalPart value_target,
      Tensor senders, Tensor receivers, Tensor order, Tensor ptr, double scale, double clip) {
    const AttentionArguments args({query_edge, query_source, query_target, key_edge, key_source, key_target, value_edge,
                                   value_source, value_target},
                                  senders, order, ptr, scale, clip);
    const typename Launch::Guard guard(args.senders.get_device_index());
    const Tensor direction_q = torch::stable::contiguous(direction_q_any),
                 direction_k = torch::stable::contiguous(direction_k_any),
                 direction_v = torch::stable::contiguous(direction_v_any), grad = torch::stable::contiguous(grad_any);
    Tensor out = args.new_output();
    Gradients to(args);
    dispatch_real(grad.scalar_type(), "graph_attention_double_backward", [&](auto zero) {
      using T = decltype(zero);
      auto call = args.call<T>();
      call.grad = grad.const_data_ptr<T>();
      call.direction_q = direction_q.const_data_ptr<T>();
      call.direction_k = direction_k.const_data_ptr<T>();
      call.direction_v = direction_v.const_data_ptr<T>();
      call.out = out.mutable_data_ptr<T>();
      to.set(call);
      Launch::run(call, args.targets(), 2, grad.get_device_index());
    });
    return {out, to.q, to.k, to.v};
  }

 private:
  struct Gradients {
    Tensor q, k, v;
    explicit Gradients(const AttentionArguments& args)
        : q(args.new_edge_gradient(0)), k(args.new_edge_gradient(1)), v(args.new_edge_gradient(2)) {}
    template <class T>
    void set(AttentionCall<T>& call) {
      call.dq = q.mutable_data_ptr<T>();
      call.dk = k.mutable_data_ptr<T>();
      call.dv = v.mutable_data_ptr<T>();
    }
  };
};

}  // namespace hamfast
