// The ops on tensors, for any launcher: Launch::forward, backward and double_backward (call, device),
// Launch::parts(edges), Launch::new_result and sum_parts, and Launch::reads_half.
#pragma once

#include <tuple>
#include <vector>

#include "common/stored_rows.h"
#include "edge_update.cuh"

namespace hamfast {

template <class Launch>
struct EdgeUpdateOps {
  using Optional = std::optional<Tensor>;

  // The lists by node are for the derivative.
  static Tensor forward(Optional edge, Optional sender, Optional receiver, Optional weight, Optional bias,
                        Tensor senders, Tensor, Tensor, Tensor receivers, Tensor, Tensor, double epsilon, bool silu) {
    Operands operands(edge, sender, receiver, weight, bias, senders, receivers);
    const typename Launch::Guard guard(operands.device());
    Tensor out = Launch::new_result(operands.any(), operands.sizes(), operands.read_as);
    dispatch_stored<Launch>(operands.read_as, "edge_update", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      EdgeUpdateCall<T, Stored> call = operands.template call<T, Stored>(epsilon, silu);
      call.out = new_rows<Stored>(out);
      Launch::forward(call, operands.device());
    });
    return converted(out, operands.stored);
  }

  // Gradients of x, [edges, width], and of weight and bias, [2, width].
  static std::tuple<Tensor, Tensor> backward(Tensor grad_any, Optional edge, Optional sender, Optional receiver,
                                             Optional weight, Optional bias, Tensor senders, Tensor, Tensor,
                                             Tensor receivers, Tensor, Tensor, double epsilon, bool silu) {
    Operands operands(edge, sender, receiver, weight, bias, senders, receivers);
    const typename Launch::Guard guard(operands.device());
    Gradients gradients(operands, grad_any);
    dispatch_stored<Launch>(operands.read_as, "edge_update_backward", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      EdgeUpdateCall<T, Stored> call = operands.template call<T, Stored>(epsilon, silu);
      gradients.set(call);
      Launch::backward(call, operands.device());
    });
    return {converted(gradients.of_sum, operands.stored), Launch::sum_parts(gradients.of_norm)};
  }

  // Of the backward pass along directions of its results: gradients of grad, of x and of weight and bias.
  static std::tuple<Tensor, Tensor, Tensor> double_backward(Optional sum_dot, Optional norm_dot, Tensor grad_any,
                                                            Optional edge, Optional sender, Optional receiver,
                                                            Optional weight, Optional bias, Tensor senders, Tensor,
                                                            Tensor, Tensor receivers, Tensor, Tensor, double epsilon,
                                                            bool silu) {
    Operands operands(edge, sender, receiver, weight, bias, senders, receivers);
    const typename Launch::Guard guard(operands.device());
    Gradients gradients(operands, grad_any);
    sum_dot = contiguous(sum_dot), norm_dot = contiguous(norm_dot);
    if (sum_dot.has_value()) sum_dot = converted(*sum_dot, operands.read_as);
    const Tensor d_grad = Launch::new_result(operands.any(), operands.sizes(), operands.read_as);
    dispatch_stored<Launch>(operands.read_as, "edge_update_double_backward", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      EdgeUpdateCall<T, Stored> call = operands.template call<T, Stored>(epsilon, silu);
      gradients.set(call);
      call.sum_dot = maybe_rows<Stored>(sum_dot);
      call.norm_dot = maybe_data<T>(norm_dot);
      call.d_grad = new_rows<Stored>(d_grad);
      Launch::double_backward(call, operands.device());
    });
    return {converted(d_grad, operands.stored), converted(gradients.of_sum, operands.stored),
            Launch::sum_parts(gradients.of_norm)};
  }

 private:
  // Contiguous, and of a type that the launcher reads.
  struct Operands {
    Optional part[3], weight, bias;
    Tensor senders, receivers;
    ScalarType stored, read_as;

    Operands(Optional edge, Optional sender, Optional receiver, Optional weight_, Optional bias_, Tensor senders_,
             Tensor receivers_)
        : part{contiguous(edge), contiguous(sender), contiguous(receiver)},
          weight(contiguous(weight_)),
          bias(contiguous(bias_)),
          senders(torch::stable::contiguous(senders_)),
          receivers(torch::stable::contiguous(receivers_)) {
      stored = any().scalar_type();
      if (!reads<Launch>(stored))
        for (Optional& t : part) widen(t);
      read_as = any().scalar_type();
    }
    const Tensor& any() const {
      for (const Optional& t : part)
        if (t.has_value()) return *t;
      STD_TORCH_CHECK(false, "edge_update: expected at least one of edge, sender and receiver");
    }
    int32_t device() const { return any().get_device_index(); }
    int64_t edges() const { return senders.numel(); }
    int64_t width() const { return any().size(1); }
    std::vector<int64_t> sizes() const { return {edges(), width()}; }

    template <class T, class Stored>
    EdgeUpdateCall<T, Stored> call(double epsilon, bool silu) const {
      EdgeUpdateCall<T, Stored> c{};
      for (int p = 0; p < 3; ++p) c.sum.part[p] = maybe_rows<Stored>(part[p]);
      c.sum.width = width();
      c.weight = maybe_data<T>(weight), c.bias = maybe_data<T>(bias);
      c.epsilon = static_cast<T>(epsilon), c.silu = silu;
      c.senders = senders.const_data_ptr<int64_t>(), c.receivers = receivers.const_data_ptr<int64_t>();
      c.edges = edges();
      return c;
    }
  };

  // What a pass back reads and makes.
  struct Gradients {
    Tensor grad, of_sum, of_norm;  // of_norm: [parts, 2, width]
    int64_t parts;

    Gradients(const Operands& operands, const Tensor& grad_any)
        : grad(converted(torch::stable::contiguous(grad_any), operands.read_as)),
          of_sum(Launch::new_result(operands.any(), operands.sizes(), operands.read_as)),
          parts(Launch::parts(operands.edges())) {
      const ScalarType number = is_half(operands.read_as) ? ScalarType::Float : operands.read_as;
      const int64_t width = operands.weight.has_value() ? operands.width() : 0;
      of_norm = torch::stable::new_zeros(operands.any(), {parts, 2, width}, number);
    }
    template <class T, class Stored>
    void set(EdgeUpdateCall<T, Stored>& call) const {
      call.grad = maybe_rows<Stored>(grad).data;
      call.d_sum = new_rows<Stored>(of_sum);
      call.d_norm = of_norm.template mutable_data_ptr<T>();
      call.parts = parts;
    }
  };
};

}  // namespace hamfast
