// The derivative of the backward pass, in two passes like it. Compiled once per instruction set.
#include "graph_attention/graph_attention_isa.h"
#include "graph_attention/graph_attention_node.h"

namespace hamfast::HAMFAST_ISA {

template <class T>
class SecondPasses : public Node<T> {
 public:
  using Node<T>::Node;
  HAMFAST_NODE_MEMBERS

  void receiver(int64_t node, int64_t chunk) {
    begin_receiver(node);
    collect(node);
    tangent_query_on_edge_ = collected(call_.tangent_query_on_edge, node, on_edge_[2]);
    const int64_t heads = call_.heads, width = call_.query.width, features = call_.features;
    T *z = scalars(0), *p = scalars(1), *a = scalars(2), *slope = scalars(3), *tangent_z = scalars(4), *b = scalars(5);
    scores(p, z, slope);
    T* const of_weight[2] = {call_.softmax() ? p : scalars(13), call_.softmax() ? p : scalars(14)};
    plain_weights(node, p, of_weight[0], of_weight[1]);
    incoming(node, a);
    along(node, tangent_z, b);
    second_scores(node, z, p, of_weight, a, slope, tangent_z, b);
    // Now: gradients of z and z', w' and w.
    const T *dz = z, *tangent_dz = tangent_z, *tangent_w = a, *w = p;
    if (call_.grad_z) write(dz, call_.grad_z);
    if (call_.grad_tangent_z) write(tangent_dz, call_.grad_tangent_z);
    if (call_.kept_weight) write(tangent_w, call_.kept_weight);
    if (call_.grad_grad_weights) write(tangent_w, call_.grad_grad_weights);

    const Maybe<T> grad_query = zeroed(call_.grad_query[row_of_receiver], node, size_);
    const Maybe<T> grad_key = zeroed(call_.grad_key[row_of_receiver], node, size_);
    const Maybe<T> d_on_edge = zeroed(call_.grad_query_on_edge, node, heads * features);
    const Maybe<T> to_out = zeroed(call_.grad_grad_out, node, value_size_);
    const Maybe<T> to_on_edge = zeroed(call_.grad_grad_out_on_edge, node, heads * features);
    if (const Maybe<T> grad_value = call_.grad_value[row_of_receiver].row(node, value_size_))
      value_of_receiver(node, tangent_w, grad_value.data);
    const Maybe<T> grad_vector = call_.grad_vector.row(chunk, size_);
    const bool of_scores =
        grad_query || grad_key || grad_vector || call_.grad_query[row_of_edge] || call_.grad_key[row_of_edge];
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at, dz);
      for (int i = 0; i < n; ++i) second_[i] = tangent_dz + (at + i) * heads;
      edge_rows();
      if (of_scores) {
        score_rows(grad_vector.given());
        for (bool along_direction : {false, true}) {
          if (along_direction && !direction_rows()) break;
          const T* const* weight = along_direction ? second_ : weight_;
          if (grad_query) accumulate(n, heads, weight, for_query_, width, width, grad_query.data);
          if (grad_key) accumulate(n, heads, weight, for_key_, width, width, grad_key.data);
          if (grad_vector) accumulate(n, heads, weight, for_vector_, width, width, grad_vector.data);
          for (int i = 0; i < n; ++i) {
            edge_row(call_.grad_query[row_of_edge], i, weight[i], for_query_[i], along_direction);
            edge_row(call_.grad_key[row_of_edge], i, weight[i], for_key_[i], along_direction);
          }
        }
      }
      if (d_on_edge) accumulate(n, heads, weight_, edge_, features, int64_t(0), d_on_edge.data);
      if (d_on_edge && call_.tangent_edge)
        accumulate(n, heads, second_, tangent_edge_, features, int64_t(0), d_on_edge.data);
      if (call_.grad_edge) edge_gradients(at, tangent_w, second_, tangent_query_on_edge_);
      for (int i = 0; i < n; ++i) {
        weight_[i] = tangent_w + (at + i) * heads, second_[i] = w + (at + i) * heads;
        if (const Maybe<T> to = call_.grad_value[row_of_edge].row(batch_.edge[i], value_size_))
          value_of_edge(node, weight_[i], to.data);
      }
      if (to_out) {
        resolve(call_.value, value_size_, batch_, buffer_[0], value_);
        accumulate(n, heads, weight_, value_, call_.value.width, call_.value.width, to_out.data);
        if (call_.tangent_value.any()) {
          resolve(call_.tangent_value, value_size_, batch_, buffer_[0], value_);
          accumulate(n, heads, second_, value_, call_.value.width, call_.value.width, to_out.data);
        }
      }
      if (to_on_edge) accumulate(n, heads, weight_, edge_, features, int64_t(0), to_on_edge.data);
      if (to_on_edge && call_.tangent_edge)
        accumulate(n, heads, second_, tangent_edge_, features, int64_t(0), to_on_edge.data);
    }
  }

  void sender(int64_t node) {
    begin_sender(node);
    const int64_t heads = call_.heads, width = call_.query.width;
    const Maybe<T> grad_query = zeroed(call_.grad_query[row_of_sender], node, size_);
    const Maybe<T> grad_key = zeroed(call_.grad_key[row_of_sender], node, size_);
    const Maybe<T> grad_value = zeroed(call_.grad_value[row_of_sender], node, value_size_);
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at, {});
      ask_for(at, call_.grad_z, call_.grad_tangent_z, call_.kept_weight);
      if (grad_query || grad_key) {
        score_rows(false);
        for (bool along_direction : {false, true}) {
          if (along_direction && !direction_rows()) break;
          const T* numbers = (along_direction ? call_.grad_tangent_z : call_.grad_z).data;
          for (int i = 0; i < n; ++i) weight_[i] = numbers + batch_.edge[i] * heads;
          if (grad_query) accumulate(n, heads, weight_, for_query_, width, width, grad_query.data);
          if (grad_key) accumulate(n, heads, weight_, for_key_, width, width, grad_key.data);
        }
      }
      if (grad_value && call_.grad_out) values_of_sender(grad_value.data);
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
    if (call_.tangent_edge)
      for (int i = 0; i < batch_.count; ++i) tangent_edge_[i] = call_.tangent_edge + batch_.edge[i] * call_.features;
  }

  // After score_rows: what dz' is multiplied with. False if there are no directions; zero where one of them is not
  // given.
  bool direction_rows() {
    if (!call_.tangent_query.any() && !call_.tangent_key.any() && !call_.tangent_vector) return false;
    resolve(call_.tangent_query, size_, batch_, buffer_[4], for_key_);
    resolve(call_.tangent_key, size_, batch_, buffer_[5], for_query_);
    if (!call_.additive()) return true;
    activate_along(call_, batch_.count, query_, key_, for_key_, for_query_, buffer_[5], buffer_[4]);
    for (int i = 0; i < batch_.count; ++i) {
      for_query_[i] = for_key_[i] = buffer_[4] + i * size_;
      for_vector_[i] = buffer_[5] + i * size_;
    }
    return true;
  }

  void edge_row(const Maybe<T>& rows, int i, const T* weight, const T* from, bool add) {
    const Maybe<T> to = rows.row(batch_.edge[i], size_);
    if (!to) return;
    if (!add) return scale_heads(call_.heads, weight, from, call_.query.width, to.data);
    accumulate(1, call_.heads, &weight, &from, call_.query.width, call_.query.width, to.data);
  }

  // z' = <q', k> + <q'e, edge> + <q, k'> + <qe, edge'>, or <vector', act> + <vector, act' (q' + k')> + ... for the
  // first and third term; b = <g, v'> + <g_on_edge, edge'>
  void along(int64_t node, T* tangent_z, T* b) {
    const int64_t heads = call_.heads, width = call_.query.width, features = call_.features;
    T* more = scalars(6);
    const Maybe<const T> g = call_.grad_out.row(node, value_size_);
    const bool of_query = call_.tangent_query.any(), of_key = call_.tangent_key.any(),
               of_value = g && call_.tangent_value.any();
    const bool has_first = call_.additive() ? call_.tangent_vector.given() : of_query;
    const bool has_second = call_.additive() ? of_query || of_key : of_key;
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at, {});
      edge_rows();
      if (has_first || has_second) {
        score_rows(has_first);
        direction_rows();
        for (int i = 0; call_.additive() && i < n; ++i) {
          for_key_[i] = call_.tangent_vector.data, key_[i] = buffer_[3] + i * size_;
          query_[i] = call_.vector, for_query_[i] = for_vector_[i];
        }
      }
      head_dots(n, heads, for_key_, key_, has_first ? width : 0, tangent_query_on_edge_, edge_, features, partial_,
                tangent_z + at * heads);
      head_dots(n, heads, query_, for_query_, has_second ? width : 0,
                call_.tangent_edge ? query_on_edge_ : Maybe<const T>(), tangent_edge_, features, partial_,
                more + at * heads, call_.tangent_edge && query_on_edge_ ? later_rows(at, call_.tangent_edge) : nullptr);
      if (of_value) resolve(call_.tangent_value, value_size_, batch_, buffer_[0], value_);
      for (int i = 0; i < n; ++i) query_[i] = g.data;
      head_dots(n, heads, query_, value_, of_value ? call_.value.width : 0,
                call_.tangent_edge ? grad_out_on_edge_ : Maybe<const T>(), tangent_edge_, features, partial_,
                b + at * heads);
    }
    for (int64_t i = 0; i < degree_ * heads; ++i) tangent_z[i] += more[i];
  }

  // z, P (and P1, P2), a, ds/dz, z', b -> dD/dz, w, w', -, dD/dz', -; and the gradients of the numbers per edge and
  // head.
  void second_scores(int64_t node, T* z, T* p, T* const (&of_weight)[2], T* a, T* slope, T* tangent_z, T* b) {
    const T *p1 = of_weight[0], *p2 = of_weight[1];
    T *f = scalars(6), *tangent_f = scalars(7), *gate = scalars(8), *tangent_gate = scalars(9), *drops = scalars(10);
    T* tangent_scale = scalars(11);
    T* tangent_s = scalars(12);
    dense(call_.envelope, T(1), f);
    dense(call_.tangent_envelope, T(0), tangent_f);
    dense(call_.gate, T(1), gate);
    dense(call_.tangent_gate, T(0), tangent_gate);
    dense({}, T(1), drops);
    drop(drops);
    dense(call_.tangent_score_scale, T(0), tangent_scale);
    dense(call_.tangent_bias, T(0), tangent_s);
    T* of_logits = scalars(15);
    dense({call_.grad_logits, call_.heads, 1}, T(0), of_logits);
    for (T* padded : {z, p, of_weight[0], of_weight[1], a, slope, tangent_z, b, f, tangent_f, gate, tangent_gate, drops,
                      tangent_scale, tangent_s, of_logits})
      pattern_.pad(degree_, T(0), padded);
    enum { mean_u, mean_s, mean_r, mean_su };
    for (T* sum : repeated_) pattern_.fill(T(0), sum);
    const T scale = call_.scale;
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      const Vector<T> zero{}, ds_dz = load(slope + i), dropped = load(drops + i);
      const auto is_clipped = ds_dz == kClipped;
      const Vector<T> s =
          load(tangent_s + i) + ds_dz * load(tangent_z + i) + scale * load(z + i) * load(tangent_scale + i);
      store(tangent_s + i, select<T>(is_clipped, zero, s));
      const Vector<T> weight = load(f + i) * load(p + i), change = change_at(p, p1, f, tangent_f, tangent_s, i);
      const Vector<T> u = load(gate + i) * dropped * load(a + i);
      const Vector<T> r = dropped * (load(tangent_gate + i) * load(a + i) + load(gate + i) * load(b + i));
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
      if (call_.grad_grad_lse) call_.grad_grad_lse[first + h] = head_[mean_s][h];
    }
    for (int n = 0; n < 4; ++n) pattern_.repeat(head_[n], repeated_[n]);
    if (call_.grad_grad_logits) write(tangent_s, call_.grad_grad_logits);
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      const Vector<T> zero{}, ds_dz = load(slope + i), dropped = load(drops + i);
      const auto is_clipped = ds_dz == kClipped;
      const Vector<T> value = load(p + i), weight = load(f + i) * value, gated = load(gate + i) * dropped;
      const Vector<T> mean = load(repeated_[mean_s] + at), moved_mean = weight * mean;
      const Vector<T> moved = change_at(p, p1, f, tangent_f, tangent_s, i) - moved_mean;
      const Vector<T> centred = gated * load(a + i) - load(repeated_[mean_u] + at);
      const Vector<T> r = dropped * (load(tangent_gate + i) * load(a + i) + load(gate + i) * load(b + i));
      const Vector<T> rest = r - load(repeated_[mean_r] + at) - load(repeated_[mean_su] + at);
      const Vector<T> first_slope = load(f + i) * load(p1 + i);
      const Vector<T> change_of_slope = change_at(p1, p2, f, tangent_f, tangent_s, i) - moved_mean;
      const Vector<T> ds = select<T>(is_clipped, zero, change_of_slope * centred + first_slope * rest);
      const Vector<T> tangent_ds = select<T>(is_clipped, zero, first_slope * centred + load(of_logits + i));
      const Vector<T> to_envelope = (load(p1 + i) * load(tangent_s + i) - value * mean) * centred + value * rest;
      const Vector<T> z_here = load(z + i), a_here = load(a + i), along_z = load(tangent_z + i);
      const Vector<T> finite = select<T>(is_clipped, zero, ds_dz);
      store(z + i, finite * ds + scale * load(tangent_scale + i) * tangent_ds);
      store(tangent_z + i, finite * tangent_ds);
      store(a + i, moved * gated + weight * load(tangent_gate + i) * dropped);
      store(p + i, weight * gated);
      // Gradients of the numbers per edge and head take the place of what is read no more.
      store(tangent_gate + i, dropped * (moved * a_here + weight * load(b + i)));
      store(tangent_scale + i, scale * (z_here * ds + along_z * tangent_ds));
      store(tangent_f + i, to_envelope);
      store(tangent_s + i, ds);
    });
    if (call_.grad_bias) write(tangent_s, call_.grad_bias);
    if (call_.grad_score_scale) write(tangent_scale, call_.grad_score_scale);
    if (call_.grad_envelope) write(tangent_f, call_.grad_envelope);
    if (call_.grad_gate) write(tangent_gate, call_.grad_gate);
  }

  // The change of f x, whose derivative in s is f slope.
  static Vector<T> change_at(const T* x, const T* slope, const T* f, const T* tangent_f, const T* tangent_s,
                             int64_t i) {
    return load(f + i) * load(slope + i) * load(tangent_s + i) + load(x + i) * load(tangent_f + i);
  }

  Maybe<const T> tangent_query_on_edge_;
  const T *tangent_edge_[kBatch], *second_[kBatch];
};

#define HAMFAST_DEFINE_FOR(T)                                                                                    \
  void attention_double_backward(const AttentionCall<T>& call, int64_t begin, int64_t end, int64_t chunk,        \
                                 T* scratch) {                                                                   \
    SecondPasses<T> node(call, scratch);                                                                         \
    for (int64_t r = begin; r < end; ++r) node.receiver(r, chunk);                                               \
    stream_fence();                                                                                              \
  }                                                                                                              \
  void attention_double_backward_senders(const AttentionCall<T>& call, int64_t begin, int64_t end, T* scratch) { \
    SecondPasses<T> node(call, scratch);                                                                         \
    for (int64_t r = begin; r < end; ++r) node.sender(r);                                                        \
  }
HAMFAST_DEFINE_FOR(float)
HAMFAST_DEFINE_FOR(double)

}  // namespace hamfast::HAMFAST_ISA
