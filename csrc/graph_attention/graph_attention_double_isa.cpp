// The derivative of the backward pass, in two passes like it. Compiled once per instruction set.
#include "graph_attention/graph_attention_isa.h"
#include "graph_attention/graph_attention_node.h"

namespace hamfast::HAMFAST_ISA {

template <class T>
class SecondPasses : public Node<T> {
 public:
  using Node<T>::Node;
  HAMFAST_NODE_MEMBERS

  void receiver(int64_t node, int64_t part) {
    begin_receiver(node);
    collect(node);
    query_on_edge_dot_ = collected(call_.query_on_edge_dot, node, on_edge_[2]);
    const int64_t heads = call_.heads, width = call_.query.width, features = call_.features;
    T *z = scalars(0), *p = scalars(1), *a = scalars(2), *slope = scalars(3), *z_dot = scalars(4), *b = scalars(5);
    scores(p, z, slope);
    T* const of_weight[2] = {call_.softmax() ? p : scalars(13), call_.softmax() ? p : scalars(14)};
    plain_weights(node, p, of_weight[0], of_weight[1]);
    incoming(node, a);
    along(node, z_dot, b);
    second_scores(node, z, p, of_weight, a, slope, z_dot, b);
    // Now: gradients of z and z', w' and w.
    const T *dz = z, *dz_dot = z_dot, *w_dot = a, *w = p;
    if (call_.d_score) write(dz, call_.d_score);
    if (call_.d_score_dot) write(dz_dot, call_.d_score_dot);
    if (call_.kept_weight) write(w_dot, call_.kept_weight);
    if (call_.to_grad_weights) write(w_dot, call_.to_grad_weights);

    const Maybe<T> d_query = zeroed(call_.d_query[part_receiver], node, size_);
    const Maybe<T> d_key = zeroed(call_.d_key[part_receiver], node, size_);
    const Maybe<T> d_on_edge = zeroed(call_.d_query_on_edge, node, heads * features);
    const Maybe<T> to_out = zeroed(call_.to_grad_out, node, value_size_);
    const Maybe<T> to_on_edge = zeroed(call_.to_grad_on_edge, node, heads * features);
    if (const Maybe<T> d_value = call_.d_value[part_receiver].row(node, value_size_))
      value_of_receiver(node, w_dot, d_value.data);
    const Maybe<T> d_vector = call_.d_vector.row(part, size_);
    const bool of_scores = d_query || d_key || d_vector || call_.d_query[part_edge] || call_.d_key[part_edge];
    for (int64_t at = 0; at < degree_; at += kChunk) {
      const int n = load_chunk(at, dz);
      for (int i = 0; i < n; ++i) second_[i] = dz_dot + (at + i) * heads;
      edge_rows();
      if (of_scores) {
        score_rows(d_vector.given());
        for (bool along_direction : {false, true}) {
          if (along_direction && !direction_rows()) break;
          const T* const* weight = along_direction ? second_ : weight_;
          if (d_query) accumulate(n, heads, weight, for_query_, width, width, d_query.data);
          if (d_key) accumulate(n, heads, weight, for_key_, width, width, d_key.data);
          if (d_vector) accumulate(n, heads, weight, for_vector_, width, width, d_vector.data);
          for (int i = 0; i < n; ++i) {
            edge_row(call_.d_query[part_edge], i, weight[i], for_query_[i], along_direction);
            edge_row(call_.d_key[part_edge], i, weight[i], for_key_[i], along_direction);
          }
        }
      }
      if (d_on_edge) accumulate(n, heads, weight_, edge_, features, int64_t(0), d_on_edge.data);
      if (d_on_edge && call_.edge_dot) accumulate(n, heads, second_, edge_dot_, features, int64_t(0), d_on_edge.data);
      if (call_.d_edge) edge_gradients(at, w_dot, second_, query_on_edge_dot_);
      for (int i = 0; i < n; ++i) {
        weight_[i] = w_dot + (at + i) * heads, second_[i] = w + (at + i) * heads;
        if (const Maybe<T> to = call_.d_value[part_edge].row(chunk_.edge[i], value_size_))
          value_of_edge(node, weight_[i], to.data);
      }
      if (to_out) {
        resolve(call_.value, value_size_, chunk_, buffer_[0], value_);
        accumulate(n, heads, weight_, value_, call_.value.width, call_.value.width, to_out.data);
        if (call_.value_dot.any()) {
          resolve(call_.value_dot, value_size_, chunk_, buffer_[0], value_);
          accumulate(n, heads, second_, value_, call_.value.width, call_.value.width, to_out.data);
        }
      }
      if (to_on_edge) accumulate(n, heads, weight_, edge_, features, int64_t(0), to_on_edge.data);
      if (to_on_edge && call_.edge_dot) accumulate(n, heads, second_, edge_dot_, features, int64_t(0), to_on_edge.data);
    }
  }

  void sender(int64_t node) {
    begin_sender(node);
    const int64_t heads = call_.heads, width = call_.query.width;
    const Maybe<T> d_query = zeroed(call_.d_query[part_sender], node, size_);
    const Maybe<T> d_key = zeroed(call_.d_key[part_sender], node, size_);
    const Maybe<T> d_value = zeroed(call_.d_value[part_sender], node, value_size_);
    for (int64_t at = 0; at < degree_; at += kChunk) {
      const int n = load_chunk(at, {});
      ask_for(at, call_.d_score, call_.d_score_dot, call_.kept_weight);
      if (d_query || d_key) {
        score_rows(false);
        for (bool along_direction : {false, true}) {
          if (along_direction && !direction_rows()) break;
          const T* numbers = (along_direction ? call_.d_score_dot : call_.d_score).data;
          for (int i = 0; i < n; ++i) weight_[i] = numbers + chunk_.edge[i] * heads;
          if (d_query) accumulate(n, heads, weight_, for_query_, width, width, d_query.data);
          if (d_key) accumulate(n, heads, weight_, for_key_, width, width, d_key.data);
        }
      }
      if (d_value && call_.grad_out) values_of_sender(d_value.data);
    }
  }

 private:
  static Maybe<T> zeroed(const Maybe<T>& rows, int64_t index, int64_t size) {
    const Maybe<T> found = rows.row(index, size);
    if (found) set_zero(found.data, size);
    return found;
  }

  void edge_rows() {
    Node<T>::edge_rows();
    if (call_.edge_dot)
      for (int i = 0; i < chunk_.count; ++i) edge_dot_[i] = call_.edge_dot + chunk_.edge[i] * call_.features;
  }

  // After score_rows: what dz' is multiplied with. False if there are no directions; zero where one of them is not
  // given.
  bool direction_rows() {
    if (!call_.query_dot.any() && !call_.key_dot.any() && !call_.vector_dot) return false;
    resolve(call_.query_dot, size_, chunk_, buffer_[4], for_key_);
    resolve(call_.key_dot, size_, chunk_, buffer_[5], for_query_);
    if (!call_.additive()) return true;
    activate_along(call_, chunk_.count, query_, key_, for_key_, for_query_, buffer_[5], buffer_[4]);
    for (int i = 0; i < chunk_.count; ++i) {
      for_query_[i] = for_key_[i] = buffer_[4] + i * size_;
      for_vector_[i] = buffer_[5] + i * size_;
    }
    return true;
  }

  void edge_row(const Maybe<T>& rows, int i, const T* weight, const T* from, bool add) {
    const Maybe<T> to = rows.row(chunk_.edge[i], size_);
    if (!to) return;
    if (!add) return scale_heads(call_.heads, weight, from, call_.query.width, to.data);
    accumulate(1, call_.heads, &weight, &from, call_.query.width, call_.query.width, to.data);
  }

  // z' = <q', k> + <q'e, edge> + <q, k'> + <qe, edge'>, or <vector', act> + <vector, act' (q' + k')> + ... for the
  // first and third term; b = <g, v'> + <g_on_edge, edge'>
  void along(int64_t node, T* z_dot, T* b) {
    const int64_t heads = call_.heads, width = call_.query.width, features = call_.features;
    T* more = scalars(6);
    const Maybe<const T> g = call_.grad_out.row(node, value_size_);
    const bool of_query = call_.query_dot.any(), of_key = call_.key_dot.any(), of_value = g && call_.value_dot.any();
    const bool has_first = call_.additive() ? call_.vector_dot.given() : of_query;
    const bool has_second = call_.additive() ? of_query || of_key : of_key;
    for (int64_t at = 0; at < degree_; at += kChunk) {
      const int n = load_chunk(at, {});
      edge_rows();
      if (has_first || has_second) {
        score_rows(has_first);
        direction_rows();
        for (int i = 0; call_.additive() && i < n; ++i) {
          for_key_[i] = call_.vector_dot.data, key_[i] = buffer_[3] + i * size_;
          query_[i] = call_.vector, for_query_[i] = for_vector_[i];
        }
      }
      head_dots(n, heads, for_key_, key_, has_first ? width : 0, query_on_edge_dot_, edge_, features, partial_,
                z_dot + at * heads);
      head_dots(n, heads, query_, for_query_, has_second ? width : 0,
                call_.edge_dot ? query_on_edge_ : Maybe<const T>(), edge_dot_, features, partial_, more + at * heads,
                call_.edge_dot && query_on_edge_ ? later_rows(at, call_.edge_dot) : nullptr);
      if (of_value) resolve(call_.value_dot, value_size_, chunk_, buffer_[0], value_);
      for (int i = 0; i < n; ++i) query_[i] = g.data;
      head_dots(n, heads, query_, value_, of_value ? call_.value.width : 0,
                call_.edge_dot ? grad_on_edge_ : Maybe<const T>(), edge_dot_, features, partial_, b + at * heads);
    }
    for (int64_t i = 0; i < degree_ * heads; ++i) z_dot[i] += more[i];
  }

  // z, P (and P1, P2), a, ds/dz, z', b -> dD/dz, w, w', -, dD/dz', -; and the gradients of the numbers per edge and
  // head.
  void second_scores(int64_t node, T* z, T* p, T* const (&of_weight)[2], T* a, T* slope, T* z_dot, T* b) {
    const T *p1 = of_weight[0], *p2 = of_weight[1];
    T *f = scalars(6), *f_dot = scalars(7), *gate = scalars(8), *gate_dot = scalars(9), *drops = scalars(10);
    T* scale_dot = scalars(11);
    T* s_dot = scalars(12);
    dense(call_.envelope, T(1), f);
    dense(call_.envelope_dot, T(0), f_dot);
    dense(call_.gate, T(1), gate);
    dense(call_.gate_dot, T(0), gate_dot);
    dense({}, T(1), drops);
    drop(drops);
    dense(call_.score_scale_dot, T(0), scale_dot);
    dense(call_.bias_dot, T(0), s_dot);
    T* of_logits = scalars(15);
    dense({call_.grad_logits, call_.heads, 1}, T(0), of_logits);
    for (T* padded : {z, p, of_weight[0], of_weight[1], a, slope, z_dot, b, f, f_dot, gate, gate_dot, drops, scale_dot,
                      s_dot, of_logits})
      pattern_.pad(degree_, T(0), padded);
    enum { mean_u, mean_s, mean_r, mean_su };
    for (T* sum : repeated_) pattern_.fill(T(0), sum);
    const T scale = call_.scale;
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      const Vector<T> zero{}, ds_dz = load(slope + i), dropped = load(drops + i);
      const auto is_clipped = ds_dz == kClipped;
      const Vector<T> s = load(s_dot + i) + ds_dz * load(z_dot + i) + scale * load(z + i) * load(scale_dot + i);
      store(s_dot + i, select<T>(is_clipped, zero, s));
      const Vector<T> weight = load(f + i) * load(p + i), change = change_at(p, p1, f, f_dot, s_dot, i);
      const Vector<T> u = load(gate + i) * dropped * load(a + i);
      const Vector<T> r = dropped * (load(gate_dot + i) * load(a + i) + load(gate + i) * load(b + i));
      auto add = [&](int n, Vector<T> x) { store(repeated_[n] + at, load(repeated_[n] + at) + x); };
      add(mean_u, weight * u);
      add(mean_s, change);
      add(mean_r, weight * r);
      add(mean_su, change * u);
    });
    for (int n = 0; n < 4; ++n) {
      pattern_.fold(repeated_[n], head_[n], [](T x, T y) { return x + y; });
      if (!call_.softmax()) set_zero(head_[n], call_.heads);
    }
    const int64_t first = node * call_.heads;
    for (int64_t h = 0; h < call_.heads; ++h) {
      head_[mean_su][h] -= head_[mean_u][h] * head_[mean_s][h];  // K
      if (call_.softmax() && call_.grad_lse) head_[mean_u][h] -= call_.grad_lse[first + h];
      if (call_.to_grad_lse) call_.to_grad_lse[first + h] = head_[mean_s][h];
    }
    for (int n = 0; n < 4; ++n) pattern_.repeat(head_[n], repeated_[n]);
    if (call_.to_grad_logits) write(s_dot, call_.to_grad_logits);
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      const Vector<T> zero{}, ds_dz = load(slope + i), dropped = load(drops + i);
      const auto is_clipped = ds_dz == kClipped;
      const Vector<T> value = load(p + i), weight = load(f + i) * value, gated = load(gate + i) * dropped;
      const Vector<T> mean = load(repeated_[mean_s] + at), moved_mean = weight * mean;
      const Vector<T> moved = change_at(p, p1, f, f_dot, s_dot, i) - moved_mean;
      const Vector<T> centred = gated * load(a + i) - load(repeated_[mean_u] + at);
      const Vector<T> r = dropped * (load(gate_dot + i) * load(a + i) + load(gate + i) * load(b + i));
      const Vector<T> rest = r - load(repeated_[mean_r] + at) - load(repeated_[mean_su] + at);
      const Vector<T> first_slope = load(f + i) * load(p1 + i);
      const Vector<T> change_of_slope = change_at(p1, p2, f, f_dot, s_dot, i) - moved_mean;
      const Vector<T> ds = select<T>(is_clipped, zero, change_of_slope * centred + first_slope * rest);
      const Vector<T> ds_dot = select<T>(is_clipped, zero, first_slope * centred + load(of_logits + i));
      const Vector<T> to_envelope = (load(p1 + i) * load(s_dot + i) - value * mean) * centred + value * rest;
      const Vector<T> z_here = load(z + i), a_here = load(a + i), along_z = load(z_dot + i);
      const Vector<T> finite = select<T>(is_clipped, zero, ds_dz);
      store(z + i, finite * ds + scale * load(scale_dot + i) * ds_dot);
      store(z_dot + i, finite * ds_dot);
      store(a + i, moved * gated + weight * load(gate_dot + i) * dropped);
      store(p + i, weight * gated);
      // Gradients of the numbers per edge and head take the place of what is read no more.
      store(gate_dot + i, dropped * (moved * a_here + weight * load(b + i)));
      store(scale_dot + i, scale * (z_here * ds + along_z * ds_dot));
      store(f_dot + i, to_envelope);
      store(s_dot + i, ds);
    });
    if (call_.d_bias) write(s_dot, call_.d_bias);
    if (call_.d_score_scale) write(scale_dot, call_.d_score_scale);
    if (call_.d_envelope) write(f_dot, call_.d_envelope);
    if (call_.d_gate) write(gate_dot, call_.d_gate);
  }

  // The change of f x, whose derivative in s is f slope.
  static Vector<T> change_at(const T* x, const T* slope, const T* f, const T* f_dot, const T* s_dot, int64_t i) {
    return load(f + i) * load(slope + i) * load(s_dot + i) + load(x + i) * load(f_dot + i);
  }

  Maybe<const T> query_on_edge_dot_;
  const T *edge_dot_[kChunk], *second_[kChunk];
};

#define HAMFAST_DEFINE_FOR(T)                                                                                          \
  void attention_double_backward(const AttentionCall<T>& call, int64_t begin, int64_t end, int64_t part, T* scratch) { \
    SecondPasses<T> node(call, scratch);                                                                               \
    for (int64_t r = begin; r < end; ++r) node.receiver(r, part);                                                      \
    stream_fence();                                                                                                    \
  }                                                                                                                    \
  void attention_double_backward_senders(const AttentionCall<T>& call, int64_t begin, int64_t end, T* scratch) {       \
    SecondPasses<T> node(call, scratch);                                                                               \
    for (int64_t r = begin; r < end; ++r) node.sender(r);                                                              \
  }
HAMFAST_DEFINE_FOR(float)
HAMFAST_DEFINE_FOR(double)

}  // namespace hamfast::HAMFAST_ISA
