#include "tensor_product/channel_jit.h"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace hamfast {
namespace {

struct Before {
  bool operator()(const ChannelKey& a, const ChannelKey& b) const {
    const auto numbers = std::make_tuple(a.plan, a.capability),
               others = std::make_tuple(b.plan, b.capability);
    if (numbers != others) return numbers < others;
    return std::memcmp(&a.variant, &b.variant, sizeof(ChannelVariant)) < 0;
  }
};

}  // namespace

const ChannelJit& channel_kernel(const ChannelKey& key, ChannelTables (*tables)(const void*),
                                 const void* context) {
  static std::mutex mutex;
  static std::map<ChannelKey, std::unique_ptr<ChannelJit>, Before> kernels;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<ChannelJit>& found = kernels[key];
  if (!found) {
    const ChannelSource source = channel_source(tables(context), key.variant);
    auto made = std::make_unique<ChannelJit>(ChannelJit{{}, source.units, source.shared_bytes});
    if (source.shared_bytes <= kMostShared)
      made->kernel.emplace(compile_channel(source.header, key.capability), kChannelKernel);
    found = std::move(made);
  }
  return *found;
}

}  // namespace hamfast
