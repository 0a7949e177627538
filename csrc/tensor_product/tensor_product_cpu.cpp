#include <torch/csrc/stable/library.h>

#include "common/host_pool.h"
#include "common/scratch.h"
#include "tensor_product/channel_kernel_isa.h"
#include "tensor_product/path_kernel_isa.h"
#include "tensor_product/tensor_product_call.h"

namespace hamfast {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;

constexpr int64_t kMostParts = 64;
constexpr int64_t kStreamedBytes = int64_t(8) << 20;

struct TensorProductOnCpu {
  using Guard = NoGuard;
  static constexpr bool kChannels = true;

  template <class T>
  static void paths(const TensorProductCall<T>& call, int64_t rows, const Tensor&) {
    parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(call.scratch_size);
      HAMFAST_ISA_CALL(tensor_product_rows, call, begin, end, scratch.data());
    });
  }

  // out[i] += sum_p in[p * n + i], in the order of p.
  template <class T>
  static void add_rows(const T* in, int64_t parts, int64_t n, T* out, int32_t) {
    parallel_for(0, n, 16384, [&](int64_t begin, int64_t end) {
      for (int64_t p = 0; p < parts; ++p)
        for (int64_t i = begin; i < end; ++i) out[i] += in[p * n + i];
    });
  }

  static std::vector<Tensor> channels(const TensorProductArguments& args) {
    if (args.any_operand().scalar_type() == ScalarType::Double) return channels_in<double>(args);
    return channels_in<float>(args);
  }

 private:
  static Storage storage_of(const Tensor& t) {
    switch (t.scalar_type()) {
      case ScalarType::Double:
        return Storage::float64;
      case ScalarType::BFloat16:
        return Storage::bfloat16;
      case ScalarType::Half:
        return Storage::float16;
      case ScalarType::Float:
        return Storage::float32;
      default:
        STD_TORCH_CHECK(false, "tensor_product: expected float64, float32, bfloat16 or float16");
    }
  }

  template <class T>
  static std::vector<Tensor> channels_in(const TensorProductArguments& args) {
    const Tensor& like = args.any_operand();
    constexpr ScalarType compute = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
    ChannelCall<T> c{};
    c.tasks = reinterpret_cast<const ChannelTask*>(args.tasks.const_data_ptr<int64_t>());
    c.num_tasks = args.tasks.size(0);
    c.x_blocks = reinterpret_cast<const ChannelBlock*>(args.x_blocks.const_data_ptr<int64_t>());
    c.num_x_blocks = args.x_blocks.size(0);
    c.g_blocks = reinterpret_cast<const ChannelBlock*>(args.g_blocks.const_data_ptr<int64_t>());
    c.num_g_blocks = args.g_blocks.size(0);
    c.entries = reinterpret_cast<const CouplingEntry*>(args.entries.const_data_ptr<int64_t>());
    c.covers_weights = args.dims[8] != 0;
    c.coupling = args.coupling.const_data_ptr<T>();
    c.x_dim = args.dims[0], c.y_dim = args.dims[1], c.w_dim = args.dims[2], c.g_dim = args.dims[3];
    c.x_padded = args.dims[5], c.g_padded = args.dims[6], c.max_coupling = args.dims[7];
    c.storage = storage_of(like);
    c.x_layout = static_cast<Layout>(args.x_layout);
    c.g_layout = static_cast<Layout>(args.g_layout);
    c.x_rows = args.rows(slot_x), c.g_rows = args.rows(slot_g);
    c.shared_weights = args.shared_weights;
    c.derivative = args.has_directions();

    std::vector<Tensor> kept;  // what the call points to
    auto new_compute = [&](int64_t rows, int64_t columns) {
      kept.push_back(pooled_empty({rows, columns}, compute));
      return kept.back().template mutable_data_ptr<T>();
    };
    for (int n = 0; n < 2; ++n)
      for (int a = 0; a < 4; ++a) {
        const auto& tensor = n == 0 ? args.operand[a] : args.direction[a];
        if (!tensor.has_value()) continue;
        Rows& rows = n == 0 ? c.operand[a] : c.direction[a];
        rows.data = tensor->const_data_ptr();
        rows.dim = a == slot_w && args.shared_weights ? 0 : args.dims[a];
        if (a != slot_x && a != slot_g) continue;
        rows.index = data_or_null<int64_t>(a == slot_x ? args.senders : args.receivers);
        if (!rows.index) continue;
        // Nodes have many edges: their rows are brought into padded blocks once.
        T* prepared = new_compute(tensor->size(0), a == slot_g ? c.g_padded : c.x_padded);
        parallel_for(0, tensor->size(0), 8, [&](int64_t begin, int64_t end) {
          Scratch<T> scratch(channel_scratch(c));
          HAMFAST_ISA_CALL(channel_prepare, c, a == slot_g, rows.data, begin, end, prepared, scratch.data());
        });
        rows.prepared = prepared;
      }

    std::vector<Tensor> out;
    for (int slot = 0; slot < 4; ++slot) {
      if (!args.wants(slot)) {
        out.push_back(torch::stable::new_empty(like, {0}));
      } else if (args.reduces_all(slot)) {
        out.push_back(torch::stable::new_zeros(like, {args.dims[slot]}, compute));
      } else {
        out.push_back(pooled_empty({args.rows(slot), args.dims[slot]}, like.scalar_type()));
        c.out[slot] = out.back().mutable_data_ptr();
        // What does not fit into the caches need not pass through them.
        c.stream[slot] = args.rows(slot) * args.dims[slot] * static_cast<int64_t>(sizeof(T)) > kStreamedBytes;
      }
    }
    if (args.wants(slot_g)) {
      if (args.reduces(slot_g)) {
        c.order = data_or_null<int64_t>(args.receiver_order);
        c.ptr = data_or_null<int64_t>(args.receiver_ptr);
      }
      parallel_for(0, args.rows(slot_g), 8, [&](int64_t begin, int64_t end) {
        Scratch<T> scratch(channel_scratch(c));
        HAMFAST_ISA_CALL(channel_forward, c, begin, end, scratch.data());
      });
    }
    if (args.wants(slot_x) || args.wants(slot_y) || args.wants(slot_w)) {
      c.order = data_or_null<int64_t>(args.sender_order);
      c.ptr = data_or_null<int64_t>(args.sender_ptr);
      const int64_t rows = c.ptr ? args.rows(slot_x) : args.edges;
      const int64_t parts = TensorProductArguments::parts_of(rows, kMostParts);
      const bool sums = args.wants(slot_w) && args.shared_weights;
      T* partial = sums ? new_compute(parts, args.dims[slot_w]) : nullptr;
      if (sums) c.out[slot_w] = partial;
      parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        Scratch<T> scratch(channel_scratch(c));
        for (int64_t part = begin; part < end; ++part)
          HAMFAST_ISA_CALL(channel_backward, c, rows * part / parts, rows * (part + 1) / parts, part, scratch.data());
      });
      if (sums) {
        add_rows(partial, parts, args.dims[slot_w], out[slot_w].mutable_data_ptr<T>(), 0);
        if (like.scalar_type() != compute) out[slot_w] = torch::stable::to(out[slot_w], like.scalar_type());
      }
    }
    return out;
  }
};

}  // namespace hamfast

STABLE_TORCH_LIBRARY_IMPL(hamfast, CPU, m) {
  m.impl("tensor_product", TORCH_BOX(&hamfast::tensor_product<hamfast::TensorProductOnCpu>));
}
