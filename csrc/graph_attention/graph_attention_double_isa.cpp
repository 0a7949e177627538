// Attention's double backward pass: the derivative of the backward pass, in two passes like it.
// Compiled once per instruction set. Symbols are those of kernels/graph_attention.cuh.
#include "graph_attention/graph_attention_isa.h"
#include "graph_attention/graph_attention_node.h"

namespace hamfast::HAMFAST_ISA {

template <class T>
class SecondPasses : public Node<T> {
 public:
  HAMFAST_NODE_MEMBERS

  SecondPasses(const AttentionCall<T>& call, T* scratch) : Node<T>(call, scratch) {
    tangent_query_buffer_ = take_batch(), tangent_key_buffer_ = take_batch();
    tangent_query_on_edge_copy_ = take(call.heads * call.features);
    for (PerHead<T>* sum : {&mean_u_, &tangent_lse_, &mean_tangent_u_, &sum_t_u_})
      *sum = take_per_head();
  }

  void receiver(int64_t node, int64_t chunk) {
    begin_receiver(node);
    collect(node);
    tangent_query_on_edge_ =
        collected(call_.tangent_query_on_edge, node, tangent_query_on_edge_copy_);
    const int64_t heads = call_.heads, width = call_.query.width, features = call_.features;
    Scores x;
    for (T** made : {&x.z, &x.s, &x.grad_w, &x.ds_dz, &x.tangent_z, &x.tangent_grad_w})
      *made = take_scalars();
    scores(x.s, x.z, x.ds_dz);
    x.plain_slope = call_.softmax() ? x.s : take_scalars();
    x.plain_curvature = call_.softmax() ? x.s : take_scalars();
    make_plain(node, x.s, x.plain_slope, x.plain_curvature);
    make_grad_w(node, x.grad_w);
    T* const second_term = take_scalars();
    make_tangents(node, x.tangent_z, x.tangent_grad_w, second_term);
    second_gradients(node, x, second_term);
    const T *grad_z = x.z, *grad_tangent_z = x.tangent_z, *tangent_w = x.grad_w,
            *w = x.s;  // took their places
    if (call_.grad_z) write(grad_z, call_.grad_z);
    if (call_.grad_tangent_z) write(grad_tangent_z, call_.grad_tangent_z);
    if (call_.tangent_w) write(tangent_w, call_.tangent_w);
    if (call_.grad_grad_weights) write(tangent_w, call_.grad_grad_weights);

    const Maybe<T> grad_query = zeroed(call_.grad_query[row_of_receiver], node, size_);
    const Maybe<T> grad_key = zeroed(call_.grad_key[row_of_receiver], node, size_);
    const Maybe<T> grad_query_on_edge = zeroed(call_.grad_query_on_edge, node, heads * features);
    const Maybe<T> grad_grad_out = zeroed(call_.grad_grad_out, node, value_size_);
    const Maybe<T> grad_grad_out_on_edge =
        zeroed(call_.grad_grad_out_on_edge, node, heads * features);
    if (const Maybe<T> grad_value = call_.grad_value[row_of_receiver].row(node, value_size_))
      grad_value_of_receiver(node, tangent_w, grad_value.data);
    const Maybe<T> grad_vector = call_.grad_vector.row(chunk, size_);
    const bool of_scores = grad_query || grad_key || grad_vector || call_.grad_query[row_of_edge] ||
                           call_.grad_key[row_of_edge];
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at);
      node_scalars(grad_z, at, grad_z_);
      node_scalars(grad_tangent_z, at, grad_tangent_z_);
      load_features();
      if (of_scores) {
        for (bool of_tangents : {false, true}) {
          if (of_tangents && !scores_have_tangents()) break;
          const GradientRows<T> rows =
              of_tangents ? tangent_gradient_rows() : gradient_rows(grad_vector.given());
          const T* const* factor = of_tangents ? grad_tangent_z_ : grad_z_;
          if (grad_query) accumulate(n, heads, factor, rows.query, width, width, grad_query.data);
          if (grad_key) accumulate(n, heads, factor, rows.key, width, width, grad_key.data);
          if (grad_vector)
            accumulate(n, heads, factor, rows.vector, width, width, grad_vector.data);
          for (int i = 0; i < n; ++i) {
            make_edge_row(call_.grad_query[row_of_edge], i, factor[i], rows.query[i], of_tangents);
            make_edge_row(call_.grad_key[row_of_edge], i, factor[i], rows.key[i], of_tangents);
          }
        }
      }
      if (grad_query_on_edge)
        accumulate(n, heads, grad_z_, edge_, features, int64_t(0), grad_query_on_edge.data);
      if (grad_query_on_edge && call_.tangent_edge)
        accumulate(n, heads, grad_tangent_z_, tangent_edge_, features, int64_t(0),
                   grad_query_on_edge.data);
      if (call_.grad_edge) make_grad_edge(at, tangent_w, grad_tangent_z_, tangent_query_on_edge_);
      node_scalars(tangent_w, at, tangent_w_);
      node_scalars(w, at, w_);
      for (int i = 0; i < n; ++i)
        if (const Maybe<T> to = call_.grad_value[row_of_edge].row(batch_.edge[i], value_size_))
          grad_value_of_edge(node, tangent_w_[i], to.data);
      if (grad_grad_out) {
        resolve(call_.value, value_size_, batch_, value_buffer(), value_);
        accumulate(n, heads, tangent_w_, value_, call_.value.width, call_.value.width,
                   grad_grad_out.data);
        if (call_.tangent_value.any()) {
          resolve(call_.tangent_value, value_size_, batch_, value_buffer(), tangent_value_);
          accumulate(n, heads, w_, tangent_value_, call_.value.width, call_.value.width,
                     grad_grad_out.data);
        }
      }
      if (grad_grad_out_on_edge)
        accumulate(n, heads, tangent_w_, edge_, features, int64_t(0), grad_grad_out_on_edge.data);
      if (grad_grad_out_on_edge && call_.tangent_edge)
        accumulate(n, heads, w_, tangent_edge_, features, int64_t(0), grad_grad_out_on_edge.data);
    }
  }

  void sender(int64_t node) {
    begin_sender(node);
    const int64_t heads = call_.heads, width = call_.query.width;
    const Maybe<T> grad_query = zeroed(call_.grad_query[row_of_sender], node, size_);
    const Maybe<T> grad_key = zeroed(call_.grad_key[row_of_sender], node, size_);
    const Maybe<T> grad_value = zeroed(call_.grad_value[row_of_sender], node, value_size_);
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at);
      ask_for(at, call_.grad_z, call_.grad_tangent_z, call_.tangent_w);
      if (grad_query || grad_key) {
        for (bool of_tangents : {false, true}) {
          if (of_tangents && !scores_have_tangents()) break;
          const GradientRows<T> rows = of_tangents ? tangent_gradient_rows() : gradient_rows(false);
          const T** factor = of_tangents ? grad_tangent_z_ : grad_z_;
          edge_scalars((of_tangents ? call_.grad_tangent_z : call_.grad_z).data, factor);
          if (grad_query) accumulate(n, heads, factor, rows.query, width, width, grad_query.data);
          if (grad_key) accumulate(n, heads, factor, rows.key, width, width, grad_key.data);
        }
      }
      if (grad_value && call_.grad_out) add_grad_value_of_sender(call_.tangent_w, grad_value.data);
    }
  }

 private:
  // Scalars [degree, heads] of the receiver. s becomes plain. For the softmax plain_slope and
  // plain_curvature are plain itself.
  struct Scores {
    T *z, *s, *grad_w, *ds_dz, *tangent_z, *tangent_grad_w, *plain_slope, *plain_curvature;
  };

  static Maybe<T> zeroed(const Maybe<T>& rows, int64_t index, int64_t size) {
    const Maybe<T> found = rows.row(index, size);
    if (found) set_zero(found.data, size);
    return found;
  }

  void load_features() {
    Node<T>::load_features();
    if (call_.tangent_edge)
      for (int i = 0; i < batch_.count; ++i)
        tangent_edge_[i] = call_.tangent_edge + batch_.edge[i] * call_.features;
  }

  bool scores_have_tangents() const {
    return call_.tangent_query.any() || call_.tangent_key.any() || call_.tangent_vector.given();
  }

  // What grad_tangent_z is multiplied with, if scores have tangents; after gradient_rows(). Zero
  // where one of them is not given.
  GradientRows<T> tangent_gradient_rows() {
    resolve(call_.tangent_query, size_, batch_, tangent_query_buffer_, tangent_query_);
    resolve(call_.tangent_key, size_, batch_, tangent_key_buffer_, tangent_key_);
    if (!call_.additive()) return {tangent_key_, tangent_query_, nullptr};
    // Take the places of the rows they are made of, column by column.
    T *const vector_slope_buffer = tangent_query_buffer_, *const activation_buffer =
                                                              tangent_key_buffer_;
    activate_tangents(call_, batch_.count, query_, key_, tangent_query_, tangent_key_,
                      activation_buffer, vector_slope_buffer);
    rows_in(vector_slope_buffer, tangent_vector_slope_);
    rows_in(activation_buffer, tangent_activation_);
    return {tangent_vector_slope_, tangent_vector_slope_, tangent_activation_};
  }

  // A row of an edge's part: factor times `from`, or that is added to it.
  void make_edge_row(const Maybe<T>& rows, int i, const T* factor, const T* from, bool add) {
    const Maybe<T> to = rows.row(batch_.edge[i], size_);
    if (!to) return;
    if (!add) return scale_heads(call_.heads, factor, from, call_.query.width, to.data);
    accumulate(1, call_.heads, &factor, &from, call_.query.width, call_.query.width, to.data);
  }

  // tangent_z and tangent_grad_w. second_term: working memory.
  void make_tangents(int64_t node, T* tangent_z, T* tangent_grad_w, T* second_term) {
    const int64_t heads = call_.heads, width = call_.query.width, features = call_.features;
    const Maybe<const T> grad_out = call_.grad_out.row(node, value_size_);
    const bool of_query = call_.tangent_query.any(), of_key = call_.tangent_key.any(),
               of_value = grad_out && call_.tangent_value.any();
    // <tangent_query, key> and <query, tangent_key>; or, of additive scores, <tangent_vector,
    // activation> and <vector, tangent_activation>.
    const bool additive = call_.additive();
    const bool has_first = additive ? call_.tangent_vector.given() : of_query;
    const bool has_second = additive ? of_query || of_key : of_key;
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at);
      load_features();
      if (has_first || has_second) {
        gradient_rows(has_first);
        tangent_gradient_rows();
        if (additive) {
          repeat_row(call_.vector, vector_);
          repeat_row(call_.tangent_vector.data, tangent_vector_);
        }
      }
      head_dots(n, heads, additive ? tangent_vector_ : tangent_query_,
                additive ? activation_ : key_, has_first ? width : 0, tangent_query_on_edge_, edge_,
                features, partial_, tangent_z + at * heads);
      head_dots(
          n, heads, additive ? vector_ : query_, additive ? tangent_activation_ : tangent_key_,
          has_second ? width : 0, call_.tangent_edge ? query_on_edge_ : Maybe<const T>(),
          tangent_edge_, features, partial_, second_term + at * heads,
          call_.tangent_edge && query_on_edge_ ? later_features(at, call_.tangent_edge) : nullptr);
      if (of_value)
        resolve(call_.tangent_value, value_size_, batch_, value_buffer(), tangent_value_);
      repeat_row(grad_out.data, grad_out_);
      head_dots(n, heads, grad_out_, tangent_value_, of_value ? call_.value.width : 0,
                call_.tangent_edge ? grad_out_on_edge_ : Maybe<const T>(), tangent_edge_, features,
                partial_, tangent_grad_w + at * heads);
    }
    for (int64_t i = 0; i < degree_ * heads; ++i) tangent_z[i] += second_term[i];
  }

  // The gradients of the scalars; and grad_z in the place of z, grad_tangent_z in that of
  // tangent_z, tangent_w in that of grad_w, and w in that of s. free: scalars that are no longer
  // needed.
  void second_gradients(int64_t node, const Scores& x, T* free) {
    T *const z = x.z, *const plain = x.s, *const grad_w = x.grad_w, *const ds_dz = x.ds_dz;
    T *const tangent_z = x.tangent_z, *const tangent_grad_w = x.tangent_grad_w;
    T *const plain_slope = x.plain_slope, *const plain_curvature = x.plain_curvature;
    T *const grad_z = z, *const grad_tangent_z = tangent_z, *const tangent_w = grad_w,
             *const w = plain;
    T *envelope = free, *tangent_envelope = take_scalars(), *gate = take_scalars(),
      *tangent_gate = take_scalars();
    T *drop = take_scalars(), *tangent_score_scale = take_scalars(), *tangent_s = take_scalars();
    T* const grad_logits = take_scalars();
    dense(call_.envelope, T(1), envelope);
    dense(call_.tangent_envelope, T(0), tangent_envelope);
    dense(call_.gate, T(1), gate);
    dense(call_.tangent_gate, T(0), tangent_gate);
    dense({}, T(1), drop);
    multiply_by_drop(drop);
    dense(call_.tangent_score_scale, T(0), tangent_score_scale);
    T* const tangent_bias = tangent_s;  // tangent_s is added to it
    dense(call_.tangent_bias, T(0), tangent_bias);
    dense({call_.grad_logits, call_.heads, 1}, T(0), grad_logits);
    for (T* padded : {z, plain, plain_slope, plain_curvature, grad_w, ds_dz, tangent_z,
                      tangent_grad_w, envelope, tangent_envelope, gate, tangent_gate, drop,
                      tangent_score_scale, tangent_s, grad_logits})
      pattern_.pad(degree_, T(0), padded);
    // The change of `envelope value` at a fixed sum, where slope is the derivative of value in s.
    auto change = [&](const T* value, const T* slope, int64_t i) {
      return load(envelope + i) * load(slope + i) * load(tangent_s + i) +
             load(value + i) * load(tangent_envelope + i);
    };
    auto tangent_u_at = [&](int64_t i, Vector<T> drop_i) {
      return drop_i * (load(tangent_gate + i) * load(grad_w + i) +
                       load(gate + i) * load(tangent_grad_w + i));
    };
    PerHead<T>* const sums[] = {&mean_u_, &tangent_lse_, &mean_tangent_u_, &sum_t_u_};
    for (const PerHead<T>* sum : sums) pattern_.fill(T(0), sum->repeated);
    const T scale = call_.scale;
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      const Vector<T> zero{}, ds_dz_i = load(ds_dz + i), drop_i = load(drop + i);
      const auto is_clipped = ds_dz_i == kClipped;
      const Vector<T> tangent_s_i = load(tangent_bias + i) + ds_dz_i * load(tangent_z + i) +
                                    scale * load(z + i) * load(tangent_score_scale + i);
      store(tangent_s + i, select<T>(is_clipped, zero, tangent_s_i));
      const Vector<T> p = load(envelope + i) * load(plain + i), t = change(plain, plain_slope, i);
      const Vector<T> u = load(gate + i) * drop_i * load(grad_w + i),
                      tangent_u = tangent_u_at(i, drop_i);
      auto add = [&](Vector<T> term, const PerHead<T>& sum) {
        store(sum.repeated + at, load(sum.repeated + at) + term);
      };
      add(p * u, mean_u_);
      add(t, tangent_lse_);
      add(p * tangent_u, mean_tangent_u_);
      add(t * u, sum_t_u_);
    });
    for (const PerHead<T>* sum : sums) {
      pattern_.fold(sum->repeated, sum->head, [](T a, T b) { return a + b; });
      if (!call_.softmax()) set_zero(sum->head, call_.heads);
    }
    const PerHead<T> centre = mean_u_, sum_tangent_p_u = sum_t_u_;  // take their places
    const int64_t first = node * call_.heads;
    for (int64_t h = 0; h < call_.heads; ++h) {
      sum_tangent_p_u.head[h] = sum_t_u_.head[h] - mean_u_.head[h] * tangent_lse_.head[h];
      if (call_.softmax() && call_.grad_lse)
        centre.head[h] = mean_u_.head[h] - call_.grad_lse[first + h];
      if (call_.grad_grad_lse) call_.grad_grad_lse[first + h] = tangent_lse_.head[h];
    }
    for (const PerHead<T>* sum : sums) pattern_.repeat(sum->head, sum->repeated);
    if (call_.grad_grad_logits) write(tangent_s, call_.grad_grad_logits);
    // The gradients of the scalars take the places of what is no longer read.
    T *const grad_bias = tangent_s, *const grad_score_scale = tangent_score_scale;
    T *const grad_envelope = tangent_envelope, *const grad_gate = tangent_gate;
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      const Vector<T> zero{}, ds_dz_i = load(ds_dz + i), drop_i = load(drop + i);
      const auto is_clipped = ds_dz_i == kClipped;
      const Vector<T> plain_i = load(plain + i), p = load(envelope + i) * plain_i,
                      gate_drop = load(gate + i) * drop_i;
      const Vector<T> tangent_lse = load(tangent_lse_.repeated + at),
                      p_tangent_lse = p * tangent_lse;
      const Vector<T> tangent_p = change(plain, plain_slope, i) - p_tangent_lse;
      const Vector<T> centred = gate_drop * load(grad_w + i) - load(centre.repeated + at);
      const Vector<T> tangent_centred = tangent_u_at(i, drop_i) -
                                        load(mean_tangent_u_.repeated + at) -
                                        load(sum_tangent_p_u.repeated + at);
      const Vector<T> p_slope = load(envelope + i) * load(plain_slope + i);
      const Vector<T> tangent_p_slope = change(plain_slope, plain_curvature, i) - p_tangent_lse;
      const Vector<T> grad_s =
          select<T>(is_clipped, zero, tangent_p_slope * centred + p_slope * tangent_centred);
      const Vector<T> grad_tangent_s =
          select<T>(is_clipped, zero, p_slope * centred + load(grad_logits + i));
      const Vector<T> tangent_plain =
          load(plain_slope + i) * load(tangent_s + i) - plain_i * tangent_lse;
      const Vector<T> z_i = load(z + i), grad_w_i = load(grad_w + i),
                      tangent_z_i = load(tangent_z + i);
      const Vector<T> unclipped_ds_dz = select<T>(is_clipped, zero, ds_dz_i);
      store(grad_z + i,
            unclipped_ds_dz * grad_s + scale * load(tangent_score_scale + i) * grad_tangent_s);
      store(grad_tangent_z + i, unclipped_ds_dz * grad_tangent_s);
      store(tangent_w + i, tangent_p * gate_drop + p * load(tangent_gate + i) * drop_i);
      store(w + i, p * gate_drop);
      store(grad_gate + i, drop_i * (tangent_p * grad_w_i + p * load(tangent_grad_w + i)));
      store(grad_score_scale + i, scale * (z_i * grad_s + tangent_z_i * grad_tangent_s));
      store(grad_envelope + i, tangent_plain * centred + plain_i * tangent_centred);
      store(grad_bias + i, grad_s);
    });
    if (call_.grad_bias) write(grad_bias, call_.grad_bias);
    if (call_.grad_score_scale) write(grad_score_scale, call_.grad_score_scale);
    if (call_.grad_envelope) write(grad_envelope, call_.grad_envelope);
    if (call_.grad_gate) write(grad_gate, call_.grad_gate);
  }

  T *tangent_query_buffer_, *tangent_key_buffer_, *tangent_query_on_edge_copy_;
  PerHead<T> mean_u_, tangent_lse_, mean_tangent_u_, sum_t_u_;
  Maybe<const T> tangent_query_on_edge_;
  const T *tangent_query_[kBatch], *tangent_key_[kBatch], *tangent_value_[kBatch],
      *tangent_edge_[kBatch];
  const T *tangent_activation_[kBatch], *tangent_vector_slope_[kBatch], *tangent_vector_[kBatch];
  const T *grad_tangent_z_[kBatch], *w_[kBatch], *tangent_w_[kBatch];
};

#define HAMFAST_DEFINE_FOR(T)                                                                      \
  void attention_double_backward(const AttentionCall<T>& call, int64_t begin, int64_t end,         \
                                 int64_t chunk, T* scratch) {                                      \
    SecondPasses<T> node(call, scratch);                                                           \
    for (int64_t r = begin; r < end; ++r) node.receiver(r, chunk);                                 \
    stream_fence();                                                                                \
  }                                                                                                \
  void attention_double_backward_senders(const AttentionCall<T>& call, int64_t begin, int64_t end, \
                                         T* scratch) {                                             \
    SecondPasses<T> node(call, scratch);                                                           \
    for (int64_t r = begin; r < end; ++r) node.sender(r);                                          \
  }
HAMFAST_DEFINE_FOR(float)
HAMFAST_DEFINE_FOR(double)

}  // namespace hamfast::HAMFAST_ISA
