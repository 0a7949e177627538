// Runs the CPU kernels of edge_update outside of torch, on buffers of exactly the right size, for
// the sanitizers.
//   run_edge_update CASE RESULTS THREADS
// CASE: arrays as tests/kernels/test_sanitizers.py writes them; RESULTS: out, the gradient of the
// sum, those of weight and bias, a chunk for each thread; and of the second derivative the
// gradients of grad, of the sum, of weight and bias.
#include <functional>
#include <thread>

#include "common/scratch.h"
#include "cpp/case_file.h"
#include "edge_update/edge_update_isa.cpp"

using namespace hamfast;
using T = double;

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::vector<Array> a = read_arrays(argv[1]);
  const int threads = std::atoi(argv[3]);
  // The order of the file.
  enum {
    kNumbers,
    kSenders,
    kReceivers,
    kEdge,
    kSender,
    kReceiver,
    kWeight,
    kBias,
    kGrad,
    kTangentSum,
    kTangentNorm
  };
  auto at = [&](int n) { return a[n].maybe<const T>(); };
  const int64_t* numbers = a[kNumbers].as<int64_t>();
  EdgeUpdateCall<T> call{};
  call.edges = numbers[0], call.sum.width = numbers[1];
  for (int p = 0; p < 3; ++p) call.sum.part[p] = at(kEdge + p);
  call.weight = at(kWeight), call.bias = at(kBias), call.grad = at(kGrad).data;
  call.epsilon = 1e-5, call.silu = true;
  call.senders = a[kSenders].as<int64_t>(), call.receivers = a[kReceivers].as<int64_t>();
  const int64_t size = call.edges * call.width() * static_cast<int64_t>(sizeof(T));
  const int64_t norm_size =
      call.weight ? threads * 2 * call.width() * static_cast<int64_t>(sizeof(T)) : 0;
  const Array out = poisoned(size), grad_sum = poisoned(size), grad_grad = poisoned(size),
              second_sum = poisoned(size);
  const Array grad_norm = poisoned(norm_size), second_norm = poisoned(norm_size);
  for (const Array* sums : {&grad_norm, &second_norm})
    if (sums->bytes) std::memset(sums->data, 0, sums->bytes);
  call.out = out.as<T>(), call.grad_sum = grad_sum.as<T>(), call.grad_norm = grad_norm.as<T>();
  EdgeUpdateCall<T> second = call;
  second.tangent_sum = at(kTangentSum), second.tangent_norm = at(kTangentNorm);
  second.grad_grad = grad_grad.as<T>(), second.grad_sum = second_sum.as<T>(),
  second.grad_norm = second_norm.as<T>();

  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&call, &second, t, threads] {
      const int64_t begin = call.edges * t / threads, end = call.edges * (t + 1) / threads;
      const int64_t n = HAMFAST_ISA::edge_update_scratch(call);
      const Scratch<T> scratch(n);
      for (int64_t i = 0; i < n; ++i) scratch.data()[i] = NAN;
      HAMFAST_ISA::edge_update_rows(call, begin, end, scratch.data());
      HAMFAST_ISA::edge_update_backward_rows(call, begin, end, t, scratch.data());
      HAMFAST_ISA::edge_update_double_backward_rows(second, begin, end, t, scratch.data());
    });
  for (auto& thread : pool) thread.join();
  write_arrays(argv[2], {out, grad_sum, grad_norm, grad_grad, second_sum, second_norm});
}
