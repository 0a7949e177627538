// A thread's working memory, aligned to cache lines: vectors that straddle two lines cost twice.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace hamfast {

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : data_(static_cast<T*>(
            ::operator new[](static_cast<size_t>(n > 0 ? n : 1) * sizeof(T), kLine))) {}
  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, kLine); }
  };
  std::unique_ptr<T[], Free> data_;
};

}  // namespace hamfast
