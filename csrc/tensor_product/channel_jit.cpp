#include "tensor_product/channel_jit.h"

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace hamfast {
namespace {

auto tie(const ChannelKey& k) {
  const ChannelCallKind& c = k.kind;
  return std::make_tuple(k.plan, k.capability, c.forward, c.operands, c.directions, c.wanted, int(c.storage),
                         int(c.x_layout), int(c.g_layout), c.shared_weights, c.hidden, c.passes);
}
struct Before {
  bool operator()(const ChannelKey& a, const ChannelKey& b) const { return tie(a) < tie(b); }
};

}  // namespace

const ChannelJit& channel_kernel(const ChannelKey& key, ChannelTables (*tables)(const void*), const void* context) {
  static std::mutex mutex;
  static std::map<ChannelKey, std::unique_ptr<ChannelJit>, Before> kernels;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<ChannelJit>& found = kernels[key];
  if (!found) {
    const ChannelSource source = channel_source(tables(context), key.kind);
    auto made = std::make_unique<ChannelJit>(ChannelJit{{}, source.units, source.shared_bytes});
    if (source.shared_bytes <= kMostShared)
      made->kernel.emplace(compile_channel(source.header, key.capability), kChannelKernel);
    found = std::move(made);
  }
  return *found;
}

}  // namespace hamfast
