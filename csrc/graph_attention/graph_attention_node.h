// What all passes over a node's edges share: the rows of its edges, batch by batch, scores, and numbers per edge and
// head. For *_isa.cpp: compiled once per instruction set.
#pragma once

#include "common/streamed.h"
#include "graph_attention/graph_attention_rows.h"

namespace hamfast::HAMFAST_ISA {

template <class T>
class Node {
 public:
  Node(const AttentionCall<T>& call, T* scratch)
      : call_(call),
        pattern_(call.heads),
        free_(scratch),
        streams_edges_(is_streamed(call.edges * call.features, sizeof(T))) {
    size_ = call.heads * call.query.width;
    value_size_ = call.heads * call.value.width;
    for (T*& buffer : buffer_) buffer = take(kBatch * (size_ > value_size_ ? size_ : value_size_));
    partial_ = take(partial_size<T>(call.heads));
    for (T*& numbers : head_) numbers = take(call.heads);
    for (T*& repeated : repeated_) repeated = take(pattern_.size());
    for (T*& rows : on_edge_) rows = take(call.heads * call.features);
  }

  // Elements of scratch that a node of this degree needs.
  static int64_t scratch(const AttentionCall<T>& call, int64_t degree) {
    const int64_t width = call.query.width > call.value.width ? call.query.width : call.value.width;
    return kBuffers * (kBatch * call.heads * width + kAlign) + partial_size<T>(call.heads) + kAlign +
           kHeadNumbers * (call.heads + kAlign + HeadPattern<T>(call.heads).size() + kAlign) +
           kOnEdge * (call.heads * call.features + kAlign) + kScalars * (degree * call.heads + kAlign);
  }

 protected:
  static constexpr int kBuffers = 6, kScalars = 16, kHeadNumbers = 4, kOnEdge = 3;
  static constexpr int64_t kAlign = 64 / sizeof(T);
  // Edges from the asking for a row to its use.
  static constexpr int64_t kAhead = 16;
  // Marks the derivative of a clipped score: no product of scales is that.
  static constexpr T kClipped = T(HUGE_VAL);

  T* take(int64_t n) {
    T* taken = free_;
    free_ += (n + kAlign - 1) / kAlign * kAlign;
    return taken;
  }

  void begin_receiver(int64_t node) { begin(node, call_.receiver_order, call_.receiver_ptr, true); }
  void begin_sender(int64_t node) { begin(node, call_.sender_order, call_.sender_ptr, false); }

  // Rows per head may lie far apart, at distances that share one set of the cache: they are brought together. The next
  // receiver's are asked for.
  void collect(int64_t receiver) {
    query_on_edge_ = collected(call_.query_on_edge, receiver, on_edge_[0]);
    grad_out_on_edge_ = collected(call_.grad_out_on_edge, receiver, on_edge_[1]);
  }
  Maybe<const T> collected(const NodeRows<T>& rows, int64_t receiver, T* to) {
    if (!rows.data) return {};
    const int64_t next = receiver + 1 < call_.num_receivers ? receiver + 1 : receiver;
    for (int64_t h = 0; h < call_.heads; ++h) {
      copy_row(rows.row(receiver) + h * rows.head_stride, call_.features, to + h * call_.features, false);
      prefetch(rows.row(next) + h * rows.head_stride, call_.features);
    }
    return to;
  }

  // Array n of the numbers per edge and head.
  T* scalars(int n) { return free_ + n * ((degree_ * call_.heads + kAlign - 1) / kAlign * kAlign); }

  // Edges `at` and following, with their rows of `weight` ([degree, heads]).
  int load_batch(int64_t at, Maybe<const T> weight) {
    batch_.count = static_cast<int>(degree_ - at < kBatch ? degree_ - at : kBatch);
    // The end that all edges share need not be looked up.
    int64_t* const same = by_receiver_ ? batch_.receiver : batch_.sender;
    int64_t* const other = by_receiver_ ? batch_.sender : batch_.receiver;
    const int64_t* const others = by_receiver_ ? call_.senders : call_.receivers;
    for (int i = 0; i < batch_.count; ++i) {
      const int64_t edge = order_[at + i];
      batch_.edge[i] = edge, same[i] = node_, other[i] = others[edge];
      if (weight) weight_[i] = weight + (at + i) * call_.heads;
    }
    return batch_.count;
  }

  // What the edges after a batch's need, of this node or of the ones that follow: rows of features that are read for
  // the first time, for head_dots to ask for; and numbers per edge and head (or null), which a sender finds anywhere.
  const T* const* later_rows(int64_t at, Maybe<const T> features) {
    for (int i = 0; i < batch_.count; ++i) later_[i] = features + edge_after(at + i, kAhead) * call_.features;
    return later_;
  }
  template <class... Numbers>
  void ask_for(int64_t at, Numbers... numbers) {
    for (int i = 0; i < batch_.count; ++i) {
      const int64_t first = edge_after(at + i, kBatch) * call_.heads;
      ((numbers ? prefetch(numbers + first, call_.heads) : void()), ...);
    }
  }

  void edge_rows() {
    for (int i = 0; i < batch_.count; ++i) edge_[i] = call_.edge + batch_.edge[i] * call_.features;
  }

  // What dz is multiplied with for the gradients of q and of k and, if wanted, of the vector.
  void score_rows(bool of_vector) {
    resolve(call_.query, size_, batch_, buffer_[0], query_);
    resolve(call_.key, size_, batch_, buffer_[1], key_);
    if (call_.additive())
      activate(call_, batch_.count, query_, key_, of_vector ? Maybe<T>(buffer_[3]) : Maybe<T>(), Maybe<T>(buffer_[2]));
    for (int i = 0; i < batch_.count; ++i) {
      for_query_[i] = call_.additive() ? buffer_[2] + i * size_ : key_[i];
      for_key_[i] = call_.additive() ? for_query_[i] : query_[i];
      for_vector_[i] = buffer_[3] + i * size_;
    }
  }

  // s and z of every edge and head of a receiver; with `slope`, ds/dz there.
  void scores(T* score, T* raw, Maybe<T> slope = {}) {
    const int64_t heads = call_.heads, n = degree_ * heads;
    if (call_.score == score_given) {
      set_zero(raw, n);
    } else {
      for (int64_t at = 0; at < degree_; at += kBatch) {
        const int count = load_batch(at, {});
        resolve(call_.query, size_, batch_, buffer_[0], query_);
        resolve(call_.key, size_, batch_, buffer_[1], key_);
        if (call_.additive()) {
          activate(call_, count, query_, key_, Maybe<T>(buffer_[2]), Maybe<T>());
          for (int i = 0; i < count; ++i) query_[i] = buffer_[2] + i * size_, key_[i] = call_.vector;
        }
        edge_rows();
        head_dots(count, heads, query_, key_, call_.query.width, query_on_edge_, edge_, call_.features, partial_,
                  raw + at * heads, query_on_edge_ ? later_rows(at, call_.edge) : nullptr);
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

  // x, or the number that is absent everywhere.
  void dense(const EdgeScalar<T>& x, T absent, T* to) {
    const int64_t heads = call_.heads;
    if (!x.data) {
      for (int64_t i = 0; i < degree_ * heads; ++i) to[i] = absent;
      return;
    }
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < heads; ++h) to[i * heads + h] = x.at(order_[i], h);
  }
  void multiply(const EdgeScalar<T>& factor, T* x) {
    if (!factor.data) return;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < call_.heads; ++h) x[i * call_.heads + h] *= factor.at(order_[i], h);
  }
  void drop(T* x) {
    if (!call_.seed) return;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < call_.heads; ++h) x[i * call_.heads + h] *= dropout_factor(call_, order_[i], h);
  }

  void write(const T* from, Maybe<T> to) {
    const int64_t heads = call_.heads;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < heads; h += kLanes<T>)
        store_first(to + order_[i] * heads + h, load_first(from + i * heads + h, heads - h), heads - h);
  }

  // x[i, h] = exp(x[i, h] - shift[h])
  void exp_shifted(const T* shift, T* x) {
    pattern_.repeat(shift, repeated_[0]);
    pattern_.pad(degree_, T(-HUGE_VAL), x);
    pattern_.each(degree_,
                  [&](int64_t i, int64_t at) { store(x + i, exp_of<T>(load(x + i) - load(repeated_[0] + at))); });
  }

  // a, the gradients of w.
  void incoming(int64_t receiver, T* a) {
    const int64_t heads = call_.heads;
    const Maybe<const T> g = call_.grad_out.row(receiver, value_size_);
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at, {});
      if (g) {
        resolve(call_.value, value_size_, batch_, buffer_[0], value_);
        for (int i = 0; i < n; ++i) query_[i] = g.data;
      }
      edge_rows();
      head_dots(n, heads, query_, value_, g ? call_.value.width : 0, grad_out_on_edge_, edge_, call_.features, partial_,
                a + at * heads);
    }
    if (!call_.grad_weights) return;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < heads; ++h) a[i * heads + h] += call_.grad_weights[order_[i] * heads + h];
  }

  // P, from the scores; of what is no softmax also its derivatives, those wanted.
  void plain_weights(int64_t receiver, T* score, Maybe<T> slope, Maybe<T> curvature) {
    if (call_.softmax()) return plain_softmax(receiver, score);
    pattern_.pad(degree_, T(0), score);
    for (int64_t i = 0; i < degree_ * call_.heads; i += kLanes<T>) {
      const Vector<T> s = load(score + i);
      if (slope) store(slope + i, weight_slopes<T>(call_.weighting, s));
      if (curvature) store(curvature + i, weight_curvatures<T>(call_.weighting, s));
      store(score + i, weight_values<T>(call_.weighting, s));
    }
  }
  // exp(s - lse), the softmax without its envelope.
  void plain_softmax(int64_t receiver, T* score) {
    const T* lse = call_.lse_before + receiver * call_.heads;
    // A sum of nothing: every weight is 0, and stays so.
    for (int64_t h = 0; h < call_.heads; ++h) head_[0][h] = lse[h] == T(-HUGE_VAL) ? T(HUGE_VAL) : lse[h];
    exp_shifted(head_[0], score);
  }

  // Gradients of v, given the weight of each edge and head: its edge's part, its receiver's (the same row of grad_out
  // for every edge) and its sender's, for the edges of the batch.
  void value_of_edge(int64_t receiver, const T* weight, T* to) {
    if (!call_.grad_out) return set_zero(to, value_size_);
    scale_heads(call_.heads, weight, call_.grad_out + receiver * value_size_, call_.value.width, to);
  }
  void value_of_receiver(int64_t receiver, const T* weight, T* to) {
    T* total = head_[0];
    set_zero(total, call_.heads);
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < call_.heads; ++h) total[h] += weight[i * call_.heads + h];
    value_of_edge(receiver, total, to);
  }
  void values_of_sender(T* to) {
    for (int i = 0; i < batch_.count; ++i) {
      weight_[i] = call_.kept_weight + batch_.edge[i] * call_.heads;
      value_[i] = call_.grad_out + batch_.receiver[i] * value_size_;
    }
    accumulate(batch_.count, call_.heads, weight_, value_, call_.value.width, call_.value.width, to);
  }

  // dedge = dz qe (+ more more_rows) + w g_on_edge, summed over heads, for the edges from `at`, whose dz are weight_.
  void edge_gradients(int64_t at, const T* w, const T* const* more, Maybe<const T> more_rows) {
    const T* weight[kBatch];
    T* to[kBatch];
    for (int i = 0; i < batch_.count; ++i) {
      weight[i] = w + (at + i) * call_.heads;
      to[i] = call_.grad_edge + batch_.edge[i] * call_.features;
    }
    spread_all(batch_.count, call_.heads, {{weight_, query_on_edge_}, {weight, grad_out_on_edge_}, {more, more_rows}},
               call_.features, streams_edges_, to);
  }

  const AttentionCall<T>& call_;
  const HeadPattern<T> pattern_;
  T* free_;
  T* buffer_[kBuffers];
  T* partial_;
  T* head_[kHeadNumbers];      // numbers per head
  T* repeated_[kHeadNumbers];  // those repeated
  T* on_edge_[kOnEdge];
  Maybe<const T> query_on_edge_, grad_out_on_edge_;
  int64_t size_, value_size_;
  const int64_t* order_ = nullptr;
  int64_t degree_ = 0, node_ = 0;
  int64_t left_ = 0;  // edges from order_ to the end of the list
  bool by_receiver_ = true;
  Batch batch_;
  const bool streams_edges_;
  const T *query_[kBatch], *key_[kBatch], *value_[kBatch], *edge_[kBatch], *weight_[kBatch], *for_query_[kBatch],
      *for_key_[kBatch], *for_vector_[kBatch], *later_[kBatch];

 private:
  int64_t edge_after(int64_t n, int64_t by) const { return order_[n + by < left_ ? n + by : left_ - 1]; }
  void begin(int64_t node, const int64_t* order, const int64_t* ptr, bool by_receiver) {
    order_ = order + ptr[node];
    degree_ = ptr[node + 1] - ptr[node];
    left_ = call_.edges - ptr[node];
    node_ = node, by_receiver_ = by_receiver;
  }
};

// A template's base is not searched for names: a pass names what it uses.
#define HAMFAST_NODE_MEMBERS        \
  using Node<T>::call_;             \
  using Node<T>::pattern_;          \
  using Node<T>::buffer_;           \
  using Node<T>::partial_;          \
  using Node<T>::head_;             \
  using Node<T>::repeated_;         \
  using Node<T>::on_edge_;          \
  using Node<T>::query_on_edge_;    \
  using Node<T>::grad_out_on_edge_; \
  using Node<T>::size_;             \
  using Node<T>::value_size_;       \
  using Node<T>::order_;            \
  using Node<T>::degree_;           \
  using Node<T>::batch_;            \
  using Node<T>::query_;            \
  using Node<T>::key_;              \
  using Node<T>::value_;            \
  using Node<T>::edge_;             \
  using Node<T>::weight_;           \
  using Node<T>::for_query_;        \
  using Node<T>::for_key_;          \
  using Node<T>::for_vector_;       \
  using Node<T>::kClipped;          \
  using Node<T>::begin_receiver;    \
  using Node<T>::begin_sender;      \
  using Node<T>::collect;           \
  using Node<T>::collected;         \
  using Node<T>::scalars;           \
  using Node<T>::load_batch;        \
  using Node<T>::later_rows;        \
  using Node<T>::ask_for;           \
  using Node<T>::edge_rows;         \
  using Node<T>::score_rows;        \
  using Node<T>::scores;            \
  using Node<T>::dense;             \
  using Node<T>::multiply;          \
  using Node<T>::drop;              \
  using Node<T>::write;             \
  using Node<T>::incoming;          \
  using Node<T>::value_of_edge;     \
  using Node<T>::value_of_receiver; \
  using Node<T>::values_of_sender;  \
  using Node<T>::edge_gradients;    \
  using Node<T>::plain_weights;     \
  using Node<T>::exp_shifted;

}  // namespace hamfast::HAMFAST_ISA
