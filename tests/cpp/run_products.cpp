// Runs the CPU kernels of tensor products outside of torch, on buffers of exactly the right size,
// for the sanitizers.
//   run_products CASE THREADS
// CASE: arrays as tests/kernels/test_sanitizers.py writes them. Prints the largest relative
// difference from the expected result.
#include <string>

#include "cpp/case_file.h"
#include "cpp/in_threads.h"
#include "tensor_product/channel_isa.cpp"
#include "tensor_product/general_isa.cpp"

using namespace hamfast;

template <class T>
struct Exactly {  // memory that ends where it should
  explicit Exactly(int64_t n)
      : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64))), n(n) {
    for (int64_t i = 0; i < n; ++i) data[i] = T(NAN);
  }
  ~Exactly() { std::free(data); }
  Exactly(const Exactly&) = delete;
  T* data;
  int64_t n;
};

template <class T>
static double difference(const T* found, const Array& expected) {
  double error = 0, size = 1e-30;
  for (int64_t i = 0; i < expected.size<double>(); ++i) {
    const double e = expected.as<double>()[i];
    error =
        std::isnan(double(found[i])) ? INFINITY : std::fmax(error, std::fabs(double(found[i]) - e));
    size = std::fmax(size, std::fabs(e));
  }
  return error / size;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::vector<Array> a = read_arrays(argv[1]);
  const int threads = std::atoi(argv[2]);
  using T = double;
  // The order of the file.
  enum {
    kDims,
    kSizes,
    kPaths,
    kCgIndex,
    kCgValue,
    kTasks,
    kXBlocks,
    kGBlocks,
    kEntries,
    kCoupling,
    kSenders,
    kSenderOrder,
    kSenderPtr,
    kReceivers,
    kReceiverOrder,
    kReceiverPtr,
    kX,
    kY,
    kW,
    kG,
    kOut,
    kGradX,
    kGradY,
    kGradW,
    kCount
  };
  if (a.size() != kCount) return 2;
  const ProductDims& dims = *a[kDims].as<ProductDims>();
  const int64_t* sizes = a[kSizes].as<int64_t>();  // edges, nodes, are the weights shared?
  const int64_t edges = sizes[0], nodes = sizes[1];
  const bool shared = sizes[2] != 0;
  const int64_t dim[4] = {dims.x, dims.y, dims.w, dims.g};

  ChannelCall<T> c{};
  c.tasks = a[kTasks].as<ChannelTask>();
  c.num_tasks = a[kTasks].size<ChannelTask>();
  c.x_blocks = a[kXBlocks].as<ChannelBlock>();
  c.num_x_blocks = a[kXBlocks].size<ChannelBlock>();
  c.g_blocks = a[kGBlocks].as<ChannelBlock>();
  c.num_g_blocks = a[kGBlocks].size<ChannelBlock>();
  c.entries = a[kEntries].as<CouplingEntry>();
  c.coupling = a[kCoupling].as<T>();
  c.x_dim = dims.x, c.y_dim = dims.y, c.w_dim = dims.w, c.g_dim = dims.g;
  c.x_padded = dims.x_padded, c.g_padded = dims.g_padded;
  c.max_coupling = dims.max_coupling, c.covers_weights = dims.covers_weights;
  c.storage = Storage::float64;
  c.x_rows = c.g_rows = nodes;
  c.shared_weights = shared;
  c.w_begin = -1;
  const int data[4] = {kX, kY, kW, kG};
  for (int s = 0; s < 4; ++s) {
    c.operands[s].data = Maybe<const void>(a[data[s]].data);
    c.operands[s].dim = s == slot_w && shared ? 0 : dim[s];
  }
  c.operands[slot_x].index = a[kSenders].as<int64_t>();
  c.operands[slot_g].index = a[kReceivers].as<int64_t>();
  double worst = 0;
  auto check = [&](const char* what, double error) {
    std::printf("%s %.2e\n", what, error);
    worst = std::fmax(worst, error);
  };

  std::vector<std::unique_ptr<Exactly<T>>> prepared;
  for (int slot : {slot_x, slot_g}) {  // rows of nodes as padded blocks, once and for all edges
    prepared.push_back(
        std::make_unique<Exactly<T>>(nodes * (slot == slot_g ? c.g_padded : c.x_padded)));
    T* const rows = prepared.back()->data;
    in_threads(threads, nodes, [&](int64_t begin, int64_t end) {
      Exactly<T> scratch(channel_scratch(c));
      HAMFAST_ISA::channel_prepare(c, slot == slot_g, c.operands[slot].data.data, begin, end, rows,
                                   scratch.data);
    });
    c.operands[slot].prepared = Maybe<const void>(rows);
  }
  Exactly<T> out(nodes * c.g_dim), grad_x(nodes * c.x_dim), grad_y(edges * c.y_dim);
  const int64_t chunks = 5;
  Exactly<T> grad_w(shared ? chunks * c.w_dim : edges * c.w_dim);
  c.out[slot_g] = Maybe<void>(out.data);
  c.order = a[kReceiverOrder].as<int64_t>();
  c.ptr = a[kReceiverPtr].as<int64_t>();
  in_threads(threads, nodes, [&](int64_t begin, int64_t end) {
    Exactly<T> scratch(channel_scratch(c));
    HAMFAST_ISA::channel_forward(c, begin, end, scratch.data);
  });
  check("channel out", difference(out.data, a[kOut]));
  c.out[slot_x] = Maybe<void>(grad_x.data), c.out[slot_y] = Maybe<void>(grad_y.data);
  c.out[slot_w] = Maybe<void>(grad_w.data);
  c.order = a[kSenderOrder].as<int64_t>();
  c.ptr = a[kSenderPtr].as<int64_t>();
  in_threads(threads, chunks, [&](int64_t begin, int64_t end) {
    Exactly<T> scratch(channel_scratch(c));
    for (int64_t p = begin; p < end; ++p)
      HAMFAST_ISA::channel_backward(c, nodes * p / chunks, nodes * (p + 1) / chunks, p,
                                    scratch.data);
  });
  if (shared)
    for (int64_t p = 1; p < chunks; ++p)
      for (int64_t i = 0; i < c.w_dim; ++i) grad_w.data[i] += grad_w.data[p * c.w_dim + i];
  check("channel grad_x", difference(grad_x.data, a[kGradX]));
  check("channel grad_y", difference(grad_y.data, a[kGradY]));
  check("channel grad_w", difference(grad_w.data, a[kGradW]));

  // The general kernel, all paths of the same plan.
  const int results[4] = {kGradX, kGradY, kGradW, kOut};
  for (int slot = 0; slot < 4; ++slot) {
    GeneralCall<T> p{};
    p.paths = a[kPaths].as<Path>();
    p.num_paths = a[kPaths].size<Path>();
    p.cg = {a[kCgIndex].as<int64_t>(), a[kCgValue].as<double>()};
    p.slot = static_cast<Slot>(slot);
    for (int n = 0; n < 4; ++n) {
      if (n != slot) p.operand[n] = a[data[n]].as<T>();
      p.dim[n] = n == slot_w && shared ? 0 : dim[n];
    }
    p.index[slot_x] = a[kSenders].as<int64_t>();
    p.index[slot_g] = a[kReceivers].as<int64_t>();
    if (slot == slot_x || slot == slot_g) {
      p.order = a[slot == slot_x ? kSenderOrder : kReceiverOrder].as<int64_t>();
      p.ptr = a[slot == slot_x ? kSenderPtr : kReceiverPtr].as<int64_t>();
    }
    p.edges = edges;
    p.out_dim = dim[slot];
    p.scratch_size = dims.scratch;
    int64_t rows = slot == slot_x || slot == slot_g ? nodes : edges;
    if (slot == slot_w && shared) {
      rows = chunks;
      p.chunk = edges > 0 ? (edges + chunks - 1) / chunks : 1;
    }
    Exactly<T> result(rows * p.out_dim);
    for (int64_t i = 0; i < result.n; ++i) result.data[i] = 0;
    p.out = result.data;
    in_threads(threads, rows, [&](int64_t begin, int64_t end) {
      Exactly<T> scratch(p.scratch_size);
      HAMFAST_ISA::general_rows(p, begin, end, scratch.data);
    });
    if (slot == slot_w && shared)
      for (int64_t q = 1; q < chunks; ++q)
        for (int64_t i = 0; i < p.out_dim; ++i) result.data[i] += result.data[q * p.out_dim + i];
    check("general", difference(result.data, a[results[slot]]));
  }
  return worst < 1e-11 ? 0 : 1;
}
