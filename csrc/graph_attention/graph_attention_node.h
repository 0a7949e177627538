// What all passes over a node's edges share: the rows of its edges, batch by batch, and scalars per
// edge and head. For *_isa.cpp: compiled once per instruction set. Symbols are those of
// kernels/graph_attention.cuh.
#pragma once

#include "common/streamed.h"
#include "graph_attention/graph_attention_rows.h"

namespace hamfast::HAMFAST_ISA {

// A value per head, and the same repeated as HeadPattern has it.
template <class T>
struct PerHead {
  T *head, *repeated;
};

// Rows [heads, width] that grad_z is multiplied with, for the edges of a batch: its products are
// the gradients of query, key and vector. Or those that grad_tangent_z is multiplied with.
template <class T>
struct GradientRows {
  const T *const *query, *const *key, *const *vector;
};

template <class T>
class Node {
 public:
  Node(const AttentionCall<T>& call, T* scratch)
      : call_(call),
        pattern_(call.heads),
        streams_edges_(is_streamed(call.edges * call.features, sizeof(T))),
        free_(scratch) {
    size_ = call.heads * call.query.width;
    value_size_ = call.heads * call.value.width;
    query_buffer_ = take_batch(), key_buffer_ = take_batch();
    vector_slope_buffer_ = take_batch(), activation_buffer_ = take_batch();
    partial_ = take(partial_size<T>(call.heads));
    shift_ = take_per_head(), total_ = take_per_head();
    query_on_edge_copy_ = take(call.heads * call.features);
    grad_out_on_edge_copy_ = take(call.heads * call.features);
  }

  // Elements of scratch that a node of this degree needs.
  static int64_t scratch(const AttentionCall<T>& call, int64_t degree) {
    const int64_t width = call.query.width > call.value.width ? call.query.width : call.value.width;
    return kBatches * (kBatch * call.heads * width + kAlign) + partial_size<T>(call.heads) +
           kAlign + kPerHead * (call.heads + kAlign + HeadPattern<T>(call.heads).size() + kAlign) +
           kCopies * (call.heads * call.features + kAlign) +
           kScalars * (degree * call.heads + kAlign);
  }

 protected:
  // At most: how often take_batch(), take_per_head() and take_scalars() are called, and how many
  // copies of rows per head there are.
  static constexpr int kBatches = 6, kPerHead = 6, kScalars = 16, kCopies = 3;
  static constexpr int64_t kAlign = 64 / sizeof(T);
  // Edges from the asking for a row to its use.
  static constexpr int64_t kAhead = 16;
  // Marks ds_dz where the score is clipped: no product of scales is that.
  static constexpr T kClipped = T(HUGE_VAL);

  // Memory: n elements; rows of query or value for a batch; a PerHead; and, after begin_receiver(),
  // scalars [degree, heads] of this receiver.
  T* take(int64_t n) {
    T* taken = free_;
    free_ += aligned_size(n);
    return taken;
  }
  T* take_batch() { return take(kBatch * (size_ > value_size_ ? size_ : value_size_)); }
  PerHead<T> take_per_head() {
    T* head = take(call_.heads);
    return {head, take(pattern_.size())};
  }
  T* take_scalars() {
    T* taken = free_scalars_;
    free_scalars_ += aligned_size(degree_ * call_.heads);
    return taken;
  }

  void begin_receiver(int64_t node) { begin(node, call_.receiver_order, call_.receiver_ptr, true); }
  void begin_sender(int64_t node) { begin(node, call_.sender_order, call_.sender_ptr, false); }

  // Rows per head may lie far apart, at distances that share one set of the cache: they are brought
  // together. The next receiver's are asked for.
  void collect(int64_t receiver) {
    query_on_edge_ = collected(call_.query_on_edge, receiver, query_on_edge_copy_);
    grad_out_on_edge_ = collected(call_.grad_out_on_edge, receiver, grad_out_on_edge_copy_);
  }
  Maybe<const T> collected(const NodeRows<T>& rows, int64_t receiver, T* to) {
    if (!rows.data) return {};
    const int64_t next = receiver + 1 < call_.num_receivers ? receiver + 1 : receiver;
    for (int64_t h = 0; h < call_.heads; ++h) {
      copy_row(rows.row(receiver) + h * rows.head_stride, call_.features, to + h * call_.features,
               false);
      prefetch(rows.row(next) + h * rows.head_stride, call_.features);
    }
    return to;
  }

  // Edges `at` and following. Returns how many.
  int load_batch(int64_t at) {
    batch_.count = static_cast<int>(degree_ - at < kBatch ? degree_ - at : kBatch);
    // The end that all edges share need not be looked up.
    int64_t* const same = by_receiver_ ? batch_.receiver : batch_.sender;
    int64_t* const other = by_receiver_ ? batch_.sender : batch_.receiver;
    const int64_t* const others = by_receiver_ ? call_.senders : call_.receivers;
    for (int i = 0; i < batch_.count; ++i) {
      const int64_t edge = order_[at + i];
      batch_.edge[i] = edge, same[i] = node_, other[i] = others[edge];
    }
    return batch_.count;
  }
  // The rows of scalars for the batch that begins at `at`: of [degree, heads]; of [edges, heads].
  void node_scalars(const T* scalars, int64_t at, const T** rows) const {
    for (int i = 0; i < batch_.count; ++i) rows[i] = scalars + (at + i) * call_.heads;
  }
  void edge_scalars(const T* scalars, const T** rows) const {
    for (int i = 0; i < batch_.count; ++i) rows[i] = scalars + batch_.edge[i] * call_.heads;
  }

  // What the edges after a batch's need, of this node or of the ones that follow: rows of features
  // that are read for the first time, for head_dots to ask for; and scalars per edge and head (or
  // null), which a sender finds anywhere.
  const T* const* later_features(int64_t at, Maybe<const T> features) {
    for (int i = 0; i < batch_.count; ++i)
      later_features_[i] = features + edge_after(at + i, kAhead) * call_.features;
    return later_features_;
  }
  template <class... Scalars>
  void ask_for(int64_t at, Scalars... scalars) {
    for (int i = 0; i < batch_.count; ++i) {
      const int64_t first = edge_after(at + i, kBatch) * call_.heads;
      ((scalars ? prefetch(scalars + first, call_.heads) : void()), ...);
    }
  }

  void load_features() {
    for (int i = 0; i < batch_.count; ++i) edge_[i] = call_.edge + batch_.edge[i] * call_.features;
  }
  // [heads, width] in a buffer, for every edge of the batch.
  void rows_in(const T* buffer, const T** rows) const {
    for (int i = 0; i < batch_.count; ++i) rows[i] = buffer + i * size_;
  }
  void repeat_row(const T* row, const T** rows) const {
    for (int i = 0; i < batch_.count; ++i) rows[i] = row;
  }

  // Queries and keys of the batch, and what grad_z is multiplied with.
  GradientRows<T> gradient_rows(bool of_vector) {
    resolve(call_.query, size_, batch_, query_buffer_, query_);
    resolve(call_.key, size_, batch_, key_buffer_, key_);
    if (!call_.additive()) return {key_, query_, nullptr};
    activate(call_, batch_.count, query_, key_,
             of_vector ? Maybe<T>(activation_buffer_) : Maybe<T>(), Maybe<T>(vector_slope_buffer_));
    rows_in(vector_slope_buffer_, vector_slope_);
    rows_in(activation_buffer_, activation_);
    return {vector_slope_, vector_slope_, activation_};
  }

  // s and z of every edge and head of a receiver; if wanted, ds_dz.
  void scores(T* s, T* z, Maybe<T> ds_dz = {}) {
    const int64_t heads = call_.heads, n = degree_ * heads;
    if (call_.score == score_given) {
      set_zero(z, n);
    } else {
      T* const activation_buffer = vector_slope_buffer_;  // slopes are made after the scores
      for (int64_t at = 0; at < degree_; at += kBatch) {
        const int count = load_batch(at);
        resolve(call_.query, size_, batch_, query_buffer_, query_);
        resolve(call_.key, size_, batch_, key_buffer_, key_);
        if (call_.additive()) {
          activate(call_, count, query_, key_, Maybe<T>(activation_buffer), Maybe<T>());
          rows_in(activation_buffer, activation_);
          repeat_row(call_.vector, vector_);
        }
        load_features();
        head_dots(count, heads, call_.additive() ? vector_ : query_,
                  call_.additive() ? activation_ : key_, call_.query.width, query_on_edge_, edge_,
                  call_.features, partial_, z + at * heads,
                  query_on_edge_ ? later_features(at, call_.edge) : nullptr);
      }
    }
    if (call_.score_scale.data) {
      for (int64_t i = 0; i < n; ++i) s[i] = call_.scale;
      multiply(call_.score_scale, s);
      if (ds_dz)
        for (int64_t i = 0; i < n; ++i) ds_dz[i] = s[i];
      for (int64_t i = 0; i < n; ++i) s[i] *= z[i];
    } else {
      for (int64_t i = 0; i < n; ++i) s[i] = call_.scale * z[i];
      if (ds_dz)
        for (int64_t i = 0; i < n; ++i) ds_dz[i] = call_.scale;
    }
    if (call_.bias.data)
      for (int64_t i = 0; i < degree_; ++i)
        for (int64_t h = 0; h < heads; ++h) s[i * heads + h] += call_.bias.at(order_[i], h);
    if (std::isinf(call_.clip)) return;
    for (int64_t i = 0; i < n; ++i) {
      const T within = clipped(s[i], call_.clip);
      // Gradients are 0 there, and the reader of the logits wants the clipped score.
      if (ds_dz && within != s[i]) ds_dz[i] = kClipped;
      s[i] = within;
    }
  }

  // x, or `absent` everywhere.
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
  void multiply_by_drop(T* x) {
    if (!call_.seed) return;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < call_.heads; ++h)
        x[i * call_.heads + h] *= dropout_factor(call_, order_[i], h);
  }

  // From [degree, heads] to [edges, heads].
  void write(const T* from, Maybe<T> to) {
    const int64_t heads = call_.heads;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < heads; h += kLanes<T>)
        store_first(to + order_[i] * heads + h, load_first(from + i * heads + h, heads - h),
                    heads - h);
  }

  // x[i, h] = exp(x[i, h] - shift_[h])
  void exp_shifted(T* x) {
    pattern_.repeat(shift_.head, shift_.repeated);
    pattern_.pad(degree_, T(-HUGE_VAL), x);
    pattern_.each(degree_, [&](int64_t i, int64_t at) {
      store(x + i, exp_of<T>(load(x + i) - load(shift_.repeated + at)));
    });
  }

  void make_grad_w(int64_t receiver, T* grad_w) {
    const int64_t heads = call_.heads;
    const Maybe<const T> grad_out = call_.grad_out.row(receiver, value_size_);
    for (int64_t at = 0; at < degree_; at += kBatch) {
      const int n = load_batch(at);
      if (grad_out) {
        resolve(call_.value, value_size_, batch_, value_buffer(), value_);
        repeat_row(grad_out.data, grad_out_);
      }
      load_features();
      head_dots(n, heads, grad_out_, value_, grad_out ? call_.value.width : 0, grad_out_on_edge_,
                edge_, call_.features, partial_, grad_w + at * heads);
    }
    if (!call_.grad_weights) return;
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < heads; ++h)
        grad_w[i * heads + h] += call_.grad_weights[order_[i] * heads + h];
  }

  // s -> plain. Where that is no softmax also plain_slope and plain_curvature, if wanted.
  void make_plain(int64_t receiver, T* s, Maybe<T> plain_slope, Maybe<T> plain_curvature) {
    T* const plain = s;
    if (call_.softmax()) return plain_softmax(receiver, plain);
    pattern_.pad(degree_, T(0), s);
    for (int64_t i = 0; i < degree_ * call_.heads; i += kLanes<T>) {
      const Vector<T> score = load(s + i);
      if (plain_slope) store(plain_slope + i, weight_slopes<T>(call_.weighting, score));
      if (plain_curvature) store(plain_curvature + i, weight_curvatures<T>(call_.weighting, score));
      store(plain + i, weight_values<T>(call_.weighting, score));
    }
  }
  // s -> exp(s - lse)
  void plain_softmax(int64_t receiver, T* s) {
    const T* lse = call_.lse_before + receiver * call_.heads;
    // A sum of nothing: every weight is 0, and stays so.
    for (int64_t h = 0; h < call_.heads; ++h)
      shift_.head[h] = lse[h] == T(-HUGE_VAL) ? T(HUGE_VAL) : lse[h];
    exp_shifted(s);
  }

  // Gradients of values, given value_weight: w, or tangent_w in the double backward pass. Of an
  // edge's part; of a receiver's, with the same row of grad_out for every edge; and of a sender's,
  // for the edges of the batch.
  void grad_value_of_edge(int64_t receiver, const T* value_weight, T* to) {
    if (!call_.grad_out) return set_zero(to, value_size_);
    scale_heads(call_.heads, value_weight, call_.grad_out + receiver * value_size_,
                call_.value.width, to);
  }
  void grad_value_of_receiver(int64_t receiver, const T* value_weight, T* to) {
    T* total = total_.head;
    set_zero(total, call_.heads);
    for (int64_t i = 0; i < degree_; ++i)
      for (int64_t h = 0; h < call_.heads; ++h) total[h] += value_weight[i * call_.heads + h];
    grad_value_of_edge(receiver, total, to);
  }
  void add_grad_value_of_sender(Maybe<const T> value_weight, T* to) {
    for (int i = 0; i < batch_.count; ++i) {
      value_weight_[i] = value_weight + batch_.edge[i] * call_.heads;
      grad_out_[i] = call_.grad_out + batch_.receiver[i] * value_size_;
    }
    accumulate(batch_.count, call_.heads, value_weight_, grad_out_, call_.value.width,
               call_.value.width, to);
  }

  // grad_edge = grad_z query_on_edge + value_weight grad_out_on_edge, summed over heads, for the
  // edges from `at`. Plus grad_tangent_z tangent_query_on_edge; null: without that.
  void make_grad_edge(int64_t at, const T* value_weight, const T* const* grad_tangent_z,
                      Maybe<const T> tangent_query_on_edge) {
    T* to[kBatch];
    node_scalars(value_weight, at, value_weight_);
    for (int i = 0; i < batch_.count; ++i)
      to[i] = call_.grad_edge + batch_.edge[i] * call_.features;
    spread_all(batch_.count, call_.heads,
               {{grad_z_, query_on_edge_},
                {value_weight_, grad_out_on_edge_},
                {grad_tangent_z, tangent_query_on_edge}},
               call_.features, streams_edges_, to);
  }

  // Values are summed when queries are no longer read.
  T* value_buffer() const { return query_buffer_; }

  const AttentionCall<T>& call_;
  const HeadPattern<T> pattern_;
  // For a batch: sums of parts, and rows of additive scores.
  T *query_buffer_, *key_buffer_, *vector_slope_buffer_, *activation_buffer_;
  T* partial_;
  // Subtracted from scores before exp(): the largest one, or lse. And a sum over the receiver's
  // edges.
  PerHead<T> shift_, total_;
  T *query_on_edge_copy_, *grad_out_on_edge_copy_;
  Maybe<const T> query_on_edge_, grad_out_on_edge_;  // of the receiver, [heads, features]
  int64_t size_, value_size_;                        // of rows [heads, width]
  const int64_t* order_ = nullptr;
  int64_t degree_ = 0, node_ = 0;
  int64_t left_ = 0;  // edges from order_ to the end of the list
  bool by_receiver_ = true;
  Batch batch_;
  const bool streams_edges_;
  // For each edge of the batch: its rows, and its rows of scalars.
  const T *query_[kBatch], *key_[kBatch], *value_[kBatch], *edge_[kBatch], *later_features_[kBatch];
  const T *activation_[kBatch], *vector_slope_[kBatch], *vector_[kBatch], *grad_out_[kBatch];
  const T *grad_z_[kBatch], *value_weight_[kBatch];

 private:
  T* free_;
  T* free_scalars_ = nullptr;

  static int64_t aligned_size(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }
  int64_t edge_after(int64_t n, int64_t by) const {
    return order_[n + by < left_ ? n + by : left_ - 1];
  }
  void begin(int64_t node, const int64_t* order, const int64_t* ptr, bool by_receiver) {
    order_ = order + ptr[node];
    degree_ = ptr[node + 1] - ptr[node];
    left_ = call_.edges - ptr[node];
    node_ = node, by_receiver_ = by_receiver;
    free_scalars_ = free_;
  }
};

// A template's base is not searched for names: a pass names what it uses.
#define HAMFAST_NODE_MEMBERS               \
  using Node<T>::activation_;              \
  using Node<T>::activation_buffer_;       \
  using Node<T>::add_grad_value_of_sender; \
  using Node<T>::ask_for;                  \
  using Node<T>::batch_;                   \
  using Node<T>::begin_receiver;           \
  using Node<T>::begin_sender;             \
  using Node<T>::call_;                    \
  using Node<T>::collect;                  \
  using Node<T>::collected;                \
  using Node<T>::degree_;                  \
  using Node<T>::dense;                    \
  using Node<T>::edge_;                    \
  using Node<T>::edge_scalars;             \
  using Node<T>::exp_shifted;              \
  using Node<T>::grad_out_;                \
  using Node<T>::grad_out_on_edge_;        \
  using Node<T>::grad_value_of_edge;       \
  using Node<T>::grad_value_of_receiver;   \
  using Node<T>::grad_z_;                  \
  using Node<T>::gradient_rows;            \
  using Node<T>::kClipped;                 \
  using Node<T>::key_;                     \
  using Node<T>::later_features;           \
  using Node<T>::load_batch;               \
  using Node<T>::load_features;            \
  using Node<T>::make_grad_edge;           \
  using Node<T>::make_grad_w;              \
  using Node<T>::make_plain;               \
  using Node<T>::multiply;                 \
  using Node<T>::multiply_by_drop;         \
  using Node<T>::node_scalars;             \
  using Node<T>::order_;                   \
  using Node<T>::partial_;                 \
  using Node<T>::pattern_;                 \
  using Node<T>::query_;                   \
  using Node<T>::query_on_edge_;           \
  using Node<T>::repeat_row;               \
  using Node<T>::rows_in;                  \
  using Node<T>::scores;                   \
  using Node<T>::shift_;                   \
  using Node<T>::size_;                    \
  using Node<T>::take;                     \
  using Node<T>::take_batch;               \
  using Node<T>::take_per_head;            \
  using Node<T>::take_scalars;             \
  using Node<T>::total_;                   \
  using Node<T>::value_;                   \
  using Node<T>::value_buffer;             \
  using Node<T>::value_size_;              \
  using Node<T>::value_weight_;            \
  using Node<T>::vector_;                  \
  using Node<T>::write;

}  // namespace hamfast::HAMFAST_ISA
