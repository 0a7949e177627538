// Compiled once per instruction set. Only <cmath> of the standard library: see kernels/common.cuh.
#include "graph_attention/graph_attention_rows.h"

namespace hamfast::HAMFAST_ISA {

// The rows of one node's edges, chunk by chunk, and the numbers per edge and head of all its edges.
template <class T>
class Node {
 public:
  Node(const AttentionCall<T>& call, T* scratch) : call_(call), pattern_(call.heads), free_(scratch) {
    size_ = call.heads * call.query.width;
    value_size_ = call.heads * call.value.width;
    for (T*& buffer : buffer_) buffer = take(kChunk * (size_ > value_size_ ? size_ : value_size_));
    head_ = take(4 * call.heads);
    partial_ = take(partial_size<T>(call.heads));
    for (T*& rows : on_edge_) rows = take(call.heads * call.features);
    for (T*& repeated : repeated_) repeated = take(pattern_.size());
  }

  static int64_t scratch(const AttentionCall<T>& call, int64_t degree) {
    const int64_t width = call.query.width > call.value.width ? call.query.width : call.value.width;
    return kBuffers * (kChunk * call.heads * width + kAlign) + 4 * call.heads + kAlign + 2 * (HeadPattern<T>(call.heads).size() + kAlign) +
           2 * (call.heads * call.features + kAlign) + partial_size<T>(call.heads) + kAlign +
           kScalars * (degree * call.heads + kAlign);
  }

  void forward(int64_t receiver) {
    begin(receiver, call_.receiver_order, call_.receiver_ptr);
    collect(receiver);
    T* score = scalars(0);
    scores(score, scalars(1));
    if (call_.logits) write(score, call_.logits);
    T* lse = call_.lse + receiver * call_.heads;
    if (call_.softmax())
      softmax(score, lse);
    else
      activation_weights(score, lse);
    multiply(call_.envelope, score);
    gate(score);
    const T* weight = score;
    if (call_.weights) write(weight, call_.weights);
    T* out = call_.out + receiver * value_size_;
    T* on_edge = row(call_.out_on_edge, receiver, call_.heads * call_.features);
    set_zero(out, value_size_);
    if (on_edge) set_zero(on_edge, call_.heads * call_.features);
    for (int64_t at = 0; at < degree_; at += kChunk) {
      const int n = load_chunk(at, weight);
      if (value_size_) {
        resolve(call_.value, value_size_, chunk_, buffer_[0], value_);
        accumulate(n, call_.heads, weight_, value_, call_.value.width, call_.value.width, out);
      }
      if (on_edge) {
        edge_rows();
        accumulate(n, call_.heads, weight_, edge_, call_.features, int64_t(0), on_edge);
      }
    }
  }

  void backward(int64_t receiver, int64_t part) {
    begin(receiver, call_.receiver_order, call_.receiver_ptr);
    collect(receiver);
    T *raw = scalars(0), *p = scalars(1), *a = scalars(2), *slope = scalars(3);
    scores(p, raw, slope);
    incoming(receiver, a);
    score_gradients(receiver, raw, p, a, slope);  // raw -> gradient of z, p -> w
    const T *dz = raw, *w = p;
    if (call_.d_score) write(dz, call_.d_score);
    if (call_.kept_weight) write(w, call_.kept_weight);
    const int64_t heads = call_.heads, width = call_.query.width;
    T* d_query = row(call_.d_query[part_receiver], receiver, size_);
    T* d_key = row(call_.d_key[part_receiver], receiver, size_);
    T* d_value = row(call_.d_value[part_receiver], receiver, value_size_);
    T* d_on_edge = row(call_.d_query_on_edge, receiver, heads * call_.features);
    T* d_vector = row(call_.d_vector, part, size_);
    if (d_query) set_zero(d_query, size_);
    if (d_key) set_zero(d_key, size_);
    if (d_on_edge) set_zero(d_on_edge, heads * call_.features);
    if (d_value) {  // the same row for every edge: the sum of the weights
      T* total = head_;
      set_zero(total, heads);
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h) total[h] += w[i * heads + h];
      if (call_.grad_out)
        scale_heads(heads, total, call_.grad_out + receiver * value_size_, call_.value.width, d_value);
      else
        set_zero(d_value, value_size_);
    }
    const bool of_scores = d_query || d_key || call_.d_query[part_edge] || call_.d_key[part_edge];
    for (int64_t at = 0; at < degree_; at += kChunk) {
      const int n = load_chunk(at, dz);
      if (of_scores || d_vector) score_rows();
      if (d_query) accumulate(n, heads, weight_, for_query_, width, width, d_query);
      if (d_key) accumulate(n, heads, weight_, for_key_, width, width, d_key);
      if (d_vector) {
        for (int i = 0; i < n; ++i) value_[i] = buffer_[3] + i * size_;
        accumulate(n, heads, weight_, value_, width, width, d_vector);
      }
      for (int i = 0; i < n; ++i) {
        const int64_t edge = chunk_.edge[i];
        if (T* to = row(call_.d_query[part_edge], edge, size_)) scale_heads(heads, weight_[i], for_query_[i], width, to);
        if (T* to = row(call_.d_key[part_edge], edge, size_)) scale_heads(heads, weight_[i], for_key_[i], width, to);
        if (T* to = row(call_.d_value[part_edge], edge, value_size_)) {
          if (call_.grad_out)
            scale_heads(heads, w + (at + i) * heads, call_.grad_out + receiver * value_size_, call_.value.width, to);
          else
            set_zero(to, value_size_);
        }
      }
      if (d_on_edge) {
        edge_rows();
        accumulate(n, heads, weight_, edge_, call_.features, int64_t(0), d_on_edge);
      }
      if (call_.d_edge) edge_gradients(at, n, w);
    }
  }

  void backward_sender(int64_t sender) {
    begin(sender, call_.sender_order, call_.sender_ptr);
    const int64_t heads = call_.heads, width = call_.query.width;
    T* d_query = row(call_.d_query[part_sender], sender, size_);
    T* d_key = row(call_.d_key[part_sender], sender, size_);
    T* d_value = row(call_.d_value[part_sender], sender, value_size_);
    if (d_query) set_zero(d_query, size_);
    if (d_key) set_zero(d_key, size_);
    if (d_value) set_zero(d_value, value_size_);
    for (int64_t at = 0; at < degree_; at += kChunk) {
      const int n = load_chunk(at, nullptr);
      if (d_query || d_key) {
        for (int i = 0; i < n; ++i) weight_[i] = call_.d_score + chunk_.edge[i] * heads;
        score_rows();
        if (d_query) accumulate(n, heads, weight_, for_query_, width, width, d_query);
        if (d_key) accumulate(n, heads, weight_, for_key_, width, width, d_key);
      }
      if (d_value && call_.grad_out) {
        for (int i = 0; i < n; ++i) {
          weight_[i] = call_.kept_weight + chunk_.edge[i] * heads;
          value_[i] = call_.grad_out + chunk_.receiver[i] * value_size_;
        }
        accumulate(n, heads, weight_, value_, call_.value.width, call_.value.width, d_value);
      }
    }
  }

 private:
  static constexpr int kBuffers = 4, kScalars = 4;
  static constexpr int64_t kAlign = 64 / sizeof(T);

  static T* row(T* rows, int64_t index, int64_t size) { return rows ? rows + index * size : nullptr; }

  T* take(int64_t n) {
    T* taken = free_;
    free_ += (n + kAlign - 1) / kAlign * kAlign;
    return taken;
  }

  void begin(int64_t node, const int64_t* order, const int64_t* ptr) {
    order_ = order + ptr[node];
    degree_ = ptr[node + 1] - ptr[node];
  }

  // Rows per head may lie far apart, at distances that share one set of the cache: they are brought together.
  void collect(int64_t receiver) {
    auto copy = [&](const NodeRows<T>& rows, T* to) -> const T* {
      if (!rows.data) return nullptr;
      for (int64_t h = 0; h < call_.heads; ++h)
        copy_row(rows.row(receiver) + h * rows.head_stride, call_.features, to + h * call_.features, false);
      return to;
    };
    query_on_edge_ = copy(call_.query_on_edge, on_edge_[0]);
    grad_on_edge_ = copy(call_.grad_on_edge, on_edge_[1]);
  }

  // Array n of the numbers per edge and head.
  T* scalars(int n) { return free_ + n * ((degree_ * call_.heads + kAlign - 1) / kAlign * kAlign); }

  // Edges `at` and following, with their rows of `weight` ([degree, heads]).
  int load_chunk(int64_t at, const T* weight) {
    chunk_.count = static_cast<int>(degree_ - at < kChunk ? degree_ - at : kChunk);
    for (int i = 0; i < chunk_.count; ++i) {
      chunk_.edge[i] = order_[at + i];
      chunk_.sender[i] = call_.senders[order_[at + i]];
      chunk_.receiver[i] = call_.receivers[order_[at + i]];
      weight_[i] = weight ? weight + (at + i) * call_.heads : nullptr;
    }
    return chunk_.count;
  }

  void edge_rows() {
    for (int i = 0; i < chunk_.count; ++i) edge_[i] = call_.edge + chunk_.edge[i] * call_.features;
  }

  // What dz is multiplied with for the gradients of q and of k (and, in buffer 3, of the vector).
  void score_rows() {
    resolve(call_.query, size_, chunk_, buffer_[0], query_);
    resolve(call_.key, size_, chunk_, buffer_[1], key_);
    const bool additive = call_.score == score_additive;
    if (additive) activate(call_, chunk_.count, query_, key_, call_.d_vector ? buffer_[3] : nullptr, buffer_[2]);
    for (int i = 0; i < chunk_.count; ++i) {
      for_query_[i] = additive ? buffer_[2] + i * size_ : key_[i];
      for_key_[i] = additive ? for_query_[i] : query_[i];
    }
  }

  // s and z of every edge and head of a receiver; with `slope`, ds/dz there.
  void scores(T* score, T* raw, T* slope = nullptr) {
    const int64_t heads = call_.heads, n = degree_ * heads;
    if (call_.score == score_given) {
      set_zero(raw, n);
    } else {
      for (int64_t at = 0; at < degree_; at += kChunk) {
        const int count = load_chunk(at, nullptr);
        resolve(call_.query, size_, chunk_, buffer_[0], query_);
        resolve(call_.key, size_, chunk_, buffer_[1], key_);
        if (call_.score == score_additive) {
          activate(call_, count, query_, key_, buffer_[2], static_cast<T*>(nullptr));
          for (int i = 0; i < count; ++i) query_[i] = buffer_[2] + i * size_, key_[i] = call_.vector;
        }
        edge_rows();
        head_dots(count, heads, query_, key_, call_.query.width, query_on_edge_, edge_, call_.features, partial_, raw + at * heads);
      }
    }
    if (call_.score_scale.data) {
      for (int64_t i = 0; i < n; ++i) score[i] = call_.scale;
      multiply(call_.score_scale, score);
      if (slope)
        for (int64_t i = 0; i < n; ++i) slope[i] = score[i];
      for (int64_t i = 0; i < n; ++i) score[i] *= raw[i];
    } else {
      for (int64_t i = 0; i < n; ++i) score[i] = call_.scale * raw[i];
      if (slope)
        for (int64_t i = 0; i < n; ++i) slope[i] = call_.scale;
    }
    if (call_.bias.data)
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h) score[i * heads + h] += call_.bias.at(order_[i], h);
    if (std::isinf(call_.clip)) return;
    for (int64_t i = 0; i < n; ++i) {
      const T s = clipped(score[i], call_.clip);
      // Marks what is clipped; score_gradients and the reader of the logits want the clipped score.
      if (slope && s != score[i]) slope[i] = kClipped;
      score[i] = s;
    }
  }

  void multiply(const EdgeScalar<T>& factor, T* x) {
    if (!factor.data) return;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < call_.heads; ++h) x[i * call_.heads + h] *= factor.at(order_[i], h);
  }

  void gate(T* x) {
    multiply(call_.gate, x);
    if (!call_.seed) return;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < call_.heads; ++h) x[i * call_.heads + h] *= dropout_factor(call_, order_[i], h);
  }

  void write(const T* from, T* to) {
    const int64_t heads = call_.heads;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < heads; h += kLanes<T>)
        store_first(to + order_[i] * heads + h, load_first(from + i * heads + h, heads - h), heads - h);
  }

  // x[i, h] = exp(x[i, h] - shift[h])
  void exp_shifted(const T* shift, T* x) {
    pattern_.repeat(shift, repeated_[0]);
    pattern_.pad(degree_, T(-HUGE_VAL), x);
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      store(x + i, exp_of<T>(load(x + i) - load(repeated_[0] + at)));
    });
  }

  // score -> exp(s) / (sum f exp(s) + epsilon)
  void softmax(T* score, T* lse) {
    const int64_t heads = call_.heads;
    T *top = head_, *total = head_ + heads;
    if (call_.envelope.data) {  // what it switches off must not set the scale of the others
      for (int64_t h = 0; h < heads; ++h) top[h] = T(-HUGE_VAL);
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h) {
          const T s = score[i * heads + h];
          top[h] = call_.envelope.at(order_[i], h) != T(0) && s > top[h] ? s : top[h];
        }
    } else {
      pattern_.fill(T(-HUGE_VAL), repeated_[0]);
      pattern_.pad(degree_, T(-HUGE_VAL), score);
      pattern_.each(degree_, [&](int64_t i, int64_t at) {
        const Vector<T> s = load(score + i), before = load(repeated_[0] + at);
        store(repeated_[0] + at, select<T>(s > before, s, before));
      });
      pattern_.fold(repeated_[0], top, [](T a, T b) { return a > b ? a : b; });
    }
    const T log_epsilon = call_.epsilon > T(0) ? std::log(call_.epsilon) : T(-HUGE_VAL);
    for (int64_t h = 0; h < heads; ++h) {
      if (log_epsilon > top[h]) top[h] = log_epsilon;
      if (std::isinf(top[h])) top[h] = T(0);
    }
    exp_shifted(top, score);
    pattern_.fill(T(0), repeated_[0]);
    if (call_.envelope.data) {
      for (int64_t h = 0; h < heads; ++h) total[h] = T(0);
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h) total[h] += score[i * heads + h] * call_.envelope.at(order_[i], h);
    } else {
      pattern_.each(degree_, [&](int64_t i, int64_t at) {
        store(repeated_[0] + at, load(repeated_[0] + at) + load(score + i));
      });
      pattern_.fold(repeated_[0], total, [](T a, T b) { return a + b; });
    }
    for (int64_t h = 0; h < heads; ++h) {
      total[h] += std::exp(log_epsilon - top[h]);
      lse[h] = top[h] + std::log(total[h]);
      total[h] = total[h] == T(0) ? T(0) : T(1) / total[h];
    }
    pattern_.repeat(total, repeated_[0]);
    pattern_.each(degree_,
                  [&](int64_t i, int64_t at) { store(score + i, load(score + i) * load(repeated_[0] + at)); });
  }

  void activation_weights(T* score, T* lse) {
    for (int64_t h = 0; h < call_.heads; ++h) lse[h] = T(0);
    if (call_.weight == weight_identity) return;
    for (int64_t i = 0; i < degree_ * call_.heads; ++i) score[i] = weight_value(call_.weight, score[i]);
  }

  // a, the gradients of w.
  void incoming(int64_t receiver, T* a) {
    const int64_t heads = call_.heads;
    const T* g = call_.grad_out ? call_.grad_out + receiver * value_size_ : nullptr;
    for (int64_t at = 0; at < degree_; at += kChunk) {
      const int n = load_chunk(at, nullptr);
      if (g) {
        resolve(call_.value, value_size_, chunk_, buffer_[0], value_);
        for (int i = 0; i < n; ++i) query_[i] = g;
      }
      edge_rows();
      head_dots(n, heads, query_, value_, g ? call_.value.width : 0, grad_on_edge_, edge_, call_.features, partial_, a + at * heads);
    }
    if (!call_.grad_weights) return;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < heads; ++h) a[i * heads + h] += call_.grad_weights[order_[i] * heads + h];
  }

  // z, s -> dz, w; and the gradients of the numbers per edge and head.
  void score_gradients(int64_t receiver, T* raw, T* p, T* a, T* slope) {
    const int64_t heads = call_.heads, n = degree_ * heads;
    const bool softmax = call_.softmax();
    T *mean = head_, *of_lse = head_ + heads, *shift = head_ + 2 * heads;
    T* ds = raw;  // z is still needed for the gradient of the score's scale
    if (softmax) {
      const T* lse = call_.lse_before + receiver * heads;
      // A sum of nothing: every weight is 0, and stays so.
      for (int64_t h = 0; h < heads; ++h) shift[h] = lse[h] == -HUGE_VAL ? T(HUGE_VAL) : lse[h];
      exp_shifted(shift, p);
    }
    set_zero(mean, heads);
    for (int64_t h = 0; h < heads; ++h) of_lse[h] = softmax && call_.grad_lse ? call_.grad_lse[receiver * heads + h] : T(0);
    const bool simple = softmax && !call_.envelope.data && !call_.gate.data && !call_.seed && !call_.d_score_scale &&
                        !call_.d_envelope && !call_.d_gate && !call_.grad_logits;
    if (simple) {
      pattern_.pad(degree_, T(0), a);
      pattern_.fill(T(0), repeated_[0]);
      pattern_.each(degree_, [&](int64_t i, int64_t at) {
        store(repeated_[0] + at, load(repeated_[0] + at) + load(p + i) * load(a + i));
      });
      pattern_.fold(repeated_[0], mean, [](T x, T y) { return x + y; });
      for (int64_t h = 0; h < heads; ++h) mean[h] -= of_lse[h];
      pattern_.repeat(mean, repeated_[0]);
      pattern_.each(degree_, [&](int64_t i, int64_t at) {
        const Vector<T> scale = load(slope + i), d = load(p + i) * (load(a + i) - load(repeated_[0] + at));
        store(ds + i, select<T>(scale == kClipped, Vector<T>{}, d * scale));
      });
      if (!call_.d_bias) return;
      // Without the scale's factor: made again from the same numbers.
      pattern_.each(degree_, [&](int64_t i, int64_t at) {
        const Vector<T> d = load(p + i) * (load(a + i) - load(repeated_[0] + at));
        store(a + i, select<T>(load(slope + i) == kClipped, Vector<T>{}, d));
      });
      write(a, call_.d_bias);
      return;
    } else {
      auto each = [&](auto&& f) {
        for (int64_t i = 0; i < degree_; ++i)
          for (int64_t h = 0; h < heads; ++h) {
            const int64_t k = i * heads + h, edge = order_[i];
            const T drop = call_.seed ? dropout_factor(call_, edge, h) : T(1);
            const T gated = drop * (call_.gate.data ? call_.gate.at(edge, h) : T(1));
            f(k, edge * heads + h, h, drop, gated, call_.envelope.data ? call_.envelope.at(edge, h) : T(1));
          }
      };
      // Without its envelope: exp(s - lse), or the activation.
      auto plain = [&](int64_t k) { return softmax ? p[k] : weight_value(call_.weight, p[k]); };
      if (softmax)
        each([&](int64_t k, int64_t, int64_t h, T, T gated, T f) { mean[h] += f * p[k] * gated * a[k]; });
      each([&](int64_t k, int64_t place, int64_t h, T drop, T gated, T f) {
        const T value = plain(k), u = gated * a[k], centred = softmax ? u - mean[h] + of_lse[h] : u;
        if (call_.d_gate) call_.d_gate[place] = drop * f * value * a[k];
        if (call_.d_envelope) call_.d_envelope[place] = value * centred;
        T d = f * centred * (softmax ? value : weight_slope(call_.weight, p[k]));
        if (call_.grad_logits) d += call_.grad_logits[place];
        if (slope[k] == kClipped) d = T(0);
        if (call_.d_score_scale) call_.d_score_scale[place] = d * call_.scale * raw[k];
        p[k] = f * gated * value;
        ds[k] = d;
      });
    }
    if (call_.d_bias) write(ds, call_.d_bias);
    for (int64_t k = 0; k < n; ++k) ds[k] = slope[k] == kClipped ? T(0) : ds[k] * slope[k];
  }

  // dedge = dz qe + w g_on_edge, summed over heads.
  void edge_gradients(int64_t at, int n, const T* w) {
    const int64_t heads = call_.heads;
    const T* weight[kChunk];
    T* to[kChunk];
    for (int i = 0; i < n; ++i) weight[i] = w + (at + i) * heads, to[i] = call_.d_edge + chunk_.edge[i] * call_.features;
    int i = 0;
    for (; i + kTogether <= n; i += kTogether)
      spread<T, kTogether>(heads, weight_ + i, query_on_edge_, weight + i, grad_on_edge_, call_.features, to + i);
    for (; i < n; ++i) spread<T, 1>(heads, weight_ + i, query_on_edge_, weight + i, grad_on_edge_, call_.features, to + i);
  }

  // No product of scales: it marks the derivative of a clipped score.
  static constexpr T kClipped = T(HUGE_VAL);

  const AttentionCall<T>& call_;
  const HeadPattern<T> pattern_;
  T* free_;
  T* buffer_[kBuffers];
  T* head_;
  T* partial_;
  T* on_edge_[2];
  const T *query_on_edge_ = nullptr, *grad_on_edge_ = nullptr;
  T* repeated_[2];  // numbers per head, repeated
  int64_t size_, value_size_;
  const int64_t* order_ = nullptr;
  int64_t degree_ = 0;
  Chunk chunk_;
  const T *query_[kChunk], *key_[kChunk], *value_[kChunk], *edge_[kChunk], *weight_[kChunk], *for_query_[kChunk],
      *for_key_[kChunk];
};

#define HAMFAST_DEFINE_FOR(T)                                                                                  \
  int64_t attention_scratch(const AttentionCall<T>& call, int64_t degree) { return Node<T>::scratch(call, degree); } \
  void attention_forward(const AttentionCall<T>& call, int64_t begin, int64_t end, T* scratch) {               \
    Node<T> node(call, scratch);                                                                               \
    for (int64_t r = begin; r < end; ++r) node.forward(r);                                                     \
  }                                                                                                            \
  void attention_backward(const AttentionCall<T>& call, int64_t begin, int64_t end, int64_t part, T* scratch) { \
    Node<T> node(call, scratch);                                                                               \
    for (int64_t r = begin; r < end; ++r) node.backward(r, part);                                              \
  }                                                                                                            \
  void attention_backward_senders(const AttentionCall<T>& call, int64_t begin, int64_t end, T* scratch) {      \
    Node<T> node(call, scratch);                                                                               \
    for (int64_t r = begin; r < end; ++r) node.backward_sender(r);                                             \
  }
HAMFAST_DEFINE_FOR(float)
HAMFAST_DEFINE_FOR(double)

}  // namespace hamfast::HAMFAST_ISA
