// The ops on tensors, for any launcher: Launch::forward, backward and double_backward (call,
// device), Launch::chunks(edges), Launch::new_result and sum_chunks, and Launch::reads_half.
#pragma once

#include <tuple>
#include <vector>

#include "common/op_records.h"
#include "common/stored_rows.h"
#include "edge_update.cuh"

namespace hamfast {

template <class Launch>
struct EdgeUpdateOps {
  static Tensor forward(const EdgeUpdateArguments& args) {
    Operands operands(args);
    const typename Launch::Guard guard(operands.device());
    Tensor out = Launch::new_result(operands.any(), operands.sizes(), operands.read_as);
    dispatch_stored<Launch>(operands.read_as, "edge_update", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      EdgeUpdateCall<T, Stored> call =
          operands.template call<T, Stored>(args.settings.epsilon, args.settings.silu);
      call.out = new_rows<Stored>(out);
      Launch::forward(call, operands.device());
    });
    return converted(out, operands.stored);
  }

  // Gradients of x, [edges, width], and of weight and bias, [2, width].
  static std::tuple<Tensor, Tensor> backward(const EdgeUpdateBackwardArguments& args) {
    Operands operands(args);
    const typename Launch::Guard guard(operands.device());
    Gradients gradients(operands, args.grad);
    dispatch_stored<Launch>(operands.read_as, "edge_update_backward", [&](auto zero, auto of_rows) {
      using T = decltype(zero);
      using Stored = decltype(of_rows);
      EdgeUpdateCall<T, Stored> call =
          operands.template call<T, Stored>(args.settings.epsilon, args.settings.silu);
      gradients.set(call);
      Launch::backward(call, operands.device());
    });
    return {converted(gradients.grad_sum, operands.stored),
            Launch::sum_chunks(gradients.grad_norm)};
  }

  // Of the backward pass along tangents of its results: gradients of grad, of x and of weight and
  // bias.
  static std::tuple<Tensor, Tensor, Tensor> double_backward(
      const EdgeUpdateDoubleBackwardArguments& args) {
    Operands operands(args);
    const typename Launch::Guard guard(operands.device());
    Gradients gradients(operands, args.grad);
    Optional tangent_sum = contiguous(args.tangent_sum),
             tangent_norm = contiguous(args.tangent_norm);
    if (tangent_sum.has_value()) tangent_sum = converted(*tangent_sum, operands.read_as);
    const Tensor grad_grad = Launch::new_result(operands.any(), operands.sizes(), operands.read_as);
    dispatch_stored<Launch>(
        operands.read_as, "edge_update_double_backward", [&](auto zero, auto of_rows) {
          using T = decltype(zero);
          using Stored = decltype(of_rows);
          EdgeUpdateCall<T, Stored> call =
              operands.template call<T, Stored>(args.settings.epsilon, args.settings.silu);
          gradients.set(call);
          call.tangent_sum = maybe_rows<Stored>(tangent_sum);
          call.tangent_norm = maybe_data<T>(tangent_norm);
          call.grad_grad = new_rows<Stored>(grad_grad);
          Launch::double_backward(call, operands.device());
        });
    return {converted(grad_grad, operands.stored), converted(gradients.grad_sum, operands.stored),
            Launch::sum_chunks(gradients.grad_norm)};
  }

 private:
  // Contiguous, and of a type that the launcher reads.
  struct Operands {
    Optional part[3], weight, bias;
    Tensor senders, receivers;
    ScalarType stored, read_as;

    // Arguments: the struct of any of the ops.
    template <class Arguments>
    explicit Operands(const Arguments& args)
        : part{contiguous(args.operands.edge), contiguous(args.operands.sender),
               contiguous(args.operands.receiver)},
          weight(contiguous(args.operands.weight)),
          bias(contiguous(args.operands.bias)),
          senders(torch::stable::contiguous(args.graph.senders)),
          receivers(torch::stable::contiguous(args.graph.receivers)) {
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
      c.senders = senders.const_data_ptr<int64_t>(),
      c.receivers = receivers.const_data_ptr<int64_t>();
      c.edges = edges();
      return c;
    }
  };

  // What a pass back reads and makes.
  struct Gradients {
    Tensor grad, grad_sum, grad_norm;  // grad_norm: [chunks, 2, width]
    int64_t chunks;

    Gradients(const Operands& operands, const Tensor& grad_any)
        : grad(converted(torch::stable::contiguous(grad_any), operands.read_as)),
          grad_sum(Launch::new_result(operands.any(), operands.sizes(), operands.read_as)),
          chunks(Launch::chunks(operands.edges())) {
      const ScalarType number = is_half(operands.read_as) ? ScalarType::Float : operands.read_as;
      const int64_t width = operands.weight.has_value() ? operands.width() : 0;
      grad_norm = torch::stable::new_zeros(operands.any(), {chunks, 2, width}, number);
    }
    template <class T, class Stored>
    void set(EdgeUpdateCall<T, Stored>& call) const {
      call.grad = maybe_rows<Stored>(grad).data;
      call.grad_sum = new_rows<Stored>(grad_sum);
      call.grad_norm = grad_norm.template mutable_data_ptr<T>();
      call.chunks = chunks;
    }
  };
};

}  // namespace hamfast
