// Runs the CPU kernels of graph attention outside of torch, on buffers of exactly the right size,
// for the sanitizers.
//   run_attention CASE RESULTS THREADS
// CASE: arrays as tests/kernels/test_sanitizers.py writes them; RESULTS: those of all three passes,
// in its order.
#include <functional>
#include <thread>

#include "common/scratch.h"
#include "cpp/case_file.h"
#include "graph_attention/graph_attention_double_isa.cpp"
#include "graph_attention/graph_attention_isa.cpp"

using namespace hamfast;
using T = double;

static AttentionCall<T> call{};

// f(first row, last row, thread, scratch) in threads; the scratch is as large as asked for, and
// NaN.
static void in_threads(int threads, int64_t rows, const int64_t* ptr,
                       const std::function<void(int64_t, int64_t, int64_t, T*)>& f) {
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([=] {
      int64_t degree = 0;
      for (int64_t r = 0; r < rows; ++r) degree = std::max(degree, ptr[r + 1] - ptr[r]);
      const int64_t size = HAMFAST_ISA::attention_scratch(call, degree);
      const Scratch<T> scratch(size);
      for (int64_t i = 0; i < size; ++i) scratch.data()[i] = NAN;
      f(rows * t / threads, rows * (t + 1) / threads, t, scratch.data());
    });
  for (auto& thread : pool) thread.join();
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::vector<Array> a = read_arrays(argv[1]);
  const int threads = std::atoi(argv[3]);
  // The order of the file.
  enum {
    kSizes,
    kGraph,
    kQuery = kGraph + 6,
    kQueryEdge,
    kKey,
    kValue,
    kValueEdge,
    kQueryOnEdge,
    kEdge,
    kVector,
    kBias,
    kEnvelope,
    kGradOut,
    kGradOutOnEdge,
    kGradLse,
    kGradLogits,
    kTangents  // as from kQuery to kEnvelope
  };
  const int64_t* sizes = a[kSizes].as<int64_t>();
  call.heads = sizes[0], call.query.width = call.key.width = sizes[1], call.value.width = sizes[2];
  call.features = sizes[3], call.edges = sizes[4], call.num_senders = call.num_receivers = sizes[5];
  call.score = sizes[6], call.activation = sizes[7], call.weighting = sizes[8];
  call.scale = 0.5, call.clip = 2.0, call.slope = 0.2;
  const int64_t** graph[6] = {&call.senders,   &call.sender_order,   &call.sender_ptr,
                              &call.receivers, &call.receiver_order, &call.receiver_ptr};
  for (int n = 0; n < 6; ++n) *graph[n] = a[kGraph + n].as<int64_t>();
  auto at = [&](int n) { return a[n].maybe<const T>(); };
  auto rows = [&](int n) { return NodeRows<T>{at(n), call.heads * call.features, call.features}; };
  auto scalar = [&](int n) { return EdgeScalar<T>{at(n), call.heads, 1}; };
  call.query.part[row_of_receiver] = at(kQuery), call.query.part[row_of_edge] = at(kQueryEdge);
  call.key.part[row_of_sender] = at(kKey);
  call.value.part[row_of_sender] = at(kValue), call.value.part[row_of_edge] = at(kValueEdge);
  call.query_on_edge = rows(kQueryOnEdge), call.edge = at(kEdge), call.vector = at(kVector).data;
  call.bias = scalar(kBias), call.envelope = scalar(kEnvelope);

  std::vector<Array> results;
  auto result = [&](int64_t n) {
    results.push_back(poisoned(n * static_cast<int64_t>(sizeof(T))));
    return results.back().as<T>();
  };
  const int64_t nodes = call.num_receivers * call.heads, scores = call.edges * call.heads;
  const int64_t size = call.heads * call.query.width;
  call.out = result(nodes * call.value.width);
  call.out_on_edge = result(nodes * call.features);
  call.lse = result(nodes), call.logits = result(scores);
  in_threads(threads, call.num_receivers, call.receiver_ptr,
             [](int64_t begin, int64_t end, int64_t, T* scratch) {
               HAMFAST_ISA::attention_forward(call, begin, end, scratch);
             });

  call.lse_before = call.lse;
  call.grad_out = at(kGradOut), call.grad_out_on_edge = rows(kGradOutOnEdge);
  call.grad_lse = at(kGradLse), call.grad_logits = at(kGradLogits);
  const Array kept[3] = {poisoned(8 * scores), poisoned(8 * scores), poisoned(8 * scores)};
  call.grad_z = kept[0].as<T>(), call.w = call.tangent_w = kept[1].as<T>(),
  call.grad_tangent_z = kept[2].as<T>();
  auto gradients = [&] {
    call.grad_query[row_of_receiver] = result(nodes * call.query.width);
    call.grad_query[row_of_edge] = result(scores * call.query.width);
    call.grad_key[row_of_sender] = result(nodes * call.query.width);
    call.grad_value[row_of_sender] = result(nodes * call.value.width);
    call.grad_value[row_of_edge] = result(scores * call.value.width);
    call.grad_query_on_edge = result(nodes * call.features);
    call.grad_edge = result(call.edges * call.features);
    // A chunk for each thread, to be added up.
    call.grad_vector = {};
    if (call.additive()) call.grad_vector = result(threads * size);
    for (int64_t i = 0; call.grad_vector && i < threads * size; ++i) call.grad_vector[i] = 0;
    call.grad_bias = result(scores), call.grad_envelope = result(scores);
  };
  gradients();
  in_threads(threads, call.num_receivers, call.receiver_ptr,
             [](int64_t begin, int64_t end, int64_t chunk, T* scratch) {
               HAMFAST_ISA::attention_backward(call, begin, end, chunk, scratch);
             });
  in_threads(threads, call.num_senders, call.sender_ptr,
             [](int64_t begin, int64_t end, int64_t, T* scratch) {
               HAMFAST_ISA::attention_backward_senders(call, begin, end, scratch);
             });

  auto tangent = [&](int n) { return at(kTangents + n - kQuery); };
  call.tangent_query.width = call.query.width, call.tangent_key.width = call.key.width;
  call.tangent_value.width = call.value.width;
  call.tangent_query.part[row_of_receiver] = tangent(kQuery),
  call.tangent_query.part[row_of_edge] = tangent(kQueryEdge);
  call.tangent_key.part[row_of_sender] = tangent(kKey);
  call.tangent_value.part[row_of_sender] = tangent(kValue),
  call.tangent_value.part[row_of_edge] = tangent(kValueEdge);
  call.tangent_query_on_edge = rows(kTangents + kQueryOnEdge - kQuery),
  call.tangent_edge = tangent(kEdge);
  call.tangent_vector = tangent(kVector);
  call.tangent_bias = scalar(kTangents + kBias - kQuery),
  call.tangent_envelope = scalar(kTangents + kEnvelope - kQuery);
  gradients();
  call.grad_grad_out = result(nodes * call.value.width),
  call.grad_grad_out_on_edge = result(nodes * call.features);
  call.grad_grad_lse = result(nodes), call.grad_grad_logits = result(scores);
  in_threads(threads, call.num_receivers, call.receiver_ptr,
             [](int64_t begin, int64_t end, int64_t chunk, T* scratch) {
               HAMFAST_ISA::attention_double_backward(call, begin, end, chunk, scratch);
             });
  in_threads(threads, call.num_senders, call.sender_ptr,
             [](int64_t begin, int64_t end, int64_t, T* scratch) {
               HAMFAST_ISA::attention_double_backward_senders(call, begin, end, scratch);
             });
  write_arrays(argv[2], results);
}
