// Work on shares of a range, one thread each, as the kernels' launchers deal it out.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

// f(begin, end) on the share of each thread.
template <class F>
void in_threads(int threads, int64_t n, const F& f) {
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&, t] { f(n * t / threads, n * (t + 1) / threads); });
  for (auto& thread : pool) thread.join();
}
