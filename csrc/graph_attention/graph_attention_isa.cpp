// Attention's forward and backward pass. Compiled once per instruction set. Only <cmath> of the
// standard library: see kernels/common.cuh. Symbols are those of kernels/graph_attention.cuh.
#include "graph_attention/graph_attention_isa.h"

#include "graph_attention/graph_attention_node.h"

namespace hamfast::HAMFAST_ISA {

template <class T>
class Passes : public Node<T> {
 public:
  HAMFAST_NODE_MEMBERS

  Passes(const AttentionCall<T>& call, T* scratch)
      : Node<T>(call, scratch), centre_(take_per_head()) {}

  void forward(int64_t receiver) {
    begin_receiver(receiver);
    collect(receiver);
    T* out = call_.out + receiver * value_size_;
    const Maybe<T> out_on_edge = call_.out_on_edge.row(receiver, call_.heads * call_.features);
    prefetch<to_write>(out, value_size_);  // comes while the edges are read
    if (out_on_edge) prefetch<to_write>(out_on_edge.data, call_.heads * call_.features);
    T *s = take_scalars(), *z = take_scalars();
    scores(s, z);
    if (call_.logits) write(s, call_.logits);
    T* lse = call_.lse + receiver * call_.heads;
    if (call_.softmax()) {
      softmax(s, lse);
    } else {
      set_zero(lse, call_.heads);
      make_plain(receiver, s, {}, {});
    }
    T* const w = s;  // plain until here
    multiply(call_.envelope, w);
    multiply(call_.gate, w);
    multiply_by_drop(w);
    if (call_.w) write(w, call_.w);
    set_zero(out, value_size_);
    if (out_on_edge) set_zero(out_on_edge.data, call_.heads * call_.features);
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at);
      node_scalars(w, at, w_);
      if (value_size_) {
        resolve(call_.value, value_size_, batch_, value_buffer(), value_);
        accumulate(n, call_.heads, w_, value_, call_.value.width, call_.value.width, out);
      }
      if (out_on_edge) {
        load_features();
        accumulate(n, call_.heads, w_, edge_, call_.features, int64_t(0), out_on_edge.data);
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
    const Maybe<T> grad_query_on_edge =
        call_.grad_query_on_edge.row(receiver, heads * call_.features);
    const Maybe<T> grad_vector = call_.grad_vector.row(chunk, size_);
    if (grad_query) prefetch<to_write>(grad_query.data, size_);
    if (grad_query_on_edge) prefetch<to_write>(grad_query_on_edge.data, heads * call_.features);
    T *z = take_scalars(), *s = take_scalars(), *grad_w = take_scalars(), *ds_dz = take_scalars();
    scores(s, z, ds_dz);
    make_grad_w(receiver, grad_w);
    score_gradients(receiver, z, s, grad_w, ds_dz);
    const T *grad_z = z, *w = s;  // which took their places
    if (call_.grad_z) write(grad_z, call_.grad_z);
    if (call_.w) write(w, call_.w);
    if (grad_query) set_zero(grad_query.data, size_);
    if (grad_key) set_zero(grad_key.data, size_);
    if (grad_query_on_edge) set_zero(grad_query_on_edge.data, heads * call_.features);
    if (grad_value) grad_value_of_receiver(receiver, w, grad_value.data);
    const bool of_scores =
        grad_query || grad_key || call_.grad_query[row_of_edge] || call_.grad_key[row_of_edge];
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at);
      node_scalars(grad_z, at, grad_z_);
      GradientRows<T> rows{};
      if (of_scores || grad_vector) rows = gradient_rows(grad_vector.given());
      if (grad_query) accumulate(n, heads, grad_z_, rows.query, width, width, grad_query.data);
      if (grad_key) accumulate(n, heads, grad_z_, rows.key, width, width, grad_key.data);
      if (grad_vector) accumulate(n, heads, grad_z_, rows.vector, width, width, grad_vector.data);
      for (int i = 0; i < n; ++i) {
        const int64_t edge = batch_.edge[i];
        if (const Maybe<T> to = call_.grad_query[row_of_edge].row(edge, size_))
          scale_heads(heads, grad_z_[i], rows.query[i], width, to.data);
        if (const Maybe<T> to = call_.grad_key[row_of_edge].row(edge, size_))
          scale_heads(heads, grad_z_[i], rows.key[i], width, to.data);
        if (const Maybe<T> to = call_.grad_value[row_of_edge].row(edge, value_size_))
          grad_value_of_edge(receiver, w + (at + i) * heads, to.data);
      }
      if (grad_query_on_edge) {
        load_features();
        accumulate(n, heads, grad_z_, edge_, call_.features, int64_t(0), grad_query_on_edge.data);
      }
      if (call_.grad_edge) make_grad_edge(at, w, nullptr, {});
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
      const int n = load_batch(at);
      ask_for(at, call_.grad_z, call_.w);
      if (grad_query || grad_key) {
        edge_scalars(call_.grad_z.data, grad_z_);
        const GradientRows<T> rows = gradient_rows(false);
        if (grad_query) accumulate(n, heads, grad_z_, rows.query, width, width, grad_query.data);
        if (grad_key) accumulate(n, heads, grad_z_, rows.key, width, width, grad_key.data);
      }
      if (grad_value && call_.grad_out) add_grad_value_of_sender(call_.w, grad_value.data);
    }
  }

 private:
  // s -> plain, and lse
  void softmax(T* s, T* lse) {
    const int64_t heads = call_.heads;
    T* const plain = s;
    T *top = shift_.head, *total = total_.head;
    if (call_.envelope.data) {  // what it switches off must not set the scale of the others
      for (int64_t h = 0; h < heads; ++h) top[h] = T(-HUGE_VAL);
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h) {
          const T score = s[i * heads + h];
          top[h] = call_.envelope.at(order_[i], h) != T(0) && score > top[h] ? score : top[h];
        }
    } else {
      pattern_.pad(degree_, T(-HUGE_VAL), s);
      pattern_.reduce(degree_, T(-HUGE_VAL), shift_.repeated, [&](Vector<T> top_so_far, int64_t i) {
        const Vector<T> score = load(s + i);
        return select<T>(score > top_so_far, score, top_so_far);
      });
      pattern_.fold(shift_.repeated, top, [](T a, T b) { return a > b ? a : b; });
    }
    const T log_epsilon = call_.epsilon > T(0) ? std::log(call_.epsilon) : T(-HUGE_VAL);
    for (int64_t h = 0; h < heads; ++h) {
      if (log_epsilon > top[h]) top[h] = log_epsilon;
      if (std::isinf(top[h])) top[h] = T(0);
    }
    exp_shifted(s);
    if (call_.envelope.data) {
      for (int64_t h = 0; h < heads; ++h) total[h] = T(0);
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h)
          total[h] += s[i * heads + h] * call_.envelope.at(order_[i], h);
    } else {
      pattern_.reduce(degree_, T(0), total_.repeated,
                      [&](Vector<T> sum, int64_t i) { return sum + load(s + i); });
      pattern_.fold(total_.repeated, total, [](T a, T b) { return a + b; });
    }
    T* const inverse = total;  // takes its place
    for (int64_t h = 0; h < heads; ++h) {
      if (call_.epsilon > T(0)) total[h] += std::exp(log_epsilon - top[h]);
      lse[h] = top[h] + std::log(total[h]);
      inverse[h] = total[h] == T(0) ? T(0) : T(1) / total[h];
    }
    pattern_.repeat(inverse, total_.repeated);
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      store(plain + i, load(s + i) * load(total_.repeated + at));
    });
  }

  // The gradients of the scalars; and grad_z in the place of z, and w in that of s.
  void score_gradients(int64_t receiver, T* z, T* s, T* grad_w, T* ds_dz) {
    const int64_t heads = call_.heads;
    const bool softmax = call_.softmax();
    T *envelope = take_scalars(), *gate = take_scalars(), *drop = take_scalars(),
      *plain_slope = take_scalars();
    dense(call_.envelope, T(1), envelope);
    dense(call_.gate, T(1), gate);
    dense({}, T(1), drop);
    multiply_by_drop(drop);
    make_plain(receiver, s, plain_slope, {});
    T *const plain = s, *const w = s, *const grad_z = z;  // one after the other
    for (T* padded : {z, plain, grad_w, ds_dz, envelope, gate, drop, plain_slope})
      pattern_.pad(degree_, T(0), padded);
    T* const mean_u = centre_.head;
    if (softmax) {
      pattern_.reduce(degree_, T(0), centre_.repeated, [&](Vector<T> sum, int64_t i) {
        return sum + load(envelope + i) * load(plain + i) *
                         (load(gate + i) * load(drop + i) * load(grad_w + i));
      });
      pattern_.fold(centre_.repeated, mean_u, [](T x, T y) { return x + y; });
    } else {
      set_zero(mean_u, heads);
    }
    if (softmax && call_.grad_lse)
      for (int64_t h = 0; h < heads; ++h)
        centre_.head[h] = mean_u[h] - call_.grad_lse[receiver * heads + h];
    pattern_.repeat(centre_.head, centre_.repeated);
    T *grad_s = take_scalars(), *grad_gate = take_scalars(), *grad_envelope = take_scalars();
    T* const grad_score_scale = take_scalars();
    Maybe<T> grad_logits;
    if (call_.grad_logits) {
      grad_logits = grad_score_scale;  // lies there until that is made, edge by edge
      dense({call_.grad_logits, heads, 1}, T(0), grad_score_scale);
      pattern_.pad(degree_, T(0), grad_score_scale);
    }
    const T scale = call_.scale;
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      const Vector<T> zero{}, plain_i = load(plain + i),
                              dropped = load(drop + i) * load(grad_w + i);
      const Vector<T> envelope_i = load(envelope + i), gate_i = load(gate + i);
      const Vector<T> centred = gate_i * dropped - load(centre_.repeated + at);
      Vector<T> grad_s_i = envelope_i * centred * (softmax ? plain_i : load(plain_slope + i));
      if (grad_logits) grad_s_i += load(grad_logits + i);
      const Vector<T> ds_dz_i = load(ds_dz + i);
      const auto is_clipped = ds_dz_i == kClipped;
      grad_s_i = select<T>(is_clipped, zero, grad_s_i);
      store(grad_s + i, grad_s_i);
      store(grad_gate + i, envelope_i * plain_i * dropped);
      store(grad_envelope + i, plain_i * centred);
      store(grad_score_scale + i, grad_s_i * scale * load(z + i));
      store(grad_z + i, select<T>(is_clipped, zero, grad_s_i * ds_dz_i));
      store(w + i, envelope_i * plain_i * gate_i * load(drop + i));
    });
    if (call_.grad_bias) write(grad_s, call_.grad_bias);
    if (call_.grad_gate) write(grad_gate, call_.grad_gate);
    if (call_.grad_envelope) write(grad_envelope, call_.grad_envelope);
    if (call_.grad_score_scale) write(grad_score_scale, call_.grad_score_scale);
  }

  PerHead<T> centre_;
  const T* w_[kBatch];
};

#define HAMFAST_DEFINE_FOR(T)                                                                      \
  int64_t attention_scratch(const AttentionCall<T>& call, int64_t degree) {                        \
    return Passes<T>::scratch(call, degree);                                                       \
  }                                                                                                \
  void attention_forward(const AttentionCall<T>& call, int64_t begin, int64_t end, T* scratch) {   \
    Passes<T> node(call, scratch);                                                                 \
    for (int64_t r = begin; r < end; ++r) node.forward(r);                                         \
  }                                                                                                \
  void attention_backward(const AttentionCall<T>& call, int64_t begin, int64_t end, int64_t chunk, \
                          T* scratch) {                                                            \
    Passes<T> node(call, scratch);                                                                 \
    for (int64_t r = begin; r < end; ++r) node.backward(r, chunk);                                 \
    stream_fence();                                                                                \
  }                                                                                                \
  void attention_backward_senders(const AttentionCall<T>& call, int64_t begin, int64_t end,        \
                                  T* scratch) {                                                    \
    Passes<T> node(call, scratch);                                                                 \
    for (int64_t r = begin; r < end; ++r) node.backward_sender(r);                                 \
  }
HAMFAST_DEFINE_FOR(float)
HAMFAST_DEFINE_FOR(double)

}  // namespace hamfast::HAMFAST_ISA
