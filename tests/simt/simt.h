// Runs CUDA kernels on the host, thread by thread: a small SIMT executor for tests.
//
// Every CUDA thread is a fiber; one OS thread runs them all, switching where they wait for one
// another. So a kernel's source, compiled by the host's compiler, runs under the address and
// undefined-behaviour sanitizers, one block after the other. Between two barriers the order of the
// threads is random (by seed): a kernel with a race gives other numbers for other seeds. Dynamic
// shared memory is a fresh allocation of the exact size per block, filled with NaN. A barrier or
// warp operation that some of its threads never reach ends the program with a message.
//
// What it cannot show: effects of the memory model (threads here see each other's writes at once),
// lanes of a warp that run apart without a barrier on purpose, how tensor cores round the sums
// inside of a product, and time.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace simt {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 << 10;

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // the address sanitizer's
  bool done = false, waiting = false;
};

struct Warp {
  uint32_t arrived = 0, expected = 0;
  uint64_t posted[kWarp];
  uint32_t fragments[kWarp]
                    [6];  // of a matrix product: four numbers of the left matrix, two of the right
};

class Executor {
 public:
  dim3 grid, block, block_index;
  unsigned thread = 0;  // the one that runs

  static Executor& get() {
    static Executor executor;
    return executor;
  }

  void launch(dim3 grid_size, dim3 block_size, size_t shared_bytes, uint64_t seed,
              const std::function<void()>& kernel) {
    grid = grid_size, block = block_size;
    random_.seed(seed);
    kernel_ = &kernel;
    std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
    for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
    std::shuffle(blocks.begin(), blocks.end(), random_);
    for (const unsigned index : blocks) {
      block_index = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
      std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes]);
      std::memset(shared.get(), 0xff, shared_bytes);  // NaN
      shared_ = shared.get();
      run_block();
    }
  }

  void* shared() const { return shared_; }

  // All threads of `mask` in this thread's warp.
  void warp_barrier(uint32_t mask) {
    Warp& warp = warps_[thread / kWarp];
    const uint32_t lane = 1u << thread % kWarp;
    if (!(mask & lane)) fail("a thread waits for a warp operation whose mask it is not in");
    if (warp.arrived && warp.expected != mask) fail("threads of a warp meet with different masks");
    warp.expected = mask;
    warp.arrived |= lane;
    if (warp.arrived == mask) {
      warp.arrived = 0;
      for (int n = 0; n < kWarp; ++n)
        if (mask >> n & 1) wake(thread / kWarp * kWarp + n);
      return;
    }
    wait();
  }

  void block_barrier() {
    if (++arrived_ == fibers_.size()) {
      arrived_ = 0;
      for (unsigned n = 0; n < fibers_.size(); ++n) wake(n);
      return;
    }
    wait();
  }

  // What `source` of this warp posted.
  uint64_t exchange(uint32_t mask, uint64_t bits, int source) {
    Warp& warp = warps_[thread / kWarp];
    warp.posted[thread % kWarp] = bits;
    warp_barrier(mask);
    if (!(mask >> source & 1)) fail("a shuffle reads from a lane outside of its mask");
    const uint64_t found = warp.posted[source];
    warp_barrier(mask);
    return found;
  }

  // mma.m16n8k8 on TF32: lane 4 g + t holds a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4],
  // b[t, g], b[t + 4, g] and d[g, 2 t], d[g, 2 t + 1], d[g + 8, 2 t], d[g + 8, 2 t + 1].
  void multiply_add_m16n8k8(float* d, const uint32_t* a, const uint32_t* b) {
    Warp& warp = warps_[thread / kWarp];
    const unsigned lane = thread % kWarp, g = lane / 4, t = lane % 4;
    for (int n = 0; n < 4; ++n) warp.fragments[lane][n] = a[n];
    for (int n = 0; n < 2; ++n) warp.fragments[lane][4 + n] = b[n];
    for (int n = 0; n < 6; ++n)
      if (warp.fragments[lane][n] & 0x1fff)
        fail("a matrix product reads a number that is not TF32");
    warp_barrier(0xffffffffu);
    auto number = [&](unsigned from, int n) {
      float value;
      std::memcpy(&value, &warp.fragments[from][n], sizeof(value));
      return value;
    };
    for (int n = 0; n < 4; ++n)
      for (unsigned k = 0; k < 8; ++k) {
        const float left = number(4 * g + k % 4, n / 2 + 2 * (k / 4));
        const float right = number(4 * (2 * t + n % 2) + k % 4, 4 + k / 4);
        d[n] += left * right;
      }
    warp_barrier(0xffffffffu);
  }

  [[noreturn]] void fail(const char* what) const {
    std::fprintf(stderr, "simt: %s (block %u %u %u, thread %u)\n", what, block_index.x,
                 block_index.y, block_index.z, thread);
    std::abort();
  }

 private:
  std::vector<std::unique_ptr<char[]>> stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<unsigned> runnable_;
  unsigned arrived_ = 0;
  unsigned char* shared_ = nullptr;
  ucontext_t scheduler_;
  std::mt19937_64 random_;
  const std::function<void()>* kernel_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_size_ = 0;
#endif

  void run_block() {
    const unsigned threads = block.x * block.y * block.z;
    fibers_ = std::vector<Fiber>(threads);
    while (stacks_.size() < threads)
      stacks_.emplace_back(new char[kStack]);  // kept: new ones are slow
    warps_.assign((threads + kWarp - 1) / kWarp, {});
    runnable_.clear();
    arrived_ = 0;
    for (unsigned n = 0; n < threads; ++n) {
      Fiber& fiber = fibers_[n];
      fiber.stack = stacks_[n].get();
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack;
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, &Executor::start, 0);
      runnable_.push_back(n);
    }
    unsigned left = threads;
    while (left > 0) {
      if (runnable_.empty()) fail("threads wait at a barrier that others never reach");
      std::swap(runnable_[random_() % runnable_.size()], runnable_.back());
      thread = runnable_.back();
      runnable_.pop_back();
      enter(fibers_[thread]);
      if (fibers_[thread].done) --left;
    }
  }

  static void start() {
    Executor& self = get();
    self.arrive(nullptr);
    (*self.kernel_)();
    self.fibers_[self.thread].done = true;
    self.leave(nullptr);  // for good
  }

  void wake(unsigned n) {
    if (fibers_[n].waiting) runnable_.push_back(n);
    fibers_[n].waiting = false;
  }

  void wait() {
    Fiber& fiber = fibers_[thread];
    fiber.waiting = true;
    leave(&fiber.fake_stack);
    swapcontext(&fiber.context, &scheduler_);
    arrive(fiber.fake_stack);
  }

  // The sanitizer is told of every change of stack.
  void enter(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack, kStack);
    swapcontext(&scheduler_, &fiber.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    swapcontext(&scheduler_, &fiber.context);
#endif
  }
  void leave([[maybe_unused]] void** fake) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake, scheduler_stack_, scheduler_size_);
#endif
  }
  void arrive([[maybe_unused]] void* fake) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack_, &scheduler_size_);
#endif
  }
};

inline unsigned thread_in(unsigned unit, unsigned size) {
  return Executor::get().thread / unit % size;
}

// kernel<<<grid, block, shared>>>(arguments...)
template <class Kernel, class... Arguments>
void launch(dim3 grid, dim3 block, size_t shared, uint64_t seed, Kernel kernel,
            Arguments... arguments) {
  Executor::get().launch(grid, block, shared, seed, [&] { kernel(arguments...); });
}

template <class T>
T exchange(uint32_t mask, T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Executor::get().exchange(mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Of the order of threads: HAMFAST_SIMT_SEED.
inline uint64_t seed() {
  const char* text = std::getenv("HAMFAST_SIMT_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 0;
}

inline uint32_t to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const bool is_number = (bits >> 23 & 0xff) != 0xff;
  return (is_number ? bits + 0x1000 : bits) & ~0x1fffu;
}
inline void multiply_add_m16n8k8(float* d, const uint32_t* a, const uint32_t* b) {
  Executor::get().multiply_add_m16n8k8(d, a, b);
}

inline int lane() { return static_cast<int>(Executor::get().thread % kWarp); }

}  // namespace simt

// CUDA's names.
#define threadIdx                                                                                \
  dim3 {                                                                                         \
    simt::thread_in(1, simt::Executor::get().block.x),                                           \
        simt::thread_in(simt::Executor::get().block.x, simt::Executor::get().block.y),           \
        simt::thread_in(simt::Executor::get().block.x * simt::Executor::get().block.y, 1u << 31) \
  }
#define blockIdx simt::Executor::get().block_index
#define blockDim simt::Executor::get().block
#define gridDim simt::Executor::get().grid

inline void __syncthreads() { simt::Executor::get().block_barrier(); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { simt::Executor::get().warp_barrier(mask); }
template <class T>
T __shfl_sync(uint32_t mask, T value, int source) {
  return simt::exchange(mask, value, source & 31);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int step) {
  return simt::exchange(mask, value, simt::lane() ^ step);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int step) {
  const int source = simt::lane() + step;
  return simt::exchange(mask, value, source < 32 ? source : simt::lane());
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate) {
  uint32_t votes = 0;
  for (int n = 0; n < 32; ++n)
    if (mask >> n & 1) votes |= uint32_t(simt::exchange(mask, predicate, n)) << n;
  return votes;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T atomicAdd(T* p, T value) {
  const T before = *p;
  *p += value;
  return before;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
