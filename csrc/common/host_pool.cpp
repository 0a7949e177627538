#include "common/host_pool.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hamfast {

namespace {

constexpr size_t kSmallest = size_t(1) << 20;  // smaller results come from torch's allocator
constexpr size_t kHugePage = size_t(2) << 20;

class HostPool {
 public:
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.lower_bound(bytes);
    if (found != free_.end() && found->first <= bytes + bytes / 4) {
      void* block = found->second;
      size_[block] = found->first;
      kept_ -= found->first;
      free_.erase(found);
      return block;
    }
    void* block = std::aligned_alloc(kHugePage, bytes);
    STD_TORCH_CHECK(block != nullptr, "hamfast: out of memory: ", bytes,
                    " bytes of host memory could not be allocated");
#if defined(MADV_HUGEPAGE)
    madvise(block, bytes, MADV_HUGEPAGE);
#endif
    size_[block] = bytes;
    return block;
  }

  void give_back(void* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = size_.find(block);
    const size_t bytes = found->second;
    size_.erase(found);
    if (bytes > limit_) return std::free(block);
    while (kept_ + bytes > limit_) {  // the largest goes first
      const auto last = std::prev(free_.end());
      kept_ -= last->first;
      std::free(last->second);
      free_.erase(last);
    }
    free_.emplace(bytes, block);
    kept_ += bytes;
  }

  bool enabled() const { return limit_ > 0; }
  bool poisons() const { return poison_; }

 private:
  static size_t limit_from_environment() {
    const char* text = std::getenv("HAMFAST_HOST_POOL_MB");
    const long long value = text ? std::atoll(text) : 1024;
    return value > 0 ? size_t(value) << 20 : 0;
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  std::map<void*, size_t> size_;  // of the blocks in use
  size_t kept_ = 0;
  const size_t limit_ = limit_from_environment();
  const bool poison_ = [] {
    const char* text = std::getenv("HAMFAST_POISON");
    return text && std::strcmp(text, "1") == 0;
  }();
};

// Never destroyed: tensors may outlive every static object.
HostPool& pool() {
  static HostPool* const instance = new HostPool;
  return *instance;
}

}  // namespace

Tensor pooled_empty(const std::vector<int64_t>& sizes, ScalarType type) {
  size_t bytes = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  std::vector<int64_t> strides(sizes.size());
  int64_t numel = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = numel;
    numel *= sizes[i];
  }
  bytes *= static_cast<size_t>(numel);
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  if (bytes < kSmallest || !pool().enabled())
    return torch::stable::empty(sizes, type, std::nullopt, cpu);
  void* block = pool().take((bytes + kHugePage - 1) / kHugePage * kHugePage);
  if (pool().poisons()) std::memset(block, 0xff, bytes);
  return torch::stable::from_blob(block, sizes, strides, cpu, type,
                                  [](void* p) { pool().give_back(p); });
}

}  // namespace hamfast
