// Compiled once per instruction set. Nothing of the standard library may be inlined here: see
// kernels/common.cuh.
#include "tensor_product/channel_isa.h"

#include "tensor_product/row_io.h"

namespace hamfast::HAMFAST_ISA {

// M[k * d1 + i] = sum_j C[j][k * d1 + i] y_j
template <class T>
static void small_matrix(const ChannelTask& task, const T* coupling, const T* y, T* m) {
  constexpr int lanes = kLanes<T>;
  const T* c = coupling + task.coupling_at;
  const T* yj = y + task.y_offset;
  if (task.diagonal) {
    m[0] = c[0] * yj[0];
    return;
  }
  for (int64_t p = 0; p < task.coupling_size; p += lanes) {
    Vector<T> total = load(c + p) * yj[0];
    for (int64_t j = 1; j < task.d2; ++j) total += load(c + j * task.coupling_size + p) * yj[j];
    store(m + p, total);
  }
}

// out[k][u] += w[u] sum_i M[k, i] x[i][u]. `w`: null for no weight.
template <class T, int D1>
static void forward_task(const ChannelTask& task, const T* x, const T* m, const T* w, T* out) {
  constexpr int lanes = kLanes<T>;
  for (int64_t u = 0; u < task.n; u += lanes) {
    Vector<T> xs[D1];
    for (int i = 0; i < D1; ++i) xs[i] = load(x + task.x_at + i * task.x_stride + u);
    if (w) {
      const Vector<T> weight = load_first(w + u, task.n - u);
      for (int i = 0; i < D1; ++i) xs[i] *= weight;
    }
    T* to = out + task.g_at + u;
    if (task.diagonal) {
      for (int i = 0; i < D1; ++i)
        store(to + i * task.g_stride, load(to + i * task.g_stride) + xs[i] * m[0]);
      continue;
    }
    const T* row = m;
    for (int64_t k = 0; k < task.d3; ++k, row += D1, to += task.g_stride) {
      Vector<T> total = load(to);
      for (int i = 0; i < D1; ++i) total += xs[i] * row[i];
      store(to, total);
    }
  }
}

// What a backward task writes; null: not wanted.
template <class T>
struct Gradients {
  T* x;                    // padded blocks: added to
  T* w;                    // the task's own weights, contiguous
  T* matrix;               // dF/dM[k, i], one vector of partial sums each
  bool add_w, add_matrix;  // else they are written
};

// With q[i][u] = sum_k M[k, i] g[k][u]:  gx[i][u] += w[u] q[i][u],  gw[u] += sum_i x[i][u] q[i][u],
// gM[k, i] += sum_u w[u] x[i][u] g[k][u].
template <class T, int D1>
static void backward_task(const ChannelTask& task, const T* x, const T* m, const T* w, const T* g,
                          const Gradients<T>& to) {
  constexpr int lanes = kLanes<T>;
  const T* gk = g + task.g_at;
  const T* xi = x ? x + task.x_at : nullptr;
  if (to.x || to.w) {
    for (int64_t u = 0; u < task.n; u += lanes) {
      Vector<T> q[D1];
      if (task.diagonal) {
        for (int i = 0; i < D1; ++i) q[i] = load(gk + i * task.g_stride + u) * m[0];
      } else {
        const Vector<T> first = load(gk + u);
        for (int i = 0; i < D1; ++i) q[i] = first * m[i];
        for (int64_t k = 1; k < task.d3; ++k) {
          const Vector<T> value = load(gk + k * task.g_stride + u);
          for (int i = 0; i < D1; ++i) q[i] += value * m[k * D1 + i];
        }
      }
      if (to.w) {
        Vector<T> total = load(xi + u) * q[0];
        for (int i = 1; i < D1; ++i) total += load(xi + i * task.x_stride + u) * q[i];
        if (to.add_w) total += load_first(to.w + u, task.n - u);
        store_first(to.w + u, total, task.n - u);
      }
      if (to.x) {
        T* gx = to.x + task.x_at + u;
        if (w) {
          const Vector<T> weight = load_first(w + u, task.n - u);
          for (int i = 0; i < D1; ++i) q[i] *= weight;
        }
        for (int i = 0; i < D1; ++i)
          store(gx + i * task.x_stride, load(gx + i * task.x_stride) + q[i]);
      }
    }
  }
  if (!to.matrix) return;
  const int64_t rows = task.diagonal ? 1 : task.d3;
  for (int64_t k = 0; k < rows; ++k) {
    Vector<T> part[D1];
    for (int i = 0; i < D1; ++i) part[i] = Vector<T>{};
    for (int64_t u = 0; u < task.n; u += lanes) {
      Vector<T> weighted = load(gk + k * task.g_stride + u);
      const Vector<T> weight = w ? load_first(w + u, task.n - u) : weighted;
      if (w) weighted *= weight;
      if (task.diagonal) {
        part[0] += load(xi + u) * weighted;
        for (int i = 1; i < D1; ++i) {
          Vector<T> product = load(xi + i * task.x_stride + u) * load(gk + i * task.g_stride + u);
          part[0] += w ? product * weight : product;
        }
      } else {
        for (int i = 0; i < D1; ++i) part[i] += load(xi + i * task.x_stride + u) * weighted;
      }
    }
    T* sum = to.matrix + k * D1 * lanes;
    const int columns = task.diagonal ? 1 : D1;
    for (int i = 0; i < columns; ++i) {
      if (to.add_matrix) part[i] += load(sum + i * lanes);
      store(sum + i * lanes, part[i]);
    }
  }
}

// gy_j += sum_p C[j][p] gM[p], on vectors of partial sums: entry by non-zero entry, so that no
// lanes are summed here.
template <class T>
static void pull_back_matrix(const ChannelTask& task, const ChannelCall<T>& call, const T* matrix,
                             T* y_sums) {
  constexpr int lanes = kLanes<T>;
  T* to = y_sums + task.y_offset * lanes;
  for (int64_t n = task.entries_begin; n < task.entries_end; ++n) {
    const CouplingEntry& entry = call.entries[n];
    T* sum = to + entry.j * lanes;
    store(sum,
          load(sum) + load(matrix + entry.p * lanes) * call.coupling[task.coupling_at + entry.at]);
  }
}

// One thread's memory, and the rows of the edge at hand.
template <class T>
struct Thread {
  const ChannelCall<T>& call;
  T *x[2], *g[2], *w[2], *y[2];  // operand, tangent: where rows are unpacked to
  T *sum_x, *sum_g, *sum_w, *row, *y_sums, *m[2], *matrix;
  T *task_w[2], *task_gw;  // weights of one task, where they are not contiguous
  const T *in_x[2] = {}, *in_y[2] = {}, *in_w[2] = {}, *in_g[2] = {};
  const char* next[6];  // rows of the next edge, of x, w and g and their tangents: see look_ahead
  int64_t next_bytes[6];
  int ahead = 0;  // how many

  Thread(const ChannelCall<T>& c, T* scratch) : call(c) {
    auto take = [&](int64_t n) {
      T* p = scratch;
      scratch += (n + kPad - 1) / kPad * kPad;  // aligned to vectors
      return p;
    };
    for (int n = 0; n < 2; ++n) {
      x[n] = take(c.x_padded);
      g[n] = take(c.g_padded);
      w[n] = take(c.w_dim + kPad);
      y[n] = take(c.y_dim + kPad);
      m[n] = take(c.max_coupling + kPad);
    }
    sum_x = take(c.x_padded);
    sum_g = take(c.g_padded);
    sum_w = take(c.w_dim + kPad);
    row = take(c.x_padded + c.g_padded);
    y_sums = take((c.y_dim + kPad) * kPad);
    matrix = take((c.max_coupling + kPad) * kPad);
    for (T** p : {&task_w[0], &task_w[1], &task_gw}) *p = take(c.x_padded);
  }

  const T* blocks_of(const Rows& rows, bool is_g, int n, int64_t e) {
    const int64_t r = rows.index ? rows.index[e] : e;
    if (rows.prepared)
      return static_cast<const T*>(rows.prepared.data) + r * (is_g ? call.g_padded : call.x_padded);
    T* to = is_g ? g[n] : x[n];
    unpack_blocks(call, is_g, rows.data.data, r, to, row);
    return to;
  }

  const T* plain(const Rows& rows, int64_t n, T* to, int64_t e) {
    if (!converts(call.storage))
      return static_cast<const T*>(rows.data.data) + (rows.dim ? e * rows.dim : 0);
    load_converted(rows.data.data, call.storage, rows.dim ? e * rows.dim : 0, n, to);
    return to;
  }

  // `p`: the edge's place in the order of rows.
  void read(int64_t e, int64_t p, bool with_g) {
    for (int n = 0; n < (call.derivative ? 2 : 1); ++n) {
      const Rows* rows = n == 0 ? call.operands : call.tangents;
      if (rows[slot_x].data) in_x[n] = blocks_of(rows[slot_x], false, n, e);
      if (rows[slot_y].data) in_y[n] = plain(rows[slot_y], call.y_dim, y[n], e);
      if (rows[slot_w].data) in_w[n] = plain(rows[slot_w], call.w_dim, w[n], weight_row(e, p));
      if (with_g && rows[slot_g].data) in_g[n] = blocks_of(rows[slot_g], true, n, e);
    }
  }

  // Which rows the edge after the p-th will read from memory: not those that are gathered, nor
  // those laid out by block.
  void look_ahead(int64_t p, int64_t end, bool with_g) {
    ahead = 0;
    if (p + 1 >= end) return;
    const int64_t e = call.order ? call.order[p + 1] : p + 1;
    const int64_t size = converts(call.storage) ? 2 : sizeof(T);
    auto add = [&](const Rows& rows, int64_t row) {
      if (!rows.data || rows.index || rows.dim == 0) return;
      next[ahead] = static_cast<const char*>(rows.data.data) + row * rows.dim * size;
      next_bytes[ahead++] = rows.dim * size;
    };
    for (int n = 0; n < (call.derivative ? 2 : 1); ++n) {
      const Rows* rows = n == 0 ? call.operands : call.tangents;
      if (call.x_layout != Layout::blocks) add(rows[slot_x], e);
      add(rows[slot_w], weight_row(e, p + 1));
      if (with_g && call.g_layout != Layout::blocks) add(rows[slot_g], e);
    }
  }
  // The n-th task's share of them.
  void ask_for_share(int64_t n) const {
    for (int i = 0; i < ahead; ++i) {
      const int64_t first = next_bytes[i] * n / call.num_tasks,
                    last = next_bytes[i] * (n + 1) / call.num_tasks;
      prefetch(next[i] + first, last - first);
    }
  }

  int64_t weight_row(int64_t e, int64_t p) const { return call.w_begin < 0 ? e : p - call.w_begin; }

  // The weights of one task, contiguous.
  const T* weight(const ChannelTask& task, int n) const {
    if (task.w_offset < 0 || !in_w[n]) return nullptr;
    if (task.w_stride == 1) return in_w[n] + task.w_offset;
    for (int64_t u = 0; u < task.n; ++u) task_w[n][u] = in_w[n][task.w_offset + u * task.w_stride];
    return task_w[n];
  }
};

// Calls f(which) for the product itself, or for every operand that a tangent takes the place of.
template <class T, class F>
static void for_each_term(const ChannelCall<T>& call, bool with_g, F&& f) {
  if (!call.derivative) return f(-1);
  for (int a = 0; a < 4; ++a)
    if (call.tangents[a].data && (a != slot_g || with_g)) f(a);
}

template <class T>
static void forward(const ChannelCall<T>& call, int64_t begin, int64_t end, T* scratch) {
  Thread<T> t(call, scratch);
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t i = 0; i < call.g_padded; ++i) t.sum_g[i] = T(0);
    const int64_t first = call.ptr ? call.ptr[r] : r, last = call.ptr ? call.ptr[r + 1] : r + 1;
    for (int64_t p = first; p < last; ++p) {
      t.read(call.order ? call.order[p] : p, p, false);
      if (!call.ptr) t.look_ahead(p, end, false);  // weights alone come in time by themselves
      for (int64_t n = 0; n < call.num_tasks; ++n) {
        t.ask_for_share(n);
        const ChannelTask& task = call.tasks[n];
        if (t.in_y[0]) small_matrix(task, call.coupling, t.in_y[0], t.m[0]);
        if (t.in_y[1]) small_matrix(task, call.coupling, t.in_y[1], t.m[1]);
        for_each_term(call, false, [&](int replaced) {
          if (replaced == slot_w && task.w_offset < 0) return;
          const T* w = t.weight(task, replaced == slot_w);
          const T* x = t.in_x[replaced == slot_x];
          const T* m = t.m[replaced == slot_y];
          for_irrep_size(task.d1, [&](auto d1) {
            if constexpr (d1() > 0) forward_task<T, d1()>(task, x, m, w, t.sum_g);
          });
        });
      }
    }
    pack_blocks(call, true, t.sum_g, call.out[slot_g].data, r, t.row);
  }
  stream_fence();
}

template <class T>
static void backward(const ChannelCall<T>& call, int64_t begin, int64_t end, int64_t chunk,
                     T* scratch) {
  constexpr int lanes = kLanes<T>;
  Thread<T> t(call, scratch);
  const Maybe<T> all_w =
      call.out[slot_w] ? Maybe<T>(static_cast<T*>(call.out[slot_w].data)) : Maybe<T>();
  const Maybe<T> shared_w = call.shared_weights ? all_w.row(chunk, call.w_dim) : Maybe<T>();
  if (shared_w)
    for (int64_t i = 0; i < call.w_dim; ++i) shared_w[i] = T(0);
  for (int64_t r = begin; r < end; ++r) {
    if (call.out[slot_x])
      for (int64_t i = 0; i < call.x_padded; ++i) t.sum_x[i] = T(0);
    const int64_t first = call.ptr ? call.ptr[r] : r, last = call.ptr ? call.ptr[r + 1] : r + 1;
    for (int64_t p = first; p < last; ++p) {
      const int64_t e = call.order ? call.order[p] : p;
      t.read(e, p, true);
      t.look_ahead(p, call.ptr ? call.ptr[end] : end, true);
      T* const gw = shared_w ? shared_w.data : all_w ? t.sum_w : nullptr;
      // Tasks write their own weights' gradients; what no task writes, or none of these terms, is
      // 0.
      if (gw && !shared_w && (call.derivative || !call.covers_weights))
        for (int64_t i = 0; i < call.w_dim; ++i) gw[i] = T(0);
      if (call.out[slot_y])
        for (int64_t j = 0; j < call.y_dim; ++j) store(t.y_sums + j * lanes, Vector<T>{});
      for (int64_t n = 0; n < call.num_tasks; ++n) {
        t.ask_for_share(n);
        const ChannelTask& task = call.tasks[n];
        const bool has_weight = task.w_offset >= 0;
        if (t.in_y[0]) small_matrix(task, call.coupling, t.in_y[0], t.m[0]);
        if (t.in_y[1]) small_matrix(task, call.coupling, t.in_y[1], t.m[1]);
        const bool strided = has_weight && task.w_stride != 1;
        T* task_gw = has_weight && gw ? gw + task.w_offset : nullptr;
        if (task_gw && strided) task_gw = t.task_gw;
        bool add_w = shared_w.given() && !strided, add_matrix = false;
        for_each_term(call, true, [&](int replaced) {
          if (replaced == slot_w && !has_weight) return;
          const T* w = t.weight(task, replaced == slot_w);
          // A tangent stands in for its operand, and the derivative in that operand is then none of
          // this term's.
          const Gradients<T> to{call.out[slot_x] && replaced != slot_x ? t.sum_x : nullptr,
                                replaced != slot_w ? task_gw : nullptr,
                                call.out[slot_y] && replaced != slot_y ? t.matrix : nullptr, add_w,
                                add_matrix};
          add_w |= to.w != nullptr;
          add_matrix |= to.matrix != nullptr;
          const T* x = t.in_x[replaced == slot_x];
          const T* m = t.m[replaced == slot_y];
          const T* g = t.in_g[replaced == slot_g];
          for_irrep_size(task.d1, [&](auto d1) {
            if constexpr (d1() > 0) backward_task<T, d1()>(task, x, m, w, g, to);
          });
        });
        if (strided && task_gw && add_w)
          for (int64_t u = 0; u < task.n; ++u)
            gw[task.w_offset + u * task.w_stride] =
                (shared_w ? gw[task.w_offset + u * task.w_stride] : T(0)) + t.task_gw[u];
        if (add_matrix) pull_back_matrix(task, call, t.matrix, t.y_sums);
      }
      if (call.out[slot_y]) {
        for (int64_t j = 0; j < call.y_dim; j += lanes)
          store(t.y[0] + j, sum_lanes(t.y_sums + j * lanes));
        store_converted(t.y[0], call.y_dim, call.storage, e * call.y_dim, call.out[slot_y].data);
      }
      if (gw && !shared_w) {
        if (converts(call.storage))
          store_converted(gw, call.w_dim, call.storage, t.weight_row(e, p) * call.w_dim,
                          all_w.data);
        else
          copy_row(gw, call.w_dim, all_w + t.weight_row(e, p) * call.w_dim, call.stream[slot_w]);
      }
    }
    if (call.out[slot_x]) pack_blocks(call, false, t.sum_x, call.out[slot_x].data, r, t.row);
  }
  stream_fence();
}

template <class T>
static void prepare(const ChannelCall<T>& call, bool is_g, const void* rows, int64_t begin,
                    int64_t end, T* out, T* scratch) {
  const int64_t size = is_g ? call.g_padded : call.x_padded;
  for (int64_t r = begin; r < end; ++r) unpack_blocks(call, is_g, rows, r, out + r * size, scratch);
}

#define HAMFAST_DEFINE(T)                                                                      \
  void channel_forward(const ChannelCall<T>& call, int64_t begin, int64_t end, T* scratch) {   \
    forward(call, begin, end, scratch);                                                        \
  }                                                                                            \
  void channel_backward(const ChannelCall<T>& call, int64_t begin, int64_t end, int64_t chunk, \
                        T* scratch) {                                                          \
    backward(call, begin, end, chunk, scratch);                                                \
  }                                                                                            \
  void channel_prepare(const ChannelCall<T>& call, bool is_g, const void* rows, int64_t begin, \
                       int64_t end, T* out, T* scratch) {                                      \
    prepare(call, is_g, rows, begin, end, out, scratch);                                       \
  }
HAMFAST_DEFINE(float)
HAMFAST_DEFINE(double)

}  // namespace hamfast::HAMFAST_ISA
