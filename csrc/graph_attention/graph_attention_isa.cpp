// Compiled once per instruction set. Only <cmath> of the standard library: see kernels/common.cuh.
#include "graph_attention/graph_attention_isa.h"

#include "graph_attention/graph_attention_node.h"

namespace hamfast::HAMFAST_ISA {

template <class T>
class Passes : public Node<T> {
 public:
  using Node<T>::Node;
  HAMFAST_NODE_MEMBERS

  void forward(int64_t receiver) {
    begin_receiver(receiver);
    collect(receiver);
    T* out = call_.out + receiver * value_size_;
    const Maybe<T> on_edge = call_.out_on_edge.row(receiver, call_.heads * call_.features);
    prefetch<to_write>(out, value_size_);  // comes while the edges are read
    if (on_edge) prefetch<to_write>(on_edge.data, call_.heads * call_.features);
    T* score = scalars(0);
    scores(score, scalars(1));
    if (call_.logits) write(score, call_.logits);
    T* lse = call_.lse + receiver * call_.heads;
    if (call_.softmax()) {
      softmax(score, lse);
    } else {
      set_zero(lse, call_.heads);
      plain_weights(receiver, score, {}, {});
    }
    multiply(call_.envelope, score);
    multiply(call_.gate, score);
    drop(score);
    const T* weight = score;
    if (call_.weights) write(weight, call_.weights);
    set_zero(out, value_size_);
    if (on_edge) set_zero(on_edge.data, call_.heads * call_.features);
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at, weight);
      if (value_size_) {
        resolve(call_.value, value_size_, batch_, buffer_[0], value_);
        accumulate(n, call_.heads, weight_, value_, call_.value.width, call_.value.width, out);
      }
      if (on_edge) {
        edge_rows();
        accumulate(n, call_.heads, weight_, edge_, call_.features, int64_t(0), on_edge.data);
      }
    }
  }

  void backward(int64_t receiver, int64_t chunk) {
    begin_receiver(receiver);
    collect(receiver);
    const int64_t heads = call_.heads, width = call_.query.width;
    const Maybe<T> grad_query = call_.grad_query[row_of_receiver].row(receiver, size_);
    const Maybe<T> grad_key = call_.grad_key[row_of_receiver].row(receiver, size_);
    const Maybe<T> grad_value = call_.grad_value[row_of_receiver].row(receiver, value_size_);
    const Maybe<T> d_on_edge = call_.grad_query_on_edge.row(receiver, heads * call_.features);
    const Maybe<T> grad_vector = call_.grad_vector.row(chunk, size_);
    if (grad_query) prefetch<to_write>(grad_query.data, size_);
    if (d_on_edge) prefetch<to_write>(d_on_edge.data, heads * call_.features);
    T *raw = scalars(0), *p = scalars(1), *a = scalars(2), *slope = scalars(3);
    scores(p, raw, slope);
    incoming(receiver, a);
    score_gradients(receiver, raw, p, a, slope);  // raw -> gradient of z, p -> w
    const T *dz = raw, *w = p;
    if (call_.grad_z) write(dz, call_.grad_z);
    if (call_.kept_weight) write(w, call_.kept_weight);
    if (grad_query) set_zero(grad_query.data, size_);
    if (grad_key) set_zero(grad_key.data, size_);
    if (d_on_edge) set_zero(d_on_edge.data, heads * call_.features);
    if (grad_value) value_of_receiver(receiver, w, grad_value.data);
    const bool of_scores = grad_query || grad_key || call_.grad_query[row_of_edge] || call_.grad_key[row_of_edge];
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at, dz);
      if (of_scores || grad_vector) score_rows(grad_vector.given());
      if (grad_query) accumulate(n, heads, weight_, for_query_, width, width, grad_query.data);
      if (grad_key) accumulate(n, heads, weight_, for_key_, width, width, grad_key.data);
      if (grad_vector) accumulate(n, heads, weight_, for_vector_, width, width, grad_vector.data);
      for (int i = 0; i < n; ++i) {
        const int64_t edge = batch_.edge[i];
        if (const Maybe<T> to = call_.grad_query[row_of_edge].row(edge, size_))
          scale_heads(heads, weight_[i], for_query_[i], width, to.data);
        if (const Maybe<T> to = call_.grad_key[row_of_edge].row(edge, size_))
          scale_heads(heads, weight_[i], for_key_[i], width, to.data);
        if (const Maybe<T> to = call_.grad_value[row_of_edge].row(edge, value_size_))
          value_of_edge(receiver, w + (at + i) * heads, to.data);
      }
      if (d_on_edge) {
        edge_rows();
        accumulate(n, heads, weight_, edge_, call_.features, int64_t(0), d_on_edge.data);
      }
      if (call_.grad_edge) edge_gradients(at, w, nullptr, {});
    }
  }

  void backward_sender(int64_t sender) {
    begin_sender(sender);
    const int64_t heads = call_.heads, width = call_.query.width;
    const Maybe<T> grad_query = call_.grad_query[row_of_sender].row(sender, size_);
    const Maybe<T> grad_key = call_.grad_key[row_of_sender].row(sender, size_);
    const Maybe<T> grad_value = call_.grad_value[row_of_sender].row(sender, value_size_);
    if (grad_query) set_zero(grad_query.data, size_);
    if (grad_key) set_zero(grad_key.data, size_);
    if (grad_value) set_zero(grad_value.data, value_size_);
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at, {});
      ask_for(at, call_.grad_z, call_.kept_weight);
      if (grad_query || grad_key) {
        for (int i = 0; i < n; ++i) weight_[i] = call_.grad_z + batch_.edge[i] * heads;
        score_rows(false);
        if (grad_query) accumulate(n, heads, weight_, for_query_, width, width, grad_query.data);
        if (grad_key) accumulate(n, heads, weight_, for_key_, width, width, grad_key.data);
      }
      if (grad_value && call_.grad_out) values_of_sender(grad_value.data);
    }
  }

 private:
  // score -> exp(s) / (sum f exp(s) + epsilon)
  void softmax(T* score, T* lse) {
    const int64_t heads = call_.heads;
    T *top = head_[0], *total = head_[1];
    if (call_.envelope.data) {  // what it switches off must not set the scale of the others
      for (int64_t h = 0; h < heads; ++h) top[h] = T(-HUGE_VAL);
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h) {
          const T s = score[i * heads + h];
          top[h] = call_.envelope.at(order_[i], h) != T(0) && s > top[h] ? s : top[h];
        }
    } else {
      pattern_.pad(degree_, T(-HUGE_VAL), score);
      pattern_.reduce(degree_, T(-HUGE_VAL), repeated_[0], [&](Vector<T> top_so_far, int64_t i) {
        const Vector<T> s = load(score + i);
        return select<T>(s > top_so_far, s, top_so_far);
      });
      pattern_.fold(repeated_[0], top, [](T a, T b) { return a > b ? a : b; });
    }
    const T log_epsilon = call_.epsilon > T(0) ? std::log(call_.epsilon) : T(-HUGE_VAL);
    for (int64_t h = 0; h < heads; ++h) {
      if (log_epsilon > top[h]) top[h] = log_epsilon;
      if (std::isinf(top[h])) top[h] = T(0);
    }
    exp_shifted(top, score);
    if (call_.envelope.data) {
      for (int64_t h = 0; h < heads; ++h) total[h] = T(0);
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h) total[h] += score[i * heads + h] * call_.envelope.at(order_[i], h);
    } else {
      pattern_.reduce(degree_, T(0), repeated_[0], [&](Vector<T> sum, int64_t i) { return sum + load(score + i); });
      pattern_.fold(repeated_[0], total, [](T a, T b) { return a + b; });
    }
    for (int64_t h = 0; h < heads; ++h) {
      if (call_.epsilon > T(0)) total[h] += std::exp(log_epsilon - top[h]);
      lse[h] = top[h] + std::log(total[h]);
      total[h] = total[h] == T(0) ? T(0) : T(1) / total[h];
    }
    pattern_.repeat(total, repeated_[0]);
    pattern_.each(degree_, [&](int64_t i, int64_t at) { store(score + i, load(score + i) * load(repeated_[0] + at)); });
  }

  // z, s, a -> dz, w, in their places; and the gradients of the numbers per edge and head.
  void score_gradients(int64_t receiver, T* raw, T* p, T* a, T* slope) {
    const int64_t heads = call_.heads;
    const bool softmax = call_.softmax();
    T *f = scalars(4), *gate = scalars(5), *drops = scalars(6), *act_slope = scalars(7);
    dense(call_.envelope, T(1), f);
    dense(call_.gate, T(1), gate);
    dense({}, T(1), drops);
    drop(drops);
    plain_weights(receiver, p, act_slope, {});
    for (T* padded : {raw, p, a, slope, f, gate, drops, act_slope}) pattern_.pad(degree_, T(0), padded);
    T* mean = head_[0];
    if (softmax) {
      pattern_.reduce(degree_, T(0), repeated_[0], [&](Vector<T> sum, int64_t i) {
        return sum + load(f + i) * load(p + i) * (load(gate + i) * load(drops + i) * load(a + i));
      });
      pattern_.fold(repeated_[0], mean, [](T x, T y) { return x + y; });
    } else {
      set_zero(mean, heads);
    }
    if (softmax && call_.grad_lse)
      for (int64_t h = 0; h < heads; ++h) mean[h] -= call_.grad_lse[receiver * heads + h];
    pattern_.repeat(mean, repeated_[0]);
    T *grad_z = scalars(8), *grad_gate = scalars(9), *grad_envelope = scalars(10), *d_scale = scalars(11);
    Maybe<T> of_logits;
    if (call_.grad_logits) {
      of_logits = d_scale;
      dense({call_.grad_logits, heads, 1}, T(0), d_scale);
      pattern_.pad(degree_, T(0), d_scale);
    }
    const T scale = call_.scale;
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      const Vector<T> zero{}, value = load(p + i), dropped = load(drops + i) * load(a + i), ff = load(f + i);
      const Vector<T> gated = load(gate + i), centred = gated * dropped - load(repeated_[0] + at);
      Vector<T> d = ff * centred * (softmax ? value : load(act_slope + i));
      if (of_logits) d += load(of_logits + i);
      const Vector<T> ds_dz = load(slope + i);
      const auto is_clipped = ds_dz == kClipped;
      d = select<T>(is_clipped, zero, d);
      store(grad_z + i, d);
      store(grad_gate + i, ff * value * dropped);
      store(grad_envelope + i, value * centred);
      store(d_scale + i, d * scale * load(raw + i));
      store(raw + i, select<T>(is_clipped, zero, d * ds_dz));
      store(p + i, ff * value * gated * load(drops + i));
    });
    if (call_.grad_bias) write(grad_z, call_.grad_bias);
    if (call_.grad_gate) write(grad_gate, call_.grad_gate);
    if (call_.grad_envelope) write(grad_envelope, call_.grad_envelope);
    if (call_.grad_score_scale) write(d_scale, call_.grad_score_scale);
  }
};

#define HAMFAST_DEFINE_FOR(T)                                                                                          \
  int64_t attention_scratch(const AttentionCall<T>& call, int64_t degree) { return Passes<T>::scratch(call, degree); } \
  void attention_forward(const AttentionCall<T>& call, int64_t begin, int64_t end, T* scratch) {                       \
    Passes<T> node(call, scratch);                                                                                     \
    for (int64_t r = begin; r < end; ++r) node.forward(r);                                                             \
  }                                                                                                                    \
  void attention_backward(const AttentionCall<T>& call, int64_t begin, int64_t end, int64_t chunk, T* scratch) {       \
    Passes<T> node(call, scratch);                                                                                     \
    for (int64_t r = begin; r < end; ++r) node.backward(r, chunk);                                                     \
    stream_fence();                                                                                                    \
  }                                                                                                                    \
  void attention_backward_senders(const AttentionCall<T>& call, int64_t begin, int64_t end, T* scratch) {              \
    Passes<T> node(call, scratch);                                                                                     \
    for (int64_t r = begin; r < end; ++r) node.backward_sender(r);                                                     \
  }
HAMFAST_DEFINE_FOR(float)
HAMFAST_DEFINE_FOR(double)

}  // namespace hamfast::HAMFAST_ISA
